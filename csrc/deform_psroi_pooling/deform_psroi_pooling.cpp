// Schema, checks and autograd of deformable position-sensitive RoI pooling, see
// deform_psroi_pooling.h for what it computes and for the letters.
//
//   deform_psroi_pooling            input, rois, trans or None
//       -> output [K, D, P, P] of input's dtype and memory format; top_count int32
//          [K, classes, P, P], the samples that count
//   _deform_psroi_pooling_backward  grad of output, input, rois, trans or None
//       -> gradients of input and of trans ([0] without trans)
// rois and trans may have another floating dtype than input. Nothing is registered for autocast:
// half inputs are computed in float32 anyhow, and rois keep their own precision.
#include "deform_psroi_pooling.h"

#include <cmath>
#include <tuple>
#include <vector>

#include "../autograd.h"
#include "../check.h"

namespace fcos_core {
namespace deform_psroi_pooling {
namespace {

const char* const kName = "deform_psroi_pooling";

using TwoTensors = std::tuple<at::Tensor, at::Tensor>;

struct Options {
  double spatial_scale;
  int64_t output_dim, group_size, pooled_size, part_size, sample_per_part;
  double trans_std;
};

// ---- checks ------------------------------------------------------------------------------------

void check_range(const char* argument, int64_t value, int64_t low, int64_t high,
                 const char* advice) {
  FCOS_CHECK(value >= low && value <= high, kName, argument, joined("in ", low, "..", high), value,
             advice);
}

void check_options(const Options& o) {
  FCOS_CHECK(std::isfinite(o.spatial_scale) && o.spatial_scale > 0, kName, "spatial_scale",
             "to be finite and above 0", o.spatial_scale, "it is 1 / stride of the input");
  FCOS_CHECK(o.output_dim >= 0, kName, "output_dim", "to be at least 0", o.output_dim,
             "it is the number of output channels");
  check_range("group_size", o.group_size, 1, kPsroiMaxSize, "1 pools without groups");
  check_range("pooled_size", o.pooled_size, 1, kPsroiMaxSize, "7 is usual");
  check_range("part_size", o.part_size, 1, kPsroiMaxSize, "it is usually pooled_size");
  check_range("sample_per_part", o.sample_per_part, 1, kPsroiMaxSamples, "4 is usual");
  FCOS_CHECK(o.trans_std >= 0 && o.trans_std <= 1, kName, "trans_std", "in [0, 1]", o.trans_std,
             "the paper uses 0.1");
}

void check_trans(const at::Tensor& input, const at::Tensor& rois, const at::Tensor& trans,
                 const Options& o) {
  check_floating(kName, "trans", trans);
  check_same_device(kName, "trans", trans, "input", input);
  const std::string shape = joined("[K, 2 * num_classes, part_size, part_size] with K = ",
                                   rois.size(0), " and part_size = ", o.part_size);
  check_shape(kName, "trans", trans,
              trans.dim() == 4 && trans.size(0) == rois.size(0) && trans.size(1) > 0 &&
                  trans.size(1) % 2 == 0 && trans.size(2) == o.part_size &&
                  trans.size(3) == o.part_size,
              shape.c_str());
  FCOS_CHECK(o.output_dim % (trans.size(1) / 2) == 0, kName, "output_dim",
             joined("to be a multiple of num_classes (", trans.size(1) / 2,
                    ", half of the channels of trans)"),
             o.output_dim, "every class owns as many output channels");
}

void check_arguments(const at::Tensor& input, const at::Tensor& rois, const OptionalTensor& trans,
                     const Options& o) {
  check_options(o);
  check_floating(kName, "input", input);
  check_floating(kName, "rois", rois);
  const int64_t groups = o.group_size * o.group_size;
  const std::string shape = joined("[N, output_dim * group_size^2, H, W] with output_dim = ",
                                   o.output_dim, " and group_size = ", o.group_size);
  check_shape(kName, "input", input,
              input.dim() == 4 && input.size(1) % groups == 0 &&
                  input.size(1) / groups == o.output_dim,
              shape.c_str());
  check_shape(kName, "rois", rois, rois.dim() == 2 && rois.size(1) == 5,
              "[K, 5], image x1 y1 x2 y2");
  check_same_device(kName, "rois", rois, "input", input);
  if (trans.has_value()) check_trans(input, rois, *trans, o);

  // Cells are int32. The products matter for tensors without elements, whose sizes nothing limits.
  const int64_t height = input.size(2), width = input.size(3);
  const double image = static_cast<double>(input.size(1)) * height * width;
  const double output =
      static_cast<double>(rois.size(0)) * o.output_dim * o.pooled_size * o.pooled_size;
  const int64_t limit = int64_t(1) << 31;
  FCOS_CHECK(height < limit && width < limit && image < 1e15, kName, "input",
             "to have H and W below 2^31, and below 10^15 elements an image", input.sizes(),
             "see the docstring of the function");
  FCOS_CHECK(output < 1e15, kName, "output", "to have below 10^15 elements",
             joined(rois.size(0), " rois of output_dim ", o.output_dim, " and pooled_size ",
                    o.pooled_size),
             "pool fewer rois at a time");
}

// Every image number is that of an image.
template <typename T>
void check_images(const PsroiProblem& problem) {
  const T* rois = static_cast<const T*>(problem.rois);
  for (int64_t roi = 0; roi < problem.num_rois; ++roi) {
    FCOS_CHECK(psroi_image(problem, rois[roi * 5]) >= 0, kName, "rois",
               joined("to start with an image number in 0..", problem.num_images - 1),
               joined(static_cast<double>(rois[roi * 5]), " at row ", roi),
               "input holds fewer images, or the columns of rois are in another order");
  }
}

// ---- calls of the kernels ----------------------------------------------------------------------

// The tensors of a call as the kernels take them; holds what the problem points to.
struct Arguments {
  at::Tensor input, rois, trans;  // trans may be undefined
  at::MemoryFormat format;
  PsroiProblem problem;

