// CUDA kernels of RoI max pooling, see roi_pool.h.
//
// Forward, the usual case: channels lie side by side, in packs of 16 bytes. A block takes a roi and a
// slice of the channels, 8 packs, and 8 lanes of a warp compute one bin. Blocks go through all rois
// for one slice before the next, because a slice of the maps fits into the second-level cache.
// Contiguous maps with many rois are copied slice by slice into scratch memory of that layout, and
// the results pass through shared memory on their way, so that they are written in a row.
// Otherwise a thread computes one bin of one channel.
//
// Backward, the usual case: see roi_pool_bands.h. Of maps too wide for it, each output adds its
// gradient to the pixel it came from, by atomic additions to float32 or float64, slice by slice. If
// `ordered`, a thread owns a channel of an image and adds the rois one after the other.
#include "roi_pool.h"

#include "../planes.h"
#include "roi_pool_bands.h"

namespace fcos_core {
namespace {

constexpr int kTogether = 4;                     // loads that do not wait for each other
constexpr int kBackwardChannels = 32;            // of a slice
constexpr int64_t kStageBytes = 20 << 10;        // of results on their way
constexpr int64_t kRangesBytes = 8 << 10;        // of the rows and columns of bins

// ---- forward in slices -----------------------------------------------------------------------

// Calls take(pack, place) for the pixels of a bin, row by row. `from` is the image of these channels.
template <typename T, int N, typename Take>
__device__ __forceinline__ void for_each_pixel(const T* __restrict__ from, int width, int stride,
                                               int2 rows, int2 columns, const Take& take) {
  for (int y = rows.x; y < rows.y; ++y) {
    int place = y * width + columns.x;
    const T* pixel = from + static_cast<int64_t>(place) * stride;
    for (int x = columns.x; x < columns.y; x += kTogether, place += kTogether,
             pixel += kTogether * static_cast<int64_t>(stride)) {
      Pack<T, N> values[kTogether];
#pragma unroll
      for (int u = 0; u < kTogether; ++u)
        if (u == 0 || x + u < columns.y)
          values[u] = *reinterpret_cast<const Pack<T, N>*>(pixel + u * stride);
#pragma unroll
      for (int u = 0; u < kTogether; ++u)
        if (u == 0 || x + u < columns.y) take(values[u], place + u);
    }
  }
}

// The largest of the pixels of a bin, of a pack of channels, and where they are; without a pixel
// nothing is written.
template <typename T, int N>
__device__ __forceinline__ void largest_of(const T* __restrict__ from, int width, int stride,
                                           int2 rows, int2 columns, compute_t<T> (&largest)[N],
                                           int (&places)[N]) {
  using C = compute_t<T>;
  if (rows.x >= rows.y || columns.x >= columns.y) return;
  // One comparison for the place and one maximum for the value, which stays NaN once it is; the places
  // are wrong then, and the bin is gone through anew. That is rare.
  const int first = rows.x * width + columns.x;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    largest[k] = -static_cast<C>(INFINITY);
    places[k] = first;
  }
  for_each_pixel<T, N>(from, width, stride, rows, columns, [&](const Pack<T, N>& pack, int place) {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const C value = widen(pack.values[k]);
      places[k] = value > largest[k] ? place : places[k];
      largest[k] = larger_or_nan(value, largest[k]);
    }
  });
  bool nan = false;
#pragma unroll
  for (int k = 0; k < N; ++k) nan |= largest[k] != largest[k];
  if (!nan) return;
  for_each_pixel<T, N>(from, width, stride, rows, columns, [&](const Pack<T, N>& pack, int place) {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const C value = widen(pack.values[k]);
      if (place > first && !roi_pool_exceeds(value, largest[k])) continue;
      largest[k] = value;
      places[k] = place;
    }
  });
}

// A map [image, y, x, channel] of `stride` channels, the first of which is channel `first` of all.
struct SliceMap {
  int stride;
  int64_t first;
};

