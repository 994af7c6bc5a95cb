// Group normalisation followed by ReLU, and its gradient.
//
// Over each image n and each of G groups of C / G neighbouring channels, with mean m and biased
// variance v of all their pixels, r = 1 / sqrt(v + eps):
//   output = max(0, (x - m) r weight[c] + bias[c])        NaN stays NaN
// Gradients, with d the gradient of the output where that is above 0 and 0 elsewhere, h = (x - m) r
// and M the number of values of a group:
//   bias[c]: sum of d      weight[c]: sum of d h      over images and pixels
//   x: r (weight d - (c1 + h c2) / M),   c1, c2: the sums of weight d and weight d h over a group
//
//   input, output [N, C, H, W]    weight, bias [C]    mean, rstd [N, G] of the compute dtype
// "Compute dtype" is float64 if the input is, else float32: half precision is computed in float32
// and rounded once. So under autocast, which would have the normalisation convert its input to
// float32 and hand float32 on, nothing is converted, and the result is what the next convolution
// would round to.
//
// Means and variances are made of sums of differences from the first value of each group, so that
// groups far from 0 lose no digits; sums of parts of an image are added in float64.
//
// Source: Wu and He, Group Normalization, arXiv:1803.08494.
// No torch header here: kernels include this file.
#pragma once

#include <cstdint>

#include "../kernel.h"

namespace fcos_core {

struct GroupNormProblem {
  const void* input;   // [num_images, pixels, channels], contiguous: channels_last
  const void* weight;  // [channels] of the compute dtype
  const void* bias;    // the same
  DType dtype;         // of input, output and their gradients
  int64_t num_images, pixels, channels, num_groups;
  double eps;
};

// ---- CUDA only: maps in channels_last whose channels are a multiple of 16 bytes ---------------
// They return null or CUDA's error message. Same bits each time: no atomics.

// Whether the kernels below take a problem; `other` is the output or a gradient like it.
bool group_norm_relu_fits(const GroupNormProblem& problem, const void* other);

// Numbers of the compute dtype that `scratch` holds.
int64_t group_norm_relu_scratch(const GroupNormProblem& problem);

const char* group_norm_relu_cuda(const GroupNormProblem& problem, void* output, void* mean,
                                 void* rstd, void* scratch, void* stream);

// `sums` [2, num_images, channels] gets what sums over images to the gradients of bias and weight.
const char* group_norm_relu_backward_cuda(const GroupNormProblem& problem, const void* grad,
                                          const void* mean, const void* rstd, void* grad_input,
                                          void* sums, void* scratch, void* stream);

}  // namespace fcos_core
