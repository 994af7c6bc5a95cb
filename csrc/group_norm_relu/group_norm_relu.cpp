// Schema, checks and autograd of group normalisation with ReLU, see group_norm_relu.h.
//
//   group_norm_relu            input [N, C, H, W], weight [C], bias [C]
//       -> output, dtype and layout of input; mean and rstd [N, G], not differentiable
//   _group_norm_relu_backward  grad of output, input, weight, bias, mean, rstd
//       -> gradients of input (dtype and layout of input), weight and bias
// Kernels serve maps in channels_last on a GPU, for which torch has none. All else is composed of
// torch's own operators, which are good at it.
#include "group_norm_relu.h"

#include <array>
#include <cmath>
#include <tuple>

#include "../autograd.h"
#include "../check.h"

namespace fcos_core {
namespace group_norm_relu {
namespace {

const char* const kName = "group_norm_relu";
using Three = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

at::ScalarType compute_dtype(const at::Tensor& input) {
  return input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

void check_per_channel(const char* argument, const at::Tensor& t, const at::Tensor& input) {
  check_floating(kName, argument, t);
  check_shape(kName, argument, t, t.dim() == 1 && t.size(0) == input.size(1),
              "[C], one per channel of input");
  check_same_device(kName, argument, t, "input", input);
}

void check_arguments(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
                     int64_t num_groups) {
  check_floating(kName, "input", input);
  check_shape(kName, "input", input, input.dim() == 4, "[N, C, H, W]");
  check_per_channel("weight", weight, input);
  check_per_channel("bias", bias, input);
  FCOS_CHECK(num_groups >= 1 && input.size(1) % num_groups == 0, kName, "num_groups",
             joined("to divide the channels of input (", input.size(1), ")"), num_groups,
             "32 is usual");
  // images without pixels have no elements, but groups
  FCOS_CHECK(static_cast<double>(input.size(0)) * num_groups < 1e15, kName, "input",
             "to have below 10^15 groups", input.sizes(), "normalise fewer images at a time");
}

void check_eps(double eps) {
  FCOS_CHECK(eps >= 0 && std::isfinite(eps), kName, "eps", "to be finite and at least 0", eps,
             "1e-5 is usual");
}

void check_moments(const char* argument, const at::Tensor& t, const at::Tensor& input,
                   int64_t num_groups) {
  FCOS_CHECK(t.scalar_type() == compute_dtype(input), kName, argument,
             joined("of dtype ", text_of(compute_dtype(input))), t.scalar_type(),
             "pass the one that the forward gave");
  check_shape(kName, argument, t,
              t.dim() == 2 && t.size(0) == input.size(0) && t.size(1) == num_groups, "[N, G]");
  check_same_device(kName, argument, t, "input", input);
}

void check_backward_arguments(const at::Tensor& grad, const at::Tensor& input,
                              const at::Tensor& weight, const at::Tensor& bias,
                              const at::Tensor& mean, const at::Tensor& rstd, int64_t num_groups) {
  check_arguments(input, weight, bias, num_groups);
  check_floating(kName, "grad", grad);
  check_shape(kName, "grad", grad, grad.sizes() == input.sizes(), "[N, C, H, W], as input");
  check_same_device(kName, "grad", grad, "input", input);
  check_moments("mean", mean, input, num_groups);
  check_moments("rstd", rstd, input, num_groups);
}

// ---- composite -------------------------------------------------------------------------------

// In the dtype and layout of the input.
at::Tensor like_input(const at::Tensor& t, const at::Tensor& input) {
  return t.to(input.scalar_type()).contiguous(input.suggest_memory_format());
}

Three forward_composite(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
                        int64_t num_groups, double eps) {
  check_arguments(input, weight, bias, num_groups);
  check_eps(eps);
  const at::ScalarType dtype = compute_dtype(input);
  const at::Tensor x = input.to(dtype).contiguous();
  if (x.numel() == 0) {
    const at::Tensor none = at::zeros({x.size(0), num_groups}, x.options());
    return Three(at::empty_like(input), none, none.clone());
  }
  at::Tensor output, mean, rstd;
  std::tie(output, mean, rstd) = at::native_group_norm(
      x, weight.to(dtype).contiguous(), bias.to(dtype).contiguous(), x.size(0), x.size(1),
      x.size(2) * x.size(3), num_groups, eps);
  return Three(like_input(output.relu(), input), mean, rstd);
}

Three backward_composite(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight,
                         const at::Tensor& bias, const at::Tensor& mean, const at::Tensor& rstd,
                         int64_t num_groups) {
  check_backward_arguments(grad, input, weight, bias, mean, rstd, num_groups);
  const at::ScalarType dtype = compute_dtype(input);
  if (input.numel() == 0)
    return Three(at::empty_like(input), at::zeros_like(weight), at::zeros_like(bias));
  const at::Tensor x = input.to(dtype).contiguous(), w = weight.to(dtype).contiguous();
  const at::Tensor b = bias.to(dtype).contiguous();
  const int64_t images = x.size(0), channels = x.size(1);
  const at::Tensor grouped = x.view({images, num_groups, -1});
  const at::Tensor normalised =
      ((grouped - mean.unsqueeze(2)) * rstd.unsqueeze(2)).view(x.sizes()) *
          w.view({1, channels, 1, 1}) +
      b.view({1, channels, 1, 1});
  const at::Tensor d =
      grad.to(dtype).contiguous().masked_fill(normalised.gt(0).logical_not(), 0);
  at::Tensor grad_input, grad_weight, grad_bias;
  std::tie(grad_input, grad_weight, grad_bias) = at::native_group_norm_backward(
      d, x, mean.contiguous(), rstd.contiguous(), w, images, channels, x.size(2) * x.size(3),
      num_groups, std::array<bool, 3>{{true, true, true}});
  return Three(like_input(grad_input, input), grad_weight.to(weight.scalar_type()),
               grad_bias.to(bias.scalar_type()));
}

// ---- CUDA ------------------------------------------------------------------------------------

#ifdef WITH_CUDA
// Tensors as the kernels read them, and the problem that points into them.
struct Prepared {
  at::Tensor input, weight, bias;
  GroupNormProblem problem;

  Prepared(const at::Tensor& x, const at::Tensor& w, const at::Tensor& b, int64_t num_groups)
      : input(x.contiguous(at::MemoryFormat::ChannelsLast)),
        weight(w.to(compute_dtype(x)).contiguous()),
        bias(b.to(compute_dtype(x)).contiguous()) {
    problem.input = const_data(input);
    problem.weight = const_data(weight);
    problem.bias = const_data(bias);
    problem.dtype = dtype_of(input);
    problem.num_images = x.size(0);
    problem.channels = x.size(1);
    problem.pixels = x.size(2) * x.size(3);
    problem.num_groups = num_groups;
    problem.eps = 0;
  }

  at::TensorOptions options() const { return weight.options(); }
  at::Tensor like_input() const {
    return at::empty(input.sizes(), input.options(), at::MemoryFormat::ChannelsLast);
  }
};

bool is_channels_last(const at::Tensor& t) {
  return t.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
}

Three forward_cuda(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
                   int64_t num_groups, double eps) {
  check_arguments(input, weight, bias, num_groups);
  check_eps(eps);
  if (!is_channels_last(input)) return forward_composite(input, weight, bias, num_groups, eps);
  const CudaScope scope(input);
  Prepared in(input, weight, bias, num_groups);
  in.problem.eps = eps;
  const at::Tensor output = in.like_input();
  if (!group_norm_relu_fits(in.problem, const_data(output)))
    return forward_composite(input, weight, bias, num_groups, eps);
  const at::Tensor mean = at::empty({input.size(0), num_groups}, in.options());
  const at::Tensor rstd = at::empty_like(mean);
  const at::Tensor scratch = at::empty({group_norm_relu_scratch(in.problem)}, in.options());
  check_launch(kName, group_norm_relu_cuda(in.problem, mutable_data(output), mutable_data(mean),
                                           mutable_data(rstd), mutable_data(scratch),
                                           scope.stream));
  return Three(output, mean, rstd);
}

Three backward_cuda(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight,
                    const at::Tensor& bias, const at::Tensor& mean, const at::Tensor& rstd,
                    int64_t num_groups) {
  check_backward_arguments(grad, input, weight, bias, mean, rstd, num_groups);
  if (!is_channels_last(input))
    return backward_composite(grad, input, weight, bias, mean, rstd, num_groups);
  const CudaScope scope(input);
  const Prepared in(input, weight, bias, num_groups);
  const at::Tensor g =
      grad.to(input.scalar_type()).contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor m = mean.contiguous(), r = rstd.contiguous(), grad_input = in.like_input();
  if (!group_norm_relu_fits(in.problem, const_data(g)) ||
      !group_norm_relu_fits(in.problem, const_data(grad_input)))
    return backward_composite(grad, input, weight, bias, mean, rstd, num_groups);
  const at::Tensor sums = at::empty({2, input.size(0), input.size(1)}, in.options());
  const at::Tensor scratch = at::empty({group_norm_relu_scratch(in.problem)}, in.options());
  check_launch(kName, group_norm_relu_backward_cuda(
                          in.problem, const_data(g), const_data(m), const_data(r),
                          mutable_data(grad_input), mutable_data(sums), mutable_data(scratch),
                          scope.stream));
  return Three(grad_input, sums[1].sum(0).to(weight.scalar_type()),
               sums[0].sum(0).to(bias.scalar_type()));
}
#endif

// ---- dispatch and autograd -------------------------------------------------------------------

Three call_forward(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
                   int64_t num_groups, double eps) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("fcos_core::group_norm_relu", "")
                       .typed<decltype(forward_composite)>();
  return op.call(input, weight, bias, num_groups, eps);
}

Three call_backward(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight,
                    const at::Tensor& bias, const at::Tensor& mean, const at::Tensor& rstd,
                    int64_t num_groups) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("fcos_core::_group_norm_relu_backward", "")
                       .typed<decltype(backward_composite)>();
  return op.call(grad, input, weight, bias, mean, rstd, num_groups);
}

Variables backward_of(Context& context, const Variables& grads) {
  if (!grads[0].defined()) return {at::Tensor(), at::Tensor(), at::Tensor()};
  const Variables saved = context.get_saved_variables();
  const Three g = call_backward(grads[0], saved[0], saved[1], saved[2], saved[3], saved[4],
                                context.data("num_groups").toInt());
  return {std::get<0>(g), std::get<1>(g), std::get<2>(g)};
}

Three forward_autograd(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
                       int64_t num_groups, double eps) {
  check_given(kName, "input", input, "weight", weight, "bias", bias);
  const auto forward = [&](Context& context) -> Variables {
    context.data("num_groups") = num_groups;
    at::Tensor output, mean, rstd;
    std::tie(output, mean, rstd) = call_forward(input, weight, bias, num_groups, eps);
    context.save_for_backward({input, weight, bias, mean, rstd});
    context.mark_non_differentiable({mean, rstd});
    context.set_materialize_grads(false);  // moments have none, which need not be written as zeros
    return {output, mean, rstd};
  };
  const Variables results =
      differentiable<GroupNormRelu>({input, weight, bias}, forward, backward_of);
  return Three(results[0], results[1], results[2]);
}

Three backward_autograd(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight,
                        const at::Tensor& bias, const at::Tensor& mean, const at::Tensor& rstd,
                        int64_t num_groups) {
  check_given(kName, "grad", grad, "input", input, "weight", weight, "bias", bias);
  check_given(kName, "mean", mean, "rstd", rstd);
  const auto forward = [&]() -> Variables {
    const Three g = call_backward(grad, input, weight, bias, mean, rstd, num_groups);
    return {std::get<0>(g), std::get<1>(g), std::get<2>(g)};
  };
  const Variables g =
      differentiable_once(kName, {grad, input, weight, bias, mean, rstd}, forward);
  return Three(g[0], g[1], g[2]);
}

}  // namespace

FCOS_LIBRARY_FRAGMENT(fcos_core, m) {
  m.def("group_norm_relu(Tensor input, Tensor weight, Tensor bias, int num_groups, float eps)"
        " -> (Tensor, Tensor, Tensor)");
  m.def("_group_norm_relu_backward(Tensor grad, Tensor input, Tensor weight, Tensor bias,"
        " Tensor mean, Tensor rstd, int num_groups) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(fcos_core, CPU, m) {
  m.impl("group_norm_relu", TORCH_FN(forward_composite));
  m.impl("_group_norm_relu_backward", TORCH_FN(backward_composite));
}

TORCH_LIBRARY_IMPL(fcos_core, CUDA, m) {
#ifdef WITH_CUDA
  m.impl("group_norm_relu", TORCH_FN(forward_cuda));
  m.impl("_group_norm_relu_backward", TORCH_FN(backward_cuda));
#else
  m.impl("group_norm_relu", TORCH_FN(forward_composite));
  m.impl("_group_norm_relu_backward", TORCH_FN(backward_composite));
#endif
}

TORCH_LIBRARY_IMPL(fcos_core, Autograd, m) {
  m.impl("group_norm_relu", TORCH_FN(forward_autograd));
  m.impl("_group_norm_relu_backward", TORCH_FN(backward_autograd));
}

}  // namespace group_norm_relu
}  // namespace fcos_core
