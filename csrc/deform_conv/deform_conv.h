// Deformable convolution, version 1 and, with a mask, version 2 (modulated).
//
// A kernel tap k = (i, j) of the output position (y, x) reads the input, not at a cell of the grid,
// but at a point of its own that an offset moves:
//   p_y = y * stride_y - padding_y + i * dilation_y + offset[n, (d * K + k) * 2,     y, x]
//   p_x = x * stride_x - padding_x + j * dilation_x + offset[n, (d * K + k) * 2 + 1, y, x]
//   column[n, y, x, k, c] = mask[n, d * K + k, y, x] * sample(input[n, c], p_y, p_x)
//   output[n, o, y, x] = bias[o] + sum over k and c of weight[o, c, k] * column[n, y, x, k, c]
// with K = kernel height * width taps and d the deformable group of channel c: channels are split
// into deformable_groups runs of equal length. `groups` splits input and output channels as in any
// convolution. Without a mask its value is 1.
//
// sample() is bilinear: the mean of the four cells around the point, weighted by nearness, to which
// cells outside the map contribute nothing. A point at or beyond -1, or at or beyond the height (or
// width), gives 0 and has no gradient. A NaN point gives NaN. On a line of cells, where the slope
// has a jump, the gradient of the offset is the slope towards larger coordinates.
//
// Shapes:
//   input [N, C, H, W]    weight [O, C / groups, kernel height, kernel width]    bias [O]
//   offset [N, deformable_groups * K * 2, Ho, Wo], pairs (y, x) in cells of the input
//   mask [N, deformable_groups * K, Ho, Wo]    output [N, O, Ho, Wo]
//   Ho = (H + 2 * padding_y - dilation_y * (kernel height - 1) - 1) / stride_y + 1, Wo alike
//
// How: the columns of many output positions are written to scratch memory, [position, group, tap,
// channel of the group], and the rest is a matrix product, which torch does. Channels are innermost
// everywhere, so a point is worked out once for a whole vector of channels. Scratch is bounded by
// kColumnBytes, on a GPU by kColumnBytesCuda: positions are taken in parts that fit. On the CPU each
// of the threads has a part of its own, of kBlockBytes; the backward holds at most kColumnBytes of
// them at a time.
//
// dtypes: input, weight, bias and results share one. Points and blending are computed in float32,
// or float64 for float64; offset and mask are widened to that dtype, whatever the dtype of the
// features. Columns of half dtypes are stored in half on a GPU, whose products accumulate in
// float32, and in float32 on the CPU. The gradient of the input is a sum over scattered terms; it
// is kept in float32 at least and rounded once.
//
// The CPU gives the same bits for any number of threads. On a GPU the gradient of the input is
// summed in an order that varies; all else is reproducible.
//
// Sources: Dai et al., Deformable Convolutional Networks, arXiv:1703.06211, section 2.1; Zhu et
// al., Deformable ConvNets v2, arXiv:1811.11168, section 3.2.
// No torch header here: kernels include this file.
#pragma once

#include <cstdint>

#include "../kernel.h"

