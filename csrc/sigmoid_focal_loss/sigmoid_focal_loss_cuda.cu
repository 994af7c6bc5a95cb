// CUDA kernels of the sigmoid focal loss, see sigmoid_focal_loss.h.
//
// One kernel walks over the flattened matrix, whatever the number of classes; its template says
// what becomes of the values. A thread takes kPacks packs of 16 bytes. A pack is moved at once where
// addresses allow it and element by element otherwise; which elements a thread takes does not
// depend on that, so neither do the bits of the sum.
// The sum: numbers of a pack in pairs in the computing type, packs of a block and then blocks in
// float64, each in a fixed order. A second kernel adds what the blocks left.
// Matrices beyond 32-bit indices are cut into slabs of rows, one launch each.
#include "sigmoid_focal_loss.h"

#include "sigmoid_focal_loss_terms.h"

namespace fcos_core {
namespace {

constexpr int kPacks = 4;         // of a thread
constexpr int kSumThreads = 1024;

// n / divisor for n < 2^31 by a multiplication: floor(n (2^32 + magic) / 2^(32 + shift)).
struct Divisor {
  uint32_t divisor, magic, shift;

  explicit Divisor(uint32_t d) : divisor(d), shift(0) {
    while ((uint64_t(1) << shift) < d) ++shift;
    magic = static_cast<uint32_t>((((uint64_t(1) << shift) - d) << 32) / d + 1);
  }
  __device__ __forceinline__ uint32_t divide(uint32_t n) const {
    return (__umulhi(n, magic) + n) >> shift;
  }
};

// gradient: the slopes times one number; weighted_gradient: times a number for each.
enum class Task { losses, sum, gradient, weighted_gradient };

// A slab: `size` elements in whole rows.
template <typename Scalar>
struct Work {
  using T = compute_t<Scalar>;
  const Scalar* logits;
  const int64_t* targets;        // one of the two
  const int32_t* short_targets;
  uint32_t size;
  Divisor num_classes;
  T gamma, alpha;
  bool packed;         // logits, out and grad are multiples of 16 bytes
  Scalar* out;         // losses or a gradient
  double* partials;    // sum: one a block
  const Scalar* grad;  // weighted_gradient
  const void* factor;  // gradient
  DType factor_dtype;
};

template <typename T>
struct Row {
  uint32_t right;  // column of the right class, or none
  bool fixed;      // ignored or out of range: all values are `value`
  T value;
};

template <typename Scalar>
__device__ __forceinline__ Row<compute_t<Scalar>> row_at(const Work<Scalar>& work, uint32_t row) {
  using T = compute_t<Scalar>;
  const int64_t target = work.short_targets ? work.short_targets[row] : work.targets[row];
  const bool known = target >= -1 && target <= static_cast<int64_t>(work.num_classes.divisor);
  return {target > 0 && known ? static_cast<uint32_t>(target - 1) : ~0u, target < 0 || !known,
          known ? T(0) : static_cast<T>(nan(""))};
}

template <Task task, bool square, typename T>
__device__ __forceinline__ T value_of(T logit, bool right, T gamma, T alpha) {
  const T z = right ? -logit : logit;
  if (task == Task::gradient || task == Task::weighted_gradient)
    return (right ? -alpha : T(1) - alpha) * slope_of<square>(z, gamma);
  return (right ? alpha : T(1) - alpha) * loss_of<square>(z, gamma);
}

// Losses or slopes of the elements begin, begin + 1, ... of which `count` are there; 0 beyond.
template <Task task, bool square, int kSize, typename Scalar>
__device__ __forceinline__ void pack_values(const Work<Scalar>& work, uint32_t begin, int count,
                                            const Pack<Scalar, kSize>& logits,
                                            compute_t<Scalar>* values) {
  using T = compute_t<Scalar>;
  uint32_t row = work.num_classes.divide(begin);
  uint32_t column = begin - row * work.num_classes.divisor;
  Row<T> state = row_at(work, row);
  if (count == kSize && column + kSize <= work.num_classes.divisor) {
#pragma unroll
    for (int v = 0; v < kSize; ++v) {
      const T value = value_of<task, square>(widen(logits.values[v]), column + v == state.right,
                                             work.gamma, work.alpha);
      values[v] = state.fixed ? state.value : value;
    }
    return;
  }
#pragma unroll
  for (int v = 0; v < kSize; ++v) {
    values[v] = T(0);
    if (v >= count) continue;
    if (column == work.num_classes.divisor) {
      column = 0;
      state = row_at(work, ++row);
    }
    const T value = value_of<task, square>(widen(logits.values[v]), column == state.right,
                                           work.gamma, work.alpha);
    values[v] = state.fixed ? state.value : value;
    ++column;
  }
}

template <typename Scalar, int kSize>
__device__ __forceinline__ void load_pack(const Scalar* from, int count, bool packed,
                                          Pack<Scalar, kSize>* pack) {
  if (packed && count == kSize) {
    *pack = *reinterpret_cast<const Pack<Scalar, kSize>*>(from);
    return;
  }
#pragma unroll
  for (int v = 0; v < kSize; ++v)
    if (v < count) pack->values[v] = from[v];
}

template <typename Scalar, int kSize>
__device__ __forceinline__ void store_pack(const Pack<Scalar, kSize>& pack, int count,
                                           bool packed, Scalar* to) {
  if (packed && count == kSize) {
    *reinterpret_cast<Pack<Scalar, kSize>*>(to) = pack;
    return;
  }
#pragma unroll
  for (int v = 0; v < kSize; ++v)
    if (v < count) to[v] = pack.values[v];
}

template <typename T>
__device__ T read_number(const void* number, DType dtype) {
  switch (dtype) {
    case DType::float64: return static_cast<T>(*static_cast<const double*>(number));
    case DType::float32: return static_cast<T>(*static_cast<const float*>(number));
    case DType::float16: return static_cast<T>(widen(*static_cast<const float16*>(number)));
    default: return static_cast<T>(widen(*static_cast<const bfloat16*>(number)));
  }
}

// The sum over the threads of a block, in thread 0; the same order each time.
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

template <typename Scalar, Task task, bool square>
__global__ void __launch_bounds__(kThreads) focal_values(Work<Scalar> work) {
  using T = compute_t<Scalar>;
  constexpr int kSize = 16 / sizeof(Scalar);
  T factor = T(1);
  if (task == Task::gradient) factor = read_number<T>(work.factor, work.factor_dtype);
  double sum = 0;
  uint32_t begin = (blockIdx.x * (kPacks * kThreads) + threadIdx.x) * kSize;
#pragma unroll 1
  for (int k = 0; k < kPacks && begin < work.size; ++k, begin += kThreads * kSize) {
    const int count = work.size - begin < kSize ? static_cast<int>(work.size - begin) : kSize;
    Pack<Scalar, kSize> pack, grads;
    load_pack(work.logits + begin, count, work.packed, &pack);
    if (task == Task::weighted_gradient) load_pack(work.grad + begin, count, work.packed, &grads);
    T values[kSize];
    pack_values<task, square, kSize>(work, begin, count, pack, values);
    if (task == Task::sum) {
#pragma unroll
      for (int step = 1; step < kSize; step *= 2)
#pragma unroll
        for (int v = 0; v < kSize; v += 2 * step) values[v] += values[v + step];
      sum += static_cast<double>(values[0]);
    } else {
#pragma unroll
      for (int v = 0; v < kSize; ++v) {
        if (task == Task::gradient) values[v] *= factor;
        if (task == Task::weighted_gradient) values[v] *= widen(grads.values[v]);
        pack.values[v] = narrow<Scalar>(values[v]);
      }
      store_pack(pack, count, work.packed, work.out + begin);
    }
  }
  if (task == Task::sum) {
    sum = block_sum<kThreads>(sum);
    if (threadIdx.x == 0) work.partials[blockIdx.x] = sum;
  }
}

template <typename Sum>
__global__ void __launch_bounds__(kSumThreads)
    add_partials(const double* partials, int64_t count, Sum* total) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kSumThreads) sum += partials[i];
  sum = block_sum<kSumThreads>(sum);
  if (threadIdx.x == 0) *total = static_cast<Sum>(sum);
}

