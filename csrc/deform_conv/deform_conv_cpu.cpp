// CPU kernels of deformable convolution, see deform_conv.h.
//
// One tap after the other; its point is worked out once and applied to all channels of a deformable
// group, which lie side by side. A cell outside the map is read from a row of zeros, so the inner
// loops have no branches. Channels that are adjacent in the input are adjacent in the columns only
// within a group of the convolution, hence the runs.
//
// The three functions are called by many threads at once (deform_conv.cpp), each for positions or,
// in the scattering one, for channels of its own.
#include "deform_conv.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace fcos_core {
namespace {

template <typename T>
Tap<T> tap_at(const DeformConvProblem& p, const TapIndex& at) {
  const int64_t channel = mask_channel(p, at);
  const T* offset = element_of<const T>(p.offset, at, 2 * channel);
  return tap_with(p, at, offset[0], offset[p.offset.strides[1]],
                  p.mask.data ? *element_of<const T>(p.mask, at, channel) : T(1));
}

// 32 bytes of numbers, added and multiplied lane by lane: running sums that need not wait for each
// other. Written as a loop over an array, GCC turns them into hundreds of shuffles.
#if defined(__GNUC__)
template <typename T>
struct LanesOf;
template <>
struct LanesOf<float> {
  typedef float type __attribute__((vector_size(32)));
};
template <>
struct LanesOf<double> {
  typedef double type __attribute__((vector_size(32)));
};
template <typename T>
using Lanes = typename LanesOf<T>::type;
#else
template <typename T>
struct Lanes {
  T at[32 / sizeof(T)];
  T& operator[](int i) { return at[i]; }
  T operator[](int i) const { return at[i]; }
};
template <typename T>
Lanes<T> operator+(Lanes<T> a, const Lanes<T>& b) {
  for (int i = 0; i < int(32 / sizeof(T)); ++i) a[i] += b[i];
  return a;
}
template <typename T>
Lanes<T> operator-(Lanes<T> a, const Lanes<T>& b) {
  for (int i = 0; i < int(32 / sizeof(T)); ++i) a[i] -= b[i];
  return a;
}
template <typename T>
Lanes<T> operator*(Lanes<T> a, const Lanes<T>& b) {
  for (int i = 0; i < int(32 / sizeof(T)); ++i) a[i] *= b[i];
  return a;
}
#endif

template <typename T>
FCOS_INLINE void load(const T* from, int64_t size, Lanes<T>& to) {
  std::memcpy(&to, from, size * sizeof(T));
}

// TapSums in the making.
template <typename T>
struct RunningSums {
  Lanes<T> value = {}, top_step = {}, left_step = {}, right_step = {};
};

// ---- loops over channels; plain overloads, since compilers clone no templates ------------------

template <typename T>
FCOS_INLINE void blend_body(const T* const cells[4], const Tap<T>& tap, int64_t size,
                            T* __restrict out) {
  const T *a = cells[0], *b = cells[1], *c = cells[2], *d = cells[3];
  const T wa = tap.weight[0], wb = tap.weight[1], wc = tap.weight[2], wd = tap.weight[3];
  const T scale = tap.scale;
  for (int64_t i = 0; i < size; ++i)
    out[i] = scale * (wa * a[i] + wb * b[i] + wc * c[i] + wd * d[i]);
}

FCOS_SIMD_CLONES void blend(const float* const cells[4], const Tap<float>& tap, int64_t size,
                            float* out) {
  blend_body(cells, tap, size, out);
}
FCOS_SIMD_CLONES void blend(const double* const cells[4], const Tap<double>& tap, int64_t size,
                            double* out) {
  blend_body(cells, tap, size, out);
}

template <typename T>
FCOS_INLINE void sum_up_some(const T* const cells[4], const T* grad, int64_t at, int64_t size,
                             RunningSums<T>& sums) {
  Lanes<T> g = {}, a = {}, b = {}, c = {}, d = {};
  load(grad + at, size, g);
  load(cells[0] + at, size, a);
  load(cells[1] + at, size, b);
  load(cells[2] + at, size, c);
  load(cells[3] + at, size, d);
  sums.value = sums.value + g * a;
  sums.top_step = sums.top_step + g * (b - a);
  sums.left_step = sums.left_step + g * (c - a);
  sums.right_step = sums.right_step + g * (d - b);
}

template <typename T>
FCOS_INLINE void sum_up_body(const T* const cells[4], const T* grad, int64_t size,
                             RunningSums<T>& total) {
  constexpr int64_t kLanes = 32 / sizeof(T);
  RunningSums<T> sums = total;
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) sum_up_some(cells, grad, i, kLanes, sums);
  if (i < size) sum_up_some(cells, grad, i, size - i, sums);
  total = sums;
}

