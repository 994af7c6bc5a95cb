// CPU kernel of NMS, see nms.h.
//
// 1. Each list is sorted by (label, falling score, index): the boxes of one label form a segment,
//    and segments are independent of each other.
// 2. A segment is cut into blocks. Each box of a block is first tested against the boxes kept
//    before the block (in parallel), the survivors then, one after the other, against those kept
//    within the block. A test stops at the first overlap found.
// Long segments are processed one by one with parallel blocks, short ones in parallel. No result
// depends on the number of threads, and nothing of size boxes x boxes is ever stored.
#include "nms.h"

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "../box_iou.h"

namespace fcos_core {
namespace {

constexpr int64_t kTile = 64;           // overlap tests between two looks at the result
constexpr int64_t kBlock = 1024;        // boxes tested in parallel
constexpr int64_t kLongSegment = 2048;  // from here on a segment is worth threads of its own
// Less work than this is done before another thread wakes up.
constexpr int64_t kTestsPerThread = int64_t(1) << 19;
constexpr int64_t kBoxesPerThread = 8192;

// Equal-width integers keep the comparison result in the lane of the coordinates.
template <typename T>
struct LaneInt;
template <>
struct LaneInt<float> {
  using type = int32_t;
};
template <>
struct LaneInt<double> {
  using type = int64_t;
};

// Boxes as five arrays, so that consecutive boxes fill a vector register.
template <typename T>
struct BoxArrays {
  std::vector<T> x1, y1, x2, y2, area;

  // A NaN area overlaps nothing: the unused end of the last tile needs no special case.
  explicit BoxArrays(int64_t size)
      : x1(size), y1(size), x2(size), y2(size), area(size, std::numeric_limits<T>::quiet_NaN()) {}

  void copy_from(const BoxArrays& other, int64_t from, int64_t to) {
    x1[to] = other.x1[from];
    y1[to] = other.y1[from];
    x2[to] = other.x2[from];
    y2[to] = other.y2[from];
    area[to] = other.area[from];
  }
};

// Whether box `i` of `boxes` overlaps one of `kept`[begin, end), begin and end multiples of kTile.
template <typename T>
FCOS_INLINE bool overlaps_any(const BoxArrays<T>& boxes, int64_t i, const BoxArrays<T>& kept,
                              int64_t begin, int64_t end, T threshold) {
  const T bx1 = boxes.x1[i], by1 = boxes.y1[i], bx2 = boxes.x2[i], by2 = boxes.y2[i];
  const T b_area = boxes.area[i];
  for (int64_t tile = begin; tile < end; tile += kTile) {
    const T* x1 = kept.x1.data() + tile;
    const T* y1 = kept.y1.data() + tile;
    const T* x2 = kept.x2.data() + tile;
    const T* y2 = kept.y2.data() + tile;
    const T* area = kept.area.data() + tile;
    typename LaneInt<T>::type found = 0;
    for (int64_t j = 0; j < kTile; ++j) {
      const T iou = box_iou(x1[j], y1[j], x2[j], y2[j], area[j], bx1, by1, bx2, by2, b_area);
      found |= iou > threshold;
    }
    if (found) return true;
  }
  return false;
}

// alive[i - begin] = whether box i overlaps none of the first `num_kept` kept boxes.
// Plain overloads, since compilers clone no templates.
FCOS_SIMD_CLONES void test_block(const BoxArrays<float>& boxes, int64_t begin, int64_t end,
                                 const BoxArrays<float>& kept, int64_t num_kept, float threshold,
                                 char* alive) {
  const int64_t kept_end = ceil_div(num_kept, kTile) * kTile;
  for (int64_t i = begin; i < end; ++i)
    alive[i - begin] = !overlaps_any(boxes, i, kept, 0, kept_end, threshold);
}

FCOS_SIMD_CLONES void test_block(const BoxArrays<double>& boxes, int64_t begin, int64_t end,
                                 const BoxArrays<double>& kept, int64_t num_kept, double threshold,
                                 char* alive) {
  const int64_t kept_end = ceil_div(num_kept, kTile) * kTile;
  for (int64_t i = begin; i < end; ++i)
    alive[i - begin] = !overlaps_any(boxes, i, kept, 0, kept_end, threshold);
}

// Goes through the block in order and appends to `kept` what overlaps nothing kept since the block
// began; alive[] then says what was kept. Returns the new number of kept boxes.
template <typename T>
FCOS_INLINE int64_t settle_block_body(const BoxArrays<T>& boxes, int64_t begin, int64_t end,
                                      BoxArrays<T>& kept, int64_t num_kept, T threshold,
                                      char* alive) {
  // Earlier boxes of the first tile are tested a second time, which changes nothing.
  const int64_t tile_begin = num_kept / kTile * kTile;
  for (int64_t i = begin; i < end; ++i) {
    if (!alive[i - begin]) continue;
    const int64_t tile_end = ceil_div(num_kept, kTile) * kTile;
    if (overlaps_any(boxes, i, kept, tile_begin, tile_end, threshold)) {
      alive[i - begin] = 0;
    } else {
      kept.copy_from(boxes, i, num_kept++);
    }
  }
  return num_kept;
}

FCOS_SIMD_CLONES int64_t settle_block(const BoxArrays<float>& boxes, int64_t begin, int64_t end,
                                      BoxArrays<float>& kept, int64_t num_kept, float threshold,
                                      char* alive) {
  return settle_block_body(boxes, begin, end, kept, num_kept, threshold, alive);
}

FCOS_SIMD_CLONES int64_t settle_block(const BoxArrays<double>& boxes, int64_t begin, int64_t end,
                                      BoxArrays<double>& kept, int64_t num_kept, double threshold,
                                      char* alive) {
  return settle_block_body(boxes, begin, end, kept, num_kept, threshold, alive);
}

struct Candidate {
  int64_t label;
  uint64_t rank;   // small = high score
  int64_t position;  // in the flattened input

