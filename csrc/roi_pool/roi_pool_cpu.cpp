// CPU kernel of RoI max pooling, see roi_pool.h.
//
// Forward, running maxima and their places are kept in vectors:
//   channels_last  over the channels, through the pixels of a bin
//   contiguous     along a row, through the rows of a row of bins; what is left of each column is
//                  then looked at bin by bin. Equal values keep their order by comparing places.
// Backward, a thread owns (image, channels) and adds the rois in their order, so the result depends
// neither on the number of threads nor on chance.
#include "roi_pool.h"

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace fcos_core {
namespace {

constexpr int64_t kThreadWork = int64_t(1) << 15;  // values that are worth a thread
constexpr int64_t kLine = 64;                      // bytes of a line of the cache

// Element type in memory -> type of the running maxima.
template <typename Scalar>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

// ---- vectors ---------------------------------------------------------------------------------

// Brings `size` values, all at the place `place`, into the running maxima.
template <typename S, typename T>
FCOS_INLINE void update(const S* values, int32_t place, int64_t size, T* __restrict largest,
                        int32_t* __restrict places) {
  for (int64_t i = 0; i < size; ++i) {
    const T value = static_cast<T>(values[i]), before = largest[i];
    // bitwise operators: no branch, so that the loop is vectorised
    const bool exceeds = (value > before) | ((value != value) & (before == before));
    largest[i] = exceeds ? value : before;
    places[i] = exceeds ? place : places[i];
  }
}

template <typename S, typename T>
FCOS_INLINE void start(const S* values, int32_t place, int64_t size, T* largest, int32_t* places) {
  for (int64_t i = 0; i < size; ++i) largest[i] = static_cast<T>(values[i]);
  std::fill(places, places + size, place);
}

// One bin, the pixels [y0, y1) x [x0, x1) of image [H, W, C], which are some: out and argmax [C].
template <typename S, typename T>
FCOS_INLINE void pool_bin_body(const S* image, int64_t width, int64_t channels, const int* range_y,
                               const int* range_x, T* out, int32_t* argmax) {
  bool first = true;
  for (int64_t y = range_y[0]; y < range_y[1]; ++y) {
    for (int64_t x = range_x[0]; x < range_x[1]; ++x) {
      const int64_t place = y * width + x;
      if (first) {
        start(image + place * channels, static_cast<int32_t>(place), channels, out, argmax);
      } else {
        update(image + place * channels, static_cast<int32_t>(place), channels, out, argmax);
      }
      first = false;
    }
  }
}

// One row of bins, the lines [y0, y1) of plane [H, W], which are some: out and argmax [PW].
// `largest` and `lines` have room for a line of the map.
template <typename S, typename T>
FCOS_INLINE void pool_line_body(const S* plane, int64_t width, const int* range_y,
                                const RoiPoolAxis<T>& x, int bins, T* largest, int32_t* lines,
                                T* out, int32_t* argmax) {
  int first, last, begin, end;
  x.range(0, first, end);
  x.range(bins - 1, begin, last);
  const int64_t length = std::max(0, last - first);
  start(plane + range_y[0] * width + first, range_y[0], length, largest, lines);
  for (int64_t y = range_y[0] + 1; y < range_y[1]; ++y)
    update(plane + y * width + first, static_cast<int32_t>(y), length, largest, lines);
  for (int bin = 0; bin < bins; ++bin) {
    x.range(bin, begin, end);
    int best = begin;
    for (int i = begin + 1; i < end; ++i) {
      const T value = largest[i - first], before = largest[best - first];
      const bool same = !roi_pool_exceeds(value, before) && !roi_pool_exceeds(before, value);
      if (roi_pool_exceeds(value, before) || (same && lines[i - first] < lines[best - first]))
        best = i;
    }
    const bool empty = begin >= end;
    out[bin] = empty ? T(0) : largest[best - first];
    argmax[bin] = empty ? -1 : static_cast<int32_t>(lines[best - first] * width + best);
  }
}

// Plain overloads, since compilers clone no templates.
#define FCOS_ROI_POOL_OVERLOADS(PREFIX, S, T)                                                     \
  PREFIX void pool_bin(const S* image, int64_t width, int64_t channels, const int* range_y,       \
                       const int* range_x, T* out, int32_t* argmax) {                             \
    pool_bin_body(image, width, channels, range_y, range_x, out, argmax);                         \
  }                                                                                               \
  PREFIX void pool_line(const S* plane, int64_t width, const int* range_y,                        \
                        const RoiPoolAxis<T>& x, int bins, T* largest, int32_t* lines, T* out,    \
                        int32_t* argmax) {                                                        \
    pool_line_body(plane, width, range_y, x, bins, largest, lines, out, argmax);                  \
  }
FCOS_ROI_POOL_OVERLOADS(FCOS_SIMD_CLONES, float, float)
FCOS_ROI_POOL_OVERLOADS(FCOS_SIMD_CLONES, double, double)
FCOS_ROI_POOL_OVERLOADS(, c10::Half, float)
FCOS_ROI_POOL_OVERLOADS(, c10::BFloat16, float)
#undef FCOS_ROI_POOL_OVERLOADS

// ---- forward ---------------------------------------------------------------------------------

// Units of work, of so many values each, for one thread.
int64_t grain_of(int64_t values) {
  return std::max<int64_t>(1, kThreadWork / std::max<int64_t>(1, values));
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
void forward_channels_last(const RoiPoolProblem& p, const Scalar* input, Scalar* output,
                           int32_t* argmax) {
  using T = typename Compute<Scalar>::type;
  const int64_t channels = p.channels, units = p.num_rois * p.pooled_height;  // rows of bins
  at::parallel_for(0, units, grain_of(16 * p.pooled_width * channels), [&](int64_t begin,
                                                                           int64_t end) {
    std::vector<T> buffer(channels);
    for (int64_t unit = begin; unit < end; ++unit) {
      const RoiPoolRoi<T> roi = roi_pool_roi<T>(p, unit / p.pooled_height);
      int y[2], x[2];
      roi.y.range(static_cast<int>(unit % p.pooled_height), y[0], y[1]);
      for (int64_t j = 0; j < p.pooled_width; ++j) {
        const int64_t bin = (unit * p.pooled_width + j) * channels;
        roi.x.range(static_cast<int>(j), x[0], x[1]);
        if (!roi.usable || y[0] >= y[1] || x[0] >= x[1]) {
          const Scalar nan = std::numeric_limits<Scalar>::quiet_NaN();
          std::fill(output + bin, output + bin + channels, roi.usable ? Scalar(0) : nan);
          std::fill(argmax + bin, argmax + bin + channels, -1);
          continue;
        }
        T* target = target_of(output + bin, buffer);
        pool_bin(input + roi.image * p.height * p.width * channels, p.width, channels, y, x, target,
                 argmax + bin);
        store(target, channels, output + bin);
      }
    }
  });
}

template <typename Scalar>
void forward_contiguous(const RoiPoolProblem& p, const Scalar* input, Scalar* output,
                        int32_t* argmax) {
  using T = typename Compute<Scalar>::type;
  const int64_t width = p.pooled_width, num_bins = p.pooled_height * width;
  at::parallel_for(0, p.num_rois * p.channels, grain_of(16 * num_bins), [&](int64_t begin,
                                                                            int64_t end) {
    std::vector<T> buffer(width), largest(p.width);
    std::vector<int32_t> lines(p.width);
    for (int64_t unit = begin; unit < end; ++unit) {
      const RoiPoolRoi<T> roi = roi_pool_roi<T>(p, unit / p.channels);
      const int64_t plane = roi.image * p.channels + unit % p.channels;
      for (int64_t i = 0; i < p.pooled_height; ++i) {
        const int64_t row = unit * num_bins + i * width;
        int y[2];
        roi.y.range(static_cast<int>(i), y[0], y[1]);
        if (!roi.usable || y[0] >= y[1]) {
          const Scalar nan = std::numeric_limits<Scalar>::quiet_NaN();
          std::fill(output + row, output + row + width, roi.usable ? Scalar(0) : nan);
          std::fill(argmax + row, argmax + row + width, -1);
          continue;
        }
        T* target = target_of(output + row, buffer);
        pool_line(input + plane * p.height * p.width, p.width, y, roi.x, static_cast<int>(width),
                  largest.data(), lines.data(), target, argmax + row);
        store(target, width, output + row);
      }
    }
  });
}

// ---- backward --------------------------------------------------------------------------------

// The rois of each image, in order.
std::vector<std::vector<int64_t>> rois_of_images(const RoiPoolProblem& p) {
  std::vector<std::vector<int64_t>> rois(p.num_images);
  for (int64_t roi = 0; roi < p.num_rois; ++roi) {
    const int64_t image = p.dtype == DType::float64 ? roi_pool_roi<double>(p, roi).image
                                                    : roi_pool_roi<float>(p, roi).image;
    if (image >= 0) rois[image].push_back(roi);
  }
  return rois;
}

template <typename Scalar, typename T>
void backward_channels_last(const RoiPoolProblem& p, const Scalar* grad, const int32_t* argmax,
                            T* grad_input) {
  const auto rois = rois_of_images(p);
  const int64_t channels = p.channels, num_bins = p.pooled_height * p.pooled_width;
  const int64_t step = kLine / sizeof(T), steps = ceil_div(channels, step);
  const int64_t values = num_bins * step * p.num_rois / p.num_images;
  at::parallel_for(0, p.num_images * steps, grain_of(values), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t image = unit / steps, first = unit % steps * step;
      const int64_t last = std::min(first + step, channels);
      T* out = grad_input + image * p.height * p.width * channels;
      for (const int64_t roi : rois[image]) {
        for (int64_t bin = roi * num_bins; bin < (roi + 1) * num_bins; ++bin) {
          const Scalar* values_of_bin = grad + bin * channels;
          const int32_t* places = argmax + bin * channels;
          for (int64_t c = first; c < last; ++c)
            if (places[c] >= 0) out[places[c] * channels + c] += static_cast<T>(values_of_bin[c]);
        }
      }
    }
  });
}

template <typename Scalar, typename T>
void backward_contiguous(const RoiPoolProblem& p, const Scalar* grad, const int32_t* argmax,
                         T* grad_input) {
  const auto rois = rois_of_images(p);
  const int64_t num_bins = p.pooled_height * p.pooled_width;
  const int64_t values = num_bins * p.num_rois / p.num_images;
  at::parallel_for(0, p.num_images * p.channels, grain_of(values), [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      T* plane = grad_input + unit * p.height * p.width;
      for (const int64_t roi : rois[unit / p.channels]) {
        const int64_t first = (roi * p.channels + unit % p.channels) * num_bins;
        for (int64_t bin = first; bin < first + num_bins; ++bin)
          if (argmax[bin] >= 0) plane[argmax[bin]] += static_cast<T>(grad[bin]);
      }
    }
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

void roi_pool_cpu(const RoiPoolProblem& problem, const void* input, void* output,
                  int32_t* argmax) {
  with_scalar(problem.dtype, [&](auto scalar) {
    using Scalar = decltype(scalar);
    (problem.channels_last ? forward_channels_last<Scalar> : forward_contiguous<Scalar>)(
        problem, static_cast<const Scalar*>(input), static_cast<Scalar*>(output), argmax);
  });
}

void roi_pool_backward_cpu(const RoiPoolProblem& problem, const void* grad, const int32_t* argmax,
                           void* grad_input) {
  with_scalar(problem.dtype, [&](auto scalar) {
    using Scalar = decltype(scalar);
    using T = typename Compute<Scalar>::type;
    (problem.channels_last ? backward_channels_last<Scalar, T> : backward_contiguous<Scalar, T>)(
        problem, static_cast<const Scalar*>(grad), argmax, static_cast<T*>(grad_input));
  });
}

}  // namespace fcos_core