// blockIdx: roi, slice. staged: output and argmax are contiguous; tile_bins: bins in the stages at
// a time.
template <typename T, bool staged>
__global__ void __launch_bounds__(kSliceThreads)
    roi_pool_slices(const RoiPoolProblem p, const SliceMap map, int tile_bins,
                    const T* __restrict__ input, T* __restrict__ output,
                    int32_t* __restrict__ argmax) {
  using C = compute_t<T>;
  constexpr int N = WidePack<T>::value, kSlice = SliceChannels<T>::value;
  extern __shared__ __align__(16) unsigned char shared[];
  int2* ranges = reinterpret_cast<int2*>(shared);  // of the rows of bins, then of the columns
  const int height = static_cast<int>(p.pooled_height), width = static_cast<int>(p.pooled_width);
  const int num_bins = height * width;
  int32_t* place_stage = reinterpret_cast<int32_t*>(ranges + (height + width + 1) / 2 * 2);
  T* stage = reinterpret_cast<T*>(place_stage + kSlice * tile_bins);
  const int64_t index = blockIdx.x;
  const int pack = threadIdx.x % kSliceLanes * N;  // first channel of this lane within the slice
  const int64_t in_map = static_cast<int64_t>(blockIdx.y) * kSlice, channel = map.first + in_map;
  const int64_t rest = p.channels - channel;
  const int channels = rest < kSlice ? static_cast<int>(rest) : kSlice;

  const RoiPoolRoi<C> roi = roi_pool_roi<C>(p, index);
  for (int i = threadIdx.x; i < height + width; i += kSliceThreads)
    i < height ? roi.y.range(i, ranges[i].x, ranges[i].y)
               : roi.x.range(i - height, ranges[i].x, ranges[i].y);
  __syncthreads();
  const T* from =
      input + (roi.usable ? roi.image * p.height * p.width * map.stride + in_map + pack : 0);

  for (int begin = 0; begin < num_bins; begin += tile_bins) {
    const int end = min(begin + tile_bins, num_bins);
    for (int bin = begin + threadIdx.x / kSliceLanes; bin < end; bin += kSliceThreads / kSliceLanes) {
      if (!staged && pack >= channels) break;
      C largest[N];
      int places[N];
#pragma unroll
      for (int k = 0; k < N; ++k) {
        largest[k] = roi.usable ? C(0) : static_cast<C>(NAN);
        places[k] = -1;
      }
      const int y = bin / width;
      if (roi.usable)
        largest_of<T, N>(from, static_cast<int>(p.width), map.stride, ranges[y],
                         ranges[height + bin - y * width], largest, places);
      if (staged) {
#pragma unroll
        for (int k = 0; k < N; ++k) {
          stage[(pack + k) * tile_bins + bin - begin] = narrow<T>(largest[k]);
          place_stage[(pack + k) * tile_bins + bin - begin] = places[k];
        }
      } else {
        Pack<T, N> result;
#pragma unroll
        for (int k = 0; k < N; ++k) result.values[k] = narrow<T>(largest[k]);
        const int64_t to = (index * num_bins + bin) * p.channels + channel + pack;
        *reinterpret_cast<Pack<T, N>*>(output + to) = result;
#pragma unroll
        for (int k = 0; k < N; k += 2)  // a multiple of 2 in every dtype
          *reinterpret_cast<int2*>(argmax + to + k) = make_int2(places[k], places[k + 1]);
      }
    }
    if (!staged) continue;
    __syncthreads();
    const int64_t to = (index * p.channels + channel) * num_bins;
    leave_stage(stage, tile_bins, begin, end - begin, channels, num_bins, output + to);
    leave_stage(place_stage, tile_bins, begin, end - begin, channels, num_bins, argmax + to);
    __syncthreads();
  }
}

// ---- forward of any layout and size ------------------------------------------------------------

