// Argument checks with one message pattern:
//   <function>: expected <argument> <rule>, got <value>; <what to do>
// They raise RuntimeError in Python.
//
// Messages are put together without streams. Where a compiler brings libstdc++ as a static library
// only, our streams would be another copy than those of torch, and writing a number would crash.
#pragma once

#include <cstdio>
#include <string>

#include "compat.h"

namespace fcos_core {

inline std::string text_of(const char* value) { return value; }
inline std::string text_of(const std::string& value) { return value; }
inline std::string text_of(int64_t value) { return std::to_string(value); }
inline std::string text_of(c10::Device value) { return value.str(); }

inline std::string text_of(double value) {
  char buffer[32];
  std::snprintf(buffer, sizeof(buffer), "%g", value);
  return buffer;
}

// As Python writes it: torch.int64 rather than Long.
inline std::string text_of(at::ScalarType value) {
  switch (value) {
    case at::kByte: return "torch.uint8";
    case at::kChar: return "torch.int8";
    case at::kShort: return "torch.int16";
    case at::kInt: return "torch.int32";
    case at::kLong: return "torch.int64";
    case at::kHalf: return "torch.float16";
    case at::kBFloat16: return "torch.bfloat16";
    case at::kFloat: return "torch.float32";
    case at::kDouble: return "torch.float64";
    case at::kBool: return "torch.bool";
    default: return c10::toString(value);
  }
}

inline std::string text_of(at::IntArrayRef sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

inline std::string joined() { return {}; }

template <typename First, typename... Rest>
std::string joined(const First& first, const Rest&... rest) {
  return text_of(first) + joined(rest...);
}

#define FCOS_CHECK(condition, function, argument, rule, got, advice)                           \
  TORCH_CHECK(condition, ::fcos_core::joined(function, ": expected ", argument, " ", rule,     \
                                             ", got ", got, "; ", advice))

// Tensors by their names. torch lets None through where a schema says Tensor, and autograd fails on
// it without a word about the argument; so this comes first, in the autograd kernel. And a sparse
// tensor beside dense ones can reach the kernel of the dense ones, where it has no data.
inline void check_given(const char*) {}

template <typename... Rest>
void check_given(const char* function, const char* argument, const at::Tensor& t,
                 const Rest&... rest) {
  FCOS_CHECK(t.defined(), function, argument, "to be a tensor", "None", "pass a torch.Tensor");
  FCOS_CHECK(t.layout() == at::kStrided, function, argument, "to be a dense tensor", "another layout",
             "convert with .to_dense()");
  check_given(function, rest...);
}

inline void check_floating(const char* function, const char* argument, const at::Tensor& t) {
  check_given(function, argument, t);
  const auto dtype = t.scalar_type();
  FCOS_CHECK(
      dtype == at::kDouble || dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16,
      function, argument, "of dtype float64, float32, float16 or bfloat16", dtype,
      "convert with .float()");
}

inline void check_integral(const char* function, const char* argument, const at::Tensor& t) {
  check_given(function, argument, t);
  FCOS_CHECK(at::isIntegralType(t.scalar_type(), /*includeBool=*/false), function, argument,
             "of an integer dtype", t.scalar_type(), "convert with .long()");
}

inline void check_same_device(const char* function, const char* argument, const at::Tensor& t,
                              const char* reference_argument, const at::Tensor& reference) {
  FCOS_CHECK(t.device() == reference.device(), function, argument,
             joined("on the device of ", reference_argument, " (", reference.device(), ")"),
             t.device(), "move one of them with .to(device)");
}

// `shape` is how the docs write it, for example "[M, 4]"; `fits` is whether the tensor has it.
inline void check_shape(const char* function, const char* argument, const at::Tensor& t, bool fits,
                        const char* shape) {
  check_given(function, argument, t);
  FCOS_CHECK(fits, function, argument, joined("of shape ", shape), t.sizes(),
             "see the docstring of the function");
}

#ifdef WITH_CUDA
// Raises if the entry of a .cu file returned CUDA's message.
inline void check_launch(const char* function, const char* error) {
  TORCH_CHECK(error == nullptr, joined(function, ": the CUDA kernel failed with '", error ? error : "",
                                       "'; if that speaks of a kernel image or a device function, "
                                       "the library has no code for this GPU: "
                                       "python -m fcos_core.build --force"));
}
#else
// In a build without CUDA kernels, the CUDA key of an op that has no composite:
//   m.impl("roi_align", torch::CppFunction::makeFromBoxedFunction<&fcos_core::without_cuda>());
inline void without_cuda(const c10::OperatorHandle& op, torch::jit::Stack*) {
  TORCH_CHECK(false, joined(op.schema().name(), ": expected tensors on the CPU, because fcos_core was "
                            "built without CUDA kernels, got CUDA tensors; install the CUDA toolkit of "
                            "this torch, then python -m fcos_core.build --force"));
}
#endif

}  // namespace fcos_core
