// Schema, checks and autograd of the IoU losses, see iou_loss.h for what they compute.
//
//   iou_loss            pred [M, 4], target [M, 4], weight [M] or none; kind: 0 iou, 1 linear_iou,
//                       2 giou, all three of distances, 3 giou of boxes
//       -> reduction 0: [M]; reduction 2: scalar; float64 for float64 boxes, else float32
//   _iou_loss_backward  grad of that and the rest -> [M, 4], dtype of pred
// Targets and weights have no gradient here. The numbers of the reductions are at::Reduction's; 1
// (mean) does not exist, because detectors divide by the sum of the weights over all processes.
// Autocast needs no kernel: half precision is computed in float32 anyway.
#include "iou_loss.h"

#include <vector>

#include "../autograd.h"
#include "../check.h"

namespace fcos_core {
namespace iou_loss {
namespace {

const char* const kName = "iou_loss";
constexpr int64_t kNone = 0;
constexpr int64_t kSum = 2;


at::ScalarType compute_dtype(const at::Tensor& pred) {
  return pred.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

void check_arguments(const at::Tensor& pred, const at::Tensor& target, const at::Tensor& weight,
                     int64_t kind, int64_t reduction) {
  check_floating(kName, "pred", pred);
  check_floating(kName, "target", target);
  check_shape(kName, "pred", pred, pred.dim() == 2 && pred.size(1) == 4, "[M, 4]");
  check_shape(kName, "target", target, target.sizes() == pred.sizes(), "[M, 4], as pred");
  FCOS_CHECK(target.scalar_type() == pred.scalar_type(), kName, "target",
             joined("of the dtype of pred (", text_of(pred.scalar_type()), ")"),
             target.scalar_type(), "convert one of them with .to(dtype)");
  check_same_device(kName, "target", target, "pred", pred);
  if (weight.defined()) {
    check_floating(kName, "weight", weight);
    check_shape(kName, "weight", weight, weight.dim() == 1 && weight.size(0) == pred.size(0),
                "[M], one per box");
    check_same_device(kName, "weight", weight, "pred", pred);
  }
  FCOS_CHECK(kind >= 0 && kind < kIouKinds, kName, "kind", joined("in 0..", kIouKinds - 1), kind,
             "0 iou, 1 linear_iou, 2 giou, 3 giou of boxes");
  FCOS_CHECK(reduction == kNone || reduction == kSum, kName, "reduction", "0 (none) or 2 (sum)",
             reduction, "divide the sum yourself for a mean");
}

void check_grad(const at::Tensor& grad, const at::Tensor& pred, int64_t reduction) {
  check_floating(kName, "grad", grad);
  check_same_device(kName, "grad", grad, "pred", pred);
  if (reduction == kSum) {
    check_shape(kName, "grad", grad, grad.numel() == 1, "[], one number");
  } else {
    check_shape(kName, "grad", grad, grad.dim() == 1 && grad.size(0) == pred.size(0),
                "[M], one per box");
  }
}

// Tensors as a kernel reads them, and the problem that points into them.
struct Prepared {
  at::Tensor pred, target, weight;
  IouLossProblem problem;

  Prepared(const at::Tensor& p, const at::Tensor& t, const at::Tensor& w, int64_t kind)
      : pred(p.contiguous()), target(t.contiguous()) {
    if (w.defined()) weight = w.to(compute_dtype(p)).contiguous();
    problem.pred = const_data(pred);
    problem.target = const_data(target);
    problem.weight = w.defined() ? const_data(weight) : nullptr;
    problem.dtype = dtype_of(pred);
    problem.kind = static_cast<IouKind>(kind);
    problem.count = pred.size(0);
  }

  at::TensorOptions loss_options() const { return pred.options().dtype(compute_dtype(pred)); }
};

at::Tensor given(const OptionalTensor& t) { return t ? *t : at::Tensor(); }

// ---- CPU -------------------------------------------------------------------------------------

at::Tensor forward_cpu(const at::Tensor& pred, const at::Tensor& target,
                       const OptionalTensor& weight, int64_t kind, int64_t reduction) {
  check_arguments(pred, target, given(weight), kind, reduction);
  const Prepared in(pred, target, given(weight), kind);
  if (reduction == kSum) return at::full({}, iou_loss_sum_cpu(in.problem), in.loss_options());
  at::Tensor losses = at::empty({in.problem.count}, in.loss_options());
  iou_loss_cpu(in.problem, mutable_data(losses));
  return losses;
}

at::Tensor backward_cpu(const at::Tensor& grad, const at::Tensor& pred, const at::Tensor& target,
                        const OptionalTensor& weight, int64_t kind, int64_t reduction) {
  check_arguments(pred, target, given(weight), kind, reduction);
  check_grad(grad, pred, reduction);
  const Prepared in(pred, target, given(weight), kind);
  at::Tensor grad_pred = at::empty(in.pred.sizes(), in.pred.options());
  if (reduction == kSum) {
    iou_loss_backward_cpu(in.problem, nullptr, grad.item<double>(), mutable_data(grad_pred));
  } else {
    const at::Tensor g = grad.to(compute_dtype(pred)).contiguous();
    iou_loss_backward_cpu(in.problem, const_data(g), 1.0, mutable_data(grad_pred));
  }
  return grad_pred;
}

// ---- CUDA ------------------------------------------------------------------------------------

#ifdef WITH_CUDA
at::Tensor forward_cuda(const at::Tensor& pred, const at::Tensor& target,
                        const OptionalTensor& weight, int64_t kind, int64_t reduction) {
  check_arguments(pred, target, given(weight), kind, reduction);
  const CudaScope scope(pred);
  const Prepared in(pred, target, given(weight), kind);
  if (reduction == kSum) {
    const at::Tensor partials = at::empty({iou_loss_sum_cuda_partials(in.problem)},
                                          in.pred.options().dtype(at::kDouble));
    at::Tensor total = at::empty({}, in.loss_options());
    check_launch(kName,
                 iou_loss_sum_cuda(in.problem, static_cast<double*>(mutable_data(partials)),
                                   mutable_data(total), scope.stream));
    return total;
  }
  at::Tensor losses = at::empty({in.problem.count}, in.loss_options());
  check_launch(kName, iou_loss_cuda(in.problem, mutable_data(losses), scope.stream));
  return losses;
}

at::Tensor backward_cuda(const at::Tensor& grad, const at::Tensor& pred, const at::Tensor& target,
                         const OptionalTensor& weight, int64_t kind, int64_t reduction) {
  check_arguments(pred, target, given(weight), kind, reduction);
  check_grad(grad, pred, reduction);
  const CudaScope scope(pred);
  const Prepared in(pred, target, given(weight), kind);
  at::Tensor grad_pred = at::empty(in.pred.sizes(), in.pred.options());
  const at::Tensor g = grad.to(compute_dtype(pred)).contiguous();
  const void* numbers = const_data(g);
  check_launch(kName, iou_loss_backward_cuda(in.problem, reduction == kSum ? nullptr : numbers,
                                             reduction == kSum ? numbers : nullptr,
                                             mutable_data(grad_pred), scope.stream));
  return grad_pred;
}
#endif

// ---- composite -------------------------------------------------------------------------------
// The same from ATen ops, for GPUs when the library was built without CUDA.

struct Pairs {
  at::Tensor losses, slopes;  // [M], [M, 4]
};

at::Tensor masked(const at::Tensor& mask, const at::Tensor& values) {
  return at::where(mask, values, at::zeros_like(values));
}

// Sides as numbers of each row: [M, 2], of x and y.
at::Tensor product(const at::Tensor& lengths) {
  return lengths.select(1, 0) * lengths.select(1, 1);
}

Pairs pairs_of_distances(const at::Tensor& p, const at::Tensor& t, IouKind kind) {
  const auto lengths = [](const at::Tensor& sides) {
    return sides.slice(1, 0, 2) + sides.slice(1, 2, 4);
  };
  // of each of the four sides, the length of the other axis
  const auto across = [&lengths](const at::Tensor& sides) {
    return lengths(sides).flip(1).repeat({1, 2});
  };
  const at::Tensor inner = at::where(p < t, p, t), outer = at::where(p > t, p, t);
  const at::Tensor intersection = product(lengths(inner));
  const at::Tensor join = product(lengths(p)) + product(lengths(t)) - intersection;
  const at::Tensor iou = (intersection + 1) / (join + 1);
  at::Tensor losses = 1 - iou, by_join = iou / (join + 1);
  at::Tensor by_intersection = (join + 1).reciprocal().neg();
  at::Tensor enclosing;
  if (kind == IouKind::iou) {
    losses = iou.log().neg();
    by_join = (join + 1).reciprocal();
    by_intersection = (intersection + 1).reciprocal().neg();
  } else if (kind == IouKind::giou) {
    enclosing = product(lengths(outer)) + 1e-7;
    losses = 1 - (iou - (enclosing - join) / enclosing);
    by_join = by_join - enclosing.reciprocal();
  }
  by_intersection = by_intersection - by_join;
  at::Tensor slopes = by_join.unsqueeze(1) * across(p) +
                      masked(p < t, by_intersection.unsqueeze(1) * across(inner));
  if (kind == IouKind::giou)
    slopes = slopes + masked(p > t, (join / enclosing / enclosing).unsqueeze(1) * across(outer));
  return {losses, slopes};
}

Pairs pairs_of_boxes(const at::Tensor& p, const at::Tensor& t) {
  const at::Tensor low = p.slice(1, 0, 2), target_low = t.slice(1, 0, 2);
  const at::Tensor target_high = t.slice(1, 2, 4), reversed = low > p.slice(1, 2, 4);
  const at::Tensor high = at::where(reversed, low, p.slice(1, 2, 4));
  const at::Tensor lengths = high - low;
  at::Tensor inner = at::where(high < target_high, high, target_high) -
                     at::where(low > target_low, low, target_low);
  const at::Tensor outer = at::where(high > target_high, high, target_high) -
                           at::where(low < target_low, low, target_low);
  const at::Tensor meets = (inner < 0).logical_not();
  inner = masked(meets, inner);
  const at::Tensor intersection = product(inner);
  const at::Tensor join =
      product(lengths) + product(target_high - target_low) - intersection + 1e-7;
  const at::Tensor enclosing = product(outer) + 1e-7;
  const at::Tensor losses = 1 - (intersection / join - (enclosing - join) / enclosing);
  const at::Tensor by_join = intersection / join / join - enclosing.reciprocal();
  const at::Tensor by_intersection = (join.reciprocal().neg() - by_join).unsqueeze(1);
  const at::Tensor by_enclosing = (join / enclosing / enclosing).unsqueeze(1);
  const at::Tensor area = by_join.unsqueeze(1) * lengths.flip(1);
  const at::Tensor inner_step = by_intersection * inner.flip(1);
  const at::Tensor outer_step = by_enclosing * outer.flip(1);
  const at::Tensor by_low = -area - masked(meets.logical_and(low > target_low), inner_step) -
                            masked(low < target_low, outer_step);
  const at::Tensor by_high = area + masked(meets.logical_and(high < target_high), inner_step) +
                             masked(high > target_high, outer_step);
  return {losses, at::cat({at::where(reversed, by_low + by_high, by_low),
                           masked(reversed.logical_not(), by_high)},
                          1)};
}

// Weighted losses and slopes, in the compute dtype.
Pairs composite_pairs(const at::Tensor& pred, const at::Tensor& target, const at::Tensor& weight,
                      int64_t kind) {
  const at::Tensor p = pred.to(compute_dtype(pred)), t = target.to(compute_dtype(pred));
  Pairs pairs = kind == static_cast<int64_t>(IouKind::box_giou)
                    ? pairs_of_boxes(p, t)
                    : pairs_of_distances(p, t, static_cast<IouKind>(kind));
  if (!weight.defined()) return pairs;
  const at::Tensor w = weight.to(compute_dtype(pred)), counts = w.ne(0);
  return {masked(counts, w * pairs.losses),
          masked(counts.unsqueeze(1).expand_as(pairs.slopes), w.unsqueeze(1) * pairs.slopes)};
}

at::Tensor forward_composite(const at::Tensor& pred, const at::Tensor& target,
                             const OptionalTensor& weight, int64_t kind, int64_t reduction) {
  check_arguments(pred, target, given(weight), kind, reduction);
  at::NoGradGuard no_grad;
  const at::Tensor losses = composite_pairs(pred, target, given(weight), kind).losses;
  return reduction == kSum ? losses.sum(at::kDouble).to(compute_dtype(pred)) : losses;
}

at::Tensor backward_composite(const at::Tensor& grad, const at::Tensor& pred,
                              const at::Tensor& target, const OptionalTensor& weight, int64_t kind,
                              int64_t reduction) {
  check_arguments(pred, target, given(weight), kind, reduction);
  check_grad(grad, pred, reduction);
  at::NoGradGuard no_grad;
  const at::Tensor slopes = composite_pairs(pred, target, given(weight), kind).slopes;
  const at::Tensor g = grad.to(slopes.scalar_type());
  return (slopes * (reduction == kSum ? g.reshape({}) : g.unsqueeze(1))).to(pred.scalar_type());
}

// ---- dispatch and autograd -------------------------------------------------------------------

at::Tensor call_forward(const at::Tensor& pred, const at::Tensor& target,
                        const OptionalTensor& weight, int64_t kind, int64_t reduction) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("fcos_core::iou_loss", "")
                       .typed<decltype(forward_cpu)>();
  return op.call(pred, target, weight, kind, reduction);
}

at::Tensor call_backward(const at::Tensor& grad, const at::Tensor& pred, const at::Tensor& target,
                         const OptionalTensor& weight, int64_t kind, int64_t reduction) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("fcos_core::_iou_loss_backward", "")
                       .typed<decltype(backward_cpu)>();
  return op.call(grad, pred, target, weight, kind, reduction);
}

Variables backward_of(Context& context, const Variables& grads) {
  const Variables saved = context.get_saved_variables();
  const OptionalTensor weight = saved[2].defined() ? OptionalTensor(saved[2]) : OptionalTensor();
  return {call_backward(grads[0], saved[0], saved[1], weight, context.data("kind").toInt(),
                        context.data("reduction").toInt()),
          at::Tensor(), at::Tensor()};
}

void check_constant(const char* argument, const at::Tensor& t) {
  FCOS_CHECK(!t.defined() || !t.requires_grad() || !at::GradMode::is_enabled(), kName, argument,
             "to need no gradient", "one that does", "detach it, or call the function of layers");
}

at::Tensor forward_autograd(const at::Tensor& pred, const at::Tensor& target,
                            const OptionalTensor& weight, int64_t kind, int64_t reduction) {
  check_given(kName, "pred", pred, "target", target);
  check_constant("target", target);
  check_constant("weight", given(weight));
  const auto forward = [&](Context& context) -> Variables {
    context.save_for_backward({pred, target, given(weight)});
    context.data("kind") = kind;
    context.data("reduction") = reduction;
    return {call_forward(pred, target, weight, kind, reduction)};
  };
  return differentiable<IouLoss>({pred, target, weight}, forward, backward_of)[0];
}

at::Tensor backward_autograd(const at::Tensor& grad, const at::Tensor& pred,
                             const at::Tensor& target, const OptionalTensor& weight, int64_t kind,
                             int64_t reduction) {
  check_given(kName, "grad", grad, "pred", pred, "target", target);
  return differentiable_once(kName, {grad, pred, target, weight}, [&]() -> Variables {
    return {call_backward(grad, pred, target, weight, kind, reduction)};
  })[0];
}

}  // namespace

FCOS_LIBRARY_FRAGMENT(fcos_core, m) {
  m.def("iou_loss(Tensor pred, Tensor target, Tensor? weight, int kind, int reduction) -> Tensor");
  m.def("_iou_loss_backward(Tensor grad, Tensor pred, Tensor target, Tensor? weight, int kind,"
        " int reduction) -> Tensor");
  // The composites by name, for tests without a GPU.
  m.def("_iou_loss_composite(Tensor pred, Tensor target, Tensor? weight, int kind, int reduction)"
        " -> Tensor",
        TORCH_FN(forward_composite));
  m.def("_iou_loss_backward_composite(Tensor grad, Tensor pred, Tensor target, Tensor? weight,"
        " int kind, int reduction) -> Tensor",
        TORCH_FN(backward_composite));
}

TORCH_LIBRARY_IMPL(fcos_core, CPU, m) {
  m.impl("iou_loss", TORCH_FN(forward_cpu));
  m.impl("_iou_loss_backward", TORCH_FN(backward_cpu));
}

#ifdef WITH_CUDA
TORCH_LIBRARY_IMPL(fcos_core, CUDA, m) {
  m.impl("iou_loss", TORCH_FN(forward_cuda));
  m.impl("_iou_loss_backward", TORCH_FN(backward_cuda));
}
#else
TORCH_LIBRARY_IMPL(fcos_core, CUDA, m) {
  m.impl("iou_loss", TORCH_FN(forward_composite));
  m.impl("_iou_loss_backward", TORCH_FN(backward_composite));
}
#endif

TORCH_LIBRARY_IMPL(fcos_core, Autograd, m) {
  m.impl("iou_loss", TORCH_FN(forward_autograd));
  m.impl("_iou_loss_backward", TORCH_FN(backward_autograd));
}

}  // namespace iou_loss
}  // namespace fcos_core
