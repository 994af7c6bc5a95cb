// The backward of RoI max pooling on a GPU without additions in memory, see roi_pool.h. For
// roi_pool_cuda.cu only.
//
// A block owns some rows of an image, a band, of some channels, adds up in shared memory what belongs
// there, and writes it once, in the dtype of the gradient. Two kernels:
// 1. roi_pool_rows looks at the places of each roi: the rows that they lie in, for each row of bins.
// 2. roi_pool_bands lists the rois that have places in its band, and its warps take one of them at a
//    time: the places and gradients of those rows of bins that reach the band.
#pragma once

#include "../planes.h"
#include "roi_pool.h"

#if defined(__CUDACC__)

namespace fcos_core {

// Channels of a block. Of channels last, the more of them the fewer pieces a row of memory is read
// in, and the fewer rows fit.
constexpr int kBandPlanes = 8, kBandPixels = 16, kBandManyPixels = 32;
constexpr int kBandThreads = 512;
constexpr int kBandTogether = 4;  // loads that do not wait for each other
constexpr int kRowsTogether = 8;
constexpr int kBandMinRows = 4;  // of a band, or too many rows of bins reach into two
constexpr int kBandScan = 2048;  // rois that a block looks at before it adds up what it found
constexpr int kBandPiece = 256;  // bins that a warp takes at a time
// Limits of what is packed: rows of the map and of bins.
constexpr int64_t kBandMaxRows = int64_t(1) << 15, kBandMaxBins = 1024;

// What of the scratch memory is what. Rows are kept as first | last << 16.
struct BandRows {
  int2* rois;      // [num_rois] image, or -1 for nothing to add, and rows
  uint32_t* bins;  // [num_rois, pooled_height] rows, kNoRows for none
};
constexpr uint32_t kNoRows = 0x0000ffffu;  // from 65535 to 0

struct Bands {
  int channels;  // of a block
  int rows;      // of a band, 0: this kernel cannot be taken
  int count;     // for an image
  int pitch;     // pixels of a channel in shared memory
  int64_t shared;
};

__device__ __forceinline__ uint32_t join_rows(int first, int last) {
  return static_cast<uint32_t>(first) | static_cast<uint32_t>(last) << 16;
}
__device__ __forceinline__ int first_row(uint32_t rows) { return static_cast<int>(rows & 0xffffu); }
__device__ __forceinline__ int last_row(uint32_t rows) { return static_cast<int>(rows >> 16); }

__device__ __forceinline__ int warp_min(int value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
    value = min(value, __shfl_xor_sync(0xffffffffu, value, step));
  return value;
}

// The image of a roi, or -1 if there is none.
template <typename C>
__device__ __forceinline__ int64_t image_of(const RoiPoolProblem& p, int64_t roi) {
  const C image = static_cast<const C*>(p.rois)[5 * roi];
  return image >= C(0) && image < static_cast<C>(p.num_images) ? static_cast<int64_t>(image) : -1;
}

// A block takes a roi, its warps the rows of bins.
template <typename C, bool channels_last>
__global__ void __launch_bounds__(kThreads)
    roi_pool_rows(const RoiPoolProblem p, const int32_t* __restrict__ argmax, const BandRows out) {
  __shared__ int firsts[kThreads / 32], lasts[kThreads / 32];
  const int64_t roi = blockIdx.x;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int bins = static_cast<int>(p.pooled_width), rows = static_cast<int>(p.pooled_height);
  const int pixels = static_cast<int>(p.height * p.width), channels = static_cast<int>(p.channels);
  // The places of a row of bins lie in runs; lanes that a run leaves idle take the next ones. Of
  // channels last they are one run, taken as many of 32 places.
  const int all = bins * channels;
  const int runs = channels_last ? (all + 31 - lane) / 32 : channels;
  const int step = channels_last ? 32 : rows * bins, length = channels_last ? 32 : bins;
  const int row_step = channels_last ? all : bins;
  const int lanes = min(length, 32), together = 32 / lanes;
  const int first_run = lane / lanes < together ? lane / lanes : runs;
  const int32_t* places = argmax + roi * rows * all;
  int first = 0xffff, last = 0;
  for (int row = warp; row < rows; row += kThreads / 32) {
    int least = pixels, most = -1;
    for (int in_run = lane % lanes; in_run < length; in_run += lanes) {
      const int32_t* from = places + row * row_step + in_run;
      for (int run = first_run; run < runs; run += kRowsTogether * together) {
        int place[kRowsTogether];
#pragma unroll
        for (int u = 0; u < kRowsTogether; ++u)
          place[u] = run + u * together < runs ? from[(run + u * together) * step] : -1;
#pragma unroll
        for (int u = 0; u < kRowsTogether; ++u) {
          if (place[u] < 0 || place[u] >= pixels) continue;
          least = min(least, place[u]);
          most = max(most, place[u]);
        }
      }
    }
    least = warp_min(least);
    most = -warp_min(-most);
    if (lane == 0) {
      const int width = static_cast<int>(p.width);
      const uint32_t found = most < 0 ? kNoRows : join_rows(least / width, most / width);
      out.bins[roi * rows + row] = found;
      first = min(first, first_row(found));
      last = max(last, last_row(found));
    }
  }
  if (lane == 0) {
    firsts[warp] = first;
    lasts[warp] = last;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kThreads / 32; ++w) {
    first = min(first, firsts[w]);
    last = max(last, lasts[w]);
  }
  const int64_t image = image_of<C>(p, roi);
  out.rois[roi] = make_int2(first <= last ? static_cast<int>(image) : -1,
                            static_cast<int>(join_rows(first, last)));
}

// What a block adds up: [pixel, channel] or [channel, pixel], as the gradient lies.
template <typename C>
struct BandSums {
  C* sums;
  int first_channel, channels, first_pixel, pixels, pitch;
};

// Adds the gradients of the bins [bin, last_bin) of a roi, by a warp.
template <typename T, bool channels_last, int kChannels>
__device__ __forceinline__ void add_to_band(const RoiPoolProblem& p, int roi, int bin, int last_bin,
                                            const T* __restrict__ grad,
                                            const int32_t* __restrict__ argmax,
                                            const BandSums<compute_t<T>>& band) {
  const int num_bins = static_cast<int>(p.pooled_height * p.pooled_width);
  const int all = static_cast<int>(p.channels);
  const int64_t from = static_cast<int64_t>(roi) * num_bins * all +
                       (channels_last ? band.first_channel : band.first_channel * num_bins);
  for (; bin < last_bin; bin += kBandPiece) {
    const int bins = min(last_bin - bin, kBandPiece);
    // i / bins for i below kBandPlanes * bins, exact for bins up to 362
    const uint32_t factor = ((1u << 20) + bins - 1) / bins;
    for (int begin = threadIdx.x % 32; begin < kChannels * bins; begin += 32 * kBandTogether) {
      int to[kBandTogether];
      T value[kBandTogether];
#pragma unroll
      for (int u = 0; u < kBandTogether; ++u) {
        const int i = begin + 32 * u;
        const int channel = channels_last ? i % kChannels : static_cast<int>(i * factor >> 20);
        const int in_piece = channels_last ? i / kChannels : i - channel * bins;
        const int at = channels_last ? (bin + in_piece) * all + channel
                                     : channel * num_bins + bin + in_piece;
        const bool there = i < kChannels * bins && channel < band.channels;
        const uint32_t place = there ? static_cast<uint32_t>(argmax[from + at]) : 0xffffffffu;
        value[u] = there ? grad[from + at] : T();
        const uint32_t pixel = place - static_cast<uint32_t>(band.first_pixel);
        to[u] = pixel >= static_cast<uint32_t>(band.pixels) ? -1
                : channels_last ? static_cast<int>(pixel) * kChannels + channel
                                : channel * band.pitch + static_cast<int>(pixel);
      }
#pragma unroll
      for (int u = 0; u < kBandTogether; ++u)
        if (to[u] >= 0) atomic_add(band.sums + to[u], static_cast<compute_t<T>>(widen(value[u])));
    }
  }
}

// blockIdx: channels, band, image. wide: numbers of a pixel that are written at a time, of channels
// last.
template <typename T, bool channels_last, int kChannels, int wide>
__global__ void __launch_bounds__(kBandThreads, 2)
    roi_pool_bands(const RoiPoolProblem p, const Bands bands, const BandRows known,
                   const T* __restrict__ grad, const int32_t* __restrict__ argmax,
                   T* __restrict__ grad_input) {
  using C = compute_t<T>;
  extern __shared__ __align__(16) unsigned char shared[];
  // Rois by their number in the scan, and the first and the last row of bins with places here.
  __shared__ uint32_t list[kBandScan];
  __shared__ int listed, next;
  const int width = static_cast<int>(p.width), image = static_cast<int>(blockIdx.z);
  const int begin = blockIdx.y * bands.rows;
  const int end = min(begin + bands.rows, static_cast<int>(p.height));
  const int first_channel = blockIdx.x * kChannels;
  const BandSums<C> band = {reinterpret_cast<C*>(shared),
                            first_channel,
                            min(static_cast<int>(p.channels) - first_channel, kChannels),
                            begin * width,
                            (end - begin) * width,
                            bands.pitch};
  const int pooled_width = static_cast<int>(p.pooled_width);
  const int pooled_height = static_cast<int>(p.pooled_height);
  const int num_rois = static_cast<int>(p.num_rois);

  for (int i = threadIdx.x; i < kChannels * bands.pitch; i += kBandThreads) band.sums[i] = C(0);
  for (int scan = 0; scan < num_rois; scan += kBandScan) {
    if (threadIdx.x == 0) listed = next = 0;
    __syncthreads();
    int2 seen[kBandScan / kBandThreads];
#pragma unroll
    for (int u = 0; u < kBandScan / kBandThreads; ++u) {
      const int roi = scan + u * kBandThreads + threadIdx.x;
      seen[u] = roi < num_rois ? known.rois[roi] : make_int2(-1, 0);
    }
#pragma unroll
    for (int u = 0; u < kBandScan / kBandThreads; ++u) {
      const uint32_t all = static_cast<uint32_t>(seen[u].y);
      if (seen[u].x != image || first_row(all) >= end || last_row(all) < begin) continue;
      const uint32_t in_scan = u * kBandThreads + threadIdx.x;
      const uint32_t* of_bins = known.bins + static_cast<int64_t>(scan + in_scan) * pooled_height;
      uint32_t first = kBandMaxBins, last = 0;
      for (int row = 0; row < pooled_height; ++row) {
        if (first_row(of_bins[row]) >= end || last_row(of_bins[row]) < begin) continue;
        first = min(first, row);
        last = row;
      }
      if (first < kBandMaxBins)
        list[atomicAdd(&listed, 1)] = in_scan | first << 11 | last << 21;
    }
    __syncthreads();
    const int count = listed;
    for (;;) {
      int entry = 0;
      if (threadIdx.x % 32 == 0) entry = atomicAdd(&next, 1);
      entry = __shfl_sync(0xffffffffu, entry, 0);
      if (entry >= count) break;
      const uint32_t found = list[entry];
      const int first_bin = static_cast<int>(found >> 11 & (kBandMaxBins - 1)) * pooled_width;
      const int last_bin = static_cast<int>((found >> 21) + 1) * pooled_width;
      add_to_band<T, channels_last, kChannels>(p, scan + static_cast<int>(found & (kBandScan - 1)),
                                               first_bin, last_bin, grad, argmax, band);
    }
    __syncthreads();
  }

  const int64_t map = p.height * p.width, first = image * map + band.first_pixel;
  if (channels_last) {
    T* to = grad_input + first * p.channels + first_channel;
    for (int i = threadIdx.x; i < band.pixels * (kChannels / wide); i += kBandThreads) {
      const int pixel = i / (kChannels / wide), channel = i % (kChannels / wide) * wide;
      if (channel >= band.channels) continue;
      Pack<T, wide> pack;
#pragma unroll
      for (int k = 0; k < wide; ++k)
        pack.values[k] = narrow<T>(band.sums[pixel * kChannels + channel + k]);
      *reinterpret_cast<Pack<T, wide>*>(to + pixel * p.channels + channel) = pack;
    }
  } else {
    for (int channel = 0; channel < band.channels; ++channel) {
      T* to = grad_input + (image * p.channels + first_channel + channel) * map + band.first_pixel;
      for (int i = threadIdx.x; i < band.pixels; i += kBandThreads)
        to[i] = narrow<T>(band.sums[channel * bands.pitch + i]);
    }
  }
}

// ---- launches --------------------------------------------------------------------------------

// Two blocks on a multiprocessor, where it has the shared memory for them.
inline Bands bands_of(const RoiPoolProblem& p) {
  constexpr int64_t kOwn = 4 * kBandScan + 1024 + 64;  // its list, and what CUDA takes
  const Bands none = {0, 0, 0, 0, 0};
  const int64_t size = p.dtype == DType::float64 ? 8 : 4, limit = int64_t(1) << 31;
  if (p.height >= kBandMaxRows || p.pooled_height > kBandMaxBins || p.num_images > 65535 ||
      p.num_rois > limit - 2 * kBandScan || p.channels > 1 << 20 ||
      p.channels * p.pooled_height * p.pooled_width > limit / 2)
    return none;
  int device = 0, most = 0, processors = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess)
    return none;
  const int64_t room = (most >= 96 << 10 ? most / 2 : most) - kOwn;
  const int64_t least = p.height < kBandMinRows ? p.height : int64_t(kBandMinRows);
  int channels = p.channels_last ? kBandManyPixels : kBandPlanes;
  if (channels == kBandManyPixels && room / (p.width * channels * size) < least)
    channels = kBandPixels;
  const int64_t row = p.width * channels * size, fits = room / row;
  if (fits < least) return none;
  // small maps are cut further, for enough blocks
  const int64_t slices = ceil_div<int64_t>(p.channels, channels);
  const int64_t wanted = ceil_div<int64_t>(2 * processors, slices * p.num_images);
  const int64_t possible = ceil_div<int64_t>(p.height, kBandMinRows);
  int64_t count = ceil_div(p.height, fits);
  if (count < wanted) count = wanted < possible ? wanted : possible;
  const int64_t rows = ceil_div(p.height, count);
  count = ceil_div(p.height, rows);
  if (count > 65535) return none;
  return {channels, static_cast<int>(rows), static_cast<int>(count),
          static_cast<int>(rows * p.width), rows * row};
}