// ---- launches ------------------------------------------------------------------------------------

// Rows of a slab; a multiple of 16 keeps the packs of the next one aligned, too.
int64_t slab_rows(const FocalProblem& problem) {
  const int64_t rows = kMaxCount32 / problem.num_classes;
  return rows > 16 ? rows / 16 * 16 : rows;
}

template <typename Scalar>
int64_t slab_blocks(int64_t size) {
  return ceil_div<int64_t>(size, kThreads * kPacks * (16 / sizeof(Scalar)));
}

template <typename Scalar>
int64_t all_blocks(const FocalProblem& problem) {
  if (problem.num_rows * problem.num_classes == 0) return 0;
  const int64_t rows = slab_rows(problem), rest = problem.num_rows % rows;
  return problem.num_rows / rows * slab_blocks<Scalar>(rows * problem.num_classes) +
         slab_blocks<Scalar>(rest * problem.num_classes);
}

struct Output {
  void* values;
  double* partials;
  const void* grad;
  const void* factor;
  DType factor_dtype;
};

template <typename Scalar>
Scalar* shifted(const void* pointer, int64_t offset) {
  return pointer ? static_cast<Scalar*>(const_cast<void*>(pointer)) + offset : nullptr;
}

template <typename Scalar, Task task>
const char* launch(const FocalProblem& problem, const Output& output, cudaStream_t stream) {
  using T = compute_t<Scalar>;
  constexpr int kSize = 16 / sizeof(Scalar);
  if (problem.num_rows * problem.num_classes == 0) return nullptr;
  const int64_t step = slab_rows(problem);
  double* partials = output.partials;
  for (int64_t row = 0; row < problem.num_rows; row += step) {
    const int64_t left = problem.num_rows - row, offset = row * problem.num_classes;
    const int64_t size = (left < step ? left : step) * problem.num_classes;
    Work<Scalar> work = {shifted<Scalar>(problem.logits, offset),
                         shifted<const int64_t>(problem.targets, row),
                         shifted<const int32_t>(problem.short_targets, row),
                         static_cast<uint32_t>(size),
                         Divisor(static_cast<uint32_t>(problem.num_classes)),
                         static_cast<T>(problem.gamma),
                         static_cast<T>(problem.alpha),
                         false,
                         shifted<Scalar>(output.values, offset),
                         partials,
                         shifted<Scalar>(output.grad, offset),
                         output.factor,
                         output.factor_dtype};
    work.packed = fits_pack<Scalar, kSize>(work.logits) && fits_pack<Scalar, kSize>(work.out) &&
                  fits_pack<Scalar, kSize>(work.grad);
    const unsigned blocks = static_cast<unsigned>(slab_blocks<Scalar>(size));
    if (problem.gamma == 2.0) {
      focal_values<Scalar, task, true><<<blocks, kThreads, 0, stream>>>(work);
    } else {
      focal_values<Scalar, task, false><<<blocks, kThreads, 0, stream>>>(work);
    }
    const char* error = launch_error();
    if (error) return error;
    if (partials) partials += blocks;
  }
  return nullptr;
}

