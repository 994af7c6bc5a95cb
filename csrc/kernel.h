// The torch-free half of compat.h: all that a kernel file needs from this folder.
// A kernel sees raw pointers, sizes and a DType, so CUDA sources compile without a torch header
// and do not depend on torch's C++ standard.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FCOS_HOST_DEVICE __host__ __device__
#else
#define FCOS_HOST_DEVICE
#endif

#if defined(_MSC_VER)
#define FCOS_INLINE __forceinline
#else
#define FCOS_INLINE inline __attribute__((always_inline))
#endif

// Compiles a function twice, for AVX2 and for the baseline CPU, and picks one when the library is
// loaded. AVX2 alone brings no fused multiply-add, so both versions give the same bits.
// The choice needs GCC and the ifunc symbols of glibc; elsewhere there is the baseline only.
// AddressSanitizer crashes in ifunc resolvers, which run before it is ready.
#if defined(__linux__)
#include <features.h>
#endif
#if defined(__GLIBC__) && defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__CUDACC__) && !defined(__SANITIZE_ADDRESS__)
#define FCOS_SIMD_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define FCOS_SIMD_CLONES
#endif

namespace fcos_core {

// What a kernel's void pointers point to.
enum class DType : int { float64, float32, float16, bfloat16 };

template <typename T>
FCOS_HOST_DEVICE constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

}  // namespace fcos_core