template <typename T, typename Index, bool channels_last>
__global__ void __launch_bounds__(kThreads)
    roi_pool_forward(RoiPoolProblem p, Index count, const T* __restrict__ input,
                     T* __restrict__ output, int32_t* __restrict__ argmax) {
  using C = compute_t<T>;
  const int channels = static_cast<int>(p.channels), width = static_cast<int>(p.pooled_width);
  const int num_bins = static_cast<int>(p.pooled_height) * width;
  FCOS_GRID_LOOP(Index, item, count) {  // as the outputs lie in memory
    Index rest = item / (channels_last ? channels : num_bins);
    const int last = static_cast<int>(item - rest * (channels_last ? channels : num_bins));
    const int middle = static_cast<int>(rest % (channels_last ? num_bins : channels));
    const int channel = channels_last ? last : middle, bin = channels_last ? middle : last;
    rest /= channels_last ? num_bins : channels;
    const RoiPoolRoi<C> roi = roi_pool_roi<C>(p, rest);
    int y0, y1, x0, x1;
    roi.y.range(bin / width, y0, y1);
    roi.x.range(bin % width, x0, x1);
    C largest = roi.usable ? C(0) : static_cast<C>(NAN);
    int place = -1;
    if (roi.usable) {
      const Index pixels = static_cast<Index>(p.height * p.width);
      const Index step = channels_last ? channels : 1;
      const T* from = input + static_cast<Index>(roi.image) * channels * pixels +
                      (channels_last ? channel : channel * pixels);
      for (int y = y0; y < y1; ++y) {
        for (int x = x0; x < x1; ++x) {
          const int here = y * static_cast<int>(p.width) + x;
          const C value = widen(from[here * step]);
          if (place < 0 || roi_pool_exceeds(value, largest)) {
            largest = value;
            place = here;
          }
        }
      }
    }
    output[item] = narrow<T>(largest);
    argmax[item] = place;
  }
}

// ---- backward --------------------------------------------------------------------------------

// blockIdx: roi, slice of `slice` channels.
template <typename T, bool channels_last>
__global__ void __launch_bounds__(kThreads)
    roi_pool_backward(const RoiPoolProblem p, int64_t slice, const T* __restrict__ grad,
                      const int32_t* __restrict__ argmax, compute_t<T>* __restrict__ grad_input) {
  const int64_t roi = blockIdx.x, first = blockIdx.y * slice, rest = p.channels - first;
  const int64_t image = image_of<compute_t<T>>(p, roi);
  if (image < 0) return;
  const int num_bins = static_cast<int>(p.pooled_height * p.pooled_width);
  const int channels = static_cast<int>(rest < slice ? rest : slice);
  const int64_t pixels = p.height * p.width;
  const int64_t from = roi * p.channels * num_bins + first * (channels_last ? 1 : num_bins);
  compute_t<T>* to =
      grad_input + image * p.channels * pixels + first * (channels_last ? 1 : pixels);
  const int64_t count = static_cast<int64_t>(channels) * num_bins;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    int64_t at = from + i, channel;
    if (channels_last) {
      const int bin = static_cast<int>(i) / channels;
      channel = i - bin * channels;
      at = from + bin * p.channels + channel;
    } else {
      channel = static_cast<int>(i) / num_bins;
    }
    const int place = argmax[at];
    if (place < 0 || place >= pixels) continue;
    atomic_add(to + (channels_last ? place * p.channels + channel : channel * pixels + place),
               static_cast<compute_t<T>>(widen(grad[at])));
  }
}

template <typename T, typename Index, bool channels_last>
__global__ void __launch_bounds__(kThreads)
    roi_pool_backward_ordered(RoiPoolProblem p, Index count, const T* __restrict__ grad,
                              const int32_t* __restrict__ argmax,
                              compute_t<T>* __restrict__ grad_input) {
  const Index channels = static_cast<Index>(p.channels);
  const Index num_bins = static_cast<Index>(p.pooled_height * p.pooled_width);
  const Index pixels = static_cast<Index>(p.height * p.width);
  FCOS_GRID_LOOP(Index, item, count) {  // (image, channel)
    const Index image = item / channels, channel = item - image * channels;
    compute_t<T>* to = grad_input + image * channels * pixels +
                       (channels_last ? channel : channel * pixels);
    const Index pixel_step = channels_last ? channels : 1, bin_step = channels_last ? channels : 1;
    for (int64_t roi = 0; roi < p.num_rois; ++roi) {
      if (image_of<compute_t<T>>(p, roi) != image) continue;
      const Index first = static_cast<Index>(roi) * channels * num_bins +
                          (channels_last ? channel : channel * num_bins);
      for (Index bin = 0; bin < num_bins; ++bin) {
        const int place = argmax[first + bin * bin_step];
        if (place >= 0 && place < pixels)
          to[place * pixel_step] += widen(grad[first + bin * bin_step]);
      }
    }
  }
}

// ---- launches --------------------------------------------------------------------------------

