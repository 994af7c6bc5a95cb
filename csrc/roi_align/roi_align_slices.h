// CUDA kernels of RoIAlign for channels that lie side by side, the usual case; roi_align_cuda.cu
// calls them.
//
// A block makes the taps of one roi in shared memory and applies them to a slice of the channels:
// 8 packs of 16 bytes. 8 lanes of a warp share a pixel, so each of its loads and additions is 128
// bytes in a row. Blocks go through all rois for one slice before the next, because a slice of the
// maps fits into the second-level cache, where what many rois read or add to then stays.
//
// Maps in planes (contiguous) are copied slice by slice into scratch memory of that layout and back.
// The pooled values of such maps, [channel, bin] for a roi and a slice, lie in one piece: they pass
// through shared memory ("the stage"), so that global memory is read and written in a row.
//
// Forward: 8 lanes compute one bin. Backward: 8 lanes gather for one touched pixel the gradients of
// all bins, so that a pixel takes one addition of 16 bytes a lane, however many samples fell onto it.
// Packs of the backward are 16 bytes of sums, so that these additions lie side by side.
#pragma once

#include "../planes.h"
#include "roi_align.h"

#if defined(__CUDACC__)

namespace fcos_core {

constexpr int kTogether = 4;                       // loads that do not wait for each other
constexpr int kSliceBlocks = 8;  // on a multiprocessor; more would leave too few registers
constexpr int64_t kStageBytes = 8 << 10;           // of pooled values in the forward
constexpr int64_t kSliceSharedBytes = 48 << 10;    // what every GPU has without asking for more

// A map [image, y, x, channel]; its channel 0 is channel `first` of all of them.
struct SliceMap {
  int64_t image;
  int row, pixel;  // elements from one to the next
  int64_t first;
};

inline int64_t slice_taps_bytes(const RoiAlignProblem& p) {
  const int64_t size = p.dtype == DType::float64 ? 8 : 4;
  return ceil_div<int64_t>(roi_align_weights_size(p) * size + roi_align_ints_size(p) * 4, 16) * 16;
}

// All threads of a block call it, with the same roi. Afterwards pixel[] are elements, not pixels.
template <typename C>
__device__ __forceinline__ RoiAlignTaps<C> slice_taps(const RoiAlignProblem& p, const SliceMap& map,
                                                      int64_t roi, unsigned char* shared) {
  C* weights = reinterpret_cast<C*>(shared);
  int* ints = reinterpret_cast<int*>(weights + roi_align_weights_size(p));
  const RoiAlignTaps<C> taps = roi_align_locate<C>(p, roi, weights, ints);
  if (!taps.usable) return taps;
  const int num_y = taps.y.bins, num_bins = taps.y.bins + taps.x.bins;
  for (int i = threadIdx.x; i < num_bins; i += kSliceThreads)
    i < num_y ? roi_align_count(taps.y, i) : roi_align_count(taps.x, i - num_y);
  __syncthreads();
  if (threadIdx.x == 0) roi_align_number(taps.y);
  if (threadIdx.x == 32) roi_align_number(taps.x);
  __syncthreads();
  for (int i = threadIdx.x; i < num_bins; i += kSliceThreads)
    i < num_y ? roi_align_fill(taps.y, i) : roi_align_fill(taps.x, i - num_y);
  __syncthreads();
  for (int i = threadIdx.x; i < taps.y.num_slots(); i += kSliceThreads) taps.y.pixel[i] *= map.row;
  for (int i = threadIdx.x; i < taps.x.num_slots(); i += kSliceThreads) taps.x.pixel[i] *= map.pixel;
  __syncthreads();
  return taps;
}

// ---- forward ---------------------------------------------------------------------------------

// The mean of one bin, of one pack of channels.
template <typename T, int N>
__device__ __forceinline__ Pack<T, N> slice_mean(const RoiAlignTaps<compute_t<T>>& taps, int bin_y,
                                                 int bin_x, const T* __restrict__ from) {
  using C = compute_t<T>;
  const RoiAlignAxis<C>&y = taps.y, &x = taps.x;
  C sum[N];
#pragma unroll
  for (int k = 0; k < N; ++k) sum[k] = C(0);
  const int begin_x = x.offset[bin_x], count_x = x.offset[bin_x + 1] - begin_x;
  const int end_y = y.offset[bin_y + 1];
  for (int j = 0; j < count_x; j += kTogether) {
    C weights[kTogether];
    int columns[kTogether];
#pragma unroll
    for (int u = 0; u < kTogether; ++u) {
      const bool is_there = j + u < count_x;
      weights[u] = is_there ? x.weight[begin_x + j + u] : C(0);
      columns[u] = is_there ? x.pixel[x.first_slot[bin_x] + j + u] : 0;
    }
    const int* row = y.pixel + y.first_slot[bin_y];
    for (int i = y.offset[bin_y]; i < end_y; ++i, ++row) {
      const C weight_y = y.weight[i];
      const T* line = from + *row;
      Pack<T, N> values[kTogether];
#pragma unroll
      for (int u = 0; u < kTogether; ++u)
        if (u == 0 || j + u < count_x)
          values[u] = *reinterpret_cast<const Pack<T, N>*>(line + columns[u]);
#pragma unroll
      for (int u = 0; u < kTogether; ++u) {
        if (u > 0 && j + u >= count_x) continue;
        const C weight = weight_y * weights[u];
#pragma unroll
        for (int k = 0; k < N; ++k) sum[k] += weight * widen(values[u].values[k]);
      }
    }
  }
  Pack<T, N> result;
#pragma unroll
  for (int k = 0; k < N; ++k) result.values[k] = narrow<T>(sum[k]);
  return result;
}

// blockIdx: roi, slice. staged: `output` is contiguous; tile_bins: bins in the stage at a time.
template <typename T, bool staged>
__global__ void __launch_bounds__(kSliceThreads, kSliceBlocks)
    roi_align_slices(const RoiAlignProblem p, const SliceMap map, int tile_bins, int64_t taps_bytes,
                     const T* __restrict__ input, T* __restrict__ output) {
  using C = compute_t<T>;
  constexpr int N = WidePack<T>::value, kSlice = SliceChannels<T>::value;
  constexpr int kCells = kSliceThreads / kSliceLanes;
  extern __shared__ __align__(16) unsigned char shared[];
  T* stage = reinterpret_cast<T*>(shared + taps_bytes);
  const int64_t roi = blockIdx.x;
  const int cell = threadIdx.x / kSliceLanes;
  const int pack = threadIdx.x % kSliceLanes * N;  // first channel of this lane within the slice
  const int64_t in_map = static_cast<int64_t>(blockIdx.y) * kSlice, channel = map.first + in_map;
  const int width = static_cast<int>(p.pooled_width);
  const int num_bins = static_cast<int>(p.pooled_height) * width;
  const RoiAlignTaps<C> taps = slice_taps<C>(p, map, roi, shared);
  const T* from = input + (taps.usable ? taps.image * map.image + in_map + pack : 0);
  const int64_t rest = p.channels - channel;
  const int channels = rest < kSlice ? static_cast<int>(rest) : kSlice;

  for (int begin = 0; begin < num_bins; begin += tile_bins) {
    const int end = min(begin + tile_bins, num_bins);
    for (int bin = begin + cell; bin < end; bin += kCells) {
      if (!staged && pack >= channels) break;
      Pack<T, N> result;
      if (taps.usable) {
        const int y = bin / width;
        result = slice_mean<T, N>(taps, taps.y.output_bin(y), taps.x.output_bin(bin - y * width),
                                  from);
      } else {
#pragma unroll
        for (int k = 0; k < N; ++k) result.values[k] = narrow<T>(static_cast<C>(NAN));
      }
      if (staged) {
#pragma unroll
        for (int k = 0; k < N; ++k) stage[(pack + k) * tile_bins + bin - begin] = result.values[k];
      } else {
        *reinterpret_cast<Pack<T, N>*>(output + (roi * num_bins + bin) * p.channels + channel +
                                       pack) = result;
      }
    }
    if (!staged) continue;
    __syncthreads();
    leave_stage(stage, tile_bins, begin, end - begin, channels, num_bins,
                output + (roi * p.channels + channel) * num_bins);
    __syncthreads();
  }
}

// ---- backward --------------------------------------------------------------------------------

// Where the stage [bin, pack] has a pack; turned from bin to bin, so that what one channel writes
// to successive bins, and what 8 lanes read of one, does not meet in the same banks.
__device__ __forceinline__ int stage_pack(int bin, int pack) {
  return bin * kSliceLanes + (pack ^ (bin % kSliceLanes));
}

// The gradients [channel, bin] of a roi and a slice into the stage; channels that do not exist: 0.
template <int N, typename T>
__device__ __forceinline__ void enter_stage(const T* __restrict__ from, int channels, int num_bins,
                                            T* stage) {
  for (int channel = threadIdx.x / 32; channel < kSliceLanes * N; channel += kSliceThreads / 32)
    for (int bin = threadIdx.x % 32; bin < num_bins; bin += 32)
      stage[stage_pack(bin, channel / N) * N + channel % N] =
          channel < channels ? from[static_cast<int64_t>(channel) * num_bins + bin] : T();
}

// `sums` is a map as `map` says. blockIdx: roi, slice. staged: `grad` is contiguous.
template <typename T, bool staged>
__global__ void __launch_bounds__(kSliceThreads, kSliceBlocks)
    roi_align_backward_slices(const RoiAlignProblem p, const SliceMap map, int64_t taps_bytes,
                              const T* __restrict__ grad, compute_t<T>* __restrict__ sums) {
  using C = compute_t<T>;
  constexpr int N = WidePack<C>::value, kSlice = SliceChannels<C>::value;
  constexpr int kCells = 32 / kSliceLanes;  // pixels that a warp takes at a time
  extern __shared__ __align__(16) unsigned char shared[];
  T* stage = reinterpret_cast<T*>(shared + taps_bytes);
  const int64_t roi = blockIdx.x;
  const int lane = threadIdx.x % kSliceLanes;
  const int64_t in_map = static_cast<int64_t>(blockIdx.y) * kSlice, channel = map.first + in_map;
  const int width = static_cast<int>(p.pooled_width);
  const int num_bins = static_cast<int>(p.pooled_height) * width;
  const int64_t rest = p.channels - channel;
  const int channels = rest < kSlice ? static_cast<int>(rest) : kSlice;
  if (staged)  // taps end with a barrier
    enter_stage<N>(grad + (roi * p.channels + channel) * num_bins, channels, num_bins, stage);
  const RoiAlignTaps<C> taps = slice_taps<C>(p, map, roi, shared);
  if (!taps.usable || (!staged && lane * N >= channels)) return;
  const RoiAlignAxis<C>&y = taps.y, &x = taps.x;
  const T* from = grad + roi * num_bins * p.channels + channel + lane * N;
  C* to = sums + taps.image * map.image + in_map + lane * N;

  const int rows = y.num_slots(), columns = x.num_slots();
  const int across = (columns + kCells - 1) / kCells;
  for (int unit = threadIdx.x / 32; unit < rows * across; unit += kSliceThreads / 32) {
    const int row = unit / across;
    const int column = (unit - row * across) * kCells + threadIdx.x % 32 / kSliceLanes;
    if (column >= columns) continue;
    C sum[N];
#pragma unroll
    for (int k = 0; k < N; ++k) sum[k] = C(0);
    const int first_x = x.first_bin[column], last_x = x.last_bin[column];
    const int last_y = y.last_bin[row];
    for (int i = y.first_bin[row]; i <= last_y; ++i) {
      const C weight_y = y.weight_of(i, row);
      const int line = y.output_bin(i) * width;
      for (int j = first_x; j <= last_x; ++j) {
        const C weight = weight_y * x.weight_of(j, column);
        const int bin = line + x.output_bin(j);
        const auto values =
            staged ? *reinterpret_cast<const Pack<T, N>*>(stage + stage_pack(bin, lane) * N)
                   : *reinterpret_cast<const Pack<T, N>*>(from + bin * p.channels);
#pragma unroll
        for (int k = 0; k < N; ++k) sum[k] += weight * widen(values.values[k]);
      }
    }
    atomic_add_pack<N>(to + y.pixel[row] + x.pixel[column], sum);
  }
}

// ---- launches --------------------------------------------------------------------------------

// Channels of a slice.
template <typename T>
int64_t slice_channels(bool backward) {
  return backward ? SliceChannels<compute_t<T>>::value : SliceChannels<T>::value;
}

template <typename T>
int64_t slice_stage_bytes(const RoiAlignProblem& p, bool backward) {
  const int64_t all = p.pooled_height * p.pooled_width * slice_channels<T>(backward) *
                      static_cast<int64_t>(sizeof(T));
  return backward || all < kStageBytes ? all : kStageBytes;
}

// How a call is made from slices.
struct SlicePlan {
  bool usable;
  int64_t copied;         // channels at a time, of maps that are copied; 0: none are
  int64_t scratch_bytes;  // for the copy
};

template <typename T>
SlicePlan slice_plan(const RoiAlignProblem& p, bool backward) {
  SlicePlan plan = {false, 0, 0};
  const int64_t limit = int64_t(1) << 31, slice = slice_channels<T>(backward);
  if (p.num_rois >= limit || ceil_div(p.channels, slice) >= 65536) return plan;
  const int64_t stage = p.channels_last ? 0 : slice_stage_bytes<T>(p, backward);
  if (slice_taps_bytes(p) + stage > kSliceSharedBytes) return plan;
  int64_t stride = p.channels;
  if (!p.channels_last) {
    const int64_t size = backward ? sizeof(compute_t<T>) : sizeof(T);
    const int64_t pixels = p.num_images * p.height * p.width;
    // Copying costs a multiple of the map, and pooling from planes a multiple of the pooled values.
    // On an H100 the two were equal here.
    if (pixels == 0 || p.num_rois * p.pooled_height * p.pooled_width < pixels / 8) return plan;
    plan.copied = stride = copied_channels(p.channels, pixels, slice, size);
    plan.scratch_bytes = p.num_images * p.height * p.width * stride * size;
    const PlanesShape shape = {p.num_images, p.channels, p.height * p.width, 0, stride};
    if (stride == 0 || !fits_planes_grid(shape)) return {false, 0, 0};
  }
  plan.usable = p.height * p.width * stride < limit;
  return plan;
}

template <typename T>
dim3 slice_grid(const RoiAlignProblem& p, int64_t channels) {
  return dim3(static_cast<unsigned>(p.num_rois),
              static_cast<unsigned>(ceil_div<int64_t>(channels, SliceChannels<T>::value)));
}

inline SliceMap slice_map(const RoiAlignProblem& p, int64_t stride, int64_t first) {
  return {p.height * p.width * stride, static_cast<int>(p.width * stride),
          static_cast<int>(stride), first};
}

// Calls slice(PlanesShape) for the channels of one copy after the other.
template <typename Slice>
const char* for_each_copy(const RoiAlignProblem& p, int64_t copied, const Slice& slice) {
  for (int64_t first = 0; first < p.channels; first += copied) {
    const char* error = slice({p.num_images, p.channels, p.height * p.width, first, copied});
    if (error) return error;
  }
  return nullptr;
}

template <typename T>
const char* launch_slices(const RoiAlignProblem& p, const SlicePlan& plan, const T* input, T* output,
                          void* scratch, cudaStream_t stream) {
  const int64_t taps = slice_taps_bytes(p);
  const int num_bins = static_cast<int>(p.pooled_height * p.pooled_width);
  if (!plan.copied) {
    roi_align_slices<T, false><<<slice_grid<T>(p, p.channels), kSliceThreads, taps, stream>>>(
        p, slice_map(p, p.channels, 0), num_bins, taps, input, output);
    return launch_error();
  }
  T* copy = static_cast<T*>(scratch);
  const int64_t stage = slice_stage_bytes<T>(p, false);
  const int most = static_cast<int>(stage / (SliceChannels<T>::value * sizeof(T)));
  const int tile_bins = ceil_div(num_bins, ceil_div(num_bins, most));
  return for_each_copy(p, plan.copied, [&](const PlanesShape& shape) {
    const char* error = planes_to_pixels(shape, input, copy, stream);
    if (error) return error;
    const int64_t channels = p.channels - shape.first;
    roi_align_slices<T, true>
        <<<slice_grid<T>(p, channels < shape.count ? channels : shape.count), kSliceThreads,
           taps + stage, stream>>>(p, slice_map(p, shape.count, shape.first), tile_bins, taps, copy,
                                   output);
    return launch_error();
  });
}

// Of maps that are copied it writes `planes`, else it adds to `sums`.
template <typename T>
const char* launch_backward_slices(const RoiAlignProblem& p, const SlicePlan& plan, const T* grad,
                                   compute_t<T>* sums, T* planes, void* scratch,
                                   cudaStream_t stream) {
  const int64_t taps = slice_taps_bytes(p);
  if (!plan.copied) {
    roi_align_backward_slices<T, false>
        <<<slice_grid<compute_t<T>>(p, p.channels), kSliceThreads, taps, stream>>>(
            p, slice_map(p, p.channels, 0), taps, grad, sums);
    return launch_error();
  }
  compute_t<T>* copy = static_cast<compute_t<T>*>(scratch);
  return for_each_copy(p, plan.copied, [&](const PlanesShape& shape) {
    const char* error = error_text(cudaMemsetAsync(copy, 0, plan.scratch_bytes, stream));
    if (error) return error;
    const int64_t channels = p.channels - shape.first;
    roi_align_backward_slices<T, true>
        <<<slice_grid<compute_t<T>>(p, channels < shape.count ? channels : shape.count), kSliceThreads,
           taps + slice_stage_bytes<T>(p, true), stream>>>(
            p, slice_map(p, shape.count, shape.first), taps, grad, copy);
    error = launch_error();
    return error ? error : pixels_to_planes<T>(shape, copy, planes, stream);
  });
}

}  // namespace fcos_core

#endif  // __CUDACC__
