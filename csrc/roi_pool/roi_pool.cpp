// Schema, checks and autograd of RoI max pooling, see roi_pool.h for what it computes.
//
//   roi_pool            input [N, C, H, W], rois [K, 5]
//       -> output [K, C, PH, PW], dtype and layout of input; argmax int32 of the same shape and
//          layout, not differentiable
//   _roi_pool_backward  grad of output, rois, argmax, sizes of input
//       -> [N, C, H, W], dtype and layout of grad
// Rois have no gradient. Autocast needs no kernel: features of any dtype meet rois of any other.
#include "roi_pool.h"

#include <tuple>

#include "../autograd.h"
#include "../rois.h"

namespace fcos_core {
namespace roi_pool {
namespace {

const char* const kName = "roi_pool";
using Pooled = std::tuple<at::Tensor, at::Tensor>;

void check_map(int64_t num_images, int64_t channels, int64_t height, int64_t width) {
  FCOS_CHECK(num_images >= 0 && channels >= 0 && height >= 0 && width >= 0 &&
                 height <= kRoiPoolMaxSide && width <= kRoiPoolMaxSide &&
                 height * width < (int64_t(1) << 31),
             kName, "the map",
             joined("with sides of at most ", kRoiPoolMaxSide, " and less than 2^31 pixels"),
             at::IntArrayRef({num_images, channels, height, width}),
             "argmax counts pixels in int32");
  check_elements(kName, "the map", {num_images, channels, height, width});
}

RoiPoolProblem problem_of(const at::Tensor& rois, const at::Tensor& pooled, at::MemoryFormat layout,
                          int64_t num_images, int64_t height, int64_t width) {
  RoiPoolProblem problem;
  problem.rois = const_data(rois);
  problem.dtype = dtype_of(pooled);
  problem.channels_last = layout == at::MemoryFormat::ChannelsLast;
  problem.num_rois = rois.size(0);
  problem.num_images = num_images;
  problem.channels = pooled.size(1);
  problem.height = height;
  problem.width = width;
  problem.pooled_height = pooled.size(2);
  problem.pooled_width = pooled.size(3);
  problem.spatial_scale = 1;
  return problem;
}

// `check_values(rois, number of images)` looks at the rois,
// `kernel(problem, input, output, argmax)` computes.
template <typename Check, typename Kernel>
Pooled forward(const at::Tensor& input, const at::Tensor& rois, double spatial_scale,
               int64_t pooled_height, int64_t pooled_width, const Check& check_values,
               const Kernel& kernel) {
  check_floating(kName, "input", input);
  check_shape(kName, "input", input, input.dim() == 4, "[N, C, H, W]");
  check_rois(kName, rois, "input", input);
  check_map(input.size(0), input.size(1), input.size(2), input.size(3));
  check_spatial_scale(kName, spatial_scale);
  check_output_size(kName, pooled_height, pooled_width, kRoiPoolMaxBins);
  const at::Tensor r = rois_for(rois, input.scalar_type());
  check_values(r, input.size(0));
  const at::MemoryFormat layout = input.suggest_memory_format();
  const std::vector<int64_t> sizes = {rois.size(0), input.size(1), pooled_height, pooled_width};
  check_elements(kName, "output", sizes);
  at::Tensor output = at::empty(sizes, input.options(), layout);
  at::Tensor argmax = at::empty(output.sizes(), output.options().dtype(at::kInt), layout);
  if (output.numel() > 0) {
    const at::Tensor x = input.contiguous(layout);
    RoiPoolProblem problem = problem_of(r, output, layout, x.size(0), x.size(2), x.size(3));
    problem.spatial_scale = spatial_scale;
    kernel(problem, x, output, argmax);
  }
  return Pooled(output, argmax);
}

// What meets on a pixel is summed in float32 at least, and rounded once.
at::ScalarType sum_dtype(const at::Tensor& grad) {
  return grad.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// `check_values(rois, number of images, argmax, number of pixels)`,
// `kernel(problem, grad, argmax, map)` makes the gradient, where map(dtype) is one not written yet.
template <typename Check, typename Kernel>
at::Tensor backward(const at::Tensor& grad, const at::Tensor& rois, const at::Tensor& argmax,
                    int64_t num_images, int64_t channels, int64_t height, int64_t width,
                    const Check& check_values, const Kernel& kernel) {
  check_floating(kName, "grad", grad);
  check_rois(kName, rois, "grad", grad);
  check_map(num_images, channels, height, width);
  check_shape(kName, "grad", grad,
              grad.dim() == 4 && grad.size(0) == rois.size(0) && grad.size(1) == channels,
              "[K, C, pooled_height, pooled_width], as the output");
  check_output_size(kName, grad.size(2), grad.size(3), kRoiPoolMaxBins);
  FCOS_CHECK(argmax.scalar_type() == at::kInt, kName, "argmax", "of dtype torch.int32",
             argmax.scalar_type(), "pass the one that the forward gave");
  check_shape(kName, "argmax", argmax, argmax.sizes() == grad.sizes(), "as grad");
  check_same_device(kName, "argmax", argmax, "grad", grad);
  const at::Tensor r = rois_for(rois, grad.scalar_type());
  check_values(r, num_images, argmax, height * width);
  const at::MemoryFormat layout = grad.suggest_memory_format();
  const auto map = [&](at::ScalarType dtype) {
    return at::empty({num_images, channels, height, width}, grad.options().dtype(dtype), layout);
  };
  if (grad.numel() == 0 || num_images * channels * height * width == 0)
    return map(grad.scalar_type()).zero_();
  const at::Tensor g = grad.contiguous(layout), places = argmax.contiguous(layout);
  return kernel(problem_of(r, g, layout, num_images, height, width), g, places, map);
}

// ---- CPU -------------------------------------------------------------------------------------

void check_on_cpu(const at::Tensor& rois, int64_t num_images) {
  check_images(kName, rois, num_images);
}

void check_places_on_cpu(const at::Tensor& rois, int64_t num_images, const at::Tensor& argmax,
                  int64_t num_pixels) {
  check_images(kName, rois, num_images);
  if (argmax.numel() == 0) return;
  // in the order of memory, in which torch is ten times as fast
  const bool pixels = argmax.is_contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor places = pixels ? argmax.permute({0, 2, 3, 1}) : argmax;
  const int64_t least = places.min().item<int64_t>(), most = places.max().item<int64_t>();
  FCOS_CHECK(least >= -1 && most < num_pixels, kName, "argmax", joined("in -1..", num_pixels - 1),
             joined(least, "..", most), "pass the one that the forward gave");
}

// Maps of planes are copied to channels side by side where enough is pooled from them: a vector then
// holds the channels of a pixel instead of a piece of a row.
at::Tensor pixels_of(const at::Tensor& map) {
  return map.flatten(2).transpose(1, 2).contiguous();  // [N, H * W, C]
}

// Writes [N, H * W, C] to the contiguous `map` [N, C, H, W].
void copy_to_planes(const at::Tensor& pixels, const at::Tensor& map) {
  map.flatten(2).copy_(pixels.transpose(1, 2));
}

at::Tensor empty_pixels(const at::Tensor& map) {
  return at::empty({map.size(0), map.size(2) * map.size(3), map.size(1)}, map.options());
}

// Values of the map for each pooled one, up to which copying the map pays. Measured on maps of 8
// million values, one thread: a value copied takes 1 ns, a pooled one 5 with a copy and 49 without.
constexpr int64_t kMapPerPooled = 16;

void pool_on_cpu(const RoiPoolProblem& problem, const at::Tensor& in, const at::Tensor& out,
                 const at::Tensor& argmax) {
  if (problem.channels_last || in.numel() == 0 || out.numel() < in.numel() / kMapPerPooled) {
    roi_pool_cpu(problem, const_data(in), mutable_data(out),
                 static_cast<int32_t*>(mutable_data(argmax)));
    return;
  }
  RoiPoolProblem copied = problem;
  copied.channels_last = true;
  const at::Tensor pixels = pixels_of(in), values = empty_pixels(out), places = empty_pixels(argmax);
  roi_pool_cpu(copied, const_data(pixels), mutable_data(values),
               static_cast<int32_t*>(mutable_data(places)));
  copy_to_planes(values, out);
  copy_to_planes(places, argmax);
}

Pooled forward_cpu(const at::Tensor& input, const at::Tensor& rois, double spatial_scale,
                   int64_t pooled_height, int64_t pooled_width) {
  return forward(input, rois, spatial_scale, pooled_height, pooled_width, check_on_cpu, pool_on_cpu);
}

at::Tensor backward_cpu(const at::Tensor& grad, const at::Tensor& rois, const at::Tensor& argmax,
                        int64_t batch_size, int64_t channels, int64_t height, int64_t width) {
  return backward(grad, rois, argmax, batch_size, channels, height, width, check_places_on_cpu,
                  [](const RoiPoolProblem& problem, const at::Tensor& in, const at::Tensor& places,
                     const auto& map) {
                    const at::Tensor sums = map(sum_dtype(in)).zero_();
                    roi_pool_backward_cpu(problem, const_data(in),
                                          static_cast<const int32_t*>(const_data(places)),
                                          mutable_data(sums));
                    return sums.to(in.scalar_type());
                  });
}

// ---- CUDA ------------------------------------------------------------------------------------

#ifdef WITH_CUDA
// Reading values would wait for the GPU; the kernels deal with wrong ones.
void leave_values(const at::Tensor&, int64_t) {}
void leave_places(const at::Tensor&, int64_t, const at::Tensor&, int64_t) {}

Pooled forward_cuda(const at::Tensor& input, const at::Tensor& rois, double spatial_scale,
                    int64_t pooled_height, int64_t pooled_width) {
  return forward(input, rois, spatial_scale, pooled_height, pooled_width, leave_values,
                 [](const RoiPoolProblem& problem, const at::Tensor& in, at::Tensor& out,
                    at::Tensor& argmax) {
                   const CudaScope scope(in);
                   const at::Tensor scratch = at::empty({roi_pool_cuda_scratch(problem)},
                                                        in.options().dtype(at::kByte));
                   check_launch(kName, roi_pool_cuda(problem, const_data(in), mutable_data(out),
                                                     static_cast<int32_t*>(mutable_data(argmax)),
                                                     mutable_data(scratch), scope.stream));
                 });
}

at::Tensor backward_cuda(const at::Tensor& grad, const at::Tensor& rois, const at::Tensor& argmax,
                         int64_t batch_size, int64_t channels, int64_t height, int64_t width) {
  return backward(grad, rois, argmax, batch_size, channels, height, width, leave_places,
                  [](const RoiPoolProblem& problem, const at::Tensor& in, const at::Tensor& places,
                     const auto& map) {
                    const CudaScope scope(in);
                    const bool ordered = wants_determinism();
                    const int64_t bytes = roi_pool_backward_cuda_scratch(problem, ordered);
                    const at::Tensor scratch = at::empty({bytes}, in.options().dtype(at::kByte));
                    const at::Tensor out =
                        bytes > 0 ? map(in.scalar_type()) : map(sum_dtype(in)).zero_();
                    void* known = bytes > 0 ? mutable_data(scratch) : nullptr;
                    check_launch(kName,
                                 roi_pool_backward_cuda(
                                     problem, const_data(in),
                                     static_cast<const int32_t*>(const_data(places)),
                                     mutable_data(out), known, ordered, scope.stream));
                    return out.to(in.scalar_type());
                  });
}
#endif

// ---- dispatch and autograd -------------------------------------------------------------------

Pooled call_forward(const at::Tensor& input, const at::Tensor& rois, double spatial_scale,
                    int64_t pooled_height, int64_t pooled_width) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("fcos_core::roi_pool", "")
                       .typed<Pooled(const at::Tensor&, const at::Tensor&, double, int64_t,
                                     int64_t)>();
  return op.call(input, rois, spatial_scale, pooled_height, pooled_width);
}

at::Tensor call_backward(const at::Tensor& grad, const at::Tensor& rois, const at::Tensor& argmax,
                         SymInt batch_size, SymInt channels, SymInt height, SymInt width) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("fcos_core::_roi_pool_backward", "")
                       .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                         SymInt, SymInt, SymInt, SymInt)>();
  return op.call(grad, rois, argmax, batch_size, channels, height, width);
}

Variables backward_of(Context& context, const Variables& grads) {
  if (!grads[0].defined()) return {at::Tensor(), at::Tensor()};
  const Variables saved = context.get_saved_variables();
  return {call_backward(as_saved_map(context, grads[0]), saved[0], saved[1],
                        saved_size(context, "batch_size"), saved_size(context, "channels"),
                        saved_size(context, "height"), saved_size(context, "width")),
          at::Tensor()};
}

Pooled forward_autograd(const at::Tensor& input, const at::Tensor& rois, double spatial_scale,
                        int64_t pooled_height, int64_t pooled_width) {
  check_given(kName, "input", input, "rois", rois);
  check_shape(kName, "input", input, input.dim() == 4, "[N, C, H, W]");
  const auto forward = [&](Context& context) -> Variables {
    save_map(context, input);
    const Pooled pooled = call_forward(input, rois, spatial_scale, pooled_height, pooled_width);
    context.save_for_backward({rois, std::get<1>(pooled)});
    context.mark_non_differentiable({std::get<1>(pooled)});
    context.set_materialize_grads(false);  // argmax has none, which need not be written as zeros
    return {std::get<0>(pooled), std::get<1>(pooled)};
  };
  const Variables pooled = differentiable<RoiPool>({input, rois}, forward, backward_of);
  return Pooled(pooled[0], pooled[1]);
}

at::Tensor backward_autograd(const at::Tensor& grad, const at::Tensor& rois,
                             const at::Tensor& argmax, SymInt batch_size, SymInt channels,
                             SymInt height, SymInt width) {
  check_given(kName, "grad", grad, "rois", rois, "argmax", argmax);
  return differentiable_once(kName, {grad, rois, argmax}, [&]() -> Variables {
    return {call_backward(grad, rois, argmax, batch_size, channels, height, width)};
  })[0];
}

}  // namespace

