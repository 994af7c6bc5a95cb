// CUDA kernels of the IoU losses, see iou_loss.h.
//
// A thread takes a pair of boxes, two packs of four numbers, and a block kPairs of them for each of
// its threads. The sum: pairs of a thread, threads of a block and then blocks in float64, each in a
// fixed order; a second kernel adds what the blocks left. The backward works the slopes out from the
// boxes again, which moves no more memory than keeping them would.
#include "iou_loss.h"

#include "../block_sum.h"
#include "iou_loss_terms.h"

namespace fcos_core {
namespace {

constexpr int kPairs = 4;          // of a thread, for the sum

enum class Task { losses, sum, gradient };

template <typename Scalar>
struct Work {
  using T = compute_t<Scalar>;
  const Scalar* pred;
  const Scalar* target;
  const T* weight;   // or null
  int64_t count;
  bool packed;       // pred, target and the gradient are multiples of the size of a box
  T* losses;
  double* partials;
  Scalar* grad_pred;
  const T* grad;     // one for each pair, or null and there is a factor
  const T* factor;
};

template <typename Scalar>
__device__ __forceinline__ IouBox<compute_t<Scalar>> box_at(const Scalar* boxes, int64_t index,
                                                            bool packed) {
  Pack<Scalar, 4> pack;
  if (packed) {
    pack = reinterpret_cast<const Pack<Scalar, 4>*>(boxes)[index];
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) pack.values[i] = boxes[4 * index + i];
  }
  IouBox<compute_t<Scalar>> box;
#pragma unroll
  for (int i = 0; i < 4; ++i) box.side[i] = widen(pack.values[i]);
  return box;
}

// What one pair adds to the sum of its thread.
template <typename Scalar, Task task, IouKind kind>
__device__ __forceinline__ double do_pair(const Work<Scalar>& work, int64_t index) {
  using T = compute_t<Scalar>;
  T weight = work.weight ? work.weight[index] : T(1);
  IouPair<T> pair = {T(0), {T(0), T(0), T(0), T(0)}};
  if (weight != T(0))
    pair = iou_pair<kind>(box_at(work.pred, index, work.packed),
                          box_at(work.target, index, work.packed));
  if (task == Task::losses) work.losses[index] = weight * pair.loss;
  if (task == Task::gradient) {
    weight *= work.grad ? work.grad[index] : *work.factor;
    Pack<Scalar, 4> pack;
#pragma unroll
    for (int i = 0; i < 4; ++i) pack.values[i] = narrow<Scalar>(weight * pair.slope[i]);
    if (work.packed) {
      reinterpret_cast<Pack<Scalar, 4>*>(work.grad_pred)[index] = pack;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) work.grad_pred[4 * index + i] = pack.values[i];
    }
  }
  return static_cast<double>(weight * pair.loss);
}

template <typename Scalar, Task task, IouKind kind>
__global__ void __launch_bounds__(kThreads) iou_pairs(const Work<Scalar> work) {
  constexpr int kRounds = task == Task::sum ? kPairs : 1;
  double sum = 0;
  int64_t index = static_cast<int64_t>(blockIdx.x) * (kThreads * kRounds) + threadIdx.x;
#pragma unroll
  for (int k = 0; k < kRounds; ++k, index += kThreads)
    if (index < work.count) sum += do_pair<Scalar, task, kind>(work, index);
  if (task == Task::sum) {
    sum = block_sum<kThreads>(sum);
    if (threadIdx.x == 0) work.partials[blockIdx.x] = sum;
  }
}

// ---- launches ------------------------------------------------------------------------------------

int64_t sum_blocks(const IouLossProblem& problem) {
  return ceil_div<int64_t>(problem.count, kThreads * kPairs);
}

struct Output {
  void* losses;
  double* partials;
  void* total;
  const void* grad;
  const void* factor;
  void* grad_pred;
};

template <typename Scalar, Task task>
const char* launch(const IouLossProblem& problem, const Output& output, cudaStream_t stream) {
  using T = compute_t<Scalar>;
  if (problem.count == 0) return nullptr;
  Work<Scalar> work = {static_cast<const Scalar*>(problem.pred),
                       static_cast<const Scalar*>(problem.target),
                       static_cast<const T*>(problem.weight),
                       problem.count,
                       false,
                       static_cast<T*>(output.losses),
                       output.partials,
                       static_cast<Scalar*>(output.grad_pred),
                       static_cast<const T*>(output.grad),
                       static_cast<const T*>(output.factor)};
  work.packed = fits_pack<Scalar, 4>(work.pred) && fits_pack<Scalar, 4>(work.target) &&
                fits_pack<Scalar, 4>(work.grad_pred);
  const int64_t blocks = task == Task::sum ? sum_blocks(problem)
                                           : ceil_div<int64_t>(problem.count, kThreads);
  const unsigned grid = static_cast<unsigned>(blocks);
  switch (problem.kind) {
    case IouKind::iou:
      iou_pairs<Scalar, task, IouKind::iou><<<grid, kThreads, 0, stream>>>(work);
      break;
    case IouKind::linear_iou:
      iou_pairs<Scalar, task, IouKind::linear_iou><<<grid, kThreads, 0, stream>>>(work);
      break;
    case IouKind::giou:
      iou_pairs<Scalar, task, IouKind::giou><<<grid, kThreads, 0, stream>>>(work);
      break;
    case IouKind::box_giou:
      iou_pairs<Scalar, task, IouKind::box_giou><<<grid, kThreads, 0, stream>>>(work);
      break;
  }
  return launch_error();
}

template <typename Scalar>
const char* launch_losses(const IouLossProblem& problem, const Output& output,
                          cudaStream_t stream) {
  return launch<Scalar, Task::losses>(problem, output, stream);
}

template <typename Scalar>
const char* launch_sum(const IouLossProblem& problem, const Output& output, cudaStream_t stream) {
  const char* error = launch<Scalar, Task::sum>(problem, output, stream);
  if (error) return error;
  using Sum = compute_t<Scalar>;
  add_partials<Sum><<<1, kSumThreads, 0, stream>>>(output.partials, sum_blocks(problem),
                                                   static_cast<Sum*>(output.total));
  return launch_error();
}

template <typename Scalar>
const char* launch_gradient(const IouLossProblem& problem, const Output& output,
                            cudaStream_t stream) {
  return launch<Scalar, Task::gradient>(problem, output, stream);
}

}  // namespace

const char* iou_loss_cuda(const IouLossProblem& problem, void* losses, void* stream) {
  const Output output = {losses, nullptr, nullptr, nullptr, nullptr, nullptr};
  return FCOS_DISPATCH(problem.dtype, launch_losses, problem, output,
                       static_cast<cudaStream_t>(stream));
}

int64_t iou_loss_sum_cuda_partials(const IouLossProblem& problem) { return sum_blocks(problem); }

const char* iou_loss_sum_cuda(const IouLossProblem& problem, double* partials, void* total,
                              void* stream) {
  const Output output = {nullptr, partials, total, nullptr, nullptr, nullptr};
  return FCOS_DISPATCH(problem.dtype, launch_sum, problem, output,
                       static_cast<cudaStream_t>(stream));
}

const char* iou_loss_backward_cuda(const IouLossProblem& problem, const void* grad,
                                   const void* factor, void* grad_pred, void* stream) {
  const Output output = {nullptr, nullptr, nullptr, grad, factor, grad_pred};
  return FCOS_DISPATCH(problem.dtype, launch_gradient, problem, output,
                       static_cast<cudaStream_t>(stream));
}

}  // namespace fcos_core
