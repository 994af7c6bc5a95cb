// Sigmoid focal loss over R locations and C classes, and its gradient.
//
// With p = sigmoid(x) and the label t of a location, class c counted from 1:
//   t == c             -alpha       (1 - p)^gamma log(p)
//   t != c and t >= 0  -(1 - alpha)  p^gamma      log(1 - p)
//   t == -1            0 (ignored)
// Both lines are one function: with z = -x in the first and z = x in the second,
//   f(z)  = q^gamma s,   q = sigmoid(z),   s = softplus(z) = -log(1 - q)
//   f'(z) = q^gamma (q + gamma (1 - q) s)
// which is finite for every finite logit, since no logarithm of a rounded probability is taken.
//
// float16 and bfloat16 logits are computed in float32; sums are float64 over chunks that do not
// depend on the number of threads, so neither does the result. The formulas for one logit are in
// sigmoid_focal_loss_terms.h.
//
// A target outside -1..C is an error on the CPU; on the GPU, which is not waited for, it makes the
// losses and the gradient of its row NaN.
//
// Source: Lin et al., Focal Loss for Dense Object Detection, arXiv:1708.02002, equation 5.
// No torch header here: kernels include this file.
#pragma once

#include <cstdint>

#include "../kernel.h"

namespace fcos_core {

struct FocalProblem {
  const void* logits;      // [num_rows, num_classes], contiguous
  DType dtype;             // of logits and of every output and gradient below
  const int64_t* targets;  // [num_rows], in -1..num_classes
  const int32_t* short_targets;  // CUDA only: the same in 32 bits, instead of the above
  int64_t num_rows;
  int64_t num_classes;
  double gamma;
  double alpha;
};

// Writes the loss of every logit to `losses` [num_rows, num_classes].
void sigmoid_focal_loss_cpu(const FocalProblem& problem, void* losses);

// Returns the sum of all losses without storing them.
double sigmoid_focal_loss_sum_cpu(const FocalProblem& problem);

// Writes d loss / d logit times `scale`, and times `grad` [num_rows, num_classes] unless that is
// null, to `grad_logits` [num_rows, num_classes].
void sigmoid_focal_loss_backward_cpu(const FocalProblem& problem, const void* grad, double scale,
                                     void* grad_logits);

// The same on the GPU, queued on `stream`; pointers are device memory, the functions return null or
// CUDA's error message. num_classes is at most kMaxClassesCuda. Same bits each time: no atomics.
//
// A sum that will be differentiated writes the slopes in the same pass. If what arrives in the
// backward pass is 1, they are the gradient; otherwise they are computed again from the logits, which
// moves no more memory than scaling them would, and rounds once.
constexpr int64_t kMaxClassesCuda = int64_t(1) << 30;

const char* sigmoid_focal_loss_cuda(const FocalProblem& problem, void* losses, void* stream);

// `partials` is scratch for sigmoid_focal_loss_sum_cuda_partials(problem) numbers; `total` is one
// number, float64 for float64 logits, else float32.
int64_t sigmoid_focal_loss_sum_cuda_partials(const FocalProblem& problem);

// `slopes` [num_rows, num_classes], unless it is null, gets d loss / d logit.
const char* sigmoid_focal_loss_sum_cuda(const FocalProblem& problem, double* partials, void* total,
                                        void* slopes, void* stream);

// Writes d loss / d logit, times `grad` [num_rows, num_classes], in the dtype of logits, or, if that
// is null, times the one number at `factor`, to `grad_logits` [num_rows, num_classes]. has_slopes:
// there is the result for factor 1 already.
const char* sigmoid_focal_loss_backward_cuda(const FocalProblem& problem, const void* grad,
                                             const void* factor, DType factor_dtype,
                                             bool has_slopes, void* grad_logits, void* stream);

}  // namespace fcos_core
