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
// Blocks on a multiprocessor; more would leave too few registers.
constexpr int kSliceBlocks = 8;
constexpr int kSliceBackwardBlocks =
    10 * kSliceThreads <= kResidentThreads ? 10 : kResidentThreads / kSliceThreads;
constexpr int64_t kStageBytes = 8 << 10;           // of pooled values in the forward
constexpr int64_t kSliceSharedBytes = 48 << 10;    // what every GPU has without asking for more

// A map [image, y, x, channel]; its channel 0 is channel `first` of all of them.
struct SliceMap {
  int64_t image;
  int row, pixel;  // elements from one to the next
  int64_t first;
};

// What the warp of an axis finds out and the others need.
struct SliceAxis {
  int finite, flipped;
};

inline int64_t slice_taps_bytes(const RoiAlignProblem& p) {
  const int64_t size = p.dtype == DType::float64 ? 8 : 4;
  const int64_t bytes = roi_align_weights_size(p) * size + roi_align_ints_size(p) * 4;
  return ceil_div<int64_t>(bytes + 2 * static_cast<int64_t>(sizeof(SliceAxis)), 16) * 16;
}

// By a warp: steps 1 to 3 of roi_align.h for an axis, a lane for each of 32 bins.
template <typename C>
__device__ __forceinline__ void slice_axis(const RoiAlignAxis<C>& axis) {
  const unsigned all = 0xffffffffu;
  const int lane = threadIdx.x % 32;
  int taps = 0, slots = 0, count_before = 0, last_before = -1;  // up to the first of these bins
  for (int begin = 0; begin < axis.bins; begin += 32) {
    const int bin = begin + lane;
    RoiAlignCounter<C> counter = {-1, -1};
    const int count = bin < axis.bins ? roi_align_visit(axis.grid, bin, counter) : 0;
    // bins without taps are at the ends, so the bin before has some if any earlier one has
    int count_left = __shfl_up_sync(all, count, 1), last_left = __shfl_up_sync(all, counter.last, 1);
    if (lane == 0) {
      count_left = count_before;
      last_left = last_before;
    }
    const bool meet = count > 0 && count_left > 0 && counter.first <= last_left;
    const int fresh = count - (meet ? last_left - counter.first + 1 : 0);
    const int taps_here = warp_prefix(count), slots_here = warp_prefix(fresh);
    if (bin < axis.bins) {
      axis.offset[bin] = taps + taps_here - count;
      axis.first_slot[bin] = slots + slots_here - count;
    }
    taps += __shfl_sync(all, taps_here, 31);
    slots += __shfl_sync(all, slots_here, 31);
    count_before = __shfl_sync(all, count, 31);
    last_before = __shfl_sync(all, counter.last, 31);
  }
  if (lane == 0) {
    axis.offset[axis.bins] = taps;
    axis.first_slot[axis.bins] = slots;
  }
  __syncwarp();
  for (int bin = lane; bin < axis.bins; bin += 32) roi_align_fill(axis, bin);
  __syncwarp();
}

// The weights of an axis once more, slot by slot: slot s has weight[begin[s]] of its first bin,
// and so on up to begin[s + 1].
template <typename C>
struct SliceSlots {
  C* weight;   // [capacity]
  int* begin;  // [capacity + 1]
};

inline int64_t slice_slots_bytes(const RoiAlignProblem& p) {
  const int64_t size = p.dtype == DType::float64 ? 8 : 4;
  return ceil_div<int64_t>(roi_align_weights_size(p) * (size + 4) + 2 * 4, 16) * 16;
}

// Hands the memory of both axes out, y first.
template <typename C>
__device__ __forceinline__ void slice_slots_memory(const RoiAlignProblem& p, unsigned char* shared,
                                                   SliceSlots<C> (&slots)[2]) {
  const int64_t rows = roi_align_capacity(p.pooled_height, p.sampling_ratio, p.height);
  slots[0].weight = reinterpret_cast<C*>(shared);
  slots[1].weight = slots[0].weight + rows;
  slots[0].begin = reinterpret_cast<int*>(slots[0].weight + roi_align_weights_size(p));
  slots[1].begin = slots[0].begin + rows + 1;
}

// By a warp, after slice_axis.
template <typename C>
__device__ __forceinline__ void slice_slots(const RoiAlignAxis<C>& axis,
                                            const SliceSlots<C>& slots) {
  const int lane = threadIdx.x % 32, num_slots = axis.num_slots();
  int taps = 0;  // of the slots before
  for (int begin = 0; begin < num_slots; begin += 32) {
    const int slot = begin + lane;
    const int first = slot < num_slots ? axis.first_bin[slot] : 0;
    const int count = slot < num_slots ? axis.last_bin[slot] - first + 1 : 0;
    const int up_to = warp_prefix(count), at = taps + up_to - count;
    if (slot < num_slots) slots.begin[slot] = at;
    for (int i = 0; i < count; ++i) slots.weight[at + i] = axis.weight_of(first + i, slot);
    taps += __shfl_sync(0xffffffffu, up_to, 31);
  }
  if (lane == 0) slots.begin[num_slots] = taps;
}

