// RoI max pooling: the maxima of a feature map in the bins of each region of interest.
//
// A roi is (image, x1, y1, x2, y2), the corners in pixels of the network input. Per axis, with the
// coordinates low and high of the roi and `bins` output cells:
//   start = round(low * spatial_scale), last = round(high * spatial_scale)   halves away from 0
//   side  = max(last - start + 1, 1)
//   bin b holds the pixels from start + floor(b * (side / bins))
//                       up to start + ceil((b + 1) * (side / bins)), that one excluded, on the map
// Legacy: start and last are the first and the last pixel, hence the + 1; and the quotient is
// rounded, which gives some bins a pixel more than the fraction would.
//
// Besides the maximum of a bin its place is written, y * W + x in the map: the first one, row by
// row, if several are equal. NaN counts as larger than any number. An empty bin is 0, its place -1.
//
//   input [N, C, H, W]        rois [K, 5]        output, argmax [K, C, pooled_height, pooled_width]
// input, output and argmax are all contiguous or all channels_last; input and output are of one
// dtype. Rois are float32, float64 for float64 features; so are the scaled coordinates.
//
// Edge cases: a roi with a coordinate that is not finite, or on the GPU a roi whose image does not
// exist (an error on the CPU), gives NaN and the place -1. The backward passes the gradient of an
// output on to its place, and nothing for a place that is not on the map (an error on the CPU,
// unless it is -1).
//
// Source: Girshick, Fast R-CNN, arXiv:1504.08083, section 2.1.
// No torch header here: kernels include this file.
#pragma once

#include <cmath>
#include <cstdint>

#include "../kernel.h"

namespace fcos_core {

struct RoiPoolProblem {
  const void* rois;    // [num_rois, 5], contiguous, float64 if dtype is, else float32
  DType dtype;         // of the features and of the pooled output and its gradient
  bool channels_last;  // layout of both, and of argmax
  int64_t num_rois;
  int64_t num_images;
  int64_t channels;
  int64_t height;  // of the map, at most kRoiPoolMaxSide; width too; height * width below 2^31
  int64_t width;
  int64_t pooled_height;  // 1 to kRoiPoolMaxBins; pooled_width too
  int64_t pooled_width;
  double spatial_scale;  // not used by the backward
};

constexpr int64_t kRoiPoolMaxSide = int64_t(1) << 24;  // float32 counts pixels exactly up to here
constexpr int64_t kRoiPoolMaxBins = 4096;

// Writes `output`, whose element type is problem.dtype, as that of `input`, and `argmax`.
void roi_pool_cpu(const RoiPoolProblem& problem, const void* input, void* output, int32_t* argmax);

// Adds the gradient of the input to `grad_input`, whose elements are float64 if problem.dtype is,
// else float32; `grad`, the gradient of the output, is of problem.dtype.
void roi_pool_backward_cpu(const RoiPoolProblem& problem, const void* grad, const int32_t* argmax,
                           void* grad_input);

// The same on a GPU. `scratch` is device memory of roi_pool_cuda_scratch(problem) bytes at an address
// of 16, of contiguous maps with many rois a copy of some channels, else 0.
// `ordered`: sums in the order of the rois, for the same bits each time.
// Backward: with scratch memory, all of `grad_input` is written, in problem.dtype; where its size is
// 0, it is null and the gradient is added, as on the CPU.
int64_t roi_pool_cuda_scratch(const RoiPoolProblem& problem);
const char* roi_pool_cuda(const RoiPoolProblem& problem, const void* input, void* output,
                          int32_t* argmax, void* scratch, void* stream);
int64_t roi_pool_backward_cuda_scratch(const RoiPoolProblem& problem, bool ordered);
const char* roi_pool_backward_cuda(const RoiPoolProblem& problem, const void* grad,
                                   const int32_t* argmax, void* grad_input, void* scratch,
                                   bool ordered, void* stream);

FCOS_HOST_DEVICE inline float roi_pool_round(float x) { return roundf(x); }
FCOS_HOST_DEVICE inline double roi_pool_round(double x) { return round(x); }
FCOS_HOST_DEVICE inline float roi_pool_floor(float x) { return floorf(x); }
FCOS_HOST_DEVICE inline double roi_pool_floor(double x) { return floor(x); }
FCOS_HOST_DEVICE inline float roi_pool_ceil(float x) { return ceilf(x); }
FCOS_HOST_DEVICE inline double roi_pool_ceil(double x) { return ceil(x); }

// One axis of one roi. All numbers are whole, and kept as T because a roi may be anywhere.
template <typename T>
struct RoiPoolAxis {
  T start;
  T bin;  // side of a bin, not whole
  int pixels;
  bool finite;

  // The pixels [begin, end) of a bin.
  FCOS_HOST_DEVICE void range(int index, int& begin, int& end) const {
    begin = on_map(start + roi_pool_floor(static_cast<T>(index) * bin));
    end = on_map(start + roi_pool_ceil(static_cast<T>(index + 1) * bin));
  }
  // Comparisons before the conversion: converting NaN or a large number is undefined.
  FCOS_HOST_DEVICE int on_map(T pixel) const {
    if (!(pixel > T(0))) return 0;
    return pixel < static_cast<T>(pixels) ? static_cast<int>(pixel) : pixels;
  }
};

template <typename T>
FCOS_HOST_DEVICE inline RoiPoolAxis<T> roi_pool_axis(T low, T high, T scale, int bins, int pixels) {
  RoiPoolAxis<T> axis;
  axis.start = roi_pool_round(low * scale);
  const T side = roi_pool_round(high * scale) - axis.start + T(1);
  axis.bin = (side < T(1) ? T(1) : side) / static_cast<T>(bins);
  axis.pixels = pixels;
  axis.finite = side - side == T(0) && axis.start - axis.start == T(0);
  return axis;
}

template <typename T>
struct RoiPoolRoi {
  RoiPoolAxis<T> y, x;
  int64_t image;
  bool usable;  // its image exists and its coordinates are finite
};

template <typename T>
FCOS_HOST_DEVICE inline RoiPoolRoi<T> roi_pool_roi(const RoiPoolProblem& p, int64_t index) {
  RoiPoolRoi<T> roi;
  const T* values = static_cast<const T*>(p.rois) + 5 * index;
  const T scale = static_cast<T>(p.spatial_scale);
  roi.y = roi_pool_axis(values[2], values[4], scale, static_cast<int>(p.pooled_height),
                        static_cast<int>(p.height));
  roi.x = roi_pool_axis(values[1], values[3], scale, static_cast<int>(p.pooled_width),
                        static_cast<int>(p.width));
  const bool exists = values[0] >= T(0) && values[0] < static_cast<T>(p.num_images);
  roi.image = exists ? static_cast<int64_t>(values[0]) : -1;
  roi.usable = exists && roi.y.finite && roi.x.finite;
  return roi;
}

// Whether a value met later takes the place of the largest so far: the first NaN, or the first of
// the largest numbers, stays.
template <typename T>
FCOS_HOST_DEVICE FCOS_INLINE bool roi_pool_exceeds(T value, T largest) {
  return value > largest || (value != value && largest == largest);
}

}  // namespace fcos_core
