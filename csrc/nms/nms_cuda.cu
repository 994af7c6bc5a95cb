// CUDA kernels of NMS, see nms.h.
//
// 1. sort_runs, merge_runs   keys (label, falling score, index) of every list: a block sorts up to
//                            kRun keys in shared memory, then up to kWays runs at a time are merged.
//                            No two keys are equal, so there is one order only.
// 2. arrange                 the boxes in that order; those of one label are a segment of the list.
// 3. find_overlaps           a list is cut into tiles of up to kTile boxes. Each box gets a bit for
//                            every earlier box of its tile and segment that overlaps it.
// 4. settle, strike          tile after tile: one block says from the bits which boxes of the tile
//                            stay, then many blocks strike the later boxes that overlap one of them.
// All lists go through a launch together. Lists of up to kTile boxes take 4 launches; longer ones
// 2 per tile and a few for merging. Overlaps are tested once per pair at most, and bits stored for
// pairs within a tile only, so memory is linear in the number of boxes.
#include "nms.h"

#include <cmath>

#include "../box_iou.h"

namespace fcos_core {
namespace {

constexpr int kRun = 2048;     // keys that a block sorts: 40 KB of shared memory
constexpr int kWays = 8;       // runs that are merged at a time
constexpr int kWord = 64;      // boxes of a word of bits
constexpr int kTile = 1024;    // boxes that a block settles, one a thread
constexpr int kWords = kTile / kWord;
constexpr int kLater = 128;    // later boxes that a block tests, one a thread, against kWord boxes
constexpr uint64_t kPaddingLabel = ~uint64_t(0);
constexpr int32_t kNoSegment = 0x7fffffff;  // of padding: it begins after every box

// A block takes the work items blockIdx.x, blockIdx.x + gridDim.x, ...
#define FOR_EACH_WORK(work, count) \
  for (int64_t work = blockIdx.x; work < (count); work += gridDim.x)

unsigned blocks_for(int64_t count) { return grid_size(count, 1); }

// ---- sort ----------------------------------------------------------------------------------------

struct Key {
  uint64_t label, rank;
  int32_t index;  // within the list
};

__device__ bool before(const Key& a, const Key& b) {
  if (a.label != b.label) return a.label < b.label;
  if (a.rank != b.rank) return a.rank < b.rank;
  return a.index < b.index;
}

// [num_lists, num_boxes] keys as three arrays.
struct Keys {
  uint64_t* label;
  uint64_t* rank;
  int32_t* index;

  __device__ Key get(int64_t i) const { return {label[i], rank[i], index[i]}; }
  __device__ void set(int64_t i, const Key& key) const {
    label[i] = key.label;
    rank[i] = key.rank;
    index[i] = key.index;
  }
};

// Unsigned numbers in the order of labels; padding goes last.
__device__ uint64_t label_key(int64_t label, bool skip_negative) {
  if (skip_negative) return label < 0 ? kPaddingLabel : static_cast<uint64_t>(label);
  return static_cast<uint64_t>(label) ^ (uint64_t(1) << 63);
}

// Bitonic sort of `width` keys, a power of two, by the threads of a block.
__device__ void sort_block(const Keys& keys, int width) {
  for (int size = 2; size <= width; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      for (int pair = threadIdx.x; pair < width / 2; pair += blockDim.x) {
        const int low = 2 * pair - (pair & (stride - 1)), high = low + stride;
        const Key a = keys.get(low), b = keys.get(high);
        const bool rising = (low & size) == 0;
        if (before(b, a) == rising) {
          keys.set(low, b);
          keys.set(high, a);
        }
      }
      __syncthreads();
    }
  }
}

// Sorts each run of `width` keys of each list; the last run of a list may be shorter.
template <typename Score>
__global__ void __launch_bounds__(kRun / 2)
    sort_runs(const Score* scores, const int64_t* labels, bool skip_negative, int64_t num_lists,
              int num_boxes, int width, Keys out) {
  __shared__ uint64_t label[kRun], rank[kRun];
  __shared__ int32_t index[kRun];
  const Keys keys = {label, rank, index};
  const int64_t num_runs = ceil_div(num_boxes, width);
  FOR_EACH_WORK(work, num_lists * num_runs) {
    const int begin = static_cast<int>(work % num_runs) * width;
    const int count = num_boxes - begin < width ? num_boxes - begin : width;
    const int64_t offset = work / num_runs * num_boxes + begin;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
      Key key = {~uint64_t(0), ~uint64_t(0), kNoSegment};  // after every real one
      if (i < count) {
        key.label = labels ? label_key(labels[offset + i], skip_negative) : 0;
        key.rank = rank_of(static_cast<double>(widen(scores[offset + i])));
        key.index = begin + i;
      }
      keys.set(i, key);
    }
    __syncthreads();
    sort_block(keys, width);
    for (int i = threadIdx.x; i < count; i += blockDim.x) out.set(offset + i, keys.get(i));
    __syncthreads();
  }
}

