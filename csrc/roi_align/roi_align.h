// RoIAlign: averages of bilinear samples of a feature map, on a grid over each region of interest.
//
// A roi is (image, x1, y1, x2, y2), the corners in pixels of the network input. Per axis, with the
// coordinates low and high of the roi and `bins` output cells:
//   start = low * spatial_scale - shift         shift: 0.5 if aligned, else 0
//   size  = (high - low) * spatial_scale        not aligned: at least 1
//   bin b covers size / bins pixels from start + b * size / bins, with `samples` points evenly
//   spaced in it, half a spacing away from its ends
//   samples = sampling_ratio, or if that is 0 or less ceil(size / bins), which is 0 for size <= 0
// An output is the mean over the samples_y * samples_x points of its bin. A point with y outside
// [-1, H] or x outside [-1, W] counts as 0; others are clamped to the centres of the border pixels.
// A reversed roi (high < low) has samples only if aligned and given a sampling_ratio; they then run
// from right to left or bottom to top.
//
// The mean is separable: per axis a bin is a short list of pixels with weights. These taps are made
// once for a roi and serve all its channels; points that share pixels are added up beforehand.
//
//   input [N, C, H, W]        rois [K, 5]        output [K, C, pooled_height, pooled_width]
// input and output are both contiguous or both channels_last, of one dtype; float16 and bfloat16
// are computed in float32, and so are positions, from rois of float32 (float64 for float64).
//
// Edge cases: a roi with a coordinate that is not finite, or on the GPU a roi whose image does not
// exist (an error on the CPU), gives NaN and passes no gradient on. Adaptive sampling stops at
// kRoiAlignMaxPositions points over all bins of an axis, and points beyond the map cost nothing, so
// that the work is bounded by the size of the map. Empty maps give 0.
//
// Sources: He et al., Mask R-CNN, arXiv:1703.06870, section 3; `aligned` and the clamping are those
// of torchvision.ops.roi_align. Legacy: the detectors were trained without the half-pixel shift.
// No torch header here: kernels include this file.
#pragma once

#include <cmath>
#include <cstdint>

#include "../kernel.h"

