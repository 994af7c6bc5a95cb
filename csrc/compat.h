// One place for what differs between torch 1.7 and the newest: the only "#if" on torch versions.
// For .cpp files; kernels include kernel.h, which this file includes too.
// Everything is decided by __has_include or version macros, never by a build flag.
#pragma once

// torch/version.h came with 1.8; without it this is 1.7.
#if __has_include(<torch/version.h>)
#include <torch/version.h>
#endif
#ifndef TORCH_VERSION_MAJOR
#define TORCH_VERSION_MAJOR 1
#define TORCH_VERSION_MINOR 7
#endif
#ifndef TORCH_VERSION  // 1.7 and 1.8
#define FCOS_TEXT_OF(number) #number
#define FCOS_TEXT(number) FCOS_TEXT_OF(number)
#define TORCH_VERSION FCOS_TEXT(TORCH_VERSION_MAJOR) "." FCOS_TEXT(TORCH_VERSION_MINOR)
#endif
#define FCOS_TORCH_AT_LEAST(major, minor) \
  (TORCH_VERSION_MAJOR > (major) ||       \
   (TORCH_VERSION_MAJOR == (major) && TORCH_VERSION_MINOR >= (minor)))

// Torch from 2.0 on has a header for each operator; all of them would add a quarter to the time that a file takes.
// Told so before the first of its headers, torch's own leave the others out too.
#if FCOS_TORCH_AT_LEAST(2, 0) && !defined(AT_PER_OPERATOR_HEADERS)
#define AT_PER_OPERATOR_HEADERS
#endif
#include <torch/library.h>

#if FCOS_TORCH_AT_LEAST(2, 0)
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_unique2.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/max.h>
#include <ATen/ops/min.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/native_group_norm.h>
#include <ATen/ops/native_group_norm_backward.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#else
#include <ATen/ATen.h>
#endif
#if FCOS_TORCH_AT_LEAST(2, 0) && !FCOS_TORCH_AT_LEAST(2, 16)
// Its header brings all of them again, for these functions; declared here for the versions that were tried.
namespace at {
namespace autocast {
#if FCOS_TORCH_AT_LEAST(2, 4)
TORCH_API ScalarType get_autocast_dtype(DeviceType device);
#else
TORCH_API ScalarType get_autocast_gpu_dtype();
TORCH_API ScalarType get_autocast_cpu_dtype();
#endif
TORCH_API Tensor cached_cast(ScalarType dtype, const Tensor& t, DeviceType device);
}  // namespace autocast
}  // namespace at
#else
#include <ATen/autocast_mode.h>
#endif
#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/Exception.h>

#ifdef WITH_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

#include "kernel.h"

// Adds schemas to an existing library. 1.7 has it under a private name, and there its generated
// names are not unique: at most one fragment, and one IMPL block of a key, per namespace.
#ifdef TORCH_LIBRARY_FRAGMENT
#define FCOS_LIBRARY_FRAGMENT(ns, m) TORCH_LIBRARY_FRAGMENT(ns, m)
#else
#define FCOS_LIBRARY_FRAGMENT(ns, m) \
  TORCH_LIBRARY_FRAGMENT_THIS_API_IS_FOR_PER_OP_REGISTRATION_ONLY(ns, m)
#endif

// Registers one autocast kernel for every device that autocasts; the CPU does from 1.10 on.
#if FCOS_TORCH_AT_LEAST(1, 10)
#define FCOS_REGISTER_AUTOCAST(ns, name, function)     \
  TORCH_LIBRARY_IMPL(ns, AutocastCUDA, m) {            \
    m.impl(name, TORCH_FN(function));                  \
  }                                                    \
  TORCH_LIBRARY_IMPL(ns, AutocastCPU, m) {             \
    m.impl(name, TORCH_FN(function));                  \
  }
#else
#define FCOS_REGISTER_AUTOCAST(ns, name, function) \
  TORCH_LIBRARY_IMPL(ns, Autocast, m) {            \
    m.impl(name, TORCH_FN(function));              \
  }
#endif

