// CUDA kernels of deformable position-sensitive RoI pooling, see deform_psroi_pooling.h.
//
// A block takes some bins of one class of one RoI and up to kBlockChannels of its channels. First
// its threads compute the taps of these bins along x and along y into shared memory, once for all
// channels; then each thread takes (bin, channel) pairs. Neighbouring threads have neighbouring
// channels where these are innermost in memory, so that they read and write 16 bytes each side by
// side and share the taps of a bin; else neighbouring bins.
//
// Shared memory: tap t of axis a (0: x, 1: y) and bin b is at (a * 2S + t) * bins + b, which is free
// of bank conflicts for neighbouring bins and a broadcast for neighbouring channels.
//
// The backward pass adds to the input's gradient atomically, in float32 for half dtypes, once per
// tap instead of four times per sample. The gradient of an offset is summed over the channels of a
// thread in registers, over those of neighbouring threads by shuffles, then added atomically.
#include "deform_psroi_pooling.h"

#include <algorithm>

namespace fcos_core {
namespace {

constexpr int64_t kBlockChannels = 64;
constexpr int64_t kSharedBytes = 24 * 1024;

// How a launch is cut into blocks and threads, and the steps, in elements, through the tensors.
template <typename Index>
struct Plan {
  int bins;             // of a block
  bool channels_first;  // whether neighbouring threads differ in the channel
  int channel_lanes;    // threads over channels; a power of two up to 32 if channels_first
  int bin_lanes;        // threads over bins; channel_lanes * bin_lanes <= kThreads
  int64_t bin_chunks, channel_chunks;
  Index class_channels;
  Index in_image, in_channel, in_row, in_column;  // in_channel: between output channels
  Index in_group;
  Index out_roi, out_channel, out_bin;
};

// The block's part of the work.
struct BlockWork {
  int64_t roi, cls, first_bin, image;
  int bins;
};

template <typename Index>
__device__ BlockWork block_work(const PsroiProblem& p, const Plan<Index>& plan, int64_t item) {
  BlockWork work;
  const int64_t chunk = item % plan.bin_chunks, roi_class = item / plan.bin_chunks;
  work.cls = roi_class % p.num_classes;
  work.roi = roi_class / p.num_classes;
  work.first_bin = chunk * plan.bins;
  const int64_t left = p.pooled_size * p.pooled_size - work.first_bin;
  work.bins = static_cast<int>(left < plan.bins ? left : plan.bins);
  return work;
}

// Views of the dynamic shared memory.
template <typename T>
struct SharedTaps {
  T* weight;
  T* slope;  // null in the forward pass
  int32_t* cell;
  PsroiTapCount* count;  // [2, bins]
  int samples, bins;

  __device__ SharedTaps(void* memory, int samples_in, int bins_in, bool slopes)
      : samples(samples_in), bins(bins_in) {
    const int size = 4 * samples * bins;
    weight = static_cast<T*>(memory);
    slope = slopes ? weight + size : nullptr;
    cell = reinterpret_cast<int32_t*>(weight + (slopes ? 2 : 1) * size);
    count = reinterpret_cast<PsroiTapCount*>(cell + size);
  }

  __device__ PsroiTaps<T> of(int axis, int bin) const {
    const int at = axis * 2 * samples * bins + bin;
    return {cell + at, weight + at, slope ? slope + at : nullptr, bins};
  }

  static int64_t bytes_of_bin(int64_t samples, bool slopes) {
    return 4 * samples * static_cast<int64_t>(sizeof(T) * (slopes ? 2 : 1) + sizeof(int32_t)) +
           2 * static_cast<int64_t>(sizeof(PsroiTapCount));
  }
};

template <typename T>
__device__ void fill_taps(const PsroiProblem& p, const BlockWork& work, const SharedTaps<T>& taps) {
  const PsroiFrame<T> frame = psroi_frame<T>(p, work.roi, work.cls);
  for (int i = threadIdx.x; i < 2 * work.bins; i += blockDim.x) {
    const int axis = i / work.bins, bin = i % work.bins;
    const int64_t place = work.first_bin + bin;
    taps.count[axis * taps.bins + bin] =
        psroi_taps(p, frame, place / p.pooled_size, place % p.pooled_size, axis == 0,
                   taps.of(axis, bin));
  }
}

// A bin as a thread sees it.
template <typename T>
struct BinView {
  PsroiTaps<T> x, y;
  int x_taps, y_taps;
  int samples;  // that count; -1 if undefined