// before(keys.get(i), key), reading no more than it needs.
__device__ bool comes_before(const Keys& keys, int64_t i, const Key& key) {
  const uint64_t label = keys.label[i];
  if (label != key.label) return label < key.label;
  const uint64_t rank = keys.rank[i];
  if (rank != key.rank) return rank < key.rank;
  return keys.index[i] < key.index;
}

// How many of the sorted keys [begin, end) come before `key`.
__device__ int64_t count_before(const Keys& keys, int64_t begin, int64_t end, const Key& key) {
  int64_t low = begin, high = end;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (comes_before(keys, middle, key)) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low - begin;
}

// Merges kWays neighbouring runs of length `run` into one: the place of a key is the number of keys
// before it in all of them.
__global__ void merge_runs(Keys in, int64_t num_lists, int64_t num_boxes, int64_t run, Keys out) {
  FCOS_GRID_LOOP(int64_t, i, num_lists * num_boxes) {
    const int64_t list_begin = i / num_boxes * num_boxes;
    const int64_t position = i - list_begin;
    const int64_t group = position / (run * kWays) * (run * kWays);
    const Key key = in.get(i);
    int64_t place = list_begin + group;
    for (int64_t begin = group; begin < group + run * kWays && begin < num_boxes; begin += run) {
      const int64_t end = begin + run < num_boxes ? begin + run : num_boxes;
      place += begin <= position && position < end
                   ? position - begin
                   : count_before(in, list_begin + begin, list_begin + end, key);
    }
    out.set(place, key);
  }
}

// ---- overlaps ------------------------------------------------------------------------------------

// Boxes of all lists in sorted order, [num_lists, num_boxes].
template <typename T>
struct Sorted {
  Pack<T, 4>* box;
  T* area;
  int32_t* segment;      // where the segment begins in the list; kNoSegment: padding
  bool* struck;          // overlaps a box that stays in an earlier tile; null with one tile
  const int32_t* index;  // where the box stands in the input list
};

// For every list, the boxes of the current tile that stay, in order.
template <typename T>
struct Kept {
  Pack<T, 4>* box;    // [num_lists, tile]
  T* area;            // [num_lists, tile]
  int32_t* position;  // [num_lists, tile], in the sorted list
  int32_t* count;     // [num_lists]
};

struct Sizes {
  int64_t num_lists;
  int num_boxes;
  int tile;       // boxes of a tile: kTile, or what holds a short list; a multiple of kWord
  int num_tiles;  // of a list

  __host__ __device__ int words() const { return tile / kWord; }
};

template <typename Box>
__global__ void arrange(const Box* boxes, Keys keys, bool has_labels, bool skip_negative,
                        Sizes sizes, Sorted<compute_t<Box>> sorted) {
  using T = compute_t<Box>;
  FCOS_GRID_LOOP(int64_t, i, sizes.num_lists * sizes.num_boxes) {
    const int64_t begin = i / sizes.num_boxes * sizes.num_boxes;
    const Box* source = boxes + 4 * (begin + keys.index[i]);
    Pack<T, 4> box;
    for (int side = 0; side < 4; ++side) box.values[side] = widen(source[side]);
    sorted.box[i] = box;
    sorted.area[i] = box_area(box.values[0], box.values[1], box.values[2], box.values[3]);
    if (sorted.struck) sorted.struck[i] = false;
    int64_t segment = 0;
    if (has_labels) {
      const uint64_t label = keys.label[i];
      segment = skip_negative && label == kPaddingLabel
                    ? kNoSegment
                    : count_before(keys, begin, begin + sizes.num_boxes, {label, 0, -1});
    }
    sorted.segment[i] = static_cast<int32_t>(segment);
  }
}