namespace fcos_core {

// Inside an autograd kernel: calls go below autograd (renamed in 1.9).
#if FCOS_TORCH_AT_LEAST(1, 9)
using BelowAutograd = at::AutoDispatchBelowADInplaceOrView;
#else
using BelowAutograd = at::AutoNonVariableTypeMode;
#endif

// Inside an autocast kernel: calls go below autocast.
struct BelowAutocast {
#if FCOS_TORCH_AT_LEAST(1, 10)
  c10::impl::ExcludeDispatchKeyGuard guard{c10::DispatchKeySet(
      {c10::DispatchKey::AutocastCPU, c10::DispatchKey::AutocastCUDA})};
#else
  c10::impl::ExcludeDispatchKeyGuard guard{c10::DispatchKey::Autocast};
#endif
};

// What autocast computes convolutions in, on the device of a tensor.
inline at::ScalarType autocast_dtype(const at::Tensor& t) {
#if FCOS_TORCH_AT_LEAST(2, 4)
  return at::autocast::get_autocast_dtype(t.device().type());
#elif FCOS_TORCH_AT_LEAST(1, 10)
  return t.is_cuda() ? at::autocast::get_autocast_gpu_dtype()
                     : at::autocast::get_autocast_cpu_dtype();
#else
  (void)t;
  return at::kHalf;
#endif
}

// `t` in that dtype, unless it is float64; of a weight the copy is kept for the next call.
inline at::Tensor autocast_to(at::ScalarType dtype, const at::Tensor& t) {
#if FCOS_TORCH_AT_LEAST(1, 10)
  return at::autocast::cached_cast(dtype, t, t.device().type());
#else
  return at::autocast::cached_cast(dtype, t);
#endif
}

// const_data_ptr and mutable_data_ptr came with 2.1; the first leaves copy-on-write tensors shared.
#if FCOS_TORCH_AT_LEAST(2, 1)
inline const void* const_data(const at::Tensor& t) { return t.const_data_ptr(); }
inline void* mutable_data(const at::Tensor& t) { return t.mutable_data_ptr(); }
#else
inline const void* const_data(const at::Tensor& t) { return t.data_ptr(); }
inline void* mutable_data(const at::Tensor& t) { return t.data_ptr(); }
#endif

// Sizes that torch.compile may keep as symbols. A schema that takes sizes writes FCOS_SYMINT where it
// would write int, its autograd code uses SymInt and sym_size; CPU and CUDA kernels take int64_t.
#if FCOS_TORCH_AT_LEAST(2, 0)
#define FCOS_SYMINT "SymInt"
using SymInt = c10::SymInt;
inline SymInt sym_size(const at::Tensor& t, int64_t dim) { return t.sym_size(dim); }
inline SymInt to_symint(const c10::IValue& value) { return value.toSymInt(); }
#else
#define FCOS_SYMINT "int"
using SymInt = int64_t;
inline SymInt sym_size(const at::Tensor& t, int64_t dim) { return t.size(dim); }
inline SymInt to_symint(const c10::IValue& value) { return value.toInt(); }
#endif

// Whether a tensor is its memory and nobody looks at the operators that run on it: no torch.compile,
// dispatch mode, subclass, lazy negation. Only then may a kernel be called past the dispatcher.
inline bool is_plain(const at::Tensor& t) {
  if (!t.has_storage()) return false;  // of vmap, for example
#if FCOS_TORCH_AT_LEAST(1, 11)
  const auto keys = t.key_set() | c10::impl::tls_local_dispatch_key_set().included_;
  for (const auto key : {c10::DispatchKey::Python, c10::DispatchKey::Negative,
                         c10::DispatchKey::Conjugate, c10::DispatchKey::ZeroTensor})
    if (keys.has(key)) return false;
#endif
  return true;
}

// Whether torch.use_deterministic_algorithms asks for the same bits each time. An op that cannot
// give them calls at::globalContext().alertNotDeterministic(name), which raises or warns.
inline bool wants_determinism() {
#if FCOS_TORCH_AT_LEAST(1, 8)
  return at::globalContext().deterministicAlgorithms();
#else
  return at::globalContext().deterministic();
#endif
}

#ifdef WITH_CUDA
// While it lives, the device of a tensor is the current one; `stream` is that device's current one,
// as void* because headers of kernels know no CUDA type.
struct CudaScope {
  c10::cuda::CUDAGuard guard;
  void* stream;
  explicit CudaScope(const at::Tensor& t)
      : guard(t.device()), stream(c10::cuda::getCurrentCUDAStream(t.device().index()).stream()) {}
};
#endif

// The kernel's name of a floating dtype; check.h has refused all others before.
inline DType dtype_of(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kDouble: return DType::float64;
    case at::kFloat: return DType::float32;
    case at::kHalf: return DType::float16;
    case at::kBFloat16: return DType::bfloat16;
    default: TORCH_CHECK(false, "dtype_of: no kernel for this dtype");
  }
}

}  // namespace fcos_core
