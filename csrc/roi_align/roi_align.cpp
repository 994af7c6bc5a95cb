// Schema, checks and autograd of RoIAlign, see roi_align.h for what it computes.
//
//   roi_align            input [N, C, H, W], rois [K, 5]
//       -> [K, C, PH, PW], dtype and layout of input
//   _roi_align_backward  grad of that, rois, sizes of input
//       -> [N, C, H, W], dtype and layout of grad
// Rois have no gradient. Autocast needs no kernel: features of any dtype meet rois of any other.
#include "roi_align.h"

#include <algorithm>

#include "../autograd.h"
#include "../rois.h"

namespace fcos_core {
namespace roi_align {
namespace {

const char* const kName = "roi_align";

// What a call says beside its tensors.
struct Options {
  double spatial_scale;
  int64_t pooled_height;
  int64_t pooled_width;
  int64_t sampling_ratio;
  bool aligned;
};

void check_options(const Options& options) {
  check_spatial_scale(kName, options.spatial_scale);
  check_output_size(kName, options.pooled_height, options.pooled_width, kRoiAlignMaxBins);
  FCOS_CHECK(options.sampling_ratio <= kRoiAlignMaxRatio, kName, "sampling_ratio",
             joined("at most ", kRoiAlignMaxRatio), options.sampling_ratio,
             "2 is usual, 0 adapts to the size of the roi");
}

void check_map(int64_t num_images, int64_t channels, int64_t height, int64_t width) {
  FCOS_CHECK(num_images >= 0 && channels >= 0 && height >= 0 && width >= 0 &&
                 height <= kRoiAlignMaxSide && width <= kRoiAlignMaxSide,
             kName, "the map", joined("with sides of at most ", kRoiAlignMaxSide, " pixels"),
             at::IntArrayRef({num_images, channels, height, width}),
             "larger positions do not fit into float32");
  check_elements(kName, "the map", {num_images, channels, height, width});
}

RoiAlignProblem problem_of(const at::Tensor& rois, const at::Tensor& pooled,
                           at::MemoryFormat layout, int64_t num_images, int64_t height,
                           int64_t width, const Options& options) {
  RoiAlignProblem problem;
  problem.rois = const_data(rois);
  problem.dtype = dtype_of(pooled);
  problem.channels_last = layout == at::MemoryFormat::ChannelsLast;
  problem.num_rois = rois.size(0);
  problem.num_images = num_images;
  problem.channels = pooled.size(1);
  problem.height = height;
  problem.width = width;
  problem.pooled_height = options.pooled_height;
  problem.pooled_width = options.pooled_width;
  problem.spatial_scale = options.spatial_scale;
  problem.sampling_ratio = std::max<int64_t>(0, options.sampling_ratio);
  problem.aligned = options.aligned;
  return problem;
}

// `check_values(rois, number of images)` looks at the rois, `kernel(problem, in, out)` computes.
template <typename Check, typename Kernel>
at::Tensor forward(const at::Tensor& input, const at::Tensor& rois, const Options& options,
                   const Check& check_values, const Kernel& kernel) {
  check_floating(kName, "input", input);
  check_shape(kName, "input", input, input.dim() == 4, "[N, C, H, W]");
  check_rois(kName, rois, "input", input);
  check_map(input.size(0), input.size(1), input.size(2), input.size(3));
  check_options(options);
  const at::Tensor r = rois_for(rois, input.scalar_type());
  check_values(r, input.size(0));
  const at::MemoryFormat layout = input.suggest_memory_format();
  const std::vector<int64_t> sizes = {rois.size(0), input.size(1), options.pooled_height,
                                      options.pooled_width};
  check_elements(kName, "output", sizes);
  at::Tensor output = at::empty(sizes, input.options(), layout);
  if (output.numel() == 0) return output;
  const at::Tensor x = input.contiguous(layout);
  kernel(problem_of(r, output, layout, x.size(0), x.size(2), x.size(3), options), x, output);
  return output;
}

// `writes(problem)`: whether the kernel writes the gradient of the input, all of it and in its dtype,
// instead of adding to sums.
template <typename Check, typename Writes, typename Kernel>
at::Tensor backward(const at::Tensor& grad, const at::Tensor& rois, const Options& options,
                    int64_t num_images, int64_t channels, int64_t height, int64_t width,
                    const Check& check_values, const Writes& writes, const Kernel& kernel) {
  check_floating(kName, "grad", grad);
  check_rois(kName, rois, "grad", grad);
  check_map(num_images, channels, height, width);
  check_options(options);
  check_shape(kName, "grad", grad,
              grad.sizes() == at::IntArrayRef({rois.size(0), channels, options.pooled_height,
                                               options.pooled_width}),
              "[K, C, pooled_height, pooled_width], as the output");
  const at::Tensor r = rois_for(rois, grad.scalar_type());
  check_values(r, num_images);
  const at::MemoryFormat layout = grad.suggest_memory_format();
  const at::Tensor g = grad.contiguous(layout);
  const RoiAlignProblem problem =
      problem_of(r, g, layout, num_images, height, width, options);
  const bool is_empty = grad.numel() == 0 || num_images * channels * height * width == 0;
  const bool written = !is_empty && writes(problem);
  // What meets on a pixel is summed in float32 at least, and rounded once.
  const auto sum_dtype = grad.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  at::Tensor grad_input =
      at::empty({num_images, channels, height, width},
                grad.options().dtype(written ? grad.scalar_type() : sum_dtype), layout);
  if (!written) grad_input.zero_();
  if (!is_empty) kernel(problem, g, grad_input);
  return grad_input.to(grad.scalar_type());
}

// ---- CPU -------------------------------------------------------------------------------------

void check_on_cpu(const at::Tensor& rois, int64_t num_images) {
  check_images(kName, rois, num_images);
}

at::Tensor forward_cpu(const at::Tensor& input, const at::Tensor& rois, double spatial_scale,
                       int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
                       bool aligned) {
  return forward(input, rois, {spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned},
                 check_on_cpu, [](const RoiAlignProblem& problem, const at::Tensor& in,
                                  at::Tensor& out) {
                   roi_align_cpu(problem, const_data(in), mutable_data(out));
                 });
}

at::Tensor backward_cpu(const at::Tensor& grad, const at::Tensor& rois, double spatial_scale,
                        int64_t pooled_height, int64_t pooled_width, int64_t batch_size,
                        int64_t channels, int64_t height, int64_t width, int64_t sampling_ratio,
                        bool aligned) {
  return backward(grad, rois, {spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned},
                  batch_size, channels, height, width, check_on_cpu,
                  [](const RoiAlignProblem&) { return false; },
                  [](const RoiAlignProblem& problem, const at::Tensor& in, at::Tensor& out) {
                    roi_align_backward_cpu(problem, const_data(in), mutable_data(out));
                  });
}

// ---- CUDA ------------------------------------------------------------------------------------

#ifdef WITH_CUDA
// Reading the numbers of images would wait for the GPU; the kernels deal with wrong ones.
void leave_values(const at::Tensor&, int64_t) {}

at::Tensor scratch_of(const RoiAlignProblem& problem, bool backward, bool ordered,
                      const at::Tensor& like) {
  return at::empty({roi_align_cuda_scratch(problem, backward, ordered)},
                   like.options().dtype(at::kByte));
}

at::Tensor forward_cuda(const at::Tensor& input, const at::Tensor& rois, double spatial_scale,
                        int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
                        bool aligned) {
  return forward(input, rois, {spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned},
                 leave_values, [](const RoiAlignProblem& problem, const at::Tensor& in,
                                  at::Tensor& out) {
                   const CudaScope scope(in);
                   const at::Tensor scratch = scratch_of(problem, false, false, in);
                   check_launch(kName, roi_align_cuda(problem, const_data(in), mutable_data(out),
                                                      mutable_data(scratch), scope.stream));
                 });
}

at::Tensor backward_cuda(const at::Tensor& grad, const at::Tensor& rois, double spatial_scale,
                         int64_t pooled_height, int64_t pooled_width, int64_t batch_size,
                         int64_t channels, int64_t height, int64_t width, int64_t sampling_ratio,
                         bool aligned) {
  const bool ordered = wants_determinism();
  return backward(
      grad, rois, {spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned}, batch_size,
      channels, height, width, leave_values,
      [=](const RoiAlignProblem& problem) {
        return roi_align_backward_cuda_copies(problem, ordered);
      },
      [=](const RoiAlignProblem& problem, const at::Tensor& in, at::Tensor& out) {
        const CudaScope scope(in);
        const at::Tensor scratch = scratch_of(problem, true, ordered, in);
        check_launch(kName,
                     roi_align_backward_cuda(problem, const_data(in), mutable_data(out), ordered,
                                             mutable_data(scratch), scope.stream));
      });
}
#endif

// ---- dispatch and autograd -------------------------------------------------------------------

at::Tensor call_forward(const at::Tensor& input, const at::Tensor& rois, double spatial_scale,
                        int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
                        bool aligned) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("fcos_core::roi_align", "")
                       .typed<at::Tensor(const at::Tensor&, const at::Tensor&, double, int64_t,
                                         int64_t, int64_t, bool)>();
  return op.call(input, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned);
}

at::Tensor call_backward(const at::Tensor& grad, const at::Tensor& rois, double spatial_scale,
                         int64_t pooled_height, int64_t pooled_width, SymInt batch_size,
                         SymInt channels, SymInt height, SymInt width, int64_t sampling_ratio,
                         bool aligned) {
  static auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("fcos_core::_roi_align_backward", "")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, double, int64_t, int64_t, SymInt,
                            SymInt, SymInt, SymInt, int64_t, bool)>();
  return op.call(grad, rois, spatial_scale, pooled_height, pooled_width, batch_size, channels,
                 height, width, sampling_ratio, aligned);
}

Variables backward_of(Context& context, const Variables& grads) {
  return {call_backward(
              as_saved_map(context, grads[0]), context.get_saved_variables()[0],
              context.data("spatial_scale").toDouble(),
              context.data("pooled_height").toInt(), context.data("pooled_width").toInt(),
              saved_size(context, "batch_size"), saved_size(context, "channels"),
              saved_size(context, "height"), saved_size(context, "width"),
              context.data("sampling_ratio").toInt(), context.data("aligned").toBool()),
          at::Tensor()};
}

at::Tensor forward_autograd(const at::Tensor& input, const at::Tensor& rois, double spatial_scale,
                            int64_t pooled_height, int64_t pooled_width, int64_t sampling_ratio,
                            bool aligned) {
  check_given(kName, "input", input, "rois", rois);
  check_shape(kName, "input", input, input.dim() == 4, "[N, C, H, W]");
  const auto forward = [&](Context& context) -> Variables {
    context.save_for_backward({rois});
    save_map(context, input);
    context.data("spatial_scale") = spatial_scale;
    context.data("pooled_height") = pooled_height;
    context.data("pooled_width") = pooled_width;
    context.data("sampling_ratio") = sampling_ratio;
    context.data("aligned") = aligned;
    return {call_forward(input, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio,
                         aligned)};
  };
  return differentiable<RoiAlign>({input, rois}, forward, backward_of)[0];
}

at::Tensor backward_autograd(const at::Tensor& grad, const at::Tensor& rois, double spatial_scale,
                             int64_t pooled_height, int64_t pooled_width, SymInt batch_size,
                             SymInt channels, SymInt height, SymInt width, int64_t sampling_ratio,
                             bool aligned) {
  check_given(kName, "grad", grad, "rois", rois);
  return differentiable_once(kName, {grad, rois}, [&]() -> Variables {
    return {call_backward(grad, rois, spatial_scale, pooled_height, pooled_width, batch_size,
                          channels, height, width, sampling_ratio, aligned)};
  })[0];
}

}  // namespace

