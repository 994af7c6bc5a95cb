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

// Picks an expression inside a FCOS_HOST_DEVICE function.
#if defined(__CUDA_ARCH__)
#define FCOS_DEVICE_OR_HOST(device, host) (device)
#else
#define FCOS_DEVICE_OR_HOST(device, host) (host)
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

// ---- CUDA: for <op>_cuda.cu only -----------------------------------------------------------------
// The entry of a .cu file is a plain function (declared in <op>.h inside #ifdef WITH_CUDA) that takes
// raw pointers, sizes, a DType and the stream as void*, and returns null or CUDA's error message.
#if defined(__CUDACC__)
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace fcos_core {

using float16 = __half;

// bfloat16 as its bits: CUDA's own type has, before CUDA 12, no conversions below sm_80.
struct bfloat16 {
  uint16_t bits;
};

// What numbers of a dtype are computed and summed in.
template <typename T>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <typename T>
using compute_t = typename ComputeType<T>::type;

__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(float16 value) { return __half2float(value); }
__device__ __forceinline__ float widen(bfloat16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}

// Rounds to the nearest, ties to even; narrow<T>(x).
template <typename T>
__device__ __forceinline__ T narrow(compute_t<T> value) {
  return static_cast<T>(value);
}
template <>
__device__ __forceinline__ float16 narrow<float16>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ bfloat16 narrow<bfloat16>(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  bfloat16 rounded;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(value));
  return rounded;
#else
  const uint32_t bits = __float_as_uint(value);
  // a NaN whose payload would round to infinity stays one
  if (value != value) return {static_cast<uint16_t>((bits >> 16) | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
#endif
}

// Kernels add float32 or float64 only: gradients of half dtypes are summed in float32.
__device__ __forceinline__ void atomic_add(float* address, float value) {
  atomicAdd(address, value);
}
__device__ __forceinline__ void atomic_add(double* address, double value) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 600
  atomicAdd(address, value);
#else
  unsigned long long* bits = reinterpret_cast<unsigned long long*>(address);
  unsigned long long seen = *bits, expected;
  do {
    expected = seen;
    seen = atomicCAS(bits, expected,
                     __double_as_longlong(value + __longlong_as_double(expected)));
  } while (seen != expected);
#endif
}

// address[0..N) += values, four numbers an instruction where the GPU has one; of N that are a
// multiple of 4, address is one of 16 bytes.
template <int N>
__device__ __forceinline__ void atomic_add_pack(double* address, const double (&values)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) atomic_add(address + i, values[i]);
}
template <int N>
__device__ __forceinline__ void atomic_add_pack(float* address, const float (&values)[N]) {
  int i = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && CUDART_VERSION >= 12010
#pragma unroll
  for (; i + 4 <= N; i += 4)
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(__cvta_generic_to_global(address + i)), "f"(values[i]), "f"(values[i + 1]),
                   "f"(values[i + 2]), "f"(values[i + 3])
                 : "memory");
#endif
#pragma unroll
  for (; i < N; ++i) atomic_add(address + i, values[i]);
}

// The larger number, or NaN if one of them is. Of zeros of both signs, either.
__device__ __forceinline__ float larger_or_nan(float one, float other) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(one), "f"(other));
  return larger;
#else
  return one >= other || one != one ? one : other;
#endif
}
__device__ __forceinline__ double larger_or_nan(double one, double other) {
  return one >= other || one != one ? one : other;
}

template <bool whole>
struct WordOf {
  using type = uint32_t;
};
template <>
struct WordOf<false> {
  using type = uint16_t;
};

// N values moved at once; the address must be a multiple of its size.
template <typename T, int N>
struct alignas(N * sizeof(T)) Pack {
  T values[N];
};

// The pack at `from` if `there`, else one of zeros. Read as whole words, so that the condition covers
// one load and nothing else: half numbers would be taken apart inside of it, and the load waited for.
template <typename T, int N>
__device__ __forceinline__ Pack<T, N> pack_or_zeros(const T* from, bool there) {
  using Word = typename WordOf<(N * sizeof(T)) % 4 == 0>::type;
  struct alignas(N * sizeof(T)) Words {
    Word words[N * sizeof(T) / sizeof(Word)];
  };
  Words words;
#pragma unroll
  for (Word& word : words.words) word = 0;
  if (there) words = *reinterpret_cast<const Words*>(from);
  Pack<T, N> pack;
  memcpy(&pack, &words, sizeof(pack));
  return pack;
}

template <typename T, int N>
__host__ __device__ __forceinline__ bool fits_pack(const T* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % (N * sizeof(T)) == 0;
}

constexpr int kThreads = 256;

// By a warp: the sum of the values of this lane and those below it.
__device__ __forceinline__ int warp_prefix(int value) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int more = __shfl_up_sync(0xffffffffu, value, step);
    value += static_cast<int>(threadIdx.x % 32) >= step ? more : 0;
  }
  return value;
}

// What a multiprocessor holds, at least; a kernel must not ask for more.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 750
constexpr int kResidentThreads = 1024;
#else
constexpr int kResidentThreads = 1536;
#endif

// Blocks for `count` work items of a kernel whose loop is FCOS_GRID_LOOP.
inline unsigned grid_size(int64_t count, int threads = kThreads) {
  const int64_t blocks = ceil_div<int64_t>(count, threads);
  return static_cast<unsigned>(blocks < (1 << 20) ? (blocks > 0 ? blocks : 1) : (1 << 20));
}

// Index is int32_t or int64_t; with int32_t, count must stay below 2^31 - 2^28, or i would overflow.
#define FCOS_GRID_LOOP(Index, i, count)                                                \
  for (Index i = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; i < (count); \
       i += static_cast<Index>(gridDim.x) * blockDim.x)
constexpr int64_t kMaxCount32 = (int64_t(1) << 31) - (int64_t(1) << 28);

inline const char* error_text(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// After a launch: what is wrong with it, or null.
inline const char* launch_error() { return error_text(cudaGetLastError()); }

// return FCOS_DISPATCH(dtype, launch, arguments...);  calls launch<T>(arguments...)
#define FCOS_DISPATCH(dtype, function, ...)                                       \
  ((dtype) == ::fcos_core::DType::float64   ? function<double>(__VA_ARGS__)              \
   : (dtype) == ::fcos_core::DType::float32 ? function<float>(__VA_ARGS__)               \
   : (dtype) == ::fcos_core::DType::float16 ? function<::fcos_core::float16>(__VA_ARGS__) \
                                            : function<::fcos_core::bfloat16>(__VA_ARGS__))

}  // namespace fcos_core
#endif  // __CUDACC__