// All threads of a block call it, with the same roi. Afterwards pixel[] are elements, not pixels.
// Two warps have an axis each; the block waits once, and the other warps do nothing until then.
// `slots`: of y and x, or null.
template <typename C>
__device__ __forceinline__ RoiAlignTaps<C> slice_taps(const RoiAlignProblem& p, const SliceMap& map,
                                                      int64_t roi, unsigned char* shared,
                                                      const SliceSlots<C>* slots) {
  SliceAxis* known = reinterpret_cast<SliceAxis*>(shared);  // y, x
  C* weights = reinterpret_cast<C*>(known + 2);
  int* ints = reinterpret_cast<int*>(weights + roi_align_weights_size(p));
  RoiAlignTaps<C> taps = roi_align_memory(p, weights, ints);
  taps.image = roi_align_image<C>(p, roi);
  taps.usable = taps.image >= 0;
  if (!taps.usable) return taps;
  if (threadIdx.x < 64) {
    const bool is_y = threadIdx.x < 32;
    RoiAlignAxis<C> axis = is_y ? taps.y : taps.x;
    axis.grid = roi_align_grid_of<C>(p, roi, is_y);
    if (axis.grid.finite) {
      slice_axis(axis);
      if (slots)  // field by field: an array that is indexed would lie in local memory
        slice_slots<C>(axis, {is_y ? slots[0].weight : slots[1].weight,
                              is_y ? slots[0].begin : slots[1].begin});
      const int step = is_y ? map.row : map.pixel;
      for (int i = threadIdx.x % 32; i < axis.num_slots(); i += 32) axis.pixel[i] *= step;
    }
    if (threadIdx.x % 32 == 0) known[is_y ? 0 : 1] = {axis.grid.finite, axis.grid.step < C(0)};
  }
  __syncthreads();
  taps.usable = known[0].finite && known[1].finite;
  taps.y.flipped = known[0].flipped;
  taps.x.flipped = known[1].flipped;
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
  const RoiAlignTaps<C> taps = slice_taps<C>(p, map, roi, shared, nullptr);
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

// `sums` is a map as `map` says. taps_bytes: with the slots at the end. blockIdx: roi, slice.
// staged: `grad` is contiguous.
template <typename T, bool staged>
__global__ void __launch_bounds__(kSliceThreads, kSliceBackwardBlocks)
    roi_align_backward_slices(const RoiAlignProblem p, const SliceMap map, int64_t taps_bytes,
                              int64_t slots_bytes,
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
  SliceSlots<C> slots[2];
  slice_slots_memory(p, shared + taps_bytes - slots_bytes, slots);
  const RoiAlignTaps<C> taps = slice_taps<C>(p, map, roi, shared, slots);
  if (!taps.usable || (!staged && lane * N >= channels)) return;
  const RoiAlignAxis<C>&y = taps.y, &x = taps.x;
  const SliceSlots<C>&of_y = slots[0], &of_x = slots[1];
  const T* from = grad + roi * num_bins * p.channels + channel + lane * N;
  C* to = sums + taps.image * map.image + in_map + lane * N;

  const int rows = y.num_slots(), columns = x.num_slots();
  const int next_x = x.flipped ? -1 : 1, next_y = y.flipped ? -width : width;  // bins
  for (int row = threadIdx.x / 32; row < rows; row += kSliceThreads / 32) {
    const int begin_y = of_y.begin[row], end_y = of_y.begin[row + 1];
    const int row_bin = y.output_bin(y.first_bin[row]) * width;
    C* line = to + y.pixel[row];
    for (int column = threadIdx.x % 32 / kSliceLanes; column < columns; column += kCells) {
      const int begin_x = of_x.begin[column], end_x = of_x.begin[column + 1];
      int first_bin = row_bin + x.output_bin(x.first_bin[column]);
      C sum[N];
#pragma unroll
      for (int k = 0; k < N; ++k) sum[k] = C(0);
      for (int i = begin_y; i < end_y; ++i, first_bin += next_y) {
        const C weight_y = of_y.weight[i];
        int bin = first_bin;
        for (int j = begin_x; j < end_x; ++j, bin += next_x) {
          const C weight = weight_y * of_x.weight[j];
          const auto values =
              staged ? *reinterpret_cast<const Pack<T, N>*>(stage + stage_pack(bin, lane) * N)
                     : *reinterpret_cast<const Pack<T, N>*>(from + bin * p.channels);
#pragma unroll
          for (int k = 0; k < N; ++k) sum[k] += weight * widen(values.values[k]);
        }
      }
      atomic_add_pack<N>(line + x.pixel[column], sum);
    }
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
  const int64_t slots = backward ? slice_slots_bytes(p) : 0;
  if (slice_taps_bytes(p) + slots + stage > kSliceSharedBytes) return plan;
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
  const int64_t slots = slice_slots_bytes(p), taps = slice_taps_bytes(p) + slots;
  if (!plan.copied) {
    roi_align_backward_slices<T, false>
        <<<slice_grid<compute_t<T>>(p, p.channels), kSliceThreads, taps, stream>>>(
            p, slice_map(p, p.channels, 0), taps, slots, grad, sums);
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
            p, slice_map(p, shape.count, shape.first), taps, slots, grad, copy);
    error = launch_error();
    return error ? error : pixels_to_planes<T>(shape, copy, planes, stream);
  });
}

}  // namespace fcos_core

#endif  // __CUDACC__