// Whether all elements can be counted in 32 bits.
bool is_small(const RoiPoolProblem& p) {
  return p.num_images * p.channels * p.height * p.width < kMaxCount32 &&
         p.num_rois * p.channels * p.pooled_height * p.pooled_width < kMaxCount32;
}

int64_t ranges_bytes(const RoiPoolProblem& p) {
  return (p.pooled_height + p.pooled_width + 1) / 2 * 16;
}

// Channels that are copied at a time, 0: none.
template <typename T>
int64_t copied_channels_of(const RoiPoolProblem& p) {
  constexpr int64_t kSlice = SliceChannels<T>::value;
  if (p.channels_last || ceil_div(p.channels, kSlice) >= 65536 || ranges_bytes(p) > kRangesBytes ||
      p.num_rois >= (int64_t(1) << 31))
    return 0;
  const int64_t pixels = p.num_images * p.height * p.width;
  // Copying costs a multiple of the map, and pooling from planes a multiple of the pooled values.
  // On an H100 the two were equal here.
  if (pixels == 0 || p.num_rois * p.pooled_height * p.pooled_width < pixels / 3) return 0;
  const int64_t copied = copied_channels(p.channels, pixels, kSlice, sizeof(T));
  return copied && fits_planes_grid({p.num_images, p.channels, p.height * p.width, 0, copied})
             ? copied
             : 0;
}

template <typename T, bool staged>
const char* launch_slices(const RoiPoolProblem& p, const SliceMap& map, const T* input, T* output,
                          int32_t* argmax, cudaStream_t stream) {
  constexpr int64_t kSlice = SliceChannels<T>::value, kBinBytes = kSlice * (sizeof(T) + 4);
  const int num_bins = static_cast<int>(p.pooled_height * p.pooled_width);
  int tile_bins = num_bins;
  int64_t shared = ranges_bytes(p);
  if (staged) {
    tile_bins = ceil_div(num_bins, ceil_div(num_bins, static_cast<int>(kStageBytes / kBinBytes)));
    shared += tile_bins * kBinBytes;
  }
  const int64_t rest = p.channels - map.first, channels = rest < map.stride ? rest : map.stride;
  const dim3 grid(static_cast<unsigned>(p.num_rois),
                  static_cast<unsigned>(ceil_div(channels, kSlice)));
  roi_pool_slices<T, staged>
      <<<grid, kSliceThreads, shared, stream>>>(p, map, tile_bins, input, output, argmax);
  return launch_error();
}

template <typename T>
const char* launch_copies(const RoiPoolProblem& p, int64_t copied, const T* input, T* output,
                          int32_t* argmax, T* copy, cudaStream_t stream) {
  for (int64_t first = 0; first < p.channels; first += copied) {
    const char* error = planes_to_pixels(
        {p.num_images, p.channels, p.height * p.width, first, copied}, input, copy, stream);
    if (!error)
      error = launch_slices<T, true>(p, {static_cast<int>(copied), first}, copy, output, argmax,
                                     stream);
    if (error) return error;
  }
  return nullptr;
}

template <typename T, typename Index>
const char* launch_any(const RoiPoolProblem& p, const T* input, T* output, int32_t* argmax,
                       cudaStream_t stream) {
  const int64_t count = p.num_rois * p.channels * p.pooled_height * p.pooled_width;
  const Index items = static_cast<Index>(count);
  if (p.channels_last) {
    roi_pool_forward<T, Index, true>
        <<<grid_size(count), kThreads, 0, stream>>>(p, items, input, output, argmax);
  } else {
    roi_pool_forward<T, Index, false>
        <<<grid_size(count), kThreads, 0, stream>>>(p, items, input, output, argmax);
  }
  return launch_error();
}

template <typename T>
const char* forward(const RoiPoolProblem& p, const void* input, void* output, int32_t* argmax,
                    void* scratch, cudaStream_t stream) {
  constexpr int wide = WidePack<T>::value;
  const T* from = static_cast<const T*>(input);
  T* to = static_cast<T*>(output);
  const int64_t copied = copied_channels_of<T>(p), limit = int64_t(1) << 31;
  if (copied)
    return launch_copies(p, copied, from, to, argmax, static_cast<T*>(scratch), stream);
  if (p.channels_last && p.channels % wide == 0 && fits_pack<T, wide>(from) &&
      fits_pack<T, wide>(to) && fits_pack<int32_t, 2>(argmax) && ranges_bytes(p) <= kRangesBytes &&
      p.channels < limit / wide && ceil_div<int64_t>(p.channels, SliceChannels<T>::value) < 65536 &&
      p.num_rois < limit)
    return launch_slices<T, false>(p, {static_cast<int>(p.channels), 0}, from, to, argmax, stream);
  return is_small(p) ? launch_any<T, int32_t>(p, from, to, argmax, stream)
                     : launch_any<T, int64_t>(p, from, to, argmax, stream);
}