  Arguments(const at::Tensor& input_in, const at::Tensor& rois_in, const OptionalTensor& trans_in,
            const Options& o)
      : format(input_in.suggest_memory_format()) {
    input = input_in.contiguous(format);
    rois = rois_in.to(compute_dtype()).contiguous();
    if (trans_in.has_value()) trans = trans_in->to(compute_dtype()).contiguous();
    problem = {dtype_of(input),
               input.size(0),
               input.size(2),
               input.size(3),
               rois.size(0),
               o.output_dim,
               trans.defined() ? trans.size(1) / 2 : 1,
               o.group_size,
               o.pooled_size,
               o.part_size,
               o.sample_per_part,
               o.spatial_scale,
               o.trans_std,
               format == at::MemoryFormat::ChannelsLast,
               const_data(rois),
               trans.defined() ? const_data(trans) : nullptr};
    // also where nothing is pooled; a GPU would have to be waited for
    if (rois.is_cuda()) return;
    compute_dtype() == at::kDouble ? check_images<double>(problem) : check_images<float>(problem);
  }

  // What positions and sums are computed in.
  at::ScalarType compute_dtype() const {
    return input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  }
};

void run_cpu(const Arguments& a, at::Tensor& output, at::Tensor& counts) {
  deform_psroi_pooling_cpu(a.problem, const_data(a.input), mutable_data(output),
                           static_cast<int32_t*>(mutable_data(counts)));
}

void run_backward_cpu(const Arguments& a, const at::Tensor& grad, at::Tensor& grad_input,
                      at::Tensor& grad_trans) {
  deform_psroi_pooling_backward_cpu(a.problem, const_data(grad), const_data(a.input),
                                    mutable_data(grad_input), mutable_data(grad_trans));
}

#ifdef WITH_CUDA
void run_cuda(const Arguments& a, at::Tensor& output, at::Tensor& counts) {
  const CudaScope scope(a.input);
  check_launch(kName, deform_psroi_pooling_cuda(a.problem, const_data(a.input),
                                                mutable_data(output),
                                                static_cast<int32_t*>(mutable_data(counts)),
                                                scope.stream));
}

void run_backward_cuda(const Arguments& a, const at::Tensor& grad, at::Tensor& grad_input,
                       at::Tensor& grad_trans) {
  // sums by atomic additions, whose order is left to the GPU
  if (wants_determinism())
    at::globalContext().alertNotDeterministic("deform_psroi_pooling_backward_cuda");
  const CudaScope scope(a.input);
  check_launch(kName, deform_psroi_pooling_backward_cuda(
                          a.problem, const_data(grad), const_data(a.input),
                          mutable_data(grad_input), mutable_data(grad_trans), scope.stream));
}
#endif

template <void (*run)(const Arguments&, at::Tensor&, at::Tensor&)>
TwoTensors forward(const at::Tensor& input, const at::Tensor& rois, const OptionalTensor& trans,
                   double spatial_scale, int64_t output_dim, int64_t group_size,
                   int64_t pooled_size, int64_t part_size, int64_t sample_per_part,
                   double trans_std) {
  const Options o{spatial_scale, output_dim,      group_size, pooled_size,
                  part_size,     sample_per_part, trans_std};
  check_arguments(input, rois, trans, o);
  const Arguments a(input, rois, trans, o);
  const int64_t size = o.pooled_size;
  at::Tensor output = at::empty({rois.size(0), o.output_dim, size, size},
                                input.options().memory_format(a.format));
  at::Tensor counts = at::empty({rois.size(0), a.problem.num_classes, size, size},
                                input.options().dtype(at::kInt));
  if (counts.numel() > 0) run(a, output, counts);
  return TwoTensors(output, counts);
}

template <void (*run)(const Arguments&, const at::Tensor&, at::Tensor&, at::Tensor&)>
TwoTensors backward(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& rois,
                    const OptionalTensor& trans, double spatial_scale, int64_t output_dim,
                    int64_t group_size, int64_t pooled_size, int64_t part_size,
                    int64_t sample_per_part, double trans_std) {
  const Options o{spatial_scale, output_dim,      group_size, pooled_size,
                  part_size,     sample_per_part, trans_std};
  check_arguments(input, rois, trans, o);
  check_floating(kName, "grad", grad);
  check_same_device(kName, "grad", grad, "input", input);
  check_shape(kName, "grad", grad,
              grad.dim() == 4 && grad.size(0) == rois.size(0) && grad.size(1) == o.output_dim &&
                  grad.size(2) == o.pooled_size && grad.size(3) == o.pooled_size,
              "[K, output_dim, pooled_size, pooled_size], as the output");
  const Arguments a(input, rois, trans, o);
  const at::Tensor g = grad.to(input.scalar_type()).contiguous(a.format);
  // half gradients are summed in float32 and rounded once
  const auto sums = input.options().dtype(a.compute_dtype());
  // at::zeros does not look at the memory format
  at::Tensor grad_input = at::empty(input.sizes(), sums.memory_format(a.format)).zero_();
  at::Tensor grad_trans =
      trans.has_value() ? at::zeros(trans->sizes(), sums) : at::empty({0}, sums);
  if (g.numel() > 0) run(a, g, grad_input, grad_trans);
  return TwoTensors(grad_input.to(input.scalar_type()),
                    grad_trans.to(trans.has_value() ? trans->scalar_type() : rois.scalar_type()));
}

// ---- dispatch, autograd ------------------------------------------------------------------------

TwoTensors call_forward(const at::Tensor& input, const at::Tensor& rois,
                        const OptionalTensor& trans, const Options& o) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("fcos_core::deform_psroi_pooling", "")
                       .typed<TwoTensors(const at::Tensor&, const at::Tensor&,
                                         const OptionalTensor&, double, int64_t, int64_t, int64_t,
                                         int64_t, int64_t, double)>();
  return op.call(input, rois, trans, o.spatial_scale, o.output_dim, o.group_size, o.pooled_size,
                 o.part_size, o.sample_per_part, o.trans_std);
}

TwoTensors call_backward(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& rois,
                         const OptionalTensor& trans, const Options& o) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("fcos_core::_deform_psroi_pooling_backward", "")
                       .typed<TwoTensors(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                         const OptionalTensor&, double, int64_t, int64_t, int64_t,
                                         int64_t, int64_t, double)>();
  return op.call(grad, input, rois, trans, o.spatial_scale, o.output_dim, o.group_size,
                 o.pooled_size, o.part_size, o.sample_per_part, o.trans_std);
}

void save_options(Context& context, const Options& o) {
  context.data("spatial_scale") = o.spatial_scale;
  context.data("trans_std") = o.trans_std;
  context.data("output_dim") = o.output_dim;
  context.data("group_size") = o.group_size;
  context.data("pooled_size") = o.pooled_size;
  context.data("part_size") = o.part_size;
  context.data("sample_per_part") = o.sample_per_part;
}

Options saved_options(Context& context) {
  const auto integer = [&](const char* name) { return context.data(name).toInt(); };
  return {context.data("spatial_scale").toDouble(),
          integer("output_dim"),
          integer("group_size"),
          integer("pooled_size"),
          integer("part_size"),
          integer("sample_per_part"),
          context.data("trans_std").toDouble()};
}

Variables backward_of(Context& context, const Variables& grads) {
  const Variables saved = context.get_saved_variables();
  const OptionalTensor trans = saved[2].defined() ? OptionalTensor(saved[2]) : OptionalTensor();
  const TwoTensors results =
      call_backward(grads[0], saved[0], saved[1], trans, saved_options(context));
  return {std::get<0>(results), at::Tensor(),
          trans.has_value() ? std::get<1>(results) : at::Tensor()};
}

TwoTensors forward_autograd(const at::Tensor& input, const at::Tensor& rois,
                            const OptionalTensor& trans, double spatial_scale, int64_t output_dim,
                            int64_t group_size, int64_t pooled_size, int64_t part_size,
                            int64_t sample_per_part, double trans_std) {
  const Options o{spatial_scale, output_dim,      group_size, pooled_size,
                  part_size,     sample_per_part, trans_std};
  check_given(kName, "input", input, "rois", rois);
  const auto forward = [&](Context& context) -> Variables {
    context.save_for_backward({input, rois, trans.has_value() ? *trans : at::Tensor()});
    save_options(context, o);
    const TwoTensors results = call_forward(input, rois, trans, o);
    context.mark_non_differentiable({std::get<1>(results)});
    return {std::get<0>(results), std::get<1>(results)};
  };
  const Variables results =
      differentiable<DeformPsroiPooling>({input, rois, trans}, forward, backward_of);
  return TwoTensors(results[0], results[1]);
}

TwoTensors backward_autograd(const at::Tensor& grad, const at::Tensor& input,
                             const at::Tensor& rois, const OptionalTensor& trans,
                             double spatial_scale, int64_t output_dim, int64_t group_size,
                             int64_t pooled_size, int64_t part_size, int64_t sample_per_part,
                             double trans_std) {
  const Options o{spatial_scale, output_dim,      group_size, pooled_size,
                  part_size,     sample_per_part, trans_std};
  check_given(kName, "grad", grad, "input", input, "rois", rois);
  const auto forward = [&]() -> Variables {
    const TwoTensors results = call_backward(grad, input, rois, trans, o);
    return {std::get<0>(results), std::get<1>(results)};
  };
  const Variables results = differentiable_once(kName, {grad, input, rois, trans}, forward);
  return TwoTensors(results[0], results[1]);
}

}  // namespace

