// Deformable position-sensitive RoI pooling, and its gradients.
//
//   input  [N, D * G * G, H, W]      D output channels, G x G groups, in cells of stride 1 / scale
//   rois   [K, 5]                    image, x1, y1, x2, y2 in pixels; x2 and y2 are inside
//   trans  [K, 2 * classes, A, A]    offsets of the bins, or none; D is a multiple of classes
//   output [K, D, P, P], counts [K, classes, P, P]
//
// A RoI covers [round(x1) * scale - 0.5, (round(x2) + 1) * scale - 0.5] cells, halves rounded away
// from zero, and is at least 0.1 wide; the same for y. It is cut into P x P bins, and a bin holds
// S x S samples: with b = width / P and s = b / S, the samples of bin p lie at
//   x_i = start + p * b + offset * trans_std * width + i * s,   i = 0 .. S-1.
// The offset of bin (ph, pw) of output channel d is trans[k, 2 * c, ah, aw] for x and
// trans[k, 2 * c + 1, ah, aw] for y, where c = d / (D / classes) and ah = ph * A / P rounded down.
// Samples outside [-0.5, W - 0.5] x [-0.5, H - 0.5] do not count, others are moved into
// [0, W - 1] x [0, H - 1] and interpolated between their four cells. The output is the mean over
// those that count, or 0 if none does, of input channel (d * G + gh) * G + gw, gh = ph * G / P
// rounded down; `counts` is how many do.
//
// Whether a sample counts in x does not depend on its y, so the sum over all samples of a bin is a
// product: sum over rows of weight_y times sum over columns of weight_x times input. The weights of
// the samples that share a cell are added first (axis_taps), which leaves far fewer cells to read,
// and to add gradients to, than four per sample. The gradient of an offset is the same product with
// the slopes of one axis in place of its weights.
//
// Positions are computed in float32, for float64 input in float64; sums likewise.
//
// Legacy: the slope of a sample exactly on a cell is 0, as in the ancestors, where floor and
// ceil of its position are the same cell; the true slopes to its left and right differ.
// Legacy: the ancestors computed ah and gh in float32, which is one less for some bins if P > 21.
//
// A RoI with a coordinate that is not finite, and a bin with a NaN offset, is NaN with count 0 and
// has no gradient; an infinite offset leads outside. An image number outside 0..N-1 is an error on
// the CPU and makes the RoI NaN in CUDA kernels, which cannot raise. Nothing outside of the tensors
// is ever read or written.
//
// Source: Dai et al., Deformable Convolutional Networks, arXiv:1703.06211, section 2.3, equations 5
// and 6; Li et al., R-FCN, arXiv:1605.06409, for the groups.
// No torch header here: kernels include this file.
#pragma once

#include <cmath>
#include <cstdint>

#include "../kernel.h"

