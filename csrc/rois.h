// What the operators over regions of interest check, and keep for their gradients, alike. A roi is
// (image, x1, y1, x2, y2), the corners in pixels of the network input. For .cpp files.
#pragma once

#include <algorithm>
#include <cmath>

#include "autograd.h"
#include "check.h"

namespace fcos_core {

inline void check_rois(const char* function, const at::Tensor& rois, const char* other_name,
                       const at::Tensor& other) {
  check_floating(function, "rois", rois);
  check_shape(function, "rois", rois, rois.dim() == 2 && rois.size(1) == 5,
              "[K, 5] (image, x1, y1, x2, y2)");
  check_same_device(function, "rois", rois, other_name, other);
}

// Rois of the dtype that positions on features of dtype `features` are computed in.
inline at::Tensor rois_for(const at::Tensor& rois, at::ScalarType features) {
  return rois.to(features == at::kDouble ? at::kDouble : at::kFloat).contiguous();
}

template <typename T>
void check_images_of(const char* function, const at::Tensor& rois, int64_t num_images) {
  const T* values = static_cast<const T*>(const_data(rois));
  for (int64_t roi = 0; roi < rois.size(0); ++roi) {
    const T image = values[5 * roi];
    FCOS_CHECK(image >= T(0) && image < static_cast<T>(num_images), function,
               "the first column of rois", joined("in 0..", num_images - 1, ", numbers of images"),
               joined(static_cast<double>(image), " at row ", roi),
               "rois are (image, x1, y1, x2, y2)");
  }
}

// For rois on the CPU, as rois_for gives them. On a GPU, reading them would wait for it, so there
// the kernels deal with images that do not exist.
inline void check_images(const char* function, const at::Tensor& rois, int64_t num_images) {
  if (rois.scalar_type() == at::kDouble) {
    check_images_of<double>(function, rois, num_images);
  } else {
    check_images_of<float>(function, rois, num_images);
  }
}

// Sizes that nothing in memory limits: those that a backward is told, and those of an output whose
// input has no elements. Old versions of torch do not notice that their product overflows; one of
// them being 0 does not help, since the product of the others is a stride.
inline void check_elements(const char* function, const char* what, at::IntArrayRef sizes) {
  double elements = 1;
  for (const int64_t size : sizes) elements *= static_cast<double>(std::max<int64_t>(size, 1));
  FCOS_CHECK(elements < 1e15, function, what, "to have below 10^15 elements", sizes,
             "pass fewer rois or channels");
}

inline void check_spatial_scale(const char* function, double spatial_scale) {
  FCOS_CHECK(spatial_scale > 0 && std::isfinite(spatial_scale), function, "spatial_scale",
             "to be finite and above 0", spatial_scale,
             "it is the size of the map over that of the image, 1 / stride");
}

inline void check_output_size(const char* function, int64_t height, int64_t width, int64_t most) {
  for (const int64_t side : {height, width})
    FCOS_CHECK(side >= 1 && side <= most, function, "both sides of output_size",
               joined("in 1..", most), side, "7 is usual for boxes, 14 for masks");
}

// Of the map itself the gradients need size and layout only.
inline void save_map(Context& context, const at::Tensor& input) {
  context.data("batch_size") = sym_size(input, 0);
  context.data("channels") = sym_size(input, 1);
  context.data("height") = sym_size(input, 2);
  context.data("width") = sym_size(input, 3);
  context.data("channels_last") = input.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
}

// Heads flatten the output, and its gradient then comes back contiguous; the gradient of the input
// has the layout of the input all the same. clone() and not contiguous(), which leaves maps of one
// pixel as they are.
inline at::Tensor as_saved_map(Context& context, const at::Tensor& grad) {
  const auto layout = context.data("channels_last").toBool() ? at::MemoryFormat::ChannelsLast
                                                             : at::MemoryFormat::Contiguous;
  return grad.suggest_memory_format() == layout ? grad : grad.clone(layout);
}

inline SymInt saved_size(Context& context, const char* side) {
  return to_symint(context.data(side));
}

}  // namespace fcos_core