  bool operator<(const Candidate& other) const {
    if (label != other.label) return label < other.label;
    if (rank != other.rank) return rank < other.rank;
    return position < other.position;
  }
};

template <typename Score>
uint64_t rank_at(const void* scores, int64_t i) {
  return rank_of(static_cast<double>(static_cast<const Score*>(scores)[i]));
}

using RankAt = uint64_t (*)(const void*, int64_t);

RankAt rank_function(DType dtype) {
  switch (dtype) {
    case DType::float64: return rank_at<double>;
    case DType::float32: return rank_at<float>;
    case DType::float16: return rank_at<c10::Half>;
    default: return rank_at<c10::BFloat16>;
  }
}

// Half-open range of sorted candidates that share list and label.
struct Segment {
  int64_t begin, end;
};

struct Lists {
  const void* scores;
  RankAt rank;
  const int64_t* labels;
  bool skip_negative;
  int64_t num_lists, num_boxes;
};

// Sorted candidates of all lists, one list after the other, without padding.
std::vector<Candidate> sort_candidates(const Lists& lists, std::vector<Segment>* segments) {
  std::vector<Candidate> all(lists.num_lists * lists.num_boxes);
  std::vector<int64_t> counts(lists.num_lists);
  const int64_t grain = ceil_div(kBoxesPerThread, std::max<int64_t>(lists.num_boxes, 1));
  at::parallel_for(0, lists.num_lists, grain, [&](int64_t first, int64_t last) {
    for (int64_t list = first; list < last; ++list) {
      Candidate* out = all.data() + list * lists.num_boxes;
      int64_t count = 0;
      for (int64_t k = 0; k < lists.num_boxes; ++k) {
        const int64_t position = list * lists.num_boxes + k;
        const int64_t label = lists.labels ? lists.labels[position] : 0;
        if (lists.skip_negative && label < 0) continue;
        out[count++] = {label, lists.rank(lists.scores, position), position};
      }
      std::sort(out, out + count);
      counts[list] = count;
    }
  });

  std::vector<Candidate> packed;
  packed.reserve(all.size());
  for (int64_t list = 0; list < lists.num_lists; ++list) {
    const Candidate* in = all.data() + list * lists.num_boxes;
    for (int64_t k = 0; k < counts[list]; ++k) {
      const int64_t position = static_cast<int64_t>(packed.size());
      if (k == 0 || in[k].label != in[k - 1].label) segments->push_back({position, position});
      segments->back().end = position + 1;
      packed.push_back(in[k]);
    }
  }
  return packed;
}

template <typename Source, typename T>
BoxArrays<T> gather_boxes(const Source* source, const std::vector<Candidate>& candidates) {
  BoxArrays<T> boxes(static_cast<int64_t>(candidates.size()));
  at::parallel_for(0, candidates.size(), kBoxesPerThread, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Source* box = source + 4 * candidates[i].position;
      boxes.x1[i] = static_cast<T>(box[0]);
      boxes.y1[i] = static_cast<T>(box[1]);
      boxes.x2[i] = static_cast<T>(box[2]);
      boxes.y2[i] = static_cast<T>(box[3]);
      boxes.area[i] = box_area(boxes.x1[i], boxes.y1[i], boxes.x2[i], boxes.y2[i]);
    }
  });
  return boxes;
}