template <typename Scalar>
const char* launch_losses(const FocalProblem& problem, const Output& output, cudaStream_t stream) {
  return launch<Scalar, Task::losses>(problem, output, stream);
}

template <typename Scalar>
const char* launch_gradient(const FocalProblem& problem, const Output& output,
                            cudaStream_t stream) {
  return output.grad ? launch<Scalar, Task::weighted_gradient>(problem, output, stream)
                     : launch<Scalar, Task::gradient>(problem, output, stream);
}

template <typename Scalar>
const char* launch_sum(const FocalProblem& problem, const Output& output, cudaStream_t stream) {
  const char* error = launch<Scalar, Task::sum>(problem, output, stream);
  if (error) return error;
  using Sum = compute_t<Scalar>;
  add_partials<Sum><<<1, kSumThreads, 0, stream>>>(
      output.partials, all_blocks<Scalar>(problem), static_cast<Sum*>(output.values));
  return launch_error();
}

}  // namespace

const char* sigmoid_focal_loss_cuda(const FocalProblem& problem, void* losses, void* stream) {
  const Output output = {losses, nullptr, nullptr, nullptr, DType::float32};
  return FCOS_DISPATCH(problem.dtype, launch_losses, problem, output,
                       static_cast<cudaStream_t>(stream));
}

int64_t sigmoid_focal_loss_sum_cuda_partials(const FocalProblem& problem) {
  return FCOS_DISPATCH(problem.dtype, all_blocks, problem);
}

const char* sigmoid_focal_loss_sum_cuda(const FocalProblem& problem, double* partials, void* total,
                                        void* stream) {
  const Output output = {total, partials, nullptr, nullptr, DType::float32};
  return FCOS_DISPATCH(problem.dtype, launch_sum, problem, output,
                       static_cast<cudaStream_t>(stream));
}

const char* sigmoid_focal_loss_backward_cuda(const FocalProblem& problem, const void* grad,
                                             const void* factor, DType factor_dtype,
                                             void* grad_logits, void* stream) {
  const Output output = {grad_logits, nullptr, grad, factor, factor_dtype};
  return FCOS_DISPATCH(problem.dtype, launch_gradient, problem, output,
                       static_cast<cudaStream_t>(stream));
}

}  // namespace fcos_core
