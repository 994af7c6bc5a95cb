// CPU kernel of RoIAlign, see roi_align.h.
//
// Rois are handled in chunks: first the taps of a chunk are made, rois in parallel, then they are
// applied. Every step below is a sum of weighted vectors, which compilers vectorise:
//   channels_last  a vector is one pixel, over the channels. Forward: the pixels of a bin.
//                  Backward: a pixel of the map gets the gradients of all bins of a roi at once.
//   contiguous     channel by channel, so that a plane stays in the cache while all rois of a chunk
//                  use it. A vector is a piece of a row: rows are combined into one row per row of
//                  bins, whose elements are then combined into bins; backward the reverse.
// Backward, a thread owns (image, channels) and adds the rois in their order, so the result depends
// neither on the number of threads nor on chance.
#include "roi_align.h"

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace fcos_core {
namespace {

constexpr int kBatch = 16;                        // vectors summed at once
constexpr int64_t kArenaBytes = int64_t(1) << 20;  // taps of a chunk of rois
constexpr int64_t kThreadWork = int64_t(1) << 15;  // multiplications that are worth a thread
constexpr int64_t kLine = 64;                     // bytes of a line of the cache

// ---- sums of vectors -------------------------------------------------------------------------

// out = sum of weights[i] * sources[i], or with `add` out += that; `size` elements.
template <typename S, typename T>
FCOS_INLINE void weighted_sum(const S* const* sources, const T* weights, int count, int64_t size,
                              bool add, T* __restrict out) {
  int i = 0;
  for (; i + 4 <= count; i += 4) {
    const S *s0 = sources[i], *s1 = sources[i + 1], *s2 = sources[i + 2], *s3 = sources[i + 3];
    const T w0 = weights[i], w1 = weights[i + 1], w2 = weights[i + 2], w3 = weights[i + 3];
    if (add) {
      for (int64_t j = 0; j < size; ++j)
        out[j] += (w0 * static_cast<T>(s0[j]) + w1 * static_cast<T>(s1[j])) +
                  (w2 * static_cast<T>(s2[j]) + w3 * static_cast<T>(s3[j]));
    } else {
      for (int64_t j = 0; j < size; ++j)
        out[j] = (w0 * static_cast<T>(s0[j]) + w1 * static_cast<T>(s1[j])) +
                 (w2 * static_cast<T>(s2[j]) + w3 * static_cast<T>(s3[j]));
    }
    add = true;
  }
  if (i + 2 <= count) {
    const S *s0 = sources[i], *s1 = sources[i + 1];
    const T w0 = weights[i], w1 = weights[i + 1];
    if (add) {
      for (int64_t j = 0; j < size; ++j)
        out[j] += w0 * static_cast<T>(s0[j]) + w1 * static_cast<T>(s1[j]);
    } else {
      for (int64_t j = 0; j < size; ++j)
        out[j] = w0 * static_cast<T>(s0[j]) + w1 * static_cast<T>(s1[j]);
    }
    add = true;
    i += 2;
  }
  if (i < count) {
    const S* s0 = sources[i];
    const T w0 = weights[i];
    if (add) {
      for (int64_t j = 0; j < size; ++j) out[j] += w0 * static_cast<T>(s0[j]);
    } else {
      for (int64_t j = 0; j < size; ++j) out[j] = w0 * static_cast<T>(s0[j]);
    }
    add = true;
  }
  if (!add) std::fill(out, out + size, T(0));
}

// Collects vectors and sums them kBatch at a time.
template <typename S, typename T>
struct Sum {
  const S* sources[kBatch];
  T weights[kBatch];
  int count;
  int64_t size;
  bool add;
  T* out;

  FCOS_INLINE Sum(int64_t size, bool add, T* out) : count(0), size(size), add(add), out(out) {}
  FCOS_INLINE void put(const S* source, T weight) {
    if (count == kBatch) flush();
    sources[count] = source;
    weights[count++] = weight;
  }
  FCOS_INLINE void flush() {
    weighted_sum(sources, weights, count, size, add, out);
    add = true;
    count = 0;
  }
};

// ---- channels_last ---------------------------------------------------------------------------

// One bin: out[C] from image [H, W, C]; `bin_y` and `bin_x` count as the axes do.
template <typename S, typename T>
FCOS_INLINE void pool_bin_body(const S* image, int64_t width, int64_t channels,
                               const RoiAlignTaps<T>& taps, int bin_y, int bin_x, T* out) {
  const RoiAlignAxis<T>&y = taps.y, &x = taps.x;
  Sum<S, T> sum(channels, false, out);
  for (int i = y.offset[bin_y], row = y.first_slot[bin_y]; i < y.offset[bin_y + 1]; ++i, ++row) {
    const S* line = image + y.pixel[row] * width * channels;
    for (int j = x.offset[bin_x], column = x.first_slot[bin_x]; j < x.offset[bin_x + 1];
         ++j, ++column)
      sum.put(line + x.pixel[column] * channels, y.weight[i] * x.weight[j]);
  }
  sum.flush();
}

// Backward of one roi for channels [0, size) of C: grad [PH, PW, C] into image [H, W, C].
template <typename S, typename T>
FCOS_INLINE void spread_bins_body(const S* grad, int64_t width, int64_t channels, int64_t size,
                                  const RoiAlignTaps<T>& taps, T* image) {
  const RoiAlignAxis<T>&y = taps.y, &x = taps.x;
  for (int row = 0; row < y.num_slots(); ++row) {
    T* line = image + y.pixel[row] * width * channels;
    for (int column = 0; column < x.num_slots(); ++column) {
      Sum<S, T> sum(size, true, line + x.pixel[column] * channels);
      for (int i = y.first_bin[row]; i <= y.last_bin[row]; ++i) {
        const S* bins = grad + int64_t(y.output_bin(i)) * x.bins * channels;
        const T weight = y.weight_of(i, row);
        for (int j = x.first_bin[column]; j <= x.last_bin[column]; ++j)
          sum.put(bins + x.output_bin(j) * channels, weight * x.weight_of(j, column));
      }
      sum.flush();
    }
  }
}

// ---- contiguous ------------------------------------------------------------------------------

// Where the pixels of the x axis lie in a row of intermediate values: a row holds either the whole
// run of pixels from the first to the last one (`dense`), for vectors, or if that is much more the
// touched pixels alone.
template <typename T>
struct Run {
  const RoiAlignAxis<T>& x;
  int64_t first;
  int64_t length;
  bool dense;

  FCOS_INLINE explicit Run(const RoiAlignAxis<T>& x) : x(x) {
    const int slots = x.num_slots();
    first = slots > 0 ? x.pixel[0] : 0;
    length = slots > 0 ? x.pixel[slots - 1] - first + 1 : 0;
    dense = length <= 4 * int64_t(slots);
    if (!dense) length = slots;
  }
  FCOS_INLINE int64_t at(int slot) const { return dense ? x.pixel[slot] - first : slot; }
};

// One roi of one channel: out [PH, PW] from plane [H, W]; `run` has room for a row of the map.
template <typename S, typename T>
FCOS_INLINE void pool_plane_body(const S* plane, int64_t width, const RoiAlignTaps<T>& taps,
                                 T* row, T* out) {
  const RoiAlignAxis<T>&y = taps.y, &x = taps.x;
  const Run<T> run(x);
  for (int i = 0; i < y.bins; ++i) {
    const int begin = y.offset[i], end = y.offset[i + 1];
    const int* lines = y.pixel + y.first_slot[i];
    if (run.dense) {
      Sum<S, T> sum(run.length, false, row);
      for (int t = begin; t < end; ++t)
        sum.put(plane + lines[t - begin] * width + run.first, y.weight[t]);
      sum.flush();
    } else {
      std::fill(row, row + run.length, T(0));
      for (int t = begin; t < end; ++t) {
        const S* line = plane + lines[t - begin] * width;
        for (int64_t k = 0; k < run.length; ++k)
          row[k] += y.weight[t] * static_cast<T>(line[x.pixel[k]]);
      }
    }
    T* out_row = out + int64_t(y.output_bin(i)) * x.bins;
    for (int j = 0; j < x.bins; ++j) {
      T value = 0;
      for (int t = x.offset[j], slot = x.first_slot[j]; t < x.offset[j + 1]; ++t, ++slot)
        value += x.weight[t] * row[run.at(slot)];
      out_row[x.output_bin(j)] = value;
    }
  }
}

// Its backward: grad [PH, PW] into plane [H, W]; `rows` has room for PH rows of the map.
template <typename S, typename T>
FCOS_INLINE void spread_plane_body(const S* grad, int64_t width, const RoiAlignTaps<T>& taps,
                                   T* rows, T* plane) {
  const RoiAlignAxis<T>&y = taps.y, &x = taps.x;
  const Run<T> run(x);
  std::fill(rows, rows + y.bins * run.length, T(0));
  for (int i = 0; i < y.bins; ++i) {
    const S* grad_row = grad + int64_t(y.output_bin(i)) * x.bins;
    T* row = rows + i * run.length;
    for (int j = 0; j < x.bins; ++j) {
      const T value = static_cast<T>(grad_row[x.output_bin(j)]);
      for (int t = x.offset[j], slot = x.first_slot[j]; t < x.offset[j + 1]; ++t, ++slot)
        row[run.at(slot)] += x.weight[t] * value;
    }
  }
  for (int slot = 0; slot < y.num_slots(); ++slot) {
    T* line = plane + y.pixel[slot] * width;
    if (run.dense) {
      Sum<T, T> sum(run.length, true, line + run.first);
      for (int i = y.first_bin[slot]; i <= y.last_bin[slot]; ++i)
        sum.put(rows + i * run.length, y.weight_of(i, slot));
      sum.flush();
    } else {
      for (int i = y.first_bin[slot]; i <= y.last_bin[slot]; ++i)
        for (int64_t k = 0; k < run.length; ++k)
          line[x.pixel[k]] += y.weight_of(i, slot) * rows[i * run.length + k];
    }
  }
}

// ---- plain overloads, since compilers clone no templates -------------------------------------

#define FCOS_ROI_ALIGN_OVERLOADS(PREFIX, S, T)                                                    \
  PREFIX void pool_bin(const S* image, int64_t width, int64_t channels,                           \
                       const RoiAlignTaps<T>& taps, int bin_y, int bin_x, T* out) {               \
    pool_bin_body(image, width, channels, taps, bin_y, bin_x, out);                               \
  }                                                                                               \
  PREFIX void spread_bins(const S* grad, int64_t width, int64_t channels, int64_t size,           \
                          const RoiAlignTaps<T>& taps, T* image) {                                \
    spread_bins_body(grad, width, channels, size, taps, image);                                   \
  }                                                                                               \
  PREFIX void pool_plane(const S* plane, int64_t width, const RoiAlignTaps<T>& taps, T* row,      \
                         T* out) {                                                                \
    pool_plane_body(plane, width, taps, row, out);                                                \
  }                                                                                               \
  PREFIX void spread_plane(const S* grad, int64_t width, const RoiAlignTaps<T>& taps, T* rows,    \
                           T* plane) {                                                            \
    spread_plane_body(grad, width, taps, rows, plane);                                            \
  }
FCOS_ROI_ALIGN_OVERLOADS(FCOS_SIMD_CLONES, float, float)
FCOS_ROI_ALIGN_OVERLOADS(FCOS_SIMD_CLONES, double, double)
FCOS_ROI_ALIGN_OVERLOADS(, c10::Half, float)
FCOS_ROI_ALIGN_OVERLOADS(, c10::BFloat16, float)
#undef FCOS_ROI_ALIGN_OVERLOADS

// ---- rois, chunk by chunk --------------------------------------------------------------------

template <typename Scalar>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

// Units of work, of so many multiplications each, for one thread.
int64_t grain_of(int64_t multiplications) {
  return std::max<int64_t>(1, kThreadWork / std::max<int64_t>(1, multiplications));
}

// Calls use(first, rois): the taps of rois first, first + 1, ... in order.
template <typename T, typename Use>
void for_each_chunk(const RoiAlignProblem& p, const Use& use) {
  const int64_t num_weights = roi_align_weights_size(p), num_ints = roi_align_ints_size(p);
  const int64_t bytes = num_weights * sizeof(T) + num_ints * sizeof(int);
  const int64_t chunk = std::min(p.num_rois, std::max<int64_t>(1, kArenaBytes / bytes));
  std::vector<T> weights(chunk * num_weights);
  std::vector<int> ints(chunk * num_ints);
  std::vector<RoiAlignTaps<T>> rois(chunk);
  for (int64_t first = 0; first < p.num_rois; first += chunk) {
    rois.resize(std::min(chunk, p.num_rois - first));
    at::parallel_for(0, rois.size(), 64, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        rois[i] = roi_align_locate(p, first + i, weights.data() + i * num_weights,
                                   ints.data() + i * num_ints);
        if (!rois[i].usable) continue;
        for (const RoiAlignAxis<T>* axis : {&rois[i].y, &rois[i].x}) {
          for (int bin = 0; bin < axis->bins; ++bin) roi_align_count(*axis, bin);
          roi_align_number(*axis);
          for (int bin = 0; bin < axis->bins; ++bin) roi_align_fill(*axis, bin);
        }
      }
    });
    use(first, static_cast<const std::vector<RoiAlignTaps<T>>&>(rois));
  }
}