__device__ __forceinline__ float smaller(float a, float b) { return fminf(a, b); }
__device__ __forceinline__ double smaller(double a, double b) { return fmin(a, b); }
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }

// Whether box_iou(a, b) > threshold, most often without the division: far from the threshold,
// comparing the intersection with threshold * union cannot say anything else, because the rounding
// of a few operations is much less than kMargin. Near it, and where numbers are not normal, the
// quotient decides. (fmin and fmax drop a NaN, but the area of its box still holds one.)
template <typename T>
struct OverlapTest {
  T threshold;
  T least;  // of threshold * union for which the short cut holds

  explicit OverlapTest(double iou_threshold) : threshold(static_cast<T>(iou_threshold)) {
    const bool usual = iou_threshold > 1e-6 && iou_threshold < 1e6;
    least = usual ? static_cast<T>(1e-20) : static_cast<T>(HUGE_VAL);
  }

  __device__ __forceinline__ bool operator()(const Pack<T, 4>& a, T a_area, const Pack<T, 4>& b,
                                             T b_area) const {
    constexpr T kMargin = T(1) / (1 << 20);
    const T width = smaller(a.values[2], b.values[2]) - larger(a.values[0], b.values[0]) + T(1);
    const T height = smaller(a.values[3], b.values[3]) - larger(a.values[1], b.values[1]) + T(1);
    const T common = rounded_product(larger(width, T(0)), larger(height, T(0)));
    const T bound = threshold * (a_area + b_area - common);
    if (bound > least) {
      if (common < bound * (T(1) - kMargin)) return false;
      if (common > bound * (T(1) + kMargin)) return true;
    }
    return box_iou(a.values[0], a.values[1], a.values[2], a.values[3], a_area, b.values[0],
                   b.values[1], b.values[2], b.values[3], b_area) > threshold;
  }
};

// masks [num_lists, num_tiles, words, tile]: bit b of word w of a box says whether box 64 w + b of
// the tile comes before it, belongs to its segment and overlaps it. A block of kWord threads fills one
// word of as many boxes, unless that word lies before the segments of all of them: settle reads
// from the segment's beginning only.
template <typename T>
__global__ void __launch_bounds__(kWord)
    find_overlaps(Sorted<T> sorted, Sizes sizes, OverlapTest<T> overlap, uint64_t* masks) {
  __shared__ Pack<T, 4> box[kWord];
  __shared__ T area[kWord];
  const int words = sizes.words(), pairs = words * (words + 1) / 2;
  FOR_EACH_WORK(work, sizes.num_lists * sizes.num_tiles * pairs) {
    const int64_t tile = work / pairs;  // counted through all lists
    const int64_t list_begin = tile / sizes.num_tiles * sizes.num_boxes;
    const int tile_begin = static_cast<int>(tile % sizes.num_tiles) * sizes.tile;
    // (row, column) with column <= row, of the words of the tile
    int row = 0, column = static_cast<int>(work % pairs);
    while (column > row) column -= ++row;
    const int row_begin = tile_begin + row * kWord, column_begin = tile_begin + column * kWord;
    if (row_begin >= sizes.num_boxes ||
        sorted.segment[list_begin + row_begin] >= column_begin + kWord)
      continue;

    const int thread = threadIdx.x, i = row_begin + thread;
    if (column_begin + thread < sizes.num_boxes) {
      box[thread] = sorted.box[list_begin + column_begin + thread];
      area[thread] = sorted.area[list_begin + column_begin + thread];
    }
    __syncthreads();
    if (i < sizes.num_boxes) {
      const Pack<T, 4> mine = sorted.box[list_begin + i];
      const T mine_area = sorted.area[list_begin + i];
      const int first = sorted.segment[list_begin + i] - column_begin;
      const int last = column < row ? kWord : thread;
      uint64_t bits = 0;
      for (int j = first > 0 ? first : 0; j < last; ++j)
        if (overlap(box[j], area[j], mine, mine_area)) bits |= uint64_t(1) << j;
      masks[(tile * words + column) * sizes.tile + row * kWord + thread] = bits;
    }
    __syncthreads();
  }
}

