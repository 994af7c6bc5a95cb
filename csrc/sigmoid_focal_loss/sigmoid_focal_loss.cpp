// Schema, checks, autograd and autocast of the sigmoid focal loss, see sigmoid_focal_loss.h for
// what it computes.
//
//   sigmoid_focal_loss            logits [R, C], targets [R]
//       -> reduction 0: [R, C], dtype of logits; reduction 2: scalar, at least float32
//   _sigmoid_focal_loss_backward  grad of that, logits, targets -> [R, C], dtype of logits
// The numbers of the reductions are at::Reduction's; 1 (mean) does not exist here, because the
// detectors divide by the number of positive locations, not by that of all logits.
#include "sigmoid_focal_loss.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../autograd.h"
#include "../check.h"

namespace fcos_core {
namespace sigmoid_focal_loss {
namespace {

const char* const kName = "sigmoid_focal_loss";
constexpr int64_t kNone = 0;
constexpr int64_t kSum = 2;

void check_arguments(const at::Tensor& logits, const at::Tensor& targets, double gamma,
                     double alpha, int64_t reduction) {
  check_floating(kName, "logits", logits);
  check_integral(kName, "targets", targets);
  check_shape(kName, "logits", logits, logits.dim() == 2, "[R, C]");
  check_shape(kName, "targets", targets,
              targets.dim() == 1 && targets.size(0) == logits.size(0),
              "[R], one per row of logits");
  check_same_device(kName, "targets", targets, "logits", logits);
  FCOS_CHECK(gamma >= 0 && std::isfinite(gamma), kName, "gamma", "to be finite and at least 0",
             gamma, "the paper uses 2");
  FCOS_CHECK(alpha >= 0 && alpha <= 1, kName, "alpha", "in [0, 1]", alpha,
             "the paper uses 0.25; gamma comes before alpha");
  FCOS_CHECK(reduction == kNone || reduction == kSum, kName, "reduction", "0 (none) or 2 (sum)",
             reduction, "divide the sum yourself for a mean");
}

void check_backward_arguments(const at::Tensor& grad, const at::Tensor& logits,
                              const at::Tensor& targets, double gamma, double alpha,
                              int64_t reduction) {
  check_arguments(logits, targets, gamma, alpha, reduction);
  check_floating(kName, "grad", grad);
  check_same_device(kName, "grad", grad, "logits", logits);
  if (reduction == kSum) {
    check_shape(kName, "grad", grad, grad.numel() == 1, "[], one number");
  } else {
    check_shape(kName, "grad", grad, grad.sizes() == logits.sizes(), "[R, C], as logits");
  }
}

// A sum of many half-precision losses exceeds 65504 easily, so sums have at least float32.
at::ScalarType sum_dtype(const at::Tensor& logits) {
  return logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// ---- CPU -------------------------------------------------------------------------------------

void check_target_values(const at::Tensor& targets, int64_t num_classes) {
  const int64_t* values = static_cast<const int64_t*>(const_data(targets));
  const int64_t* last = values + targets.numel();
  const int64_t* bad = std::find_if(values, last, [num_classes](int64_t target) {
    return target < -1 || target > num_classes;
  });
  FCOS_CHECK(bad == last, kName, "targets",
             joined("in -1..", num_classes, " (-1 ignored, 0 background)"),
             joined(*bad, " at row ", static_cast<int64_t>(bad - values)),
             "check the labels and the number of classes");
}

FocalProblem problem_of(const at::Tensor& logits, const at::Tensor& targets, double gamma,
                        double alpha) {
  const bool is_short = targets.scalar_type() == at::kInt;
  return {const_data(logits),
          dtype_of(logits),
          is_short ? nullptr : static_cast<const int64_t*>(const_data(targets)),
          is_short ? static_cast<const int32_t*>(const_data(targets)) : nullptr,
          logits.size(0),
          logits.size(1),
          gamma,
          alpha};
}

at::Tensor forward_cpu(const at::Tensor& logits, const at::Tensor& targets, double gamma,
                       double alpha, int64_t reduction) {
  check_arguments(logits, targets, gamma, alpha, reduction);
  const at::Tensor x = logits.contiguous(), t = targets.to(at::kLong).contiguous();
  check_target_values(t, x.size(1));
  const FocalProblem problem = problem_of(x, t, gamma, alpha);
  if (reduction == kSum)
    return at::full({}, sigmoid_focal_loss_sum_cpu(problem), x.options().dtype(sum_dtype(x)));
  at::Tensor losses = at::empty(x.sizes(), x.options());
  sigmoid_focal_loss_cpu(problem, mutable_data(losses));
  return losses;
}

at::Tensor backward_cpu(const at::Tensor& grad, const at::Tensor& logits, const at::Tensor& targets,
                        double gamma, double alpha, int64_t reduction) {
  check_backward_arguments(grad, logits, targets, gamma, alpha, reduction);
  const at::Tensor x = logits.contiguous(), t = targets.to(at::kLong).contiguous();
  check_target_values(t, x.size(1));
  const FocalProblem problem = problem_of(x, t, gamma, alpha);
  at::Tensor grad_logits = at::empty(x.sizes(), x.options());
  if (reduction == kSum) {
    sigmoid_focal_loss_backward_cpu(problem, nullptr, grad.item<double>(),
                                    mutable_data(grad_logits));
  } else {
    const at::Tensor g = grad.to(x.scalar_type()).contiguous();
    sigmoid_focal_loss_backward_cpu(problem, const_data(g), 1.0, mutable_data(grad_logits));
  }
  return grad_logits;
}

// ---- CUDA ------------------------------------------------------------------------------------

#ifdef WITH_CUDA
struct CudaInputs {
  at::Tensor logits, targets;

  CudaInputs(const at::Tensor& x, const at::Tensor& t)
      : logits(x.contiguous()),
        targets((t.scalar_type() == at::kInt ? t : t.to(at::kLong)).contiguous()) {
    FCOS_CHECK(x.size(1) <= kMaxClassesCuda, kName, "logits",
               joined("to have at most ", kMaxClassesCuda, " columns"), x.size(1),
               "split them by class");
  }
};

// The sum, and the slopes if there is a tensor for them.
at::Tensor sum_cuda(const CudaScope& scope, const CudaInputs& in, const FocalProblem& problem,
                    const at::Tensor& slopes) {
  const at::TensorOptions options = in.logits.options();
  const at::Tensor partials = at::empty({sigmoid_focal_loss_sum_cuda_partials(problem)},
                                        options.dtype(at::kDouble));
  at::Tensor total = at::empty({}, options.dtype(sum_dtype(in.logits)));
  check_launch(kName, sigmoid_focal_loss_sum_cuda(
                          problem, static_cast<double*>(mutable_data(partials)),
                          mutable_data(total), slopes.defined() ? mutable_data(slopes) : nullptr,
                          scope.stream));
  return total;
}

at::Tensor forward_cuda(const at::Tensor& logits, const at::Tensor& targets, double gamma,
                        double alpha, int64_t reduction) {
  check_arguments(logits, targets, gamma, alpha, reduction);
  const CudaScope scope(logits);
  const CudaInputs in(logits, targets);
  const FocalProblem problem = problem_of(in.logits, in.targets, gamma, alpha);
  const at::TensorOptions options = in.logits.options();
  if (reduction == kSum) return sum_cuda(scope, in, problem, {});
  at::Tensor losses = at::empty(in.logits.sizes(), options);
  check_launch(kName, sigmoid_focal_loss_cuda(problem, mutable_data(losses), scope.stream));
  return losses;
}

// Whether the sum writes slopes for the backward pass.
bool writes_slopes(const at::Tensor& logits, const at::Tensor& targets, int64_t reduction) {
  return reduction == kSum && logits.is_cuda() && at::GradMode::is_enabled() &&
         logits.requires_grad() && is_plain(logits) && is_plain(targets);
}

at::Tensor forward_with_slopes(const at::Tensor& logits, const at::Tensor& targets, double gamma,
                               double alpha, at::Tensor& slopes) {
  check_arguments(logits, targets, gamma, alpha, kSum);
  const CudaScope scope(logits);
  const CudaInputs in(logits, targets);
  slopes = at::empty(in.logits.sizes(), in.logits.options());
  return sum_cuda(scope, in, problem_of(in.logits, in.targets, gamma, alpha), slopes);
}

// Makes the gradient of slopes, in their place.
void finish_slopes(const at::Tensor& slopes, const at::Tensor& grad, const at::Tensor& logits,
                   const at::Tensor& targets, double gamma, double alpha) {
  const CudaScope scope(logits);
  const CudaInputs in(logits, targets);
  check_launch(kName, sigmoid_focal_loss_backward_cuda(
                          problem_of(in.logits, in.targets, gamma, alpha), nullptr,
                          const_data(grad), dtype_of(grad), true, mutable_data(slopes),
                          scope.stream));
}

// Whether all elements are one number in memory, as in the gradient of losses.sum().
bool is_one_number(const at::Tensor& t) {
  for (int64_t dim = 0; dim < t.dim(); ++dim)
    if (t.size(dim) != 1 && t.stride(dim) != 0) return false;
  return t.numel() > 0;
}

at::Tensor backward_cuda(const at::Tensor& grad, const at::Tensor& logits,
                         const at::Tensor& targets, double gamma, double alpha,
                         int64_t reduction) {
  check_backward_arguments(grad, logits, targets, gamma, alpha, reduction);
  const CudaScope scope(logits);
  const CudaInputs in(logits, targets);
  const FocalProblem problem = problem_of(in.logits, in.targets, gamma, alpha);
  at::Tensor grad_logits = at::empty(in.logits.sizes(), in.logits.options());
  const char* error;
  if (is_one_number(grad)) {
    error = sigmoid_focal_loss_backward_cuda(problem, nullptr, const_data(grad), dtype_of(grad),
                                             false, mutable_data(grad_logits), scope.stream);
  } else {
    const at::Tensor g = grad.to(in.logits.scalar_type()).contiguous();
    error = sigmoid_focal_loss_backward_cuda(problem, const_data(g), nullptr, dtype_of(g),
                                             false, mutable_data(grad_logits), scope.stream);
  }
  check_launch(kName, error);
  return grad_logits;
}
#endif

// ---- composite -------------------------------------------------------------------------------
// The same from ATen ops, for GPUs when the library was built without CUDA. A target outside
// -1..C makes the loss and the gradient of its row NaN: raising would need a synchronisation.

constexpr int64_t kMaxElements = int64_t(1) << 24;  // logits per step; bounds the intermediates

// Losses, or with `slope` their derivatives, of some rows.
at::Tensor composite_values(const at::Tensor& logits, const at::Tensor& targets, double gamma,
                            double alpha, bool slope) {
  const int64_t num_classes = logits.size(1);
  const at::Tensor x = logits.to(sum_dtype(logits)), t = targets.to(at::kLong).unsqueeze(1);
  const at::Tensor right = t.eq(at::arange(1, num_classes + 1, t.options()));  // [R, C]
  const at::Tensor z = at::where(right, -x, x);
  const at::Tensor log1p_u = z.abs().neg().exp().log1p();
  const at::Tensor softplus = z.clamp_min(0) + log1p_u;
  const at::Tensor modulation = ((z.clamp_max(0) - log1p_u) * gamma).exp();
  at::Tensor values;
  if (slope) {
    values = modulation * (z.sigmoid() + z.neg().sigmoid() * softplus * gamma);
    values = values * at::where(right, at::full({}, -alpha, x.options()),
                                at::full({}, 1 - alpha, x.options()));
  } else {
    values = modulation * softplus *
             at::where(right, at::full({}, alpha, x.options()),
                       at::full({}, 1 - alpha, x.options()));
  }
  return values.masked_fill(t.eq(-1), 0)
      .masked_fill(t.lt(-1).logical_or(t.gt(num_classes)),
                   std::numeric_limits<double>::quiet_NaN());
}

int64_t rows_per_step(const at::Tensor& logits) {
  return std::max<int64_t>(1, kMaxElements / std::max<int64_t>(1, logits.size(1)));
}

at::Tensor forward_composite(const at::Tensor& logits, const at::Tensor& targets, double gamma,
                             double alpha, int64_t reduction) {
  check_arguments(logits, targets, gamma, alpha, reduction);
  at::NoGradGuard no_grad;
  at::Tensor sum = at::zeros({}, logits.options().dtype(at::kDouble));
  at::Tensor losses;
  if (reduction == kNone) losses = at::empty(logits.sizes(), logits.options());
  const int64_t step = rows_per_step(logits);
  for (int64_t begin = 0; begin < logits.size(0); begin += step) {
    const int64_t end = std::min(begin + step, logits.size(0));
    const at::Tensor values = composite_values(logits.slice(0, begin, end),
                                               targets.slice(0, begin, end), gamma, alpha, false);
    if (reduction == kSum) {
      sum += values.sum(at::kDouble);
    } else {
      losses.slice(0, begin, end).copy_(values);
    }
  }
  return reduction == kSum ? sum.to(sum_dtype(logits)) : losses;
}

at::Tensor backward_composite(const at::Tensor& grad, const at::Tensor& logits,
                              const at::Tensor& targets, double gamma, double alpha,
                              int64_t reduction) {
  check_backward_arguments(grad, logits, targets, gamma, alpha, reduction);
  at::NoGradGuard no_grad;
  at::Tensor grad_logits = at::empty(logits.sizes(), logits.options());
  const int64_t step = rows_per_step(logits);
  for (int64_t begin = 0; begin < logits.size(0); begin += step) {
    const int64_t end = std::min(begin + step, logits.size(0));
    const at::Tensor values = composite_values(logits.slice(0, begin, end),
                                               targets.slice(0, begin, end), gamma, alpha, true);
    const at::Tensor factor = reduction == kSum ? grad.reshape({}) : grad.slice(0, begin, end);
    grad_logits.slice(0, begin, end).copy_(values * factor.to(values.scalar_type()));
  }
  return grad_logits;
}

// ---- dispatch, autograd, autocast --------------------------------------------------------------

at::Tensor call_forward(const at::Tensor& logits, const at::Tensor& targets, double gamma,
                        double alpha, int64_t reduction) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("fcos_core::sigmoid_focal_loss", "")
                       .typed<at::Tensor(const at::Tensor&, const at::Tensor&, double, double,
                                         int64_t)>();
  return op.call(logits, targets, gamma, alpha, reduction);
}

at::Tensor call_backward(const at::Tensor& grad, const at::Tensor& logits,
                         const at::Tensor& targets, double gamma, double alpha, int64_t reduction) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("fcos_core::_sigmoid_focal_loss_backward", "")
                       .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                         double, double, int64_t)>();
  return op.call(grad, logits, targets, gamma, alpha, reduction);
}

Variables backward_of(Context& context, const Variables& grads) {
  const Variables saved = context.get_saved_variables();
  const double gamma = context.data("gamma").toDouble();
  const double alpha = context.data("alpha").toDouble();
#ifdef WITH_CUDA
  // Slopes serve one pass, which returns their memory; a further one through a graph that was
  // retained has its own, and so has one that asks for a graph of its own.
  if (context.has("slopes") && !at::GradMode::is_enabled() && is_plain(grads[0])) {
    const at::Tensor grad = context.data("slopes").toTensor();
    context.forget("slopes");
    finish_slopes(grad, grads[0], saved[0], saved[1], gamma, alpha);
    return {grad, at::Tensor()};
  }
#endif
  return {call_backward(grads[0], saved[0], saved[1], gamma, alpha,
                        context.data("reduction").toInt()),
          at::Tensor()};
}

at::Tensor forward_autograd(const at::Tensor& logits, const at::Tensor& targets, double gamma,
                            double alpha, int64_t reduction) {
  check_given(kName, "logits", logits, "targets", targets);
#ifdef WITH_CUDA
  const bool with_slopes = writes_slopes(logits, targets, reduction);
#endif
  const auto forward = [&](Context& context) -> Variables {
    context.save_for_backward({logits, targets});
    context.data("gamma") = gamma;
    context.data("alpha") = alpha;
    context.data("reduction") = reduction;
#ifdef WITH_CUDA
    if (with_slopes) {
      at::Tensor slopes;
      const at::Tensor total = forward_with_slopes(logits, targets, gamma, alpha, slopes);
      context.data("slopes") = slopes;
      return {total};
    }
#endif
    return {call_forward(logits, targets, gamma, alpha, reduction)};
  };
  return differentiable<SigmoidFocalLoss>({logits, targets}, forward, backward_of)[0];
}

at::Tensor backward_autograd(const at::Tensor& grad, const at::Tensor& logits,
                             const at::Tensor& targets, double gamma, double alpha,
                             int64_t reduction) {
  check_given(kName, "grad", grad, "logits", logits, "targets", targets);
  return differentiable_once(kName, {grad, logits, targets}, [&]() -> Variables {
    return {call_backward(grad, logits, targets, gamma, alpha, reduction)};
  })[0];
}

// Autocast gives float32 losses, like torch's own. The sum computes and returns float32 from half
// logits by itself, so only the unreduced form needs the converted copy.
at::Tensor forward_autocast(const at::Tensor& logits, const at::Tensor& targets, double gamma,
                            double alpha, int64_t reduction) {
  BelowAutocast guard;
  const bool half = logits.scalar_type() == at::kHalf || logits.scalar_type() == at::kBFloat16;
  return call_forward(half && reduction == kNone ? logits.to(at::kFloat) : logits, targets, gamma,
                      alpha, reduction);
}

}  // namespace