inline int64_t band_rows_bytes(const RoiPoolProblem& p) {
  return p.num_rois * (8 + 4 * p.pooled_height);
}

template <typename T, bool channels_last, int kChannels>
const char* launch_bands(const RoiPoolProblem& p, const Bands& bands, const T* grad,
                         const int32_t* argmax, T* grad_input, void* scratch, cudaStream_t stream) {
  int2* rois = static_cast<int2*>(scratch);
  const BandRows rows = {rois, reinterpret_cast<uint32_t*>(rois + p.num_rois)};
  roi_pool_rows<compute_t<T>, channels_last>
      <<<static_cast<unsigned>(p.num_rois), kThreads, 0, stream>>>(p, argmax, rows);
  const char* error = launch_error();
  constexpr int wide = channels_last ? WidePack<T>::value : 1;
  const auto kernel = p.channels % wide == 0 && fits_pack<T, wide>(grad_input)
                          ? roi_pool_bands<T, channels_last, kChannels, wide>
                          : roi_pool_bands<T, channels_last, kChannels, 1>;
  if (!error)
    error = error_text(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            static_cast<int>(bands.shared)));
  if (error) return error;
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(p.channels, kChannels)),
                  static_cast<unsigned>(bands.count), static_cast<unsigned>(p.num_images));
  kernel<<<grid, kBandThreads, bands.shared, stream>>>(p, bands, rows, grad, argmax, grad_input);
  return launch_error();
}

}  // namespace fcos_core

#endif  // __CUDACC__
