// CUDA kernels of RoI max pooling, see roi_pool.h.
//
// Forward: a thread computes one bin of kPack channels. Channels_last: kPack channels are one load
// of 16 bytes where sizes and addresses allow it, and neighbouring threads take neighbouring
// channels. Contiguous: kPack is 1, and neighbouring threads compute neighbouring bins.
//
// Backward: each output adds its gradient to the pixel it came from, by atomic additions to float32
// or float64. If `ordered`, a thread owns a channel of an image and adds the rois one after the
// other.
#include "roi_pool.h"

namespace fcos_core {
namespace {

// ---- forward ---------------------------------------------------------------------------------

// The largest of the pixels [y0, y1) x [x0, x1) of kPack channels, and where they are; without a
// pixel nothing is written. `from` is the image of these channels.
template <typename T, typename Index, int kPack>
__device__ __forceinline__ void largest_of(const T* __restrict__ from, int width, int y0, int y1,
                                           int x0, int x1, Index step, compute_t<T>* largest,
                                           int* places) {
  using C = compute_t<T>;
  bool first = true;
  for (int y = y0; y < y1; ++y) {
    for (int x = x0; x < x1; ++x) {
      const int place = y * width + x;
      const auto values = *reinterpret_cast<const Pack<T, kPack>*>(from + place * step);
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        const C value = widen(values.values[k]);
        if (first || roi_pool_exceeds(value, largest[k])) {
          largest[k] = value;
          places[k] = place;
        }
      }
      first = false;
    }
  }
}

template <typename T, typename Index, int kPack, bool channels_last>
__global__ void __launch_bounds__(kThreads)
    roi_pool_forward(RoiPoolProblem p, Index count, const T* __restrict__ input,
                     T* __restrict__ output, int32_t* __restrict__ argmax) {
  using C = compute_t<T>;
  const int channels = static_cast<int>(p.channels), width = static_cast<int>(p.pooled_width);
  const int num_bins = static_cast<int>(p.pooled_height) * width;
  FCOS_GRID_LOOP(Index, item, count) {
    // item counts packs of the output as they lie in memory
    int channel, bin;
    Index rest;
    if (channels_last) {
      const int packs = channels / kPack;
      rest = item / packs;
      channel = static_cast<int>(item - rest * packs) * kPack;
      bin = static_cast<int>(rest % num_bins);
      rest /= num_bins;
    } else {
      rest = item / num_bins;
      bin = static_cast<int>(item - rest * num_bins);
      channel = static_cast<int>(rest % channels);
      rest /= channels;
    }
    const RoiPoolRoi<C> roi = roi_pool_roi<C>(p, rest);
    int y0, y1, x0, x1;
    roi.y.range(bin / width, y0, y1);
    roi.x.range(bin % width, x0, x1);

    C largest[kPack];
    Pack<int32_t, kPack> places;
#pragma unroll
    for (int k = 0; k < kPack; ++k) {
      largest[k] = roi.usable ? C(0) : static_cast<C>(NAN);
      places.values[k] = -1;
    }
    if (roi.usable) {
      const Index pixels = static_cast<Index>(p.height * p.width);
      const Index image = static_cast<Index>(roi.image) * channels * pixels;
      const T* from = input + image + (channels_last ? channel : channel * pixels);
      largest_of<T, Index, kPack>(from, static_cast<int>(p.width), y0, y1, x0, x1,
                                  channels_last ? channels : 1, largest, places.values);
    }
    Pack<T, kPack> result;
#pragma unroll
    for (int k = 0; k < kPack; ++k) result.values[k] = narrow<T>(largest[k]);
    *reinterpret_cast<Pack<T, kPack>*>(output + item * kPack) = result;
#pragma unroll
    for (int k = 0; k < kPack; ++k) argmax[item * kPack + k] = places.values[k];
  }
}

// ---- backward --------------------------------------------------------------------------------

// The image of a roi, or -1 if there is none.
template <typename C>
__device__ __forceinline__ int64_t image_of(const RoiPoolProblem& p, int64_t roi) {
  const C image = static_cast<const C*>(p.rois)[5 * roi];
  return image >= C(0) && image < static_cast<C>(p.num_images) ? static_cast<int64_t>(image) : -1;
}

template <typename T, typename Index, bool channels_last>
__global__ void __launch_bounds__(kThreads)
    roi_pool_backward(RoiPoolProblem p, Index count, const T* __restrict__ grad,
                      const int32_t* __restrict__ argmax, compute_t<T>* __restrict__ grad_input) {
  const int channels = static_cast<int>(p.channels);
  const int num_bins = static_cast<int>(p.pooled_height * p.pooled_width);
  const Index pixels = static_cast<Index>(p.height * p.width);
  FCOS_GRID_LOOP(Index, item, count) {
    const int place = argmax[item];
    if (place < 0 || place >= pixels) continue;
    const int channel = static_cast<int>(channels_last ? item % channels
                                                       : item / num_bins % channels);
    const Index roi = item / channels / num_bins;
    const int64_t image = image_of<compute_t<T>>(p, roi);
    if (image < 0) continue;
    const Index first = static_cast<Index>(image) * channels * pixels;
    atomic_add(grad_input + first + (channels_last ? static_cast<Index>(place) * channels + channel
                                                   : channel * pixels + place),
               static_cast<compute_t<T>>(widen(grad[item])));
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

template <typename T, typename Index, int kPack, bool channels_last>
const char* launch_forward(const RoiPoolProblem& p, const void* input, void* output,
                           int32_t* argmax, cudaStream_t stream) {
  const int64_t count = p.num_rois * p.channels * p.pooled_height * p.pooled_width / kPack;
  roi_pool_forward<T, Index, kPack, channels_last><<<grid_size(count), kThreads, 0, stream>>>(
      p, static_cast<Index>(count), static_cast<const T*>(input), static_cast<T*>(output), argmax);
  return launch_error();
}

template <typename T, typename Index>
const char* forward_of(const RoiPoolProblem& p, const void* input, void* output, int32_t* argmax,
                       cudaStream_t stream) {
  constexpr int wide = 16 / sizeof(T);
  if (!p.channels_last)
    return launch_forward<T, Index, 1, false>(p, input, output, argmax, stream);
  if (p.channels % wide == 0 && fits_pack<T, wide>(static_cast<const T*>(input)) &&
      fits_pack<T, wide>(static_cast<T*>(output)))
    return launch_forward<T, Index, wide, true>(p, input, output, argmax, stream);
  return launch_forward<T, Index, 1, true>(p, input, output, argmax, stream);
}

template <typename T, typename Index, bool channels_last>
const char* launch_backward(const RoiPoolProblem& p, const void* grad, const int32_t* argmax,
                            void* grad_input, bool ordered, cudaStream_t stream) {
  const T* from = static_cast<const T*>(grad);
  compute_t<T>* to = static_cast<compute_t<T>*>(grad_input);
  if (ordered) {
    const int64_t count = p.num_images * p.channels;
    const int threads = 64;  // few have much to do: spread over the GPU
    roi_pool_backward_ordered<T, Index, channels_last>
        <<<grid_size(count, threads), threads, 0, stream>>>(p, static_cast<Index>(count), from,
                                                            argmax, to);
  } else {
    const int64_t count = p.num_rois * p.channels * p.pooled_height * p.pooled_width;
    roi_pool_backward<T, Index, channels_last><<<grid_size(count), kThreads, 0, stream>>>(
        p, static_cast<Index>(count), from, argmax, to);
  }
  return launch_error();
}

template <typename T, typename Index>
const char* backward_of(const RoiPoolProblem& p, const void* grad, const int32_t* argmax,
                        void* grad_input, bool ordered, cudaStream_t stream) {
  return p.channels_last
             ? launch_backward<T, Index, true>(p, grad, argmax, grad_input, ordered, stream)
             : launch_backward<T, Index, false>(p, grad, argmax, grad_input, ordered, stream);
}

// Whether all elements can be counted in 32 bits.
bool is_small(const RoiPoolProblem& p) {
  return p.num_images * p.channels * p.height * p.width < kMaxCount32 &&
         p.num_rois * p.channels * p.pooled_height * p.pooled_width < kMaxCount32;
}

template <typename T>
const char* forward(const RoiPoolProblem& p, const void* input, void* output, int32_t* argmax,
                    cudaStream_t stream) {
  return is_small(p) ? forward_of<T, int32_t>(p, input, output, argmax, stream)
                     : forward_of<T, int64_t>(p, input, output, argmax, stream);
}

template <typename T>
const char* backward(const RoiPoolProblem& p, const void* grad, const int32_t* argmax,
                     void* grad_input, bool ordered, cudaStream_t stream) {
  return is_small(p) ? backward_of<T, int32_t>(p, grad, argmax, grad_input, ordered, stream)
                     : backward_of<T, int64_t>(p, grad, argmax, grad_input, ordered, stream);
}

}  // namespace

const char* roi_pool_cuda(const RoiPoolProblem& problem, const void* input, void* output,
                          int32_t* argmax, void* stream) {
  return FCOS_DISPATCH(problem.dtype, forward, problem, input, output, argmax,
                       static_cast<cudaStream_t>(stream));
}

const char* roi_pool_backward_cuda(const RoiPoolProblem& problem, const void* grad,
                                   const int32_t* argmax, void* grad_input, bool ordered,
                                   void* stream) {
  return FCOS_DISPATCH(problem.dtype, backward, problem, grad, argmax, grad_input, ordered,
                       static_cast<cudaStream_t>(stream));
}

}  // namespace fcos_core