template <typename T>
void suppress_segment(const BoxArrays<T>& boxes, const std::vector<Candidate>& candidates,
                      Segment segment, T threshold, bool* keep) {
  const int64_t size = segment.end - segment.begin;
  BoxArrays<T> kept(ceil_div(size, kTile) * kTile);
  std::vector<char> alive(std::min(size, kBlock));
  int64_t num_kept = 0;
  for (int64_t begin = segment.begin; begin < segment.end; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, segment.end);
    // Nested in a parallel region this runs on the calling thread.
    const int64_t grain = std::max(kTile, kTestsPerThread / std::max<int64_t>(num_kept, 1));
    at::parallel_for(begin, end, grain, [&](int64_t from, int64_t to) {
      test_block(boxes, from, to, kept, num_kept, threshold, alive.data() + (from - begin));
    });
    num_kept = settle_block(boxes, begin, end, kept, num_kept, threshold, alive.data());
    for (int64_t i = begin; i < end; ++i) keep[candidates[i].position] = alive[i - begin];
  }
}

template <typename Source, typename T>
void suppress(const void* source, const std::vector<Candidate>& candidates,
              const std::vector<Segment>& segments, double iou_threshold, bool* keep) {
  const T threshold = static_cast<T>(iou_threshold);
  const BoxArrays<T> boxes =
      gather_boxes<Source, T>(static_cast<const Source*>(source), candidates);
  std::vector<Segment> short_segments;
  int64_t tests = 1;  // at most, in short segments
  for (const Segment& segment : segments) {
    const int64_t size = segment.end - segment.begin;
    if (size < kLongSegment) {
      short_segments.push_back(segment);
      tests += size * size / 2;
    } else {
      suppress_segment(boxes, candidates, segment, threshold, keep);
    }
  }
  const int64_t count = static_cast<int64_t>(short_segments.size());
  const int64_t grain = std::max<int64_t>(1, count * kTestsPerThread / tests);
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      suppress_segment(boxes, candidates, short_segments[i], threshold, keep);
  });
}

}  // namespace

void nms_cpu(const void* boxes, DType boxes_dtype, const void* scores, DType scores_dtype,
             const int64_t* labels, bool skip_negative, int64_t num_lists, int64_t num_boxes,
             double iou_threshold, bool* keep) {
  std::fill(keep, keep + num_lists * num_boxes, false);
  std::vector<Segment> segments;
  const Lists lists = {scores, rank_function(scores_dtype), labels, skip_negative, num_lists,
                       num_boxes};
  const std::vector<Candidate> candidates = sort_candidates(lists, &segments);
  switch (boxes_dtype) {
    case DType::float64:
      return suppress<double, double>(boxes, candidates, segments, iou_threshold, keep);
    case DType::float32:
      return suppress<float, float>(boxes, candidates, segments, iou_threshold, keep);
    case DType::float16:
      return suppress<c10::Half, float>(boxes, candidates, segments, iou_threshold, keep);
    case DType::bfloat16:
      return suppress<c10::BFloat16, float>(boxes, candidates, segments, iou_threshold, keep);
  }
}

}  // namespace fcos_core