namespace fcos_core {

struct RoiAlignProblem {
  const void* rois;    // [num_rois, 5], contiguous, float64 if dtype is, else float32
  DType dtype;         // of the features and of the pooled output and its gradient
  bool channels_last;  // layout of both
  int64_t num_rois;
  int64_t num_images;
  int64_t channels;
  int64_t height;  // of the map, at most kRoiAlignMaxSide; width too
  int64_t width;
  int64_t pooled_height;  // 1 to kRoiAlignMaxBins; pooled_width too
  int64_t pooled_width;
  double spatial_scale;
  int64_t sampling_ratio;  // at most kRoiAlignMaxRatio
  bool aligned;
};

constexpr int64_t kRoiAlignMaxSide = int64_t(1) << 24;  // float32 counts pixels exactly up to here
constexpr int64_t kRoiAlignMaxBins = 4096;
constexpr int64_t kRoiAlignMaxRatio = 1024;
constexpr int64_t kRoiAlignMaxPositions = int64_t(1) << 22;  // and half pixels up to here

// Writes `output`, whose element type is problem.dtype, as that of `input`.
void roi_align_cpu(const RoiAlignProblem& problem, const void* input, void* output);

// Adds the gradient of the input to `grad_input`, whose elements are float64 if problem.dtype is,
// else float32; `grad`, the gradient of the output, is of problem.dtype.
void roi_align_backward_cpu(const RoiAlignProblem& problem, const void* grad, void* grad_input);

// The same on a GPU. `scratch` is device memory at an address of 16, of as many bytes as
// roi_align_cuda_scratch(problem, backward, ordered), mostly 0; of contiguous maps with many rois it
// holds a copy of some channels.
// `ordered`: sums in the order of the rois, for the same bits each time.
// If roi_align_backward_cuda_copies(problem, ordered), the backward writes all of `grad_input`, in
// problem.dtype, instead of adding to it.
int64_t roi_align_cuda_scratch(const RoiAlignProblem& problem, bool backward, bool ordered);
const char* roi_align_cuda(const RoiAlignProblem& problem, const void* input, void* output,
                           void* scratch, void* stream);
bool roi_align_backward_cuda_copies(const RoiAlignProblem& problem, bool ordered);
const char* roi_align_backward_cuda(const RoiAlignProblem& problem, const void* grad,
                                    void* grad_input, bool ordered, void* scratch, void* stream);

// ---- samples along one axis ------------------------------------------------------------------

FCOS_HOST_DEVICE inline float roi_align_ceil(float x) { return ceilf(x); }
FCOS_HOST_DEVICE inline double roi_align_ceil(double x) { return ceil(x); }

// a * b, rounded; nvcc would fuse it with a following addition and so give other bits than the CPU.
FCOS_HOST_DEVICE inline float roi_align_product(float a, float b) {
  return FCOS_DEVICE_OR_HOST(__fmul_rn(a, b), a * b);
}
FCOS_HOST_DEVICE inline double roi_align_product(double a, double b) {
  return FCOS_DEVICE_OR_HOST(__dmul_rn(a, b), a * b);
}

// Points are counted through all bins, in the order of growing positions.
template <typename T>
struct RoiAlignGrid {
  T start;
  T step;        // from point to point, of either sign
  int samples;   // per bin
  int positions; // in all bins
  int begin;     // the points in [begin, end) may lie on the map, no other does
  int end;
  int pixels;    // of the map
  bool finite;
};

template <typename T>
FCOS_HOST_DEVICE inline RoiAlignGrid<T> roi_align_grid(T low, T high, T scale, bool aligned,
                                                       int bins, int sampling_ratio, int pixels) {
  RoiAlignGrid<T> grid;
  const T shift = aligned ? T(0.5) : T(0);
  grid.pixels = pixels;
  grid.start = roi_align_product(low, scale) - shift;
  T size = (roi_align_product(high, scale) - shift) - grid.start;
  grid.finite = size - size == T(0) && grid.start - grid.start == T(0);
  if (!aligned && size < T(1)) size = T(1);
  const T bin = size / static_cast<T>(bins);
  if (sampling_ratio > 0) {
    grid.samples = sampling_ratio;
  } else {
    // Comparisons before the conversion: converting NaN or a large number is undefined.
    const T wanted = roi_align_ceil(bin);
    const int most = static_cast<int>(kRoiAlignMaxPositions) / bins;
    grid.samples = !(wanted >= T(1))                    ? 0
                   : !(wanted < static_cast<T>(most)) ? most
                                                        : static_cast<int>(wanted);
  }
  grid.positions = bins * grid.samples;
  grid.step = grid.samples > 0 ? bin / static_cast<T>(grid.samples) : T(0);
  grid.begin = 0;
  grid.end = grid.finite && pixels > 0 ? grid.positions : 0;
  if (grid.step > T(0)) {
    // -1 <= start + (i + 0.5) * step <= pixels, and two points more to be safe from rounding
    const T first = (T(-1) - grid.start) / grid.step - T(2.5);
    const T last = (static_cast<T>(pixels) - grid.start) / grid.step + T(2.5);
    if (first > T(0))
      grid.begin = first < static_cast<T>(grid.end) ? static_cast<int>(first) : grid.end;
    if (last < static_cast<T>(grid.end))
      grid.end = last > static_cast<T>(grid.begin) ? static_cast<int>(last) : grid.begin;
  }
  return grid;
}

// Never falls as `i` grows, since rounding does not change an order.
template <typename T>
FCOS_HOST_DEVICE inline T roi_align_position(const RoiAlignGrid<T>& grid, int i) {
  if (grid.step < T(0)) i = grid.positions - 1 - i;
  return grid.start + roi_align_product(static_cast<T>(i) + T(0.5), grid.step);
}

// ---- taps of one axis ------------------------------------------------------------------------

// The pixels that an axis of a roi touches, in growing order, are its slots. Bin b has the taps
//   weight[offset[b] + t] at pixel[first_slot[b] + t],   t < offset[b + 1] - offset[b]
// because a bin touches slots without gaps; neighbouring bins share up to two. If the axis is
// flipped, bin b here is output bin bins - 1 - b.
template <typename T>
struct RoiAlignAxis {
  RoiAlignGrid<T> grid;
  int bins;
  bool flipped;
  T* weight;       // [capacity]
  int* pixel;      // [capacity], the first first_slot[bins] are used; so the next two
  int* first_bin;  // [capacity], bins that touch a slot
  int* last_bin;   // [capacity]
  int* offset;     // [bins + 1]
  int* first_slot; // [bins + 1]
  int* last_pixel; // [bins], while the taps are made