// Where to compute, and what then brings the values into `out`: nothing if they are there.
float* target_of(float* out, std::vector<float>&) { return out; }
double* target_of(double* out, std::vector<double>&) { return out; }
template <typename Half>
float* target_of(Half*, std::vector<float>& buffer) {
  return buffer.data();
}
void store(const float*, int64_t, float*) {}
void store(const double*, int64_t, double*) {}
template <typename Half>
void store(const float* values, int64_t size, Half* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = static_cast<Half>(values[i]);
}

template <typename Scalar>
void forward_channels_last(const RoiAlignProblem& p, const Scalar* input, Scalar* output) {
  using T = typename Compute<Scalar>::type;
  const int64_t channels = p.channels, num_bins = p.pooled_height * p.pooled_width;
  for_each_chunk<T>(p, [&](int64_t first, const std::vector<RoiAlignTaps<T>>& rois) {
    const int64_t units = rois.size() * p.pooled_height;  // rows of bins
    const int64_t grain = grain_of(16 * p.pooled_width * channels);
    at::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
      std::vector<T> buffer(channels);
      for (int64_t unit = begin; unit < end; ++unit) {
        const RoiAlignTaps<T>& taps = rois[unit / p.pooled_height];
        const int i = static_cast<int>(unit % p.pooled_height);
        Scalar* out = output + (first + unit / p.pooled_height) * num_bins * channels;
        for (int j = 0; j < taps.x.bins; ++j) {
          if (!taps.usable) {
            Scalar* bin = out + (int64_t(i) * taps.x.bins + j) * channels;
            std::fill(bin, bin + channels, std::numeric_limits<Scalar>::quiet_NaN());
            continue;
          }
          const int64_t bin = int64_t(taps.y.output_bin(i)) * taps.x.bins + taps.x.output_bin(j);
          T* target = target_of(out + bin * channels, buffer);
          pool_bin(input + taps.image * p.height * p.width * channels, p.width, channels, taps, i,
                   j, target);
          store(target, channels, out + bin * channels);
        }
      }
    });
  });
}