FCOS_LIBRARY_FRAGMENT(fcos_core, m) {
  m.def("sigmoid_focal_loss(Tensor logits, Tensor targets, float gamma, float alpha, int reduction)"
        " -> Tensor");
  m.def("_sigmoid_focal_loss_backward(Tensor grad, Tensor logits, Tensor targets, float gamma,"
        " float alpha, int reduction) -> Tensor");
  // The composites by name, for tests without a GPU.
  m.def("_sigmoid_focal_loss_composite(Tensor logits, Tensor targets, float gamma, float alpha,"
        " int reduction) -> Tensor",
        TORCH_FN(forward_composite));
  m.def("_sigmoid_focal_loss_backward_composite(Tensor grad, Tensor logits, Tensor targets,"
        " float gamma, float alpha, int reduction) -> Tensor",
        TORCH_FN(backward_composite));
}

TORCH_LIBRARY_IMPL(fcos_core, CPU, m) {
  m.impl("sigmoid_focal_loss", TORCH_FN(forward_cpu));
  m.impl("_sigmoid_focal_loss_backward", TORCH_FN(backward_cpu));
}

#ifdef WITH_CUDA
TORCH_LIBRARY_IMPL(fcos_core, CUDA, m) {
  m.impl("sigmoid_focal_loss", TORCH_FN(forward_cuda));
  m.impl("_sigmoid_focal_loss_backward", TORCH_FN(backward_cuda));
}
#else
TORCH_LIBRARY_IMPL(fcos_core, CUDA, m) {
  m.impl("sigmoid_focal_loss", TORCH_FN(forward_composite));
  m.impl("_sigmoid_focal_loss_backward", TORCH_FN(backward_composite));
}
#endif

TORCH_LIBRARY_IMPL(fcos_core, Autograd, m) {
  m.impl("sigmoid_focal_loss", TORCH_FN(forward_autograd));
  m.impl("_sigmoid_focal_loss_backward", TORCH_FN(backward_autograd));
}

FCOS_REGISTER_AUTOCAST(fcos_core, "sigmoid_focal_loss", forward_autocast)

}  // namespace sigmoid_focal_loss
}  // namespace fcos_core