FCOS_SIMD_CLONES void sum_up(const float* const cells[4], const float* grad, int64_t size,
                             RunningSums<float>& total) {
  sum_up_body(cells, grad, size, total);
}
FCOS_SIMD_CLONES void sum_up(const double* const cells[4], const double* grad, int64_t size,
                             RunningSums<double>& total) {
  sum_up_body(cells, grad, size, total);
}

template <typename T>
FCOS_INLINE void add_scaled_body(const T* __restrict grad, T factor, int64_t size,
                                 T* __restrict out) {
  for (int64_t i = 0; i < size; ++i) out[i] += factor * grad[i];
}

FCOS_SIMD_CLONES void add_scaled(const float* grad, float factor, int64_t size, float* out) {
  add_scaled_body(grad, factor, size, out);
}
FCOS_SIMD_CLONES void add_scaled(const double* grad, double factor, int64_t size, double* out) {
  add_scaled_body(grad, factor, size, out);
}

// ---- loops over positions and taps -------------------------------------------------------------

template <typename T>
T sum_of(const Lanes<T>& lanes) {
  T sum = 0;
  for (int i = 0; i < int(32 / sizeof(T)); ++i) sum += lanes[i];
  return sum;
}

// Calls use(position in the block, tap index, tap) for each tap of a block.
template <typename T, typename Use>
void for_each_tap(const DeformConvProblem& p, int64_t image, int32_t first, int32_t count,
                  int64_t first_group, int64_t last_group, const Use& use) {
  TapIndex at;
  at.image = image;
  for (int32_t i = 0; i < count; ++i) {
    at.out_y = (first + i) / p.out_width;
    at.out_x = (first + i) % p.out_width;
    for (int64_t group = first_group; group < last_group; ++group) {
      at.group = static_cast<int32_t>(group);
      for (at.kernel_y = 0; at.kernel_y < p.kernel_height; ++at.kernel_y)
        for (at.kernel_x = 0; at.kernel_x < p.kernel_width; ++at.kernel_x)
          use(i, at, tap_at<T>(p, at));
    }
  }
}

// Calls use(first channel, number of channels, index in the columns) for each run of the channels
// [begin, end) that is one run in the columns too.
template <typename Use>
void for_each_run(const DeformConvProblem& p, int64_t position, const TapIndex& at, int64_t begin,
                  int64_t end, const Use& use) {
  const int64_t num_taps = int64_t(p.kernel_height) * p.kernel_width;
  const int64_t tap_number = int64_t(at.kernel_y) * p.kernel_width + at.kernel_x;
  const int64_t group_size = p.channels / p.groups;
  while (begin < end) {
    const int64_t group = begin / group_size;
    const int64_t stop = std::min(end, (group + 1) * group_size);
    use(begin, stop - begin,
        ((position * p.groups + group) * num_taps + tap_number) * group_size +
            (begin - group * group_size));
    begin = stop;
  }
}

// The four cells of a tap, from some channel on.
template <typename T>
struct Cells {
  const T* rows[4];
  Cells(const T* image, const T* zeros, const Tap<T>& tap, int64_t channels, int64_t channel) {
    for (int i = 0; i < 4; ++i)
      rows[i] = tap.pixel[i] < 0 ? zeros : image + tap.pixel[i] * channels + channel;
  }
};

template <typename T>
const T* image_of(const DeformConvProblem& p, int64_t image) {
  return static_cast<const T*>(p.input) + image * p.height * p.width * p.channels;
}

