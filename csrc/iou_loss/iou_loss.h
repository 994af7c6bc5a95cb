// IoU losses of pairs of boxes, and their gradient: each predicted box against its target.
//
// A pair is two rows of four numbers. Of the first three kinds they are the distances (left, top,
// right, bottom) from one location to the sides, of the last the corners (x1, y1, x2, y2):
//   area = (left + right) (top + bottom)        no pixel is added to a side
//   I: intersection, the smaller of each two distances    E: enclosing box, the larger ones
//   U = area(prediction) + area(target) - I               iou = (I + 1) / (U + 1)
//   iou         -log(iou)
//   linear_iou  1 - iou
//   giou        1 - (iou - (E - U) / E)                   E has 1e-7 added
//   box_giou    1 - (I / U - (E - U) / E)                 both U and E have 1e-7 added
// Legacy: the ones that are added to I and U smooth boxes of vanishing area; weights were trained so.
// Corners of a prediction that are in the wrong order are a box without extent at the larger of
// them; an intersection without extent has no area. Where a predicted and a target side are equal,
// I and E take the target's, so that no gradient passes through that side.
//
//   prediction [M, 4]    target [M, 4]    weight [M] or none, then all are 1
//   losses [M] times weight, or their sum; a pair of weight 0 counts 0, whatever its numbers
// Distances are meant to be positive; otherwise the result has no meaning and may be NaN.
//
// float16 and bfloat16 are computed in float32, because areas of large boxes overflow float16. Sums
// are float64, over chunks that do not depend on the number of threads, so neither does the result.
//
// Sources: Yu et al., UnitBox, arXiv:1608.01471, equation 2; Rezatofighi et al., GIoU,
// arXiv:1902.09630, algorithm 1. The formulas for one pair are in iou_loss_terms.h.
// No torch header here: kernels include this file.
#pragma once

#include <cstdint>

#include "../kernel.h"

namespace fcos_core {

enum class IouKind : int { iou, linear_iou, giou, box_giou };
constexpr int64_t kIouKinds = 4;

struct IouLossProblem {
  const void* pred;    // [count, 4], contiguous
  const void* target;  // the same
  const void* weight;  // [count], contiguous, float64 if dtype is, else float32; or null
  DType dtype;         // of pred, target and the gradient
  IouKind kind;
  int64_t count;
};

// Writes the losses [count], float64 if problem.dtype is, else float32.
void iou_loss_cpu(const IouLossProblem& problem, void* losses);

// Returns the sum of all losses.
double iou_loss_sum_cpu(const IouLossProblem& problem);

// Writes the derivatives of the losses by the prediction, times `scale`, and times `grad` [count]
// (float64 or float32, as the losses) unless that is null, to `grad_pred` [count, 4].
void iou_loss_backward_cpu(const IouLossProblem& problem, const void* grad, double scale,
                           void* grad_pred);

// The same on the GPU, queued on `stream`; pointers are device memory, the functions return null or
// CUDA's error message. Same bits each time: no atomics. The sum needs `partials` for
// iou_loss_sum_cuda_partials(problem) numbers; `total` is one number, of the type of the losses, and
// so is the one at `factor`.
const char* iou_loss_cuda(const IouLossProblem& problem, void* losses, void* stream);
int64_t iou_loss_sum_cuda_partials(const IouLossProblem& problem);
const char* iou_loss_sum_cuda(const IouLossProblem& problem, double* partials, void* total,
                              void* stream);
const char* iou_loss_backward_cuda(const IouLossProblem& problem, const void* grad,
                                   const void* factor, void* grad_pred, void* stream);

}  // namespace fcos_core
