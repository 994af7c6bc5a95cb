// CUDA kernels of RoIAlign for every layout and size, see roi_align.h; roi_align_slices.h has those
// for the usual ones, which are taken where they fit.
//
// A block makes the taps of one roi, its threads sharing the bins, and applies them to a slice of
// the channels. The taps lie in shared memory, or if the map is so large that they do not fit, in a
// piece of scratch memory for each block; a block then goes on to further rois.
//
// Forward: a thread computes one bin of one channel; neighbouring threads take neighbouring channels
// (channels_last) or bins.
//
// Backward: a thread gathers for one touched pixel and kPack channels the gradients of all bins of
// the roi, so that each pixel takes one addition, however many samples fell onto it. Rois meet on a
// pixel by atomic additions to float32 or float64. If `ordered`, a block owns some rows of an image
// and a slice of channels instead, and adds the rois to them one after the other.
#include "roi_align.h"

#include "roi_align_slices.h"

namespace fcos_core {
namespace {

constexpr int kLanes = 32;                  // packs of channels in a slice, channels_last
constexpr int kPlanes = 32;                 // channels in a slice, contiguous
constexpr int64_t kSharedBytes = 40 << 10;  // what every GPU has without asking for more
constexpr int kScratchBlocks = 512;         // blocks that have a piece of scratch memory
constexpr int kBandRows = 8;                // rows of an image that a block of `ordered` owns

// ---- taps ------------------------------------------------------------------------------------

size_t element_size(DType dtype) { return dtype == DType::float64 ? 8 : 4; }

// Bytes for the taps of one roi: weights, then ints.
int64_t taps_bytes(const RoiAlignProblem& p) {
  const int64_t bytes =
      roi_align_weights_size(p) * element_size(p.dtype) + roi_align_ints_size(p) * sizeof(int);
  return ceil_div<int64_t>(bytes, 16) * 16;
}

// Where the kernel keeps its taps: `scratch` is null if that is shared memory.
struct TapsMemory {
  unsigned char* scratch;
  int64_t bytes;  // of one block
};

// All threads of a block call it, with the same roi. Not inlined: it is most of the code of every
// kernel, and called once for a whole slice of channels. The taps are an argument, because
// nvcc 11 inlines what returns as much.
template <typename C>
__device__ __noinline__ void make_taps(const RoiAlignProblem& p, const TapsMemory& memory,
                                       int64_t roi, RoiAlignTaps<C>& taps) {
  extern __shared__ __align__(16) unsigned char shared[];
  unsigned char* bytes = memory.scratch ? memory.scratch + blockIdx.x * memory.bytes : shared;
  C* weights = reinterpret_cast<C*>(bytes);
  int* ints = reinterpret_cast<int*>(weights + roi_align_weights_size(p));
  taps = roi_align_locate<C>(p, roi, weights, ints);
  if (!taps.usable) return;

  const int num_y = taps.y.bins, num_bins = taps.y.bins + taps.x.bins;
  __syncthreads();  // nobody reads the taps of the block's last roi any more
  for (int i = threadIdx.x; i < num_bins; i += blockDim.x)
    i < num_y ? roi_align_count(taps.y, i) : roi_align_count(taps.x, i - num_y);
  __syncthreads();
  if (threadIdx.x == 0) roi_align_number(taps.y);
  if (threadIdx.x == kLanes) roi_align_number(taps.x);
  __syncthreads();
  for (int i = threadIdx.x; i < num_bins; i += blockDim.x)
    i < num_y ? roi_align_fill(taps.y, i) : roi_align_fill(taps.x, i - num_y);
  __syncthreads();
}

// ---- layouts ---------------------------------------------------------------------------------

// Elements from one to the next, of a tensor [image, C, y, x] of either layout.
template <typename Index>
struct Strides {
  Index image, channel, y, x;
};

template <typename Index>
Strides<Index> strides_of(bool channels_last, int64_t channels, int64_t height, int64_t width) {
  const int64_t image = channels * height * width;
  if (channels_last)
    return {static_cast<Index>(image), 1, static_cast<Index>(width * channels),
            static_cast<Index>(channels)};
  return {static_cast<Index>(image), static_cast<Index>(height * width), static_cast<Index>(width),
          1};
}

template <typename Index>
struct Layout {
  Strides<Index> map;     // of input and its gradient
  Strides<Index> pooled;  // of output and its gradient
  int slices;             // that the channels are cut into
  int slice_channels;     // in a slice; the last one may have fewer
};

// What the threads of a block share out: cells (bins or pixels) times packs of channels. Threads
// next to each other take what lies next to each other in memory.
__device__ __forceinline__ void split(bool channels_last, int item, int cells, int packs, int& cell,
                                      int& pack) {
  if (channels_last) {
    cell = item / packs;
    pack = item - cell * packs;
  } else {
    pack = item / cells;
    cell = item - pack * cells;
  }
}

template <int kPack, typename Index>
__device__ __forceinline__ int slice_packs(const RoiAlignProblem& p, const Layout<Index>& layout,
                                           int first_channel) {
  const int64_t rest = p.channels - first_channel;
  return static_cast<int>(rest < layout.slice_channels ? rest : layout.slice_channels) / kPack;
}

// ---- forward ---------------------------------------------------------------------------------

// One bin; `input` is the image of this channel.
template <typename T, typename Index>
__device__ __forceinline__ compute_t<T> pool(const RoiAlignTaps<compute_t<T>>& taps, int bin_y,
                                             int bin_x, const T* __restrict__ input,
                                             const Strides<Index>& map) {
  using C = compute_t<T>;
  const RoiAlignAxis<C>&y = taps.y, &x = taps.x;
  C sum = C(0);
  const int begin_y = y.offset[bin_y], count_y = y.offset[bin_y + 1] - begin_y;
  const int begin_x = x.offset[bin_x], count_x = x.offset[bin_x + 1] - begin_x;
  const int *rows = y.pixel + y.first_slot[bin_y], *columns = x.pixel + x.first_slot[bin_x];
  for (int i = 0; i < count_y; ++i) {
    const C weight_y = y.weight[begin_y + i];
    const T* line = input + rows[i] * map.y;
    for (int j = 0; j < count_x; ++j)
      sum += weight_y * x.weight[begin_x + j] * widen(line[columns[j] * map.x]);
  }
  return sum;
}

template <typename T, typename Index>
__global__ void __launch_bounds__(kThreads)
    roi_align_forward(RoiAlignProblem p, TapsMemory memory, Layout<Index> layout,
                      const T* __restrict__ input, T* __restrict__ output) {
  using C = compute_t<T>;
  const int64_t num_work = p.num_rois * layout.slices;
  const int width = static_cast<int>(p.pooled_width);
  const int num_bins = static_cast<int>(p.pooled_height) * width;
  for (int64_t work = blockIdx.x; work < num_work; work += gridDim.x) {
    const int64_t roi = work / layout.slices;
    const int first = static_cast<int>(work - roi * layout.slices) * layout.slice_channels;
    const int channels = slice_packs<1>(p, layout, first);
    RoiAlignTaps<C> taps;
    make_taps(p, memory, roi, taps);
    const T* from = input + (taps.usable ? static_cast<Index>(taps.image) * layout.map.image : 0);
    T* to = output + static_cast<Index>(roi) * layout.pooled.image;

    for (int item = threadIdx.x; item < num_bins * channels; item += blockDim.x) {
      int bin, channel;
      split(p.channels_last, item, num_bins, channels, bin, channel);
      const int y = bin / width, x = bin - y * width;
      channel += first;
      C value = static_cast<C>(NAN);
      if (taps.usable)
        value = pool<T, Index>(taps, taps.y.output_bin(y), taps.x.output_bin(x),
                               from + channel * layout.map.channel, layout.map);
      to[channel * layout.pooled.channel + y * layout.pooled.y + x * layout.pooled.x] =
          narrow<T>(value);
    }
  }
}

// ---- backward --------------------------------------------------------------------------------

// The gradient that one roi has for one pixel (its row and column among the slots) and kPack
// channels; `grad` is that of these channels.
template <typename T, typename Index, int kPack>
__device__ __forceinline__ void gather(const RoiAlignTaps<compute_t<T>>& taps, int row, int column,
                                       const T* __restrict__ grad, const Strides<Index>& pooled,
                                       compute_t<T>* sum) {
  using C = compute_t<T>;
  const RoiAlignAxis<C>&y = taps.y, &x = taps.x;
#pragma unroll
  for (int k = 0; k < kPack; ++k) sum[k] = C(0);
  const int first_x = x.first_bin[column], last_x = x.last_bin[column];
  for (int i = y.first_bin[row]; i <= y.last_bin[row]; ++i) {
    const C weight_y = y.weight_of(i, row);
    const T* bins = grad + y.output_bin(i) * pooled.y;
    for (int j = first_x; j <= last_x; ++j) {
      const C weight = weight_y * x.weight_of(j, column);
      const auto values =
          *reinterpret_cast<const Pack<T, kPack>*>(bins + x.output_bin(j) * pooled.x);
#pragma unroll
      for (int k = 0; k < kPack; ++k) sum[k] += weight * widen(values.values[k]);
    }
  }
}

// Adds the gradient of one roi to the rows [row_begin, row_end) and the channels of a slice.
template <typename T, typename Index, int kPack, bool atomic>
__device__ __forceinline__ void spread_roi(const RoiAlignProblem& p, const Layout<Index>& layout,
                                           const RoiAlignTaps<compute_t<T>>& taps, int64_t roi,
                                           int first, int row_begin, int row_end,
                                           const T* __restrict__ grad,
                                           compute_t<T>* __restrict__ grad_input) {
  using C = compute_t<T>;
  const RoiAlignAxis<C>&y = taps.y, &x = taps.x;
  const int packs = slice_packs<kPack>(p, layout, first);
  // the slots, in growing order of their pixels, of these rows
  int slot_begin = 0, slot_end = y.num_slots();
  while (slot_begin < slot_end && y.pixel[slot_begin] < row_begin) ++slot_begin;
  while (slot_begin < slot_end && y.pixel[slot_end - 1] >= row_end) --slot_end;
  const int columns = x.num_slots();
  if (columns == 0) return;
  const T* from = grad + static_cast<Index>(roi) * layout.pooled.image;
  C* to = grad_input + static_cast<Index>(taps.image) * layout.map.image;

  // as many rows at a time as leave the work items countable in 32 bits, which is nearly always all
  const int most_rows = max(1, (1 << 30) / (columns * packs));
  for (; slot_begin < slot_end; slot_begin += most_rows) {
    const int cells = min(most_rows, slot_end - slot_begin) * columns;
    for (int item = threadIdx.x; item < cells * packs; item += blockDim.x) {
      int cell, pack;
      split(p.channels_last, item, cells, packs, cell, pack);
      const int row = cell / columns, column = cell - row * columns, slot = slot_begin + row;
      const Index channel = first + pack * kPack;
      C sum[kPack];
      gather<T, Index, kPack>(taps, slot, column, from + channel * layout.pooled.channel,
                              layout.pooled, sum);
      C* pixel = to + channel * layout.map.channel + y.pixel[slot] * layout.map.y +
                 x.pixel[column] * layout.map.x;
#pragma unroll
      for (int k = 0; k < kPack; ++k) {
        if (atomic) {
          atomic_add(pixel + k, sum[k]);
        } else {
          pixel[k] += sum[k];
        }
      }
    }
  }
}

template <typename T, typename Index>
__global__ void __launch_bounds__(kThreads)
    roi_align_backward(RoiAlignProblem p, TapsMemory memory, Layout<Index> layout,
                       const T* __restrict__ grad, compute_t<T>* __restrict__ grad_input) {
  const int64_t num_work = p.num_rois * layout.slices;
  for (int64_t work = blockIdx.x; work < num_work; work += gridDim.x) {
    const int64_t roi = work / layout.slices;
    const int first = static_cast<int>(work - roi * layout.slices) * layout.slice_channels;
    RoiAlignTaps<compute_t<T>> taps;
    make_taps(p, memory, roi, taps);
    if (!taps.usable) continue;
    spread_roi<T, Index, 1, true>(p, layout, taps, roi, first, 0, static_cast<int>(p.height), grad,
                                  grad_input);
  }
}

// Whether no point of the roi touches the rows [row_begin, row_end); cheaper than its taps.
template <typename C>
__device__ bool is_elsewhere(const RoiAlignProblem& p, int64_t roi, int64_t image, int row_begin,
                             int row_end) {
  const C* values = static_cast<const C*>(p.rois) + 5 * roi;
  if (!(values[0] >= static_cast<C>(image) && values[0] < static_cast<C>(image + 1))) return true;
  const auto grid = roi_align_grid(values[2], values[4], static_cast<C>(p.spatial_scale), p.aligned,
                                   static_cast<int>(p.pooled_height),
                                   static_cast<int>(p.sampling_ratio), static_cast<int>(p.height));
  if (grid.end <= grid.begin) return true;
  // a point touches pixels that are at most 1 from it
  return roi_align_position(grid, grid.begin) > static_cast<C>(row_end) ||
         roi_align_position(grid, grid.end - 1) < static_cast<C>(row_begin - 1);
}

template <typename T, typename Index, int kPack>
__global__ void __launch_bounds__(kThreads)
    roi_align_backward_ordered(RoiAlignProblem p, TapsMemory memory, Layout<Index> layout,
                               int num_bands, const T* __restrict__ grad,
                               compute_t<T>* __restrict__ grad_input) {
  using C = compute_t<T>;
  const int64_t num_work = p.num_images * num_bands * layout.slices;
  for (int64_t work = blockIdx.x; work < num_work; work += gridDim.x) {
    const int64_t band = work / layout.slices, image = band / num_bands;
    const int first = static_cast<int>(work - band * layout.slices) * layout.slice_channels;
    const int row_begin = static_cast<int>(band - image * num_bands) * kBandRows;
    const int row_end = row_begin + kBandRows;
    for (int64_t roi = 0; roi < p.num_rois; ++roi) {
      if (is_elsewhere<C>(p, roi, image, row_begin, row_end)) continue;
      // waits for the block, so that all of the roi before has been added
      RoiAlignTaps<C> taps;
      make_taps(p, memory, roi, taps);
      if (!taps.usable) continue;
      spread_roi<T, Index, kPack, false>(p, layout, taps, roi, first, row_begin, row_end, grad,
                                         grad_input);
    }
  }
}

// ---- launches --------------------------------------------------------------------------------

struct Launch {
  unsigned blocks;
  size_t shared_bytes;
  TapsMemory memory;
};

Launch launch_of(const RoiAlignProblem& p, int64_t num_work, void* scratch) {
  const int64_t bytes = taps_bytes(p);
  if (bytes <= kSharedBytes)
    return {grid_size(num_work, 1), static_cast<size_t>(bytes), {nullptr, bytes}};
  const unsigned blocks = grid_size(num_work, 1);
  return {blocks < kScratchBlocks ? blocks : kScratchBlocks, 0,
          {static_cast<unsigned char*>(scratch), bytes}};
}

template <typename Index>
Layout<Index> layout_of(const RoiAlignProblem& p, int pack) {
  const int64_t slice = p.channels_last ? kLanes * pack : kPlanes;
  return {strides_of<Index>(p.channels_last, p.channels, p.height, p.width),
          strides_of<Index>(p.channels_last, p.channels, p.pooled_height, p.pooled_width),
          static_cast<int>(ceil_div<int64_t>(p.channels, slice)), static_cast<int>(slice)};
}

template <typename T, typename Index>
const char* launch_forward(const RoiAlignProblem& p, const T* input, T* output, void* scratch,
                           cudaStream_t stream) {
  const Layout<Index> layout = layout_of<Index>(p, 1);
  const Launch launch = launch_of(p, p.num_rois * layout.slices, scratch);
  roi_align_forward<T, Index><<<launch.blocks, kThreads, launch.shared_bytes, stream>>>(
      p, launch.memory, layout, input, output);
  return launch_error();
}

template <typename T, typename Index>
const char* launch_backward(const RoiAlignProblem& p, const void* grad, void* grad_input,
                            void* scratch, cudaStream_t stream) {
  const Layout<Index> layout = layout_of<Index>(p, 1);
  const Launch launch = launch_of(p, p.num_rois * layout.slices, scratch);
  roi_align_backward<T, Index><<<launch.blocks, kThreads, launch.shared_bytes, stream>>>(
      p, launch.memory, layout, static_cast<const T*>(grad),
      static_cast<compute_t<T>*>(grad_input));
  return launch_error();
}

template <typename T, typename Index, int kPack>
const char* launch_backward_ordered(const RoiAlignProblem& p, const void* grad, void* grad_input,
                                    void* scratch, cudaStream_t stream) {
  const Layout<Index> layout = layout_of<Index>(p, kPack);
  const int num_bands = static_cast<int>(ceil_div<int64_t>(p.height, kBandRows));
  const Launch launch = launch_of(p, p.num_images * num_bands * layout.slices, scratch);
  roi_align_backward_ordered<T, Index, kPack>
      <<<launch.blocks, kThreads, launch.shared_bytes, stream>>>(
          p, launch.memory, layout, num_bands, static_cast<const T*>(grad),
          static_cast<compute_t<T>*>(grad_input));
  return launch_error();
}

// Whether all elements, and a few more, can be counted in 32 bits.
bool is_small(const RoiAlignProblem& p) {
  return p.num_images * p.channels * p.height * p.width < kMaxCount32 &&
         p.num_rois * p.channels * p.pooled_height * p.pooled_width < kMaxCount32;
}

// Whether packs of N channels lie at addresses of their size, in channels_last.
template <int N, typename T, typename Other>
bool fits_wide(const RoiAlignProblem& p, const T* one, const Other* other) {
  return p.channels_last && p.channels % N == 0 && fits_pack<T, N>(one) &&
         fits_pack<Other, N>(other);
}

template <typename T, typename Index>
const char* backward_of(const RoiAlignProblem& p, const void* grad, void* grad_input, bool ordered,
                        void* scratch, cudaStream_t stream) {
  constexpr int wide = WidePack<T>::value;
  if (ordered && p.channels_last && p.channels % wide == 0 &&
      fits_pack<T, wide>(static_cast<const T*>(grad)))
    return launch_backward_ordered<T, Index, wide>(p, grad, grad_input, scratch, stream);
  return ordered ? launch_backward_ordered<T, Index, 1>(p, grad, grad_input, scratch, stream)
                 : launch_backward<T, Index>(p, grad, grad_input, scratch, stream);
}

template <typename T>
const char* forward(const RoiAlignProblem& p, const void* input, void* output, void* scratch,
                    cudaStream_t stream) {
  const T* from = static_cast<const T*>(input);
  T* to = static_cast<T*>(output);
  const SlicePlan plan = slice_plan<T>(p, false);
  if (plan.usable && (plan.copied || fits_wide<WidePack<T>::value>(p, from, to)))
    return launch_slices(p, plan, from, to, scratch, stream);
  return is_small(p) ? launch_forward<T, int32_t>(p, from, to, scratch, stream)
                     : launch_forward<T, int64_t>(p, from, to, scratch, stream);
}

template <typename T>
const char* backward(const RoiAlignProblem& p, const void* grad, void* grad_input, bool ordered,
                     void* scratch, cudaStream_t stream) {
  const T* from = static_cast<const T*>(grad);
  compute_t<T>* sums = static_cast<compute_t<T>*>(grad_input);
  const SlicePlan plan = slice_plan<T>(p, true);
  if (!ordered && plan.usable && (plan.copied || fits_wide<WidePack<compute_t<T>>::value>(p, from, sums)))
    return launch_backward_slices(p, plan, from, sums, static_cast<T*>(grad_input), scratch,
                                  stream);
  return is_small(p) ? backward_of<T, int32_t>(p, grad, grad_input, ordered, scratch, stream)
                     : backward_of<T, int64_t>(p, grad, grad_input, ordered, scratch, stream);
}

template <typename T>
int64_t scratch_of(const RoiAlignProblem& p, bool of_backward, bool ordered) {
  const SlicePlan plan = slice_plan<T>(p, of_backward);
  if (plan.usable && plan.copied && !ordered) return plan.scratch_bytes;
  const int64_t bytes = taps_bytes(p);
  return bytes <= kSharedBytes ? 0 : bytes * kScratchBlocks;
}

template <typename T>
bool copies_planes(const RoiAlignProblem& p) {
  const SlicePlan plan = slice_plan<T>(p, true);
  return plan.usable && plan.copied;
}

}  // namespace

int64_t roi_align_cuda_scratch(const RoiAlignProblem& problem, bool backward, bool ordered) {
  return FCOS_DISPATCH(problem.dtype, scratch_of, problem, backward, ordered);
}

bool roi_align_backward_cuda_copies(const RoiAlignProblem& problem, bool ordered) {
  return !ordered && FCOS_DISPATCH(problem.dtype, copies_planes, problem);
}

const char* roi_align_cuda(const RoiAlignProblem& problem, const void* input, void* output,
                           void* scratch, void* stream) {
  return FCOS_DISPATCH(problem.dtype, forward, problem, input, output, scratch,
                       static_cast<cudaStream_t>(stream));
}

const char* roi_align_backward_cuda(const RoiAlignProblem& problem, const void* grad,
                                    void* grad_input, bool ordered, void* scratch, void* stream) {
  return FCOS_DISPATCH(problem.dtype, backward, problem, grad, grad_input, ordered, scratch,
                       static_cast<cudaStream_t>(stream));
}

}  // namespace fcos_core