namespace fcos_core {

constexpr int64_t kColumnBytes = int64_t(64) << 20;       // of columns in memory, on a CPU
constexpr int64_t kColumnBytesCuda = int64_t(256) << 20;  // on a GPU, and of lists beside them
constexpr int64_t kBlockBytes = int64_t(4) << 20;    // of columns that one CPU thread works on

// A [N, channels, Ho, Wo] map of any layout.
struct DeformMap {
  void* data;  // null: there is none
  int64_t strides[4];
};

// What forward and backward share. "Compute dtype" is float64 if dtype is, else float32.
struct DeformConvProblem {
  const void* input;  // [num_images, height, width, channels], contiguous
  DType dtype;        // of input and of the columns; CPU kernels take float32 and float64 only
  DeformMap offset;   // of sampling_dtype
  DeformMap mask;     // the same, or null
  DType sampling_dtype;  // CPU kernels take the compute dtype only, CUDA kernels half dtypes as well
  int64_t num_images, channels, groups, deformable_groups;
  int32_t height, width;          // of the input; their product is below 2^30
  int32_t out_height, out_width;  // their product is below 2^30
  int32_t kernel_height, kernel_width;
  int32_t stride[2], padding[2], dilation[2];  // y, x
};

// Where the backward writes, in the compute dtype but for `input`.
struct DeformConvGradients {
  // [num_images, height, width, channels]. Added to, in the compute dtype; or, if input_written, in
  // the dtype of the input and written for the images of each part, which must be whole.
  void* input;
  bool input_written;
  DeformMap offset;
  DeformMap mask;  // null if there is no mask
};

// A point between the cells of a map, and all that blending needs to know about it. The cells are
// those at its top left, top right, bottom left and bottom right.
template <typename T>
struct Tap {
  T scale;           // the mask
  T below, right;    // distance from the top left cell
  T weight[4];       // of the cells
  int32_t pixel[4];  // index of the cells in the map; -1: outside
};

template <typename T>
FCOS_HOST_DEVICE inline Tap<T> make_tap(T y, T x, T scale, int32_t height, int32_t width) {
  Tap<T> tap;
  tap.scale = scale;
  tap.below = tap.right = T(0);
  for (int i = 0; i < 4; ++i) {
    tap.weight[i] = T(0);
    tap.pixel[i] = -1;
  }
  // also false for NaN; numbers that pass fit into int32
  if (!(y > T(-1) && x > T(-1) && y < T(height) && x < T(width))) {
    if (y != y || x != x) tap.scale = y + x;  // NaN, which the column then is
    return tap;
  }
  int32_t top = static_cast<int32_t>(y), left = static_cast<int32_t>(x);
  top -= y < T(top);  // from truncation to floor
  left -= x < T(left);
  tap.below = y - T(top);
  tap.right = x - T(left);
  tap.weight[0] = (T(1) - tap.below) * (T(1) - tap.right);
  tap.weight[1] = (T(1) - tap.below) * tap.right;
  tap.weight[2] = tap.below * (T(1) - tap.right);
  tap.weight[3] = tap.below * tap.right;
  const bool has_top = top >= 0, has_bottom = top + 1 < height;
  const bool has_left = left >= 0, has_right = left + 1 < width;
  const int32_t first = top * width + left;
  if (has_top && has_left) tap.pixel[0] = first;
  if (has_top && has_right) tap.pixel[1] = first + 1;
  if (has_bottom && has_left) tap.pixel[2] = first + width;
  if (has_bottom && has_right) tap.pixel[3] = first + width + 1;
  return tap;
}

// Which tap: that of (image, deformable group, row and column of the kernel, output position).
struct TapIndex {
  int64_t image;
  int32_t group, kernel_y, kernel_x, out_y, out_x;
};

// Where element (image, channel, y, x) of a map is.
FCOS_HOST_DEVICE inline int64_t index_of(const DeformMap& map, const TapIndex& at,
                                         int64_t channel) {
  return at.image * map.strides[0] + channel * map.strides[1] + at.out_y * map.strides[2] +
         at.out_x * map.strides[3];
}

template <typename T>
FCOS_HOST_DEVICE inline T* element_of(const DeformMap& map, const TapIndex& at, int64_t channel) {
  return static_cast<T*>(map.data) + index_of(map, at, channel);
}

// Channel of the mask; the offset has twice as many.
FCOS_HOST_DEVICE inline int64_t mask_channel(const DeformConvProblem& p, const TapIndex& at) {
  return (int64_t(at.group) * p.kernel_height + at.kernel_y) * p.kernel_width + at.kernel_x;
}

// The tap whose offset is (offset_y, offset_x) and whose mask is `scale`.
template <typename T>
FCOS_HOST_DEVICE inline Tap<T> tap_with(const DeformConvProblem& p, const TapIndex& at, T offset_y,
                                        T offset_x, T scale) {
  const int32_t y = at.out_y * p.stride[0] - p.padding[0] + at.kernel_y * p.dilation[0];
  const int32_t x = at.out_x * p.stride[1] - p.padding[1] + at.kernel_x * p.dilation[1];
  return make_tap(T(y) + offset_y, T(x) + offset_x, scale, p.height, p.width);
}

// Sums over the channels of a deformable group, g the gradient of the columns and v0..v3 the values
// of the four cells, outside 0. Differences are summed rather than values, so that a map that
// varies little does not lose the digits of its slope.
template <typename T>
struct TapSums {
  T value;       // g v0
  T top_step;    // g (v1 - v0)
  T left_step;   // g (v2 - v0)
  T right_step;  // g (v3 - v1)
};

template <typename T>
FCOS_HOST_DEVICE inline T gradient_of_mask(const Tap<T>& tap, const TapSums<T>& sums) {
  return sums.value + tap.right * sums.top_step +
         tap.below * (sums.left_step + tap.right * (sums.right_step - sums.left_step));
}

template <typename T>
FCOS_HOST_DEVICE inline T gradient_of_y(const Tap<T>& tap, const TapSums<T>& sums) {
  return tap.scale * (sums.left_step + tap.right * (sums.right_step - sums.left_step));
}

template <typename T>
FCOS_HOST_DEVICE inline T gradient_of_x(const Tap<T>& tap, const TapSums<T>& sums) {
  return tap.scale * (sums.top_step + tap.below * (sums.right_step - sums.left_step));
}

// Stores the gradients of one tap's offset and mask.
template <typename T>
FCOS_HOST_DEVICE inline void store_gradients(const DeformConvProblem& p,
                                             const DeformConvGradients& gradients,
                                             const TapIndex& at, const Tap<T>& tap,
                                             const TapSums<T>& sums) {
  const int64_t channel = mask_channel(p, at);
  T* offset = element_of<T>(gradients.offset, at, 2 * channel);
  offset[0] = gradient_of_y(tap, sums);
  offset[gradients.offset.strides[1]] = gradient_of_x(tap, sums);
  if (gradients.mask.data)
    *element_of<T>(gradients.mask, at, channel) = gradient_of_mask(tap, sums);
}

// ---- CPU: one thread, on `count` output positions of one image from `first` on -----------------

// Writes the columns [count, groups, K, channels / groups].
void deform_conv_columns_cpu(const DeformConvProblem& problem, int64_t image, int32_t first,
                             int32_t count, void* columns);

// From the gradient of the columns: writes the gradients of offset and mask, and the columns.
void deform_conv_backward_taps_cpu(const DeformConvProblem& problem, int64_t image, int32_t first,
                                   int32_t count, const void* grad_columns,
                                   const DeformConvGradients& gradients, void* columns);

// Adds to the gradient of the input, in the channels [begin, end) only.
void deform_conv_backward_input_cpu(const DeformConvProblem& problem, int64_t image, int32_t first,
                                    int32_t count, const void* grad_columns, int64_t begin,
                                    int64_t end, const DeformConvGradients& gradients);

// ---- CUDA: `count` output positions from `first` on, counted through all images ----------------
// They return null or CUDA's message; see kernel.h.

const char* deform_conv_columns_cuda(const DeformConvProblem& problem, int64_t first, int32_t count,
                                     void* columns, void* stream);

// `columns` holds their gradient before and the columns after; writes all gradients. `lists` is
// memory of deform_conv_lists_cuda(problem, count) bytes, or null if that is 0; it serves smaller
// counts too.
int64_t deform_conv_lists_cuda(const DeformConvProblem& problem, int64_t count);
const char* deform_conv_backward_cuda(const DeformConvProblem& problem, int64_t first,
                                      int32_t count, const DeformConvGradients& gradients,
                                      void* columns, void* lists, void* stream);

}  // namespace fcos_core