// ---- suppression ---------------------------------------------------------------------------------

// Which boxes of tile `step` of each list stay; a block, of `tile` threads, per list. A box stays
// unless one that stays overlaps it, before it: iterating that from any guess settles at least one
// more box, in order, each time, and ends when nothing changes. In practice that takes as many rounds
// as the longest chain of boxes that decide about each other.
template <typename T>
__global__ void __launch_bounds__(kTile)
    settle(Sorted<T> sorted, Sizes sizes, int step, const uint64_t* masks, Kept<T> kept,
           bool* keep) {
  __shared__ uint32_t stays[2][kTile / 32];  // a bit per box; the rounds alternate
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int words = sizes.words(), position = step * sizes.tile + thread;
  for (int i = thread; i < kTile / 32; i += blockDim.x) stays[0][i] = stays[1][i] = 0;

  FOR_EACH_WORK(list, sizes.num_lists) {
    const int64_t i = list * sizes.num_boxes + position;
    const bool inside = position < sizes.num_boxes;
    const int segment = inside ? sorted.segment[i] : kNoSegment;
    const bool candidate = segment <= position && !(step > 0 && sorted.struck[i]);
    const int first = (segment > step * sizes.tile ? segment - step * sizes.tile : 0) / kWord;
    const uint64_t* mask = masks + (list * sizes.num_tiles + step) * words * sizes.tile + thread;
    uint64_t rivals[kWords];
#pragma unroll
    for (int w = 0; w < kWords; ++w)
      rivals[w] = candidate && w >= first && w <= thread / kWord ? mask[w * sizes.tile] : 0;

    int now = 0;
    bool mine = candidate;
    uint32_t bits = __ballot_sync(0xffffffffu, mine);
    __syncthreads();
    if (lane == 0) stays[now][warp] = bits;
    __syncthreads();
    bool changed;
    do {
      uint64_t hits = 0;
#pragma unroll
      for (int w = 0; w < kWords; ++w)
        hits |= rivals[w] & (stays[now][2 * w] | uint64_t(stays[now][2 * w + 1]) << 32);
      const bool next = candidate && hits == 0;
      bits = __ballot_sync(0xffffffffu, next);
      if (lane == 0) stays[1 - now][warp] = bits;
      changed = __syncthreads_or(next != mine);
      mine = next;
      now = 1 - now;
    } while (changed);

    if (inside) keep[list * sizes.num_boxes + sorted.index[i]] = mine;
    if (step + 1 == sizes.num_tiles) continue;
    int slot = __popc(bits & ((1u << lane) - 1)), total = 0;
    for (int w = 0; w < sizes.tile / 32; ++w) {
      const int count = __popc(stays[now][w]);
      if (w < warp) slot += count;
      total += count;
    }
    if (mine) {
      kept.box[list * sizes.tile + slot] = sorted.box[i];
      kept.area[list * sizes.tile + slot] = sorted.area[i];
      kept.position[list * sizes.tile + slot] = position;
    }
    if (thread == 0) kept.count[list] = total;
  }
}

