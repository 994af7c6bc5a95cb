// CPU kernel of the IoU losses, see iou_loss.h. Chunks of pairs in parallel, whose sums are added in
// their order.
#include "iou_loss.h"

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "iou_loss_terms.h"

namespace fcos_core {
namespace {

constexpr int64_t kChunk = 512;  // pairs
constexpr int64_t kGrain = 4;    // chunks that are worth a thread

// Element type in memory -> type to compute in.
template <typename Scalar>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

template <typename Scalar, typename T>
IouBox<T> box_at(const void* boxes, int64_t index) {
  IouBox<T> box;
  const Scalar* sides = static_cast<const Scalar*>(boxes) + 4 * index;
  for (int i = 0; i < 4; ++i) box.side[i] = static_cast<T>(sides[i]);
  return box;
}

// Calls use(index, weight, pair) for the pairs of each chunk in turn, chunks in parallel, and
// begin(chunk) and end(chunk) around. A weight of 0 has a pair of zeros.
template <typename Scalar, IouKind kind, typename Chunk>
void for_each_chunk(const IouLossProblem& problem, const Chunk& work) {
  using T = typename Compute<Scalar>::type;
  const T* weights = static_cast<const T*>(problem.weight);
  at::parallel_for(0, ceil_div(problem.count, kChunk), kGrain, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t begin = chunk * kChunk, end = std::min(begin + kChunk, problem.count);
      work(chunk, begin, end, [&](int64_t index, T& weight) {
        weight = weights ? weights[index] : T(1);
        if (weight == T(0)) return IouPair<T>{T(0), {T(0), T(0), T(0), T(0)}};
        return iou_pair<kind>(box_at<Scalar, T>(problem.pred, index),
                              box_at<Scalar, T>(problem.target, index));
      });
    }
  });
}

struct Losses {
  void* out;

  template <typename Scalar, IouKind kind>
  void run(const IouLossProblem& problem) const {
    using T = typename Compute<Scalar>::type;
    T* losses = static_cast<T*>(out);
    for_each_chunk<Scalar, kind>(
        problem, [losses](int64_t, int64_t begin, int64_t end, const auto& pair_at) {
          for (int64_t i = begin; i < end; ++i) {
            T weight;
            const IouPair<T> pair = pair_at(i, weight);
            losses[i] = weight * pair.loss;
          }
        });
  }
};

struct Sum {
  double* total;

  template <typename Scalar, IouKind kind>
  void run(const IouLossProblem& problem) const {
    using T = typename Compute<Scalar>::type;
    std::vector<double> sums(ceil_div(problem.count, kChunk));
    for_each_chunk<Scalar, kind>(
        problem, [&sums](int64_t chunk, int64_t begin, int64_t end, const auto& pair_at) {
          double sum = 0;
          for (int64_t i = begin; i < end; ++i) {
            T weight;
            const IouPair<T> pair = pair_at(i, weight);
            sum += static_cast<double>(weight * pair.loss);
          }
          sums[chunk] = sum;
        });
    *total = std::accumulate(sums.begin(), sums.end(), 0.0);
  }
};

struct Backward {
  const void* grad;
  double scale;
  void* out;

  template <typename Scalar, IouKind kind>
  void run(const IouLossProblem& problem) const {
    using T = typename Compute<Scalar>::type;
    const T* grads = static_cast<const T*>(grad);
    const T factor = static_cast<T>(scale);
    Scalar* to = static_cast<Scalar*>(out);
    for_each_chunk<Scalar, kind>(
        problem, [=](int64_t, int64_t begin, int64_t end, const auto& pair_at) {
          for (int64_t i = begin; i < end; ++i) {
            T weight;
            const IouPair<T> pair = pair_at(i, weight);
            weight *= grads ? grads[i] * factor : factor;
            for (int k = 0; k < 4; ++k)
              to[4 * i + k] = static_cast<Scalar>(weight * pair.slope[k]);
          }
        });
  }
};

template <typename Scalar, typename Task>
void with_kind(const IouLossProblem& problem, const Task& task) {
  switch (problem.kind) {
    case IouKind::iou: return task.template run<Scalar, IouKind::iou>(problem);
    case IouKind::linear_iou: return task.template run<Scalar, IouKind::linear_iou>(problem);
    case IouKind::giou: return task.template run<Scalar, IouKind::giou>(problem);
    case IouKind::box_giou: return task.template run<Scalar, IouKind::box_giou>(problem);
  }
}

template <typename Task>
void with_scalar(const IouLossProblem& problem, const Task& task) {
  switch (problem.dtype) {
    case DType::float64: return with_kind<double>(problem, task);
    case DType::float32: return with_kind<float>(problem, task);
    case DType::float16: return with_kind<c10::Half>(problem, task);
    case DType::bfloat16: return with_kind<c10::BFloat16>(problem, task);
  }
}

}  // namespace

void iou_loss_cpu(const IouLossProblem& problem, void* losses) {
  with_scalar(problem, Losses{losses});
}

double iou_loss_sum_cpu(const IouLossProblem& problem) {
  double total = 0;
  with_scalar(problem, Sum{&total});
  return total;
}

void iou_loss_backward_cpu(const IouLossProblem& problem, const void* grad, double scale,
                           void* grad_pred) {
  with_scalar(problem, Backward{grad, scale, grad_pred});
}

}  // namespace fcos_core