  __device__ BinView(const SharedTaps<T>& taps, int bin, bool has_image)
      : x(taps.of(0, bin)), y(taps.of(1, bin)) {
    const PsroiTapCount a = taps.count[bin], b = taps.count[taps.bins + bin];
    x_taps = a.taps;
    y_taps = b.taps;
    samples = !has_image || a.inside < 0 || b.inside < 0 ? -1 : a.inside * b.inside;
  }
};

template <typename Index>
__device__ void lanes_of(const Plan<Index>& plan, int* channel_lane, int* bin_lane) {
  const int thread = threadIdx.x;
  *channel_lane = plan.channels_first ? thread % plan.channel_lanes : thread / plan.bin_lanes;
  *bin_lane = plan.channels_first ? thread / plan.channel_lanes : thread % plan.bin_lanes;
}

template <typename Scalar, typename Index, int kVec>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(PsroiProblem p, Plan<Index> plan, const Scalar* __restrict__ input,
                   Scalar* __restrict__ output, int32_t* __restrict__ counts, int64_t items) {
  using T = compute_t<Scalar>;
  extern __shared__ double memory[];
  const SharedTaps<T> taps(memory, static_cast<int>(p.sample_per_part), plan.bins, false);
  int channel_lane, bin_lane;
  lanes_of(plan, &channel_lane, &bin_lane);
  const Index area = static_cast<Index>(p.pooled_size * p.pooled_size);

  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const BlockWork work = block_work(p, plan, item / plan.channel_chunks);
    const Index first = static_cast<Index>(item % plan.channel_chunks * kBlockChannels);
    const Index last = plan.class_channels - first < static_cast<Index>(kBlockChannels)
                           ? plan.class_channels
                           : first + static_cast<Index>(kBlockChannels);
    const int64_t image = psroi_image(p, static_cast<const T*>(p.rois)[work.roi * 5]);
    fill_taps(p, work, taps);
    __syncthreads();
    for (int b = bin_lane; channel_lane < plan.channel_lanes && b < work.bins;
         b += plan.bin_lanes) {
      const BinView<T> bin(taps, b, image >= 0);
      const Index place = static_cast<Index>(work.first_bin + b);
      if (first == 0 && channel_lane == 0)
        counts[(work.roi * p.num_classes + work.cls) * area + place] =
            bin.samples > 0 ? bin.samples : 0;
      // channel 0 of the class
      const Scalar* from = input;
      if (bin.samples > 0)
        from += static_cast<Index>(image) * plan.in_image +
                static_cast<Index>(work.cls) * plan.class_channels * plan.in_channel +
                static_cast<Index>(psroi_group(p, place / p.pooled_size, place % p.pooled_size)) *
                    plan.in_group;
      Scalar* to = output + static_cast<Index>(work.roi) * plan.out_roi +
                   static_cast<Index>(work.cls) * plan.class_channels * plan.out_channel +
                   place * plan.out_bin;
      for (Index d = first + channel_lane * kVec; d < last; d += plan.channel_lanes * kVec) {
        T sum[kVec];
#pragma unroll
        for (int v = 0; v < kVec; ++v) sum[v] = T(0);
        for (int i = 0; bin.samples > 0 && i < bin.y_taps; ++i) {
          const Scalar* row = from + d * plan.in_channel +
                              static_cast<Index>(bin.y.cell[i * bin.y.stride]) * plan.in_row;
          const T row_weight = bin.y.weight[i * bin.y.stride];
          for (int j = 0; j < bin.x_taps; ++j) {
            const Pack<Scalar, kVec> pixels = *reinterpret_cast<const Pack<Scalar, kVec>*>(
                row + static_cast<Index>(bin.x.cell[j * bin.x.stride]) * plan.in_column);
            const T weight = row_weight * bin.x.weight[j * bin.x.stride];
#pragma unroll
            for (int v = 0; v < kVec; ++v) sum[v] += weight * widen(pixels.values[v]);
          }
        }
        // 0 / 1 where nothing counts, 0 / 0 where undefined
        const T divisor = static_cast<T>(bin.samples > 0 ? bin.samples : bin.samples + 1);
        Pack<Scalar, kVec> means;
#pragma unroll
        for (int v = 0; v < kVec; ++v) means.values[v] = narrow<Scalar>(sum[v] / divisor);
        *reinterpret_cast<Pack<Scalar, kVec>*>(to + d * plan.out_channel) = means;
      }
    }
    __syncthreads();  // before the taps of the next item
  }
}

// What one bin and kVec channels add to both gradients; *slope_x and *slope_y sum over channels.
template <typename Scalar, typename Index, int kVec, typename T>
__device__ void backward_of(const BinView<T>& bin, const Plan<Index>& plan, const Scalar* grad,
                            const Scalar* input, T* grad_input, bool wants_slopes, T* slope_x,
                            T* slope_y) {
  const Pack<Scalar, kVec> grads = *reinterpret_cast<const Pack<Scalar, kVec>*>(grad);
  const T divisor = static_cast<T>(bin.samples);
  T share[kVec];
#pragma unroll
  for (int v = 0; v < kVec; ++v) share[v] = widen(grads.values[v]) / divisor;
  for (int i = 0; i < bin.y_taps; ++i) {
    const Index row = static_cast<Index>(bin.y.cell[i * bin.y.stride]) * plan.in_row;
    const T weight_y = bin.y.weight[i * bin.y.stride], slope_of_y = bin.y.slope[i * bin.y.stride];
    for (int j = 0; j < bin.x_taps; ++j) {
      const Index at = row + static_cast<Index>(bin.x.cell[j * bin.x.stride]) * plan.in_column;
      const T weight_x = bin.x.weight[j * bin.x.stride];
      const T weight = weight_y * weight_x;
#pragma unroll
      for (int v = 0; v < kVec; ++v) atomic_add(grad_input + at + v, weight * share[v]);
      if (!wants_slopes) continue;
      const Pack<Scalar, kVec> pixels =
          *reinterpret_cast<const Pack<Scalar, kVec>*>(input + at);
      T value = T(0);
#pragma unroll
      for (int v = 0; v < kVec; ++v) value += share[v] * widen(pixels.values[v]);
      *slope_x += weight_y * bin.x.slope[j * bin.x.stride] * value;
      *slope_y += slope_of_y * weight_x * value;
    }
  }
}

template <typename Scalar, typename Index, int kVec>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(PsroiProblem p, Plan<Index> plan, const Scalar* __restrict__ grad,
                    const Scalar* __restrict__ input, compute_t<Scalar>* __restrict__ grad_input,
                    compute_t<Scalar>* __restrict__ grad_trans, int64_t items) {
  using T = compute_t<Scalar>;
  extern __shared__ double memory[];
  const SharedTaps<T> taps(memory, static_cast<int>(p.sample_per_part), plan.bins, true);
  int channel_lane, bin_lane;
  lanes_of(plan, &channel_lane, &bin_lane);
  const int64_t parts = p.part_size * p.part_size;

  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const BlockWork work = block_work(p, plan, item / plan.channel_chunks);
    const Index first = static_cast<Index>(item % plan.channel_chunks * kBlockChannels);
    const Index last = plan.class_channels - first < static_cast<Index>(kBlockChannels)
                           ? plan.class_channels
                           : first + static_cast<Index>(kBlockChannels);
    const int64_t image = psroi_image(p, static_cast<const T*>(p.rois)[work.roi * 5]);
    const PsroiFrame<T> frame = psroi_frame<T>(p, work.roi, work.cls);
    fill_taps(p, work, taps);
    __syncthreads();
    // every thread makes every round, because the shuffles below need whole warps
    for (int round = 0; round * plan.bin_lanes < work.bins; ++round) {
      const int b = round * plan.bin_lanes + bin_lane;
      const bool active = channel_lane < plan.channel_lanes && b < work.bins;
      const BinView<T> bin(taps, active ? b : 0, image >= 0);
      const int64_t place = work.first_bin + b, ph = place / p.pooled_size,
                    pw = place % p.pooled_size;
      T slope_x = T(0), slope_y = T(0);
      if (active && bin.samples > 0) {
        const Index channel = static_cast<Index>(work.cls) * plan.class_channels;
        const Index from = static_cast<Index>(image) * plan.in_image +
                           channel * plan.in_channel +
                           static_cast<Index>(psroi_group(p, ph, pw)) * plan.in_group;
        const Index to = static_cast<Index>(work.roi) * plan.out_roi + channel * plan.out_channel +
                         static_cast<Index>(place) * plan.out_bin;
        for (Index d = first + channel_lane * kVec; d < last; d += plan.channel_lanes * kVec)
          backward_of<Scalar, Index, kVec, T>(bin, plan, grad + to + d * plan.out_channel,
                                              input + from + d * plan.in_channel,
                                              grad_input + from + d * plan.in_channel,
                                              frame.trans != nullptr, &slope_x, &slope_y);
      }
      if (!frame.trans) continue;
      if (plan.channels_first) {
        for (int offset = plan.channel_lanes / 2; offset > 0; offset /= 2) {
          slope_x += __shfl_down_sync(0xffffffffu, slope_x, offset, plan.channel_lanes);
          slope_y += __shfl_down_sync(0xffffffffu, slope_y, offset, plan.channel_lanes);
        }
        if (channel_lane > 0) continue;
      }
      if (!active || bin.samples <= 0) continue;
      T* x = grad_trans + (work.roi * p.num_classes + work.cls) * 2 * parts + psroi_part(p, ph, pw);
      atomic_add(x, slope_x * static_cast<T>(p.trans_std) * frame.x.extent);
      atomic_add(x + parts, slope_y * static_cast<T>(p.trans_std) * frame.y.extent);
    }
    __syncthreads();  // before the taps of the next item
  }
}