template <typename Scalar>
void forward_contiguous(const RoiAlignProblem& p, const Scalar* input, Scalar* output) {
  using T = typename Compute<Scalar>::type;
  const int64_t num_bins = p.pooled_height * p.pooled_width;
  for_each_chunk<T>(p, [&](int64_t first, const std::vector<RoiAlignTaps<T>>& rois) {
    const int64_t num_rois = rois.size();
    at::parallel_for(0, p.channels * num_rois, grain_of(16 * num_bins), [&](int64_t begin,
                                                                            int64_t end) {
      std::vector<T> buffer(num_bins), row(p.width);
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t channel = unit / num_rois, roi = unit % num_rois;
        const RoiAlignTaps<T>& taps = rois[roi];
        Scalar* out = output + ((first + roi) * p.channels + channel) * num_bins;
        if (!taps.usable) {
          std::fill(out, out + num_bins, std::numeric_limits<Scalar>::quiet_NaN());
          continue;
        }
        T* target = target_of(out, buffer);
        pool_plane(input + (taps.image * p.channels + channel) * p.height * p.width, p.width, taps,
                   row.data(), target);
        store(target, num_bins, out);
      }
    });
  });
}

// Channels of one unit of work: all if one thread works, else a few units for each thread.
int64_t channels_per_unit(const RoiAlignProblem& p, int64_t multiple) {
  const int64_t threads = at::get_num_threads();
  const int64_t per_image = threads == 1 ? 1 : ceil_div(4 * threads, p.num_images);
  return ceil_div(ceil_div(p.channels, per_image), multiple) * multiple;
}