// Strikes the boxes after tile `step` that overlap one of their segment that stays in it. A block
// tests kLater boxes against kWord of those. Several blocks may strike a box: all write the same.
template <typename T>
__global__ void __launch_bounds__(kLater)
    strike(Sorted<T> sorted, Sizes sizes, int step, Kept<T> kept, OverlapTest<T> overlap) {
  __shared__ Pack<T, 4> box[kWord];
  __shared__ T area[kWord];
  __shared__ int32_t place[kWord];
  const int thread = threadIdx.x, words = sizes.words(), later_begin = (step + 1) * sizes.tile;
  const int64_t parts = ceil_div(sizes.num_boxes - later_begin, kLater);
  FOR_EACH_WORK(work, sizes.num_lists * parts * words) {
    const int64_t list = work / words / parts, offset = list * sizes.num_boxes;
    const int part_begin = later_begin + static_cast<int>(work / words % parts) * kLater;
    const int first = static_cast<int>(work % words) * kWord;
    const int left = kept.count[list] - first, count = left < kWord ? left : kWord;
    if (count <= 0) continue;
    const int64_t source = list * sizes.tile + first;
    // Segments begin in the order of boxes: if that of the first box does so too late, all do.
    if (sorted.segment[offset + part_begin] > kept.position[source + count - 1]) continue;

    if (thread < count) {
      box[thread] = kept.box[source + thread];
      area[thread] = kept.area[source + thread];
      place[thread] = kept.position[source + thread];
    }
    __syncthreads();
    const int64_t i = offset + part_begin + thread;
    if (part_begin + thread < sizes.num_boxes && !sorted.struck[i]) {
      const Pack<T, 4> mine = sorted.box[i];
      const T mine_area = sorted.area[i];
      const int segment = sorted.segment[i];
      int j = 0;
      while (j < count && place[j] < segment) ++j;
      while (j < count && !overlap(box[j], area[j], mine, mine_area)) ++j;
      if (j < count) sorted.struck[i] = true;
    }
    __syncthreads();
  }
}

// ---- launches ------------------------------------------------------------------------------------

// Hands out pieces of one allocation, each aligned to 256 bytes.
struct Scratch {
  uintptr_t next;

  template <typename P>
  void take(P** pointer, int64_t count) {
    *pointer = reinterpret_cast<P*>(next);
    next += ceil_div<int64_t>(count * sizeof(P), 256) * 256;
  }
};

template <typename T>
struct Plan {
  Sizes sizes;
  Keys keys[2];  // merging goes from one to the other
  Sorted<T> sorted;
  Kept<T> kept;
  uint64_t* masks;
  int64_t bytes;
};

template <typename T>
Plan<T> plan_of(void* memory, int64_t num_lists, int num_boxes) {
  Plan<T> plan = {};
  const int tile = num_boxes < kTile ? ceil_div(num_boxes, kWord) * kWord : kTile;
  const int num_tiles = ceil_div(num_boxes, tile);
  plan.sizes = {num_lists, num_boxes, tile, num_tiles};
  const int64_t total = num_lists * num_boxes;
  Scratch scratch = {reinterpret_cast<uintptr_t>(memory)};
  for (int i = 0; i < (num_boxes > kRun ? 2 : 1); ++i) {
    scratch.take(&plan.keys[i].label, total);
    scratch.take(&plan.keys[i].rank, total);
    scratch.take(&plan.keys[i].index, total);
  }
  scratch.take(&plan.sorted.box, total);
  scratch.take(&plan.sorted.area, total);
  scratch.take(&plan.sorted.segment, total);
  scratch.take(&plan.masks, num_lists * num_tiles * tile * plan.sizes.words());
  if (num_tiles > 1) {
    scratch.take(&plan.sorted.struck, total);
    scratch.take(&plan.kept.box, num_lists * tile);
    scratch.take(&plan.kept.area, num_lists * tile);
    scratch.take(&plan.kept.position, num_lists * tile);
    scratch.take(&plan.kept.count, num_lists);
  }
  plan.bytes = static_cast<int64_t>(scratch.next - reinterpret_cast<uintptr_t>(memory));
  return plan;
}

struct Problem {
  const void* boxes;
  const void* scores;
  const int64_t* labels;
  bool skip_negative;
  double iou_threshold;
  void* scratch;
  bool* keep;
  cudaStream_t stream;
};

template <typename Score>
const char* launch_sort(const Problem& problem, const Sizes& sizes, const Keys& keys) {
  int width = 1;
  while (width < kRun && width < sizes.num_boxes) width *= 2;
  const int threads = width < 64 ? 32 : width / 2;
  const int64_t runs = ceil_div(sizes.num_boxes, width);
  sort_runs<Score><<<blocks_for(sizes.num_lists * runs), threads, 0, problem.stream>>>(
      static_cast<const Score*>(problem.scores), problem.labels, problem.skip_negative,
      sizes.num_lists, sizes.num_boxes, width, keys);
  return launch_error();
}