template <typename T>
void columns_of(const DeformConvProblem& p, int64_t image, int32_t first, int32_t count,
                T* columns) {
  const std::vector<T> zeros(p.channels);
  const T* input = image_of<T>(p, image);
  const int64_t size = p.channels / p.deformable_groups;
  for_each_tap<T>(
      p, image, first, count, 0, p.deformable_groups,
      [&](int32_t i, const TapIndex& at, const Tap<T>& tap) {
        for_each_run(p, i, at, at.group * size, (at.group + 1) * size,
                     [&](int64_t channel, int64_t length, int64_t index) {
                       const Cells<T> cells(input, zeros.data(), tap, p.channels, channel);
                       blend(cells.rows, tap, length, columns + index);
                     });
      });
}

template <typename T>
void backward_taps(const DeformConvProblem& p, int64_t image, int32_t first, int32_t count,
                   const T* grad_columns, const DeformConvGradients& gradients, T* columns) {
  const std::vector<T> zeros(p.channels);
  const T* input = image_of<T>(p, image);
  const int64_t size = p.channels / p.deformable_groups;
  for_each_tap<T>(
      p, image, first, count, 0, p.deformable_groups,
      [&](int32_t i, const TapIndex& at, const Tap<T>& tap) {
        RunningSums<T> total;
        for_each_run(p, i, at, at.group * size, (at.group + 1) * size,
                     [&](int64_t channel, int64_t length, int64_t index) {
                       const Cells<T> cells(input, zeros.data(), tap, p.channels, channel);
                       blend(cells.rows, tap, length, columns + index);
                       sum_up(cells.rows, grad_columns + index, length, total);
                     });
        const TapSums<T> sums = {sum_of<T>(total.value), sum_of<T>(total.top_step),
                                 sum_of<T>(total.left_step), sum_of<T>(total.right_step)};
        store_gradients(p, gradients, at, tap, sums);
      });
}

template <typename T>
void backward_input(const DeformConvProblem& p, int64_t image, int32_t first, int32_t count,
                    const T* grad_columns, int64_t begin, int64_t end, T* grad_input) {
  T* grad_image = grad_input + image * p.height * p.width * p.channels;
  const int64_t size = p.channels / p.deformable_groups;
  for_each_tap<T>(
      p, image, first, count, begin / size, ceil_div(end, size),
      [&](int32_t i, const TapIndex& at, const Tap<T>& tap) {
        for_each_run(p, i, at, std::max(begin, at.group * size),
                     std::min(end, (at.group + 1) * size),
                     [&](int64_t channel, int64_t length, int64_t index) {
                       for (int cell = 0; cell < 4; ++cell)
                         if (tap.pixel[cell] >= 0)
                           add_scaled(grad_columns + index, tap.scale * tap.weight[cell], length,
                                      grad_image + tap.pixel[cell] * p.channels + channel);
                     });
      });
}

// Calls action(T()) with the type that a problem on the CPU is computed in.
template <typename Action>
void with_type(const DeformConvProblem& p, const Action& action) {
  p.dtype == DType::float64 ? action(double()) : action(float());
}

}  // namespace

void deform_conv_columns_cpu(const DeformConvProblem& problem, int64_t image, int32_t first,
                             int32_t count, void* columns) {
  with_type(problem, [&](auto type) {
    using T = decltype(type);
    columns_of<T>(problem, image, first, count, static_cast<T*>(columns));
  });
}

void deform_conv_backward_taps_cpu(const DeformConvProblem& problem, int64_t image, int32_t first,
                                   int32_t count, const void* grad_columns,
                                   const DeformConvGradients& gradients, void* columns) {
  with_type(problem, [&](auto type) {
    using T = decltype(type);
    backward_taps<T>(problem, image, first, count, static_cast<const T*>(grad_columns), gradients,
                     static_cast<T*>(columns));
  });
}

void deform_conv_backward_input_cpu(const DeformConvProblem& problem, int64_t image, int32_t first,
                                    int32_t count, const void* grad_columns, int64_t begin,
                                    int64_t end, const DeformConvGradients& gradients) {
  with_type(problem, [&](auto type) {
    using T = decltype(type);
    backward_input<T>(problem, image, first, count, static_cast<const T*>(grad_columns), begin, end,
                      static_cast<T*>(gradients.input));
  });
}

}  // namespace fcos_core