template <typename Scalar, typename T>
void backward_channels_last(const RoiAlignProblem& p, const Scalar* grad, T* grad_input) {
  const int64_t channels = p.channels, num_bins = p.pooled_height * p.pooled_width;
  const int64_t step = channels_per_unit(p, kLine / sizeof(T));
  const int64_t steps = ceil_div(channels, step);
  for_each_chunk<T>(p, [&](int64_t first, const std::vector<RoiAlignTaps<T>>& rois) {
    const int64_t work = 16 * num_bins * step * rois.size() / p.num_images;
    at::parallel_for(0, p.num_images * steps, grain_of(work), [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t image = unit / steps, channel = unit % steps * step;
        T* out = grad_input + image * p.height * p.width * channels + channel;
        for (size_t roi = 0; roi < rois.size(); ++roi) {
          if (rois[roi].image != image || !rois[roi].usable) continue;
          spread_bins(grad + (first + roi) * num_bins * channels + channel, p.width, channels,
                      std::min(step, channels - channel), rois[roi], out);
        }
      }
    });
  });
}

template <typename Scalar, typename T>
void backward_contiguous(const RoiAlignProblem& p, const Scalar* grad, T* grad_input) {
  const int64_t num_bins = p.pooled_height * p.pooled_width;
  for_each_chunk<T>(p, [&](int64_t first, const std::vector<RoiAlignTaps<T>>& rois) {
    const int64_t work = 16 * num_bins * rois.size() / p.num_images;
    at::parallel_for(0, p.num_images * p.channels, grain_of(work), [&](int64_t begin, int64_t end) {
      std::vector<T> rows(p.pooled_height * p.width);
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t image = unit / p.channels, channel = unit % p.channels;
        for (size_t roi = 0; roi < rois.size(); ++roi) {
          if (rois[roi].image != image || !rois[roi].usable) continue;
          spread_plane(grad + ((first + roi) * p.channels + channel) * num_bins, p.width, rois[roi],
                       rows.data(), grad_input + unit * p.height * p.width);
        }
      }
    });
  });
}

// Calls action(Scalar()) with the C++ type of a DType.
template <typename Action>
void with_scalar(DType dtype, const Action& action) {
  switch (dtype) {
    case DType::float64: return action(double());
    case DType::float32: return action(float());
    case DType::float16: return action(c10::Half());
    case DType::bfloat16: return action(c10::BFloat16());
  }
}

}  // namespace

void roi_align_cpu(const RoiAlignProblem& problem, const void* input, void* output) {
  with_scalar(problem.dtype, [&](auto scalar) {
    using Scalar = decltype(scalar);
    (problem.channels_last ? forward_channels_last<Scalar> : forward_contiguous<Scalar>)(
        problem, static_cast<const Scalar*>(input), static_cast<Scalar*>(output));
  });
}

void roi_align_backward_cpu(const RoiAlignProblem& problem, const void* grad, void* grad_input) {
  with_scalar(problem.dtype, [&](auto scalar) {
    using Scalar = decltype(scalar);
    using T = typename Compute<Scalar>::type;
    (problem.channels_last ? backward_channels_last<Scalar, T> : backward_contiguous<Scalar, T>)(
        problem, static_cast<const Scalar*>(grad), static_cast<T*>(grad_input));
  });
}

}  // namespace fcos_core