  FCOS_HOST_DEVICE int output_bin(int bin) const { return flipped ? bins - 1 - bin : bin; }
  FCOS_HOST_DEVICE int num_slots() const { return first_slot[bins]; }
  FCOS_HOST_DEVICE T weight_of(int bin, int slot) const {
    return weight[offset[bin] + slot - first_slot[bin]];
  }
};

// A point touches two pixels, and a bin shares at most two with the bins before it.
FCOS_HOST_DEVICE inline int64_t roi_align_capacity(int64_t bins, int64_t sampling_ratio,
                                                   int64_t pixels) {
  const int64_t by_pixels = pixels + 2 * bins;
  const int64_t by_points = 2 * bins * sampling_ratio;
  return sampling_ratio > 0 && by_points < by_pixels ? by_points : by_pixels;
}
FCOS_HOST_DEVICE inline int64_t roi_align_ints(int64_t bins, int64_t capacity) {
  return 3 * capacity + 3 * bins + 2;
}

// Goes through the points of a bin and adds up what they put on each pixel:
// sink.append(t, pixel) for a new tap, then sink.add(t, weight); returns the number of taps.
template <typename T, typename Sink>
FCOS_HOST_DEVICE inline int roi_align_visit(const RoiAlignGrid<T>& grid, int bin, Sink& sink) {
  const int bin_begin = bin * grid.samples, bin_end = bin_begin + grid.samples;
  const int begin = bin_begin > grid.begin ? bin_begin : grid.begin;
  const int end = bin_end < grid.end ? bin_end : grid.end;
  int count = 0, last = -1;  // last: pixel of the last tap
  for (int i = begin; i < end; ++i) {
    T position = roi_align_position(grid, i);
    if (!(position >= T(-1) && position <= static_cast<T>(grid.pixels))) continue;
    if (position < T(0)) position = T(0);
    int low = static_cast<int>(position);
    T upper = position - static_cast<T>(low);
    const bool at_border = low >= grid.pixels - 1;
    if (at_border) {
      low = grid.pixels - 1;
      upper = T(0);
    }
    int tap = count - 1 - (last - low);
    if (low > last) {
      tap = count++;
      sink.append(tap, last = low);
    }
    sink.add(tap, T(1) - upper);
    if (at_border) continue;
    // kept even with weight 0: without it the slots of a bin could have a gap
    if (tap + 1 == count) sink.append(count++, last = low + 1);
    sink.add(tap + 1, upper);
  }
  return count;
}

template <typename T>
struct RoiAlignCounter {
  int first, last;  // pixels
  FCOS_HOST_DEVICE void append(int tap, int pixel) {
    if (tap == 0) first = pixel;
    last = pixel;
  }
  FCOS_HOST_DEVICE void add(int, T) {}
};

// Step 1, for each bin: the number of its taps into offset[], its first and last pixel.
template <typename T>
FCOS_HOST_DEVICE inline void roi_align_count(const RoiAlignAxis<T>& axis, int bin) {
  RoiAlignCounter<T> counter = {-1, -1};
  axis.offset[bin] = roi_align_visit(axis.grid, bin, counter);
  axis.first_slot[bin] = counter.first;
  axis.last_pixel[bin] = counter.last;
}

// Step 2, once: numbers taps and slots. Bins without a point on the map, at the ends, have none.
template <typename T>
FCOS_HOST_DEVICE inline void roi_align_number(const RoiAlignAxis<T>& axis) {
  int taps = 0, slots = 0, last = -1;
  for (int bin = 0; bin < axis.bins; ++bin) {
    const int count = axis.offset[bin], first = axis.first_slot[bin];
    const int shared = count > 0 && first <= last ? last - first + 1 : 0;
    axis.offset[bin] = taps;
    axis.first_slot[bin] = slots - shared;
    taps += count;
    slots += count - shared;
    if (count > 0) last = axis.last_pixel[bin];
  }
  axis.offset[axis.bins] = taps;
  axis.first_slot[axis.bins] = slots;
}

template <typename T>
struct RoiAlignFiller {
  const RoiAlignAxis<T>& axis;
  int bin;
  int known;  // slots below it belong to earlier bins too