template <typename T>
int64_t copy_bytes(const RoiPoolProblem& p) {
  return p.num_images * p.height * p.width * copied_channels_of<T>(p) *
         static_cast<int64_t>(sizeof(T));
}

template <typename T, bool channels_last>
const char* launch_backward(const RoiPoolProblem& p, const T* grad, const int32_t* argmax,
                            compute_t<T>* grad_input, bool ordered, cudaStream_t stream) {
  const int64_t limit = int64_t(1) << 31, bins = p.pooled_height * p.pooled_width;
  const int64_t least = ceil_div<int64_t>(p.channels, 65535);
  const int64_t slice = least < kBackwardChannels ? kBackwardChannels : least;
  if (!ordered && p.num_rois < limit && slice * bins < limit) {
    const dim3 grid(static_cast<unsigned>(p.num_rois),
                    static_cast<unsigned>(ceil_div(p.channels, slice)));
    roi_pool_backward<T, channels_last>
        <<<grid, kThreads, 0, stream>>>(p, slice, grad, argmax, grad_input);
    return launch_error();
  }
  const int64_t count = p.num_images * p.channels;
  const int threads = 64;  // few have much to do: spread over the GPU
  if (is_small(p)) {
    roi_pool_backward_ordered<T, int32_t, channels_last>
        <<<grid_size(count, threads), threads, 0, stream>>>(p, static_cast<int32_t>(count), grad,
                                                            argmax, grad_input);
  } else {
    roi_pool_backward_ordered<T, int64_t, channels_last>
        <<<grid_size(count, threads), threads, 0, stream>>>(p, count, grad, argmax, grad_input);
  }
  return launch_error();
}

template <typename T>
const char* backward(const RoiPoolProblem& p, const void* grad, const int32_t* argmax,
                     void* grad_input, void* scratch, bool ordered, cudaStream_t stream) {
  const T* from = static_cast<const T*>(grad);
  if (scratch) {
    T* to = static_cast<T*>(grad_input);
    const Bands bands = bands_of(p);
    const auto launch = !p.channels_last                    ? launch_bands<T, false, kBandPlanes>
                        : bands.channels == kBandManyPixels ? launch_bands<T, true, kBandManyPixels>
                                                            : launch_bands<T, true, kBandPixels>;
    return launch(p, bands, from, argmax, to, scratch, stream);
  }
  compute_t<T>* to = static_cast<compute_t<T>*>(grad_input);
  return p.channels_last ? launch_backward<T, true>(p, from, argmax, to, ordered, stream)
                         : launch_backward<T, false>(p, from, argmax, to, ordered, stream);
}

}  // namespace

int64_t roi_pool_cuda_scratch(const RoiPoolProblem& problem) {
  return FCOS_DISPATCH(problem.dtype, copy_bytes, problem);
}

const char* roi_pool_cuda(const RoiPoolProblem& problem, const void* input, void* output,
                          int32_t* argmax, void* scratch, void* stream) {
  return FCOS_DISPATCH(problem.dtype, forward, problem, input, output, argmax, scratch,
                       static_cast<cudaStream_t>(stream));
}

int64_t roi_pool_backward_cuda_scratch(const RoiPoolProblem& problem, bool ordered) {
  return !ordered && bands_of(problem).rows > 0 ? band_rows_bytes(problem) : 0;
}

const char* roi_pool_backward_cuda(const RoiPoolProblem& problem, const void* grad,
                                   const int32_t* argmax, void* grad_input, void* scratch,
                                   bool ordered, void* stream) {
  return FCOS_DISPATCH(problem.dtype, backward, problem, grad, argmax, grad_input, scratch, ordered,
                       static_cast<cudaStream_t>(stream));
}

}  // namespace fcos_core