// ---- launches ----------------------------------------------------------------------------------

template <typename T, typename Index>
Plan<Index> plan_of(const PsroiProblem& p, int vec, bool slopes) {
  Plan<Index> plan;
  const int64_t area = p.pooled_size * p.pooled_size, groups = p.group_size * p.group_size;
  const int64_t channels = p.output_dim / p.num_classes, all = p.output_dim * groups;
  const int64_t fit = kSharedBytes / SharedTaps<T>::bytes_of_bin(p.sample_per_part, slopes);
  plan.bins = static_cast<int>(
      std::min<int64_t>(std::min<int64_t>(area, kThreads), std::max<int64_t>(1, fit)));
  plan.channels_first = p.channels_last;
  if (plan.channels_first) {
    const int64_t packs = ceil_div<int64_t>(std::min(channels, kBlockChannels), vec);
    plan.channel_lanes = 1;
    while (plan.channel_lanes < 32 && plan.channel_lanes < packs) plan.channel_lanes *= 2;
    plan.bin_lanes = kThreads / plan.channel_lanes;
  } else {
    plan.bin_lanes = plan.bins;
    plan.channel_lanes = kThreads / plan.bin_lanes;
  }
  plan.bin_chunks = ceil_div<int64_t>(area, plan.bins);
  plan.channel_chunks = std::max<int64_t>(1, ceil_div(channels, kBlockChannels));
  plan.class_channels = static_cast<Index>(channels);
  const int64_t cells = p.height * p.width;
  plan.in_image = static_cast<Index>(all * cells);
  plan.in_group = static_cast<Index>(p.channels_last ? 1 : cells);
  plan.in_channel = static_cast<Index>(groups * (p.channels_last ? 1 : cells));
  plan.in_row = static_cast<Index>(p.width * (p.channels_last ? all : 1));
  plan.in_column = static_cast<Index>(p.channels_last ? all : 1);
  plan.out_roi = static_cast<Index>(p.output_dim * area);
  plan.out_channel = static_cast<Index>(p.channels_last ? 1 : area);
  plan.out_bin = static_cast<Index>(p.channels_last ? p.output_dim : 1);
  return plan;
}