  // Every element is written by one bin only, so bins may be filled at the same time.
  FCOS_HOST_DEVICE void append(int tap, int pixel) {
    const int slot = axis.first_slot[bin] + tap;
    axis.weight[axis.offset[bin] + tap] = T(0);
    if (slot >= known) {
      axis.pixel[slot] = pixel;
      axis.first_bin[slot] = bin;
    }
    if (slot < axis.first_slot[bin + 1]) axis.last_bin[slot] = bin;
  }
  FCOS_HOST_DEVICE void add(int tap, T value) { axis.weight[axis.offset[bin] + tap] += value; }
};

// Step 3, for each bin: its weights, which sum to 1 if all its points lie on the map.
template <typename T>
FCOS_HOST_DEVICE inline void roi_align_fill(const RoiAlignAxis<T>& axis, int bin) {
  // The slots of the bin before end where the new ones of this bin begin.
  const int known = bin == 0 ? 0
                             : axis.first_slot[bin - 1] + (axis.offset[bin] - axis.offset[bin - 1]);
  RoiAlignFiller<T> filler = {axis, bin, known};
  roi_align_visit(axis.grid, bin, filler);
  for (int t = axis.offset[bin]; t < axis.offset[bin + 1]; ++t)
    axis.weight[t] /= static_cast<T>(axis.grid.samples);
}

// ---- one roi ---------------------------------------------------------------------------------

template <typename T>
struct RoiAlignTaps {
  RoiAlignAxis<T> y, x;
  int64_t image;
  bool usable;  // its image exists and its coordinates are finite
};

// Elements of T, and then of int, that the taps of a roi take.
FCOS_HOST_DEVICE inline int64_t roi_align_weights_size(const RoiAlignProblem& p) {
  return roi_align_capacity(p.pooled_height, p.sampling_ratio, p.height) +
         roi_align_capacity(p.pooled_width, p.sampling_ratio, p.width);
}
FCOS_HOST_DEVICE inline int64_t roi_align_ints_size(const RoiAlignProblem& p) {
  return roi_align_ints(p.pooled_height,
                        roi_align_capacity(p.pooled_height, p.sampling_ratio, p.height)) +
         roi_align_ints(p.pooled_width,
                        roi_align_capacity(p.pooled_width, p.sampling_ratio, p.width));
}

// Hands the memory of one axis out and moves the pointers behind it.
template <typename T>
FCOS_HOST_DEVICE inline RoiAlignAxis<T> roi_align_axis(int64_t bins, int64_t capacity, T*& weights,
                                                       int*& ints) {
  RoiAlignAxis<T> axis;
  axis.bins = static_cast<int>(bins);
  axis.weight = weights;
  axis.pixel = ints;
  axis.first_bin = axis.pixel + capacity;
  axis.last_bin = axis.first_bin + capacity;
  axis.offset = axis.last_bin + capacity;
  axis.first_slot = axis.offset + bins + 1;
  axis.last_pixel = axis.first_slot + bins + 1;
  weights += capacity;
  ints = axis.last_pixel + bins;
  return axis;
}

// Where the taps of a roi lie, in the memory of both axes.
template <typename T>
FCOS_HOST_DEVICE inline RoiAlignTaps<T> roi_align_memory(const RoiAlignProblem& p, T* weights,
                                                         int* ints) {
  RoiAlignTaps<T> taps;
  taps.y = roi_align_axis(p.pooled_height,
                          roi_align_capacity(p.pooled_height, p.sampling_ratio, p.height), weights,
                          ints);
  taps.x = roi_align_axis(p.pooled_width,
                          roi_align_capacity(p.pooled_width, p.sampling_ratio, p.width), weights,
                          ints);
  return taps;
}

// The image of a roi, or -1 if there is none.
template <typename T>
FCOS_HOST_DEVICE inline int64_t roi_align_image(const RoiAlignProblem& p, int64_t roi) {
  const T image = static_cast<const T*>(p.rois)[5 * roi];
  return image >= T(0) && image < static_cast<T>(p.num_images) ? static_cast<int64_t>(image) : -1;
}

template <typename T>
FCOS_HOST_DEVICE inline RoiAlignGrid<T> roi_align_grid_of(const RoiAlignProblem& p, int64_t roi,
                                                          bool is_y) {
  const T* corner = static_cast<const T*>(p.rois) + 5 * roi + (is_y ? 2 : 1);
  return roi_align_grid(corner[0], corner[2], static_cast<T>(p.spatial_scale), p.aligned,
                        static_cast<int>(is_y ? p.pooled_height : p.pooled_width),
                        static_cast<int>(p.sampling_ratio),
                        static_cast<int>(is_y ? p.height : p.width));
}

// The roi and its grids; the taps themselves are made by steps 1 to 3, if it is usable.
template <typename T>
FCOS_HOST_DEVICE inline RoiAlignTaps<T> roi_align_locate(const RoiAlignProblem& p, int64_t roi,
                                                         T* weights, int* ints) {
  RoiAlignTaps<T> taps = roi_align_memory(p, weights, ints);
  taps.y.grid = roi_align_grid_of<T>(p, roi, true);
  taps.x.grid = roi_align_grid_of<T>(p, roi, false);
  taps.y.flipped = taps.y.grid.step < T(0);
  taps.x.flipped = taps.x.grid.step < T(0);
  taps.image = roi_align_image<T>(p, roi);
  taps.usable = taps.image >= 0 && taps.y.grid.finite && taps.x.grid.finite;
  return taps;
}

}  // namespace fcos_core
