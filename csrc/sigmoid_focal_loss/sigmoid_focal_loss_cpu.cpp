// CPU kernel of the sigmoid focal loss, see sigmoid_focal_loss.h.
//
// The matrix is cut into flat chunks of kChunk elements, whatever the number of classes. A chunk is
// evaluated as if every class were wrong, which needs no branch and vectorises; then the few
// elements that are the right class of their row, or belong to an ignored row, are corrected.
#include "sigmoid_focal_loss.h"

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "sigmoid_focal_loss_terms.h"

namespace fcos_core {
namespace {

constexpr int64_t kChunk = 2048;  // two float buffers of it fit into the first-level cache
constexpr int64_t kGrain = 16;    // chunks that are worth a thread

template <typename T>
FCOS_INLINE void wrong_class_values_body(const T* logits, int64_t size, T gamma, T weight,
                                         bool slope, T* out) {
  if (gamma == T(2) && slope) {
    for (int64_t i = 0; i < size; ++i) out[i] = weight * slope_of<true>(logits[i], gamma);
  } else if (gamma == T(2)) {
    for (int64_t i = 0; i < size; ++i) out[i] = weight * loss_of<true>(logits[i], gamma);
  } else if (slope) {
    for (int64_t i = 0; i < size; ++i) out[i] = weight * slope_of<false>(logits[i], gamma);
  } else {
    for (int64_t i = 0; i < size; ++i) out[i] = weight * loss_of<false>(logits[i], gamma);
  }
}

// weight * f(x) or, with `slope`, weight * f'(x) for each logit x. Plain overloads, since
// compilers clone no templates.
FCOS_SIMD_CLONES void wrong_class_values(const float* logits, int64_t size, float gamma,
                                         float weight, bool slope, float* out) {
  wrong_class_values_body(logits, size, gamma, weight, slope, out);
}

void wrong_class_values(const double* logits, int64_t size, double gamma, double weight, bool slope,
                        double* out) {
  wrong_class_values_body(logits, size, gamma, weight, slope, out);
}

// The same for one element of the right class: z = -x, and the slope changes its sign.
template <typename T>
T right_class_value(T logit, T gamma, T weight, bool slope) {
  T value;
  wrong_class_values(&(logit = -logit), 1, gamma, slope ? -weight : weight, slope, &value);
  return value;
}

// Element type in memory -> type to compute in.
template <typename Scalar>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

// Values (losses or slopes) of the elements [begin, end) of the flattened matrix.
template <typename Scalar, typename T>
void chunk_values(const FocalProblem& problem, int64_t begin, int64_t end, bool slope, T* values) {
  T logits[kChunk];
  const Scalar* in = static_cast<const Scalar*>(problem.logits) + begin;
  for (int64_t i = 0; i < end - begin; ++i) logits[i] = static_cast<T>(in[i]);
  const T gamma = static_cast<T>(problem.gamma), alpha = static_cast<T>(problem.alpha);
  wrong_class_values(logits, end - begin, gamma, T(1) - alpha, slope, values);

  for (int64_t row = begin / problem.num_classes; row * problem.num_classes < end; ++row) {
    const int64_t target = problem.targets[row];
    if (target == 0) continue;
    const int64_t row_begin = row * problem.num_classes;
    if (target < 0) {
      const int64_t from = std::max(row_begin, begin);
      const int64_t to = std::min(row_begin + problem.num_classes, end);
      std::fill(values + (from - begin), values + (to - begin), T(0));
      continue;
    }
    const int64_t i = row_begin + target - 1 - begin;
    if (i >= 0 && i < end - begin) values[i] = right_class_value(logits[i], gamma, alpha, slope);
  }
}

// Calls use(begin, end, values) for every chunk, chunks in parallel.
template <typename Scalar, typename Use>
void for_each_chunk(const FocalProblem& problem, bool slope, const Use& use) {
  using T = typename Compute<Scalar>::type;
  const int64_t size = problem.num_rows * problem.num_classes;
  at::parallel_for(0, ceil_div(size, kChunk), kGrain, [&](int64_t first, int64_t last) {
    T values[kChunk];
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t begin = chunk * kChunk, end = std::min(begin + kChunk, size);
      chunk_values<Scalar>(problem, begin, end, slope, values);
      use(begin, end, static_cast<const T*>(values));
    }
  });
}

// Eight running sums, so that the additions need not wait for each other.
template <typename T>
double sum_of(const T* values, int64_t size) {
  double lanes[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 8 <= size; i += 8)
    for (int64_t j = 0; j < 8; ++j) lanes[j] += static_cast<double>(values[i + j]);
  for (; i < size; ++i) lanes[i % 8] += static_cast<double>(values[i]);
  return std::accumulate(lanes, lanes + 8, 0.0);
}

// Calls action(Scalar()) with the C++ type of a DType.
template <typename Action>
void with_scalar(DType dtype, const Action& action) {
  switch (dtype) {
    case DType::float64: return action(double());
    case DType::float32: return action(float());
    case DType::float16: return action(c10::Half());
    case DType::bfloat16: return action(c10::BFloat16());
  }
}

}  // namespace

void sigmoid_focal_loss_cpu(const FocalProblem& problem, void* losses) {
  with_scalar(problem.dtype, [&](auto scalar) {
    using Scalar = decltype(scalar);
    Scalar* out = static_cast<Scalar*>(losses);
    for_each_chunk<Scalar>(problem, false, [&](int64_t begin, int64_t end, const auto* values) {
      for (int64_t i = begin; i < end; ++i) out[i] = static_cast<Scalar>(values[i - begin]);
    });
  });
}

double sigmoid_focal_loss_sum_cpu(const FocalProblem& problem) {
  std::vector<double> sums(ceil_div(problem.num_rows * problem.num_classes, kChunk));
  with_scalar(problem.dtype, [&](auto scalar) {
    for_each_chunk<decltype(scalar)>(
        problem, false, [&](int64_t begin, int64_t end, const auto* values) {
          sums[begin / kChunk] = sum_of(values, end - begin);
        });
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

void sigmoid_focal_loss_backward_cpu(const FocalProblem& problem, const void* grad, double scale,
                                     void* grad_logits) {
  with_scalar(problem.dtype, [&](auto scalar) {
    using Scalar = decltype(scalar);
    using T = typename Compute<Scalar>::type;
    const Scalar* grad_in = static_cast<const Scalar*>(grad);
    Scalar* out = static_cast<Scalar*>(grad_logits);
    const T factor = static_cast<T>(scale);
    for_each_chunk<Scalar>(problem, true, [&](int64_t begin, int64_t end, const T* values) {
      if (grad_in) {
        for (int64_t i = begin; i < end; ++i)
          out[i] = static_cast<Scalar>(values[i - begin] * factor * static_cast<T>(grad_in[i]));
      } else {
        for (int64_t i = begin; i < end; ++i)
          out[i] = static_cast<Scalar>(values[i - begin] * factor);
      }
    });
  });
}

}  // namespace fcos_core