template <typename Scalar, typename Index, int kVec>
const char* launch_forward(const PsroiProblem& p, const Scalar* input, Scalar* output,
                           int32_t* counts, cudaStream_t stream) {
  using T = compute_t<Scalar>;
  const Plan<Index> plan = plan_of<T, Index>(p, kVec, false);
  const int64_t items = p.num_rois * p.num_classes * plan.bin_chunks * plan.channel_chunks;
  const size_t shared = plan.bins * SharedTaps<T>::bytes_of_bin(p.sample_per_part, false);
  forward_kernel<Scalar, Index, kVec><<<grid_size(items, 1), kThreads, shared, stream>>>(
      p, plan, input, output, counts, items);
  return launch_error();
}

template <typename Scalar, typename Index, int kVec>
const char* launch_backward(const PsroiProblem& p, const Scalar* grad, const Scalar* input,
                            compute_t<Scalar>* grad_input, compute_t<Scalar>* grad_trans,
                            cudaStream_t stream) {
  using T = compute_t<Scalar>;
  const Plan<Index> plan = plan_of<T, Index>(p, kVec, true);
  const int64_t items = p.num_rois * p.num_classes * plan.bin_chunks * plan.channel_chunks;
  const size_t shared = plan.bins * SharedTaps<T>::bytes_of_bin(p.sample_per_part, true);
  backward_kernel<Scalar, Index, kVec><<<grid_size(items, 1), kThreads, shared, stream>>>(
      p, plan, grad, input, grad_input, grad_trans, items);
  return launch_error();
}