template <typename Box>
const char* launch_arrange(const Problem& problem, const Sizes& sizes, const Keys& keys,
                           const Sorted<compute_t<Box>>& sorted) {
  arrange<Box><<<grid_size(sizes.num_lists * sizes.num_boxes), kThreads, 0, problem.stream>>>(
      static_cast<const Box*>(problem.boxes), keys, problem.labels != nullptr,
      problem.skip_negative, sizes, sorted);
  return launch_error();
}

template <typename T>
const char* launch_suppression(const Problem& problem, const Plan<T>& plan) {
  const Sizes& sizes = plan.sizes;
  const OverlapTest<T> overlap(problem.iou_threshold);
  const int64_t pairs = sizes.words() * (sizes.words() + 1) / 2;
  find_overlaps<T><<<blocks_for(sizes.num_lists * sizes.num_tiles * pairs), kWord, 0,
                     problem.stream>>>(plan.sorted, sizes, overlap, plan.masks);
  const char* error = launch_error();
  for (int step = 0; step < sizes.num_tiles && !error; ++step) {
    settle<T><<<blocks_for(sizes.num_lists), sizes.tile, 0, problem.stream>>>(
        plan.sorted, sizes, step, plan.masks, plan.kept, problem.keep);
    error = launch_error();
    if (error || step + 1 == sizes.num_tiles) break;
    const int64_t parts = ceil_div(sizes.num_boxes - (step + 1) * sizes.tile, kLater);
    strike<T><<<blocks_for(sizes.num_lists * parts * sizes.words()), kLater, 0, problem.stream>>>(
        plan.sorted, sizes, step, plan.kept, overlap);
    error = launch_error();
  }
  return error;
}

template <typename Box>
const char* launch_all(const Problem& problem, DType scores_dtype, int64_t num_lists,
                       int num_boxes) {
  Plan<compute_t<Box>> plan = plan_of<compute_t<Box>>(problem.scratch, num_lists, num_boxes);
  int current = 0;
  const char* error =
      FCOS_DISPATCH(scores_dtype, launch_sort, problem, plan.sizes, plan.keys[current]);
  for (int64_t run = kRun; run < num_boxes && !error; run *= kWays) {
    merge_runs<<<grid_size(num_lists * num_boxes), kThreads, 0, problem.stream>>>(
        plan.keys[current], num_lists, num_boxes, run, plan.keys[1 - current]);
    current = 1 - current;
    error = launch_error();
  }
  if (error) return error;
  plan.sorted.index = plan.keys[current].index;
  error = launch_arrange<Box>(problem, plan.sizes, plan.keys[current], plan.sorted);
  return error ? error : launch_suppression(problem, plan);
}

}  // namespace

int64_t nms_cuda_scratch_bytes(DType boxes_dtype, int64_t num_lists, int64_t num_boxes) {
  if (num_lists == 0 || num_boxes == 0) return 0;
  const int size = static_cast<int>(num_boxes);
  return boxes_dtype == DType::float64 ? plan_of<double>(nullptr, num_lists, size).bytes
                                       : plan_of<float>(nullptr, num_lists, size).bytes;
}

const char* nms_cuda(const void* boxes, DType boxes_dtype, const void* scores, DType scores_dtype,
                     const int64_t* labels, bool skip_negative, int64_t num_lists,
                     int64_t num_boxes, double iou_threshold, void* scratch, bool* keep,
                     void* stream) {
  if (num_lists == 0 || num_boxes == 0) return nullptr;
  const Problem problem = {boxes,         scores,  labels, skip_negative,
                           iou_threshold, scratch, keep,   static_cast<cudaStream_t>(stream)};
  return FCOS_DISPATCH(boxes_dtype, launch_all, problem, scores_dtype, num_lists,
                       static_cast<int>(num_boxes));
}

}  // namespace fcos_core