FCOS_LIBRARY_FRAGMENT(fcos_core, m) {
  m.def("roi_pool(Tensor input, Tensor rois, float spatial_scale, int pooled_height,"
        " int pooled_width) -> (Tensor, Tensor)");
  m.def("_roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, " FCOS_SYMINT
        " batch_size, " FCOS_SYMINT " channels, " FCOS_SYMINT " height, " FCOS_SYMINT
        " width) -> Tensor");
}

TORCH_LIBRARY_IMPL(fcos_core, CPU, m) {
  m.impl("roi_pool", TORCH_FN(forward_cpu));
  m.impl("_roi_pool_backward", TORCH_FN(backward_cpu));
}

TORCH_LIBRARY_IMPL(fcos_core, CUDA, m) {
#ifdef WITH_CUDA
  m.impl("roi_pool", TORCH_FN(forward_cuda));
  m.impl("_roi_pool_backward", TORCH_FN(backward_cuda));
#else
  m.impl("roi_pool", torch::CppFunction::makeFromBoxedFunction<&without_cuda>());
  m.impl("_roi_pool_backward",
         torch::CppFunction::makeFromBoxedFunction<&without_cuda>());
#endif
}

TORCH_LIBRARY_IMPL(fcos_core, Autograd, m) {
  m.impl("roi_pool", TORCH_FN(forward_autograd));
  m.impl("_roi_pool_backward", TORCH_FN(backward_autograd));
}

}  // namespace roi_pool
}  // namespace fcos_core
