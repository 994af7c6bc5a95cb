// Sums in float64 on a GPU, in the same order each time: of the threads of a block, then of blocks.
#pragma once

#include "kernel.h"

namespace fcos_core {

constexpr int kSumThreads = 1024;

// The sum over the threads of a block of kSize, in thread 0.
template <int kSize>
__device__ double block_sum(double value) {
  __shared__ double warps[kSize / 32];
  for (int offset = 16; offset > 0; offset /= 2)
    value += __shfl_down_sync(0xffffffffu, value, offset);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0;
  if (threadIdx.x == 0)
    for (int w = 0; w < kSize / 32; ++w) total += warps[w];
  return total;
}

// The sum of what `count` blocks left; one block of kSumThreads.
template <typename Sum>
__global__ void __launch_bounds__(kSumThreads)
    add_partials(const double* partials, int64_t count, Sum* total) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kSumThreads) sum += partials[i];
  sum = block_sum<kSumThreads>(sum);
  if (threadIdx.x == 0) *total = static_cast<Sum>(sum);
}

}  // namespace fcos_core
