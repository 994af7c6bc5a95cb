// Copies of maps from one layout to the other, for kernels that want channels side by side but get
// planes: planes [images, channels, pixels], which is contiguous NCHW, and pixels [images, pixels,
// count], which is channels_last of `count` channels from `first` on. For <op>_cuda.cu only.
//
// A block moves a tile of 32 channels and as many pixels as make 16-byte accesses on both sides,
// through shared memory whose rows are one element longer, so that neither side meets a bank twice.
#pragma once

#include "kernel.h"

#if defined(__CUDACC__)

namespace fcos_core {

// Operators that copy maps take some channels at a time, as many as fit into this; the copy of the
// next ones goes to the same memory.
constexpr int64_t kCopyBytes = int64_t(128) << 20;

// A slice: channels that 8 lanes of a warp have in packs of 16 bytes.
constexpr int kSliceLanes = 8;
constexpr int kSliceThreads = 128;

template <typename T>
struct WidePack {
  static constexpr int value = 16 / sizeof(T);
};

template <typename T>
struct SliceChannels {
  static constexpr int value = kSliceLanes * WidePack<T>::value;
};

struct PlanesShape {
  int64_t images, channels, pixels;
  int64_t first, count;  // channels of the copy; those from `channels` on are zeros
};

constexpr int kTileChannels = 32;
constexpr int kTilePacks = 8;  // a row of a tile: 8 packs of pixels

// Where a block works.
template <int kTilePixels>
struct PlanesTile {
  int64_t image, pixel, channel;  // channel: within the copy

