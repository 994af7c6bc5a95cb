// Argument checks with one message pattern:
//   <function>: expected <argument> <rule>, got <value>; <what to do>
// They raise RuntimeError in Python.
#pragma once

#include "compat.h"

#define FCOS_CHECK(condition, function, argument, rule, got, advice)                             \
  TORCH_CHECK(condition, function, ": expected ", argument, " ", rule, ", got ", got, "; ", advice)

namespace fcos_core {

inline void check_floating(const char* function, const char* argument, const at::Tensor& t) {
  const auto dtype = t.scalar_type();
  FCOS_CHECK(
      dtype == at::kDouble || dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16,
      function, argument, "of dtype float64, float32, float16 or bfloat16", dtype,
      "convert with .float()");
}

inline void check_integral(const char* function, const char* argument, const at::Tensor& t) {
  FCOS_CHECK(at::isIntegralType(t.scalar_type(), /*includeBool=*/false), function, argument,
             "of an integer dtype", t.scalar_type(), "convert with .long()");
}

inline void check_same_device(const char* function, const char* argument, const at::Tensor& t,
                              const char* reference_argument, const at::Tensor& reference) {
  FCOS_CHECK(t.device() == reference.device(), function, argument,
             c10::str("on the device of ", reference_argument, " (", reference.device(), ")"),
             t.device(), "move one of them with .to(device)");
}

// `shape` is how the docs write it, for example "[M, 4]"; `fits` is whether the tensor has it.
inline void check_shape(const char* function, const char* argument, const at::Tensor& t, bool fits,
                        const char* shape) {
  FCOS_CHECK(fits, function, argument, c10::str("of shape ", shape), t.sizes(),
             "see the docstring of the function");
}

}  // namespace fcos_core