FCOS_LIBRARY_FRAGMENT(fcos_core, m) {
  m.def("roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height,"
        " int pooled_width, int sampling_ratio, bool aligned) -> Tensor");
  m.def("_roi_align_backward(Tensor grad, Tensor rois, float spatial_scale, int pooled_height,"
        " int pooled_width, " FCOS_SYMINT " batch_size, " FCOS_SYMINT " channels, " FCOS_SYMINT
        " height, " FCOS_SYMINT " width, int sampling_ratio, bool aligned) -> Tensor");
}

TORCH_LIBRARY_IMPL(fcos_core, CPU, m) {
  m.impl("roi_align", TORCH_FN(forward_cpu));
  m.impl("_roi_align_backward", TORCH_FN(backward_cpu));
}

TORCH_LIBRARY_IMPL(fcos_core, CUDA, m) {
#ifdef WITH_CUDA
  m.impl("roi_align", TORCH_FN(forward_cuda));
  m.impl("_roi_align_backward", TORCH_FN(backward_cuda));
#else
  m.impl("roi_align", torch::CppFunction::makeFromBoxedFunction<&without_cuda>());
  m.impl("_roi_align_backward",
         torch::CppFunction::makeFromBoxedFunction<&without_cuda>());
#endif
}

TORCH_LIBRARY_IMPL(fcos_core, Autograd, m) {
  m.impl("roi_align", TORCH_FN(forward_autograd));
  m.impl("_roi_align_backward", TORCH_FN(backward_autograd));
}

}  // namespace roi_align
}  // namespace fcos_core
