// CUDA kernels of the sigmoid focal loss, see sigmoid_focal_loss.h.
//
// One kernel walks over the flattened matrix, whatever the number of classes; its template says
// what becomes of the values. A thread takes kPacks packs of 16 bytes, and asks for the next one
// before it works on the last. A pack is moved at once where addresses allow it and element by
// element otherwise; which elements a thread takes does not depend on that, so neither do the bits
// of the sum. A pack is evaluated as if every class were wrong, which few are not; then the right
// one, if it is there, is evaluated again.
// The sum: numbers of a pack in pairs in the computing type, packs of a block and then blocks in
// float64, each in a fixed order. A second kernel adds what the blocks left.
// Matrices beyond 32-bit indices are cut into slabs of rows, one launch each.
#include "sigmoid_focal_loss.h"

#include "../block_sum.h"
#include "sigmoid_focal_loss_terms.h"

namespace fcos_core {
namespace {

constexpr int kPacks = 4;         // of a thread
constexpr unsigned kFewBlocks = 1024;

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

// gradient: the slopes times one number; weighted_gradient: times a number for each; sum_and_slopes:
// the sum and, stored, the slopes.
enum class Task { losses, sum, gradient, weighted_gradient, sum_and_slopes };

FCOS_HOST_DEVICE constexpr bool has_sum(Task task) { return task == Task::sum || task == Task::sum_and_slopes; }
FCOS_HOST_DEVICE constexpr bool has_slopes(Task task) {
  return task != Task::losses && task != Task::sum;
}

// A slab: `size` elements in whole rows.
template <typename Scalar>
struct Work {
  using T = compute_t<Scalar>;
  const Scalar* logits;
  const int64_t* targets;        // one of the two
  const int32_t* short_targets;
  uint32_t size, blocks;
  Divisor num_classes;
  T gamma, alpha;
  bool packed;         // logits, out and grad are multiples of 16 bytes
  Scalar* out;         // losses, slopes or a gradient
  double* partials;    // sum: one a block
  const Scalar* grad;  // weighted_gradient
  const void* factor;  // gradient
  DType factor_dtype;
  bool has_slopes;     // gradient: `out` holds the slopes already
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

// Values of a pack of elements; a task looks at what it needs, and the rest is not computed.
template <typename T, int kSize>
struct Values {
  T losses[kSize];
  T slopes[kSize];
};

template <bool square, typename T, int kSize>
__device__ __forceinline__ void set_value(T logit, bool right, T gamma, T alpha, int v,
                                          Values<T, kSize>& values) {
  const T weight = right ? alpha : T(1) - alpha;
  T loss, slope;
  both_of<square>(right ? -logit : logit, gamma, loss, slope);
  values.losses[v] = weight * loss;
  values.slopes[v] = (right ? -weight : weight) * slope;
}

// All of a pack are of one row, whose right class is its element `hit`, or none.
template <bool square, typename Scalar, int kSize, typename T>
__device__ __forceinline__ void row_values(const Work<Scalar>& work, const Row<T>& state, int hit,
                                           const Pack<Scalar, kSize>& logits,
                                           Values<T, kSize>& values) {
#pragma unroll
  for (int v = 0; v < kSize; ++v)
    set_value<square>(static_cast<T>(widen(logits.values[v])), false, work.gamma, work.alpha, v,
                      values);
  if (hit >= 0 && hit < kSize) {
    T logit = T(0);
#pragma unroll
    for (int v = 0; v < kSize; ++v)
      if (v == hit) logit = widen(logits.values[v]);
    Values<T, 1> right;
    set_value<square>(logit, true, work.gamma, work.alpha, 0, right);
#pragma unroll
    for (int v = 0; v < kSize; ++v) {
      values.losses[v] = v == hit ? right.losses[0] : values.losses[v];
      values.slopes[v] = v == hit ? right.slopes[0] : values.slopes[v];
    }
  }
  if (state.fixed) {
#pragma unroll
    for (int v = 0; v < kSize; ++v) values.losses[v] = values.slopes[v] = state.value;
  }
}

// Values of the elements begin, begin + 1, ... of which `count` are there; 0 beyond.
template <bool square, typename Scalar, int kSize, typename T>
__device__ __forceinline__ void pack_values(const Work<Scalar>& work, uint32_t begin, int count,
                                            const Pack<Scalar, kSize>& logits,
                                            Values<T, kSize>& values) {
  uint32_t row = work.num_classes.divide(begin);
  uint32_t column = begin - row * work.num_classes.divisor;
  Row<T> state = row_at(work, row);
  if (count == kSize && column + kSize <= work.num_classes.divisor) {
    // of no class, right is 2^32 - 1, which is no element as a number with a sign either
    row_values<square>(work, state, static_cast<int>(state.right - column), logits, values);
    return;
  }
#pragma unroll
  for (int v = 0; v < kSize; ++v) {
    values.losses[v] = values.slopes[v] = T(0);
    if (v >= count) continue;
    if (column == work.num_classes.divisor) {
      column = 0;
      state = row_at(work, ++row);
    }
    set_value<square>(static_cast<T>(widen(logits.values[v])), column == state.right, work.gamma,
                      work.alpha, v, values);
    if (state.fixed) values.losses[v] = values.slopes[v] = state.value;
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

// The packs of a thread; returns what they add to the sum. whole: all of the block are there, and at
// addresses of 16 bytes.
template <Task task, bool square, bool whole, typename Scalar, typename T>
__device__ __forceinline__ double thread_values(const Work<Scalar>& work, uint32_t block,
                                                T factor) {
  constexpr int kSize = 16 / sizeof(Scalar);
  constexpr uint32_t kStep = kThreads * kSize;
  double sum = 0;
  uint32_t begin = (block * (kPacks * kThreads) + threadIdx.x) * kSize;
  const bool packed = whole || work.packed;
  const auto count_at = [&work](uint32_t at) {
    return whole                   ? kSize
           : at >= work.size       ? 0
           : work.size - at < kSize ? static_cast<int>(work.size - at)
                                    : kSize;
  };
  Pack<Scalar, kSize> pack, next, grads;
  int count = count_at(begin);
  load_pack(work.logits + begin, count, packed, &pack);
#pragma unroll 1
  for (int k = 0; k < kPacks && count > 0; ++k, begin += kStep) {
    const int next_count = k + 1 < kPacks ? count_at(begin + kStep) : 0;
    load_pack(work.logits + begin + kStep, next_count, packed, &next);
    if (task == Task::weighted_gradient) load_pack(work.grad + begin, count, packed, &grads);
    Values<T, kSize> values;
    pack_values<square>(work, begin, count, pack, values);
    if (task != Task::sum) {
      Pack<Scalar, kSize> result;
#pragma unroll
      for (int v = 0; v < kSize; ++v) {
        T value = has_slopes(task) ? values.slopes[v] : values.losses[v];
        if (task == Task::gradient) value *= factor;
        if (task == Task::weighted_gradient) value *= widen(grads.values[v]);
        result.values[v] = narrow<Scalar>(value);
      }
      store_pack(result, count, packed, work.out + begin);
    }
    if (has_sum(task)) {
#pragma unroll
      for (int step = 1; step < kSize; step *= 2)
#pragma unroll
        for (int v = 0; v < kSize; v += 2 * step) values.losses[v] += values.losses[v + step];
      sum += static_cast<double>(values.losses[0]);
    }
    pack = next;
    count = next_count;
  }
  return sum;
}

template <typename Scalar, Task task, bool square>
__global__ void __launch_bounds__(kThreads) focal_values(const Work<Scalar> work) {
  using T = compute_t<Scalar>;
  constexpr uint32_t kBlock = kPacks * kThreads * (16 / sizeof(Scalar));
  T factor = T(1);
  if (task == Task::gradient) {
    factor = read_number<T>(work.factor, work.factor_dtype);
    if (work.has_slopes && factor == T(1)) return;
  }
  double sum = 0;
  // one block of work for each of the grid, but for the gradient, see launch()
  uint32_t block = blockIdx.x;
  do {
    sum = work.packed && work.size >= kBlock && block * kBlock <= work.size - kBlock
              ? thread_values<task, square, true>(work, block, factor)
              : thread_values<task, square, false>(work, block, factor);
    block += gridDim.x;
  } while (task == Task::gradient && block < work.blocks);
  if (has_sum(task)) {
    sum = block_sum<kThreads>(sum);
    if (threadIdx.x == 0) work.partials[blockIdx.x] = sum;
  }
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
  void* values;  // losses or a gradient
  void* total;
  double* partials;
  const void* grad;
  const void* factor;
  DType factor_dtype;
  bool has_slopes;
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
                         static_cast<uint32_t>(slab_blocks<Scalar>(size)),
                         Divisor(static_cast<uint32_t>(problem.num_classes)),
                         static_cast<T>(problem.gamma),
                         static_cast<T>(problem.alpha),
                         false,
                         shifted<Scalar>(output.values, offset),
                         partials,
                         shifted<Scalar>(output.grad, offset),
                         output.factor,
                         output.factor_dtype,
                         output.has_slopes};
    work.packed = fits_pack<Scalar, kSize>(work.logits) && fits_pack<Scalar, kSize>(work.out) &&
                  fits_pack<Scalar, kSize>(work.grad);
    // a gradient whose slopes are there is mostly done at once, and thousands of blocks that only
    // find that out take longer than a few
    const unsigned blocks = task == Task::gradient && output.has_slopes && work.blocks > kFewBlocks
                                ? kFewBlocks
                                : work.blocks;
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
  const char* error = output.values ? launch<Scalar, Task::sum_and_slopes>(problem, output, stream)
                                    : launch<Scalar, Task::sum>(problem, output, stream);
  if (error) return error;
  using Sum = compute_t<Scalar>;
  add_partials<Sum><<<1, kSumThreads, 0, stream>>>(
      output.partials, all_blocks<Scalar>(problem), static_cast<Sum*>(output.total));
  return launch_error();
}

}  // namespace

const char* sigmoid_focal_loss_cuda(const FocalProblem& problem, void* losses, void* stream) {
  const Output output = {losses, nullptr, nullptr, nullptr, nullptr, DType::float32, false};
  return FCOS_DISPATCH(problem.dtype, launch_losses, problem, output,
                       static_cast<cudaStream_t>(stream));
}

int64_t sigmoid_focal_loss_sum_cuda_partials(const FocalProblem& problem) {
  return FCOS_DISPATCH(problem.dtype, all_blocks, problem);
}

const char* sigmoid_focal_loss_sum_cuda(const FocalProblem& problem, double* partials, void* total,
                                        void* slopes, void* stream) {
  const Output output = {slopes, total, partials, nullptr, nullptr, DType::float32, false};
  return FCOS_DISPATCH(problem.dtype, launch_sum, problem, output,
                       static_cast<cudaStream_t>(stream));
}

const char* sigmoid_focal_loss_backward_cuda(const FocalProblem& problem, const void* grad,
                                             const void* factor, DType factor_dtype,
                                             bool has_slopes, void* grad_logits, void* stream) {
  const Output output = {grad_logits, nullptr, nullptr, grad, factor, factor_dtype, has_slopes};
  return FCOS_DISPATCH(problem.dtype, launch_gradient, problem, output,
                       static_cast<cudaStream_t>(stream));
}

}  // namespace fcos_core