  __device__ __forceinline__ PlanesTile()
      : image(blockIdx.z),
        pixel(static_cast<int64_t>(blockIdx.x) * kTilePixels),
        channel(static_cast<int64_t>(blockIdx.y) * kTileChannels) {}
};

// kPack: pixels that lie at an address of their size in every plane; 1 or WidePack.
template <typename T, int kPack>
__global__ void __launch_bounds__(kThreads)
    planes_to_pixels_kernel(PlanesShape s, const T* __restrict__ planes, T* __restrict__ out) {
  constexpr int kTilePixels = kTilePacks * WidePack<T>::value, kOut = WidePack<T>::value;
  __shared__ T tile[kTilePixels][kTileChannels + 1];
  const PlanesTile<kTilePixels> at;
  for (int i = threadIdx.x; i < kTileChannels * kTilePixels / kPack; i += kThreads) {
    const int row = i / (kTilePixels / kPack), column = i % (kTilePixels / kPack) * kPack;
    const int64_t channel = s.first + at.channel + row, pixel = at.pixel + column;
    Pack<T, kPack> pack;
#pragma unroll
    for (int k = 0; k < kPack; ++k) pack.values[k] = T();
    if (channel < s.channels && at.channel + row < s.count && pixel < s.pixels)
      pack = *reinterpret_cast<const Pack<T, kPack>*>(
          planes + (at.image * s.channels + channel) * s.pixels + pixel);
#pragma unroll
    for (int k = 0; k < kPack; ++k) tile[column + k][row] = pack.values[k];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTileChannels * kTilePixels / kOut; i += kThreads) {
    const int row = i / (kTileChannels / kOut), column = i % (kTileChannels / kOut) * kOut;
    const int64_t channel = at.channel + column, pixel = at.pixel + row;
    if (channel >= s.count || pixel >= s.pixels) continue;
    Pack<T, kOut> pack;
#pragma unroll
    for (int k = 0; k < kOut; ++k) pack.values[k] = tile[row][column + k];
    *reinterpret_cast<Pack<T, kOut>*>(out + (at.image * s.pixels + pixel) * s.count + channel) =
        pack;
  }
}

// From sums of type C to planes of type T.
template <typename T, int kPack>
__global__ void __launch_bounds__(kThreads)
    pixels_to_planes_kernel(PlanesShape s, const compute_t<T>* __restrict__ in,
                            T* __restrict__ planes) {
  using C = compute_t<T>;
  constexpr int kTilePixels = kTilePacks * WidePack<C>::value, kIn = WidePack<C>::value;
  __shared__ C tile[kTilePixels][kTileChannels + 1];
  const PlanesTile<kTilePixels> at;
  for (int i = threadIdx.x; i < kTileChannels * kTilePixels / kIn; i += kThreads) {
    const int row = i / (kTileChannels / kIn), column = i % (kTileChannels / kIn) * kIn;
    const int64_t channel = at.channel + column, pixel = at.pixel + row;
    if (channel >= s.count || pixel >= s.pixels) continue;
    const auto pack = *reinterpret_cast<const Pack<C, kIn>*>(
        in + (at.image * s.pixels + pixel) * s.count + channel);
#pragma unroll
    for (int k = 0; k < kIn; ++k) tile[row][column + k] = pack.values[k];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTileChannels * kTilePixels / kPack; i += kThreads) {
    const int row = i / (kTilePixels / kPack), column = i % (kTilePixels / kPack) * kPack;
    const int64_t channel = s.first + at.channel + row, pixel = at.pixel + column;
    if (channel >= s.channels || at.channel + row >= s.count || pixel >= s.pixels) continue;
    Pack<T, kPack> pack;
#pragma unroll
    for (int k = 0; k < kPack; ++k) pack.values[k] = narrow<T>(tile[column + k][row]);
    *reinterpret_cast<Pack<T, kPack>*>(planes + (at.image * s.channels + channel) * s.pixels +
                                       pixel) = pack;
  }
}

// Whether both functions below can be called.
inline bool fits_planes_grid(const PlanesShape& s) {
  return s.images < 65536 && ceil_div<int64_t>(s.count, kTileChannels) < 65536 &&
         s.pixels < (int64_t(1) << 31);
}

inline dim3 planes_grid(const PlanesShape& s, int64_t tile_pixels) {
  return dim3(static_cast<unsigned>(ceil_div<int64_t>(s.pixels, tile_pixels)),
              static_cast<unsigned>(ceil_div<int64_t>(s.count, kTileChannels)),
              static_cast<unsigned>(s.images));
}

// s.count is a multiple of 16 bytes' worth of channels, and so is the address `out`.
template <typename T>
const char* planes_to_pixels(const PlanesShape& s, const T* planes, T* out, cudaStream_t stream) {
  constexpr int wide = WidePack<T>::value;
  const dim3 blocks = planes_grid(s, kTilePacks * wide);
  if (s.pixels % wide == 0 && fits_pack<T, wide>(planes)) {
    planes_to_pixels_kernel<T, wide><<<blocks, kThreads, 0, stream>>>(s, planes, out);
  } else {
    planes_to_pixels_kernel<T, 1><<<blocks, kThreads, 0, stream>>>(s, planes, out);
  }
  return launch_error();
}

template <typename T>
const char* pixels_to_planes(const PlanesShape& s, const compute_t<T>* in, T* planes,
                             cudaStream_t stream) {
  constexpr int wide = WidePack<compute_t<T>>::value;
  const dim3 blocks = planes_grid(s, kTilePacks * wide);
  if (s.pixels % wide == 0 && fits_pack<T, wide>(planes)) {
    pixels_to_planes_kernel<T, wide><<<blocks, kThreads, 0, stream>>>(s, in, planes);
  } else {
    pixels_to_planes_kernel<T, 1><<<blocks, kThreads, 0, stream>>>(s, in, planes);
  }
  return launch_error();
}

// Channels, whole slices, that are copied at a time; 0 if they do not fit. `pixels`: of all maps,
// `size`: bytes of an element.
inline int64_t copied_channels(int64_t channels, int64_t pixels, int64_t slice, int64_t size) {
  const int64_t slices = ceil_div(channels, slice), bytes = pixels * slice * size;
  if (channels < slice / 2 || bytes > kCopyBytes) return 0;
  const int64_t most = kCopyBytes / (bytes > 0 ? bytes : 1);
  return ceil_div(slices, ceil_div(slices, most)) * slice;
}

// By a block: from `stage` [channel, tile_bins] in shared memory, the bins [begin, begin + count) of
// `to` [channel, bin].
template <typename T>
__device__ __forceinline__ void leave_stage(const T* stage, int tile_bins, int begin, int count,
                                            int channels, int num_bins, T* to) {
  constexpr int N = WidePack<T>::value;
  if (count == num_bins && channels * num_bins % N == 0 && fits_pack<T, N>(to) &&
      fits_pack<T, N>(stage)) {
    for (int i = threadIdx.x; i < channels * num_bins / N; i += kSliceThreads)
      reinterpret_cast<Pack<T, N>*>(to)[i] = reinterpret_cast<const Pack<T, N>*>(stage)[i];
    return;
  }
  for (int channel = threadIdx.x / 32; channel < channels; channel += kSliceThreads / 32)
    for (int bin = threadIdx.x % 32; bin < count; bin += 32)
      to[static_cast<int64_t>(channel) * num_bins + begin + bin] = stage[channel * tile_bins + bin];
}

}  // namespace fcos_core

#endif  // __CUDACC__