FCOS_LIBRARY_FRAGMENT(fcos_core, m) {
  m.def("deform_psroi_pooling(Tensor input, Tensor rois, Tensor? trans, float spatial_scale,"
        " int output_dim, int group_size, int pooled_size, int part_size, int sample_per_part,"
        " float trans_std) -> (Tensor output, Tensor top_count)");
  m.def("_deform_psroi_pooling_backward(Tensor grad, Tensor input, Tensor rois, Tensor? trans,"
        " float spatial_scale, int output_dim, int group_size, int pooled_size, int part_size,"
        " int sample_per_part, float trans_std) -> (Tensor grad_input, Tensor grad_trans)");
}

TORCH_LIBRARY_IMPL(fcos_core, CPU, m) {
  m.impl("deform_psroi_pooling", TORCH_FN(forward<run_cpu>));
  m.impl("_deform_psroi_pooling_backward",
         TORCH_FN(backward<run_backward_cpu>));
}

TORCH_LIBRARY_IMPL(fcos_core, CUDA, m) {
#ifdef WITH_CUDA
  m.impl("deform_psroi_pooling", TORCH_FN(forward<run_cuda>));
  m.impl("_deform_psroi_pooling_backward",
         TORCH_FN(backward<run_backward_cuda>));
#else
  m.impl("deform_psroi_pooling",
         torch::CppFunction::makeFromBoxedFunction<&without_cuda>());
  m.impl("_deform_psroi_pooling_backward",
         torch::CppFunction::makeFromBoxedFunction<&without_cuda>());
#endif
}

TORCH_LIBRARY_IMPL(fcos_core, Autograd, m) {
  m.impl("deform_psroi_pooling", TORCH_FN(forward_autograd));
  m.impl("_deform_psroi_pooling_backward", TORCH_FN(backward_autograd));
}

}  // namespace deform_psroi_pooling
}  // namespace fcos_core