// 16 bytes of channels at a time, where they lie side by side and aligned.
template <typename Scalar>
struct VectorOf {
  static constexpr int size = 16 / static_cast<int>(sizeof(Scalar));
};

template <typename Scalar>
bool fits_vectors(const PsroiProblem& p, const void* a, const void* b) {
  constexpr int size = VectorOf<Scalar>::size;
  return p.channels_last && p.group_size == 1 && p.output_dim / p.num_classes % size == 0 &&
         fits_pack<Scalar, size>(static_cast<const Scalar*>(a)) &&
         fits_pack<Scalar, size>(static_cast<const Scalar*>(b));
}

bool fits_int32(const PsroiProblem& p) {
  const int64_t inputs =
      p.num_images * p.output_dim * p.group_size * p.group_size * p.height * p.width;
  const int64_t outputs = p.num_rois * p.output_dim * p.pooled_size * p.pooled_size;
  return inputs < kMaxCount32 && outputs < kMaxCount32;
}

template <typename Scalar>
const char* forward(const PsroiProblem& p, const void* input_in, void* output_in, int32_t* counts,
                    cudaStream_t stream) {
  constexpr int vec = VectorOf<Scalar>::size;
  const Scalar* input = static_cast<const Scalar*>(input_in);
  Scalar* output = static_cast<Scalar*>(output_in);
  if (fits_vectors<Scalar>(p, input, output))
    return fits_int32(p) ? launch_forward<Scalar, int32_t, vec>(p, input, output, counts, stream)
                         : launch_forward<Scalar, int64_t, vec>(p, input, output, counts, stream);
  return fits_int32(p) ? launch_forward<Scalar, int32_t, 1>(p, input, output, counts, stream)
                       : launch_forward<Scalar, int64_t, 1>(p, input, output, counts, stream);
}

template <typename Scalar>
const char* backward(const PsroiProblem& p, const void* grad_in, const void* input_in,
                     void* grad_input_in, void* grad_trans_in, cudaStream_t stream) {
  constexpr int vec = VectorOf<Scalar>::size;
  const Scalar* grad = static_cast<const Scalar*>(grad_in);
  const Scalar* input = static_cast<const Scalar*>(input_in);
  compute_t<Scalar>* to_input = static_cast<compute_t<Scalar>*>(grad_input_in);
  compute_t<Scalar>* to_trans = static_cast<compute_t<Scalar>*>(grad_trans_in);
  if (fits_vectors<Scalar>(p, grad, input))
    return fits_int32(p)
               ? launch_backward<Scalar, int32_t, vec>(p, grad, input, to_input, to_trans, stream)
               : launch_backward<Scalar, int64_t, vec>(p, grad, input, to_input, to_trans, stream);
  return fits_int32(p)
             ? launch_backward<Scalar, int32_t, 1>(p, grad, input, to_input, to_trans, stream)
             : launch_backward<Scalar, int64_t, 1>(p, grad, input, to_input, to_trans, stream);
}

}  // namespace

const char* deform_psroi_pooling_cuda(const PsroiProblem& problem, const void* input, void* output,
                                      int32_t* counts, void* stream) {
  return FCOS_DISPATCH(problem.dtype, forward, problem, input, output, counts,
                       static_cast<cudaStream_t>(stream));
}

const char* deform_psroi_pooling_backward_cuda(const PsroiProblem& problem, const void* grad,
                                               const void* input, void* grad_input,
                                               void* grad_trans, void* stream) {
  return FCOS_DISPATCH(problem.dtype, backward, problem, grad, input, grad_input, grad_trans,
                       static_cast<cudaStream_t>(stream));
}

}  // namespace fcos_core