namespace fcos_core {

// Keeps the taps of a bin in shared memory, and the products of sizes in range.
constexpr int64_t kPsroiMaxSamples = 256;
constexpr int64_t kPsroiMaxSize = 1024;

struct PsroiProblem {
  DType dtype;  // of input and output
  int64_t num_images, height, width;
  int64_t num_rois;
  int64_t output_dim, num_classes;  // num_classes is 1 without trans
  int64_t group_size, pooled_size, part_size;  // 1..kPsroiMaxSize
  int64_t sample_per_part;                     // 1..kPsroiMaxSamples
  double spatial_scale, trans_std;
  bool channels_last;  // layout of input, output and their gradients
  const void* rois;    // [K, 5], float64 if dtype is, else float32
  const void* trans;   // [K, 2 * num_classes, A, A] of that dtype, or null
};

// Writes output [K, D, P, P] and counts [K, num_classes, P, P].
void deform_psroi_pooling_cpu(const PsroiProblem& problem, const void* input, void* output,
                              int32_t* counts);

// Adds to grad_input, shaped as input, and to grad_trans, shaped as trans or null with it. Both are
// float64 if dtype is, else float32.
void deform_psroi_pooling_backward_cpu(const PsroiProblem& problem, const void* grad,
                                       const void* input, void* grad_input, void* grad_trans);

// The same on a GPU: `stream` is a cudaStream_t; return null or CUDA's error message.
const char* deform_psroi_pooling_cuda(const PsroiProblem& problem, const void* input, void* output,
                                      int32_t* counts, void* stream);
const char* deform_psroi_pooling_backward_cuda(const PsroiProblem& problem, const void* grad,
                                               const void* input, void* grad_input,
                                               void* grad_trans, void* stream);

// ---- shared by the CPU and CUDA kernels --------------------------------------------------------

// Where one axis of a RoI lies, in cells.
template <typename T>
struct PsroiSide {
  T start, extent;
};

template <typename T>
FCOS_HOST_DEVICE PsroiSide<T> psroi_side(T low, T high, T scale) {
  const T start = std::round(low) * scale - T(0.5);
  const T end = (std::round(high) + T(1)) * scale - T(0.5);
  const T extent = end - start;
  // 0, or NaN if one is not finite
  const T undefined = (low - low) + (high - high);
  return {start + undefined, extent < T(0.1) ? T(0.1) : extent};
}

// Arrays for the taps of one bin along one axis, 2 * sample_per_part each, entries `stride` apart;
// slope may be null.
template <typename T>
struct PsroiTaps {
  int32_t* cell;
  T* weight;
  T* slope;
  int stride;
};

struct PsroiTapCount {
  int32_t taps;
  int32_t inside;  // samples that count; -1 if a position is NaN
};

// Writes the cells that the samples first + i * step, i < samples, are interpolated from, each once
// and ascending, with the sum of their weights and of their slopes d weight / d first.
template <typename T>
FCOS_HOST_DEVICE PsroiTapCount axis_taps(T first, T step, int32_t samples, int32_t size,
                                         const PsroiTaps<T>& out) {
  int32_t taps = 0, inside = 0;
  const T low = T(-0.5), high = static_cast<T>(size) - T(0.5), last = static_cast<T>(size - 1);
  for (int32_t i = 0; i < samples; ++i) {
    const T position = first + static_cast<T>(i) * step;
    if (position != position) return {0, -1};
    if (size == 0 || position < low || position > high) continue;
    ++inside;
    const T clamped = position < T(0) ? T(0) : (position > last ? last : position);
    // in float32, whose integers end at 2^24, `last` may have been rounded up
    const int64_t floored = static_cast<int64_t>(std::floor(clamped));
    const int32_t cell = floored < size - 1 ? static_cast<int32_t>(floored) : size - 1;
    const T fraction = cell == floored ? clamped - static_cast<T>(cell) : T(0);
    // positions ascend, so an equal cell can only be one of the last two
    int32_t at = taps;
    if (taps > 0 && out.cell[(taps - 1) * out.stride] == cell) {
      at = taps - 1;
    } else if (taps > 1 && out.cell[(taps - 2) * out.stride] == cell) {
      at = taps - 2;
    }
    for (int32_t side = 0; side < (fraction > T(0) ? 2 : 1); ++side, ++at) {
      const int32_t entry = at * out.stride;
      if (at == taps) {
        ++taps;
        out.cell[entry] = cell + side;
        out.weight[entry] = T(0);
        if (out.slope) out.slope[entry] = T(0);
      }
      out.weight[entry] += side ? fraction : T(1) - fraction;
      if (out.slope && fraction > T(0)) out.slope[entry] += side ? T(1) : T(-1);
    }
  }
  return {taps, inside};
}

// One class of one RoI: the bins share its sides, each has its own offset.
template <typename T>
struct PsroiFrame {
  PsroiSide<T> x, y;
  const T* trans;  // [2, A, A] of this class, or null
};

template <typename T>
FCOS_HOST_DEVICE PsroiFrame<T> psroi_frame(const PsroiProblem& problem, int64_t roi, int64_t cls) {
  const T* box = static_cast<const T*>(problem.rois) + roi * 5;
  const T scale = static_cast<T>(problem.spatial_scale);
  PsroiFrame<T> frame{psroi_side(box[1], box[3], scale), psroi_side(box[2], box[4], scale),
                      nullptr};
  if (problem.trans)
    frame.trans = static_cast<const T*>(problem.trans) +
                  (roi * problem.num_classes + cls) * 2 * problem.part_size * problem.part_size;
  return frame;
}

// Which entry of [A, A] moves bin (ph, pw).
FCOS_HOST_DEVICE inline int64_t psroi_part(const PsroiProblem& problem, int64_t ph, int64_t pw) {
  const int64_t row = ph * problem.part_size / problem.pooled_size;
  const int64_t column = pw * problem.part_size / problem.pooled_size;
  return row * problem.part_size + column;
}

// The taps of bin (ph, pw), along x or along y.
template <typename T>
FCOS_HOST_DEVICE PsroiTapCount psroi_taps(const PsroiProblem& problem, const PsroiFrame<T>& frame,
                                          int64_t ph, int64_t pw, bool along_x,
                                          const PsroiTaps<T>& out) {
  const PsroiSide<T> side = along_x ? frame.x : frame.y;
  const T bin = side.extent / static_cast<T>(problem.pooled_size);
  const T step = bin / static_cast<T>(problem.sample_per_part);
  T first = static_cast<T>(along_x ? pw : ph) * bin + side.start;
  if (frame.trans) {
    const int64_t entry = (along_x ? 0 : problem.part_size * problem.part_size) +
                          psroi_part(problem, ph, pw);
    first += frame.trans[entry] * static_cast<T>(problem.trans_std) * side.extent;
  }
  return axis_taps(first, step, static_cast<int32_t>(problem.sample_per_part),
                   static_cast<int32_t>(along_x ? problem.width : problem.height), out);
}

// The input channel of output channel d is psroi_group(...) + d * G * G.
FCOS_HOST_DEVICE inline int64_t psroi_group(const PsroiProblem& problem, int64_t ph, int64_t pw) {
  const int64_t row = ph * problem.group_size / problem.pooled_size;
  const int64_t column = pw * problem.group_size / problem.pooled_size;
  return row * problem.group_size + column;
}

// The image of a RoI, or -1 if there is none of that number; a fraction is cut off.
template <typename T>
FCOS_HOST_DEVICE int64_t psroi_image(const PsroiProblem& problem, T image) {
  // compared first, because a number that does not fit must not be converted
  if (!(image >= T(0) && image < T(4e18))) return -1;
  return static_cast<int64_t>(image) < problem.num_images ? static_cast<int64_t>(image) : -1;
}

}  // namespace fcos_core
