// CUDA kernels of deformable convolution, see deform_conv.h.
//
// Work split: a team of 1 to 32 lanes of a warp takes one sample, that is one (output position,
// deformable group, tap), and its lanes the packs of that group's channels, which lie side by side.
// The point is worked out once per lane and serves all its packs, kLanePacks of them where there are
// as many; four reads and one write per pack are contiguous over the team. Samples follow one another
// as the columns do, so neighbouring teams write neighbouring memory and read cells that the caches
// hold.
//
// The backward has two parts, while a part of the columns holds their gradient:
//
// 1. The gradient of the input. A sample adds to four cells, and a cell gets about as many terms as
//    the kernel has taps, four times over. Adding them up in memory, atomically, is what limits such
//    kernels, so terms are listed by cell instead: each sample takes a place in the lists of its
//    cells (an integer addition for all channels), then the lists get their room one behind another,
//    and are filled with (row of the columns, weight). A team then owns a cell, reads the rows of its
//    list and writes the sum once.
// 2. Gradients of offset and mask: sums over the channels of a sample, by shuffles in its team, while
//    the column takes the place of its gradient for the matrix product that follows.
//
// Where the lists would take too much memory, part 2 does part 1's work by atomic additions of four
// floats at a time.
#include "deform_conv.h"

namespace fcos_core {
namespace {

constexpr int kLanePacks = 8;

// Division of numbers below 2^31 by one that is known before the launch, in three instructions
// (Granlund and Montgomery, Division by Invariant Integers using Multiplication, 1994).
struct Divider {
  uint32_t divisor, factor, shift;

  explicit Divider(int64_t by) : divisor(static_cast<uint32_t>(by)), shift(0) {
    while ((uint64_t(1) << shift) < divisor) ++shift;
    factor = static_cast<uint32_t>(
        ((((uint64_t(1) << shift) - divisor) << 32) / divisor) + 1);
  }

  // Returns the remainder and makes `number` the quotient.
  __device__ __forceinline__ int32_t divide(int32_t& number) const {
    const uint32_t n = static_cast<uint32_t>(number);
    const uint32_t quotient = (__umulhi(n, factor) + n) >> shift;
    number = static_cast<int32_t>(quotient);
    return static_cast<int32_t>(n - quotient * divisor);
  }
};

// A part of the output positions. Its samples fit into 32 bits: they are at most as many as the
// elements of its columns, or as there are deformable groups and taps.
struct Part {
  int64_t first_image;
  int32_t first;  // position in that image
  int32_t samples;
  int32_t lanes;  // of a team, a power of two
  Divider kernel_width, kernel_height, deformable_groups, positions, out_width, group_size;

  Part(const DeformConvProblem& p, int64_t begin, int32_t count, int pack, int lane_packs)
      : lanes(1),
        kernel_width(p.kernel_width),
        kernel_height(p.kernel_height),
        deformable_groups(p.deformable_groups),
        positions(int64_t(p.out_height) * p.out_width),
        out_width(p.out_width),
        group_size(p.channels < p.groups ? 1 : p.channels / p.groups) {
    const int64_t per_image = int64_t(p.out_height) * p.out_width;
    first_image = begin / per_image;
    first = static_cast<int32_t>(begin % per_image);
    samples = static_cast<int32_t>(count * p.deformable_groups * p.kernel_height * p.kernel_width);
    const int64_t packs = p.channels / p.deformable_groups / pack;
    while (lanes < 32 && lanes * lane_packs < packs) lanes *= 2;
  }
};

// What sample `index` of a part is, and its row in the columns.
__device__ __forceinline__ TapIndex sample_at(const Part& part, int32_t index, int32_t& row) {
  TapIndex at;
  at.kernel_x = part.kernel_width.divide(index);
  at.kernel_y = part.kernel_height.divide(index);
  at.group = part.deformable_groups.divide(index);
  row = index;
  int32_t position = part.first + row;
  int32_t in_image = part.positions.divide(position);
  at.image = part.first_image + position;
  at.out_x = part.out_width.divide(in_image);
  at.out_y = in_image;
  return at;
}

template <typename C>
__device__ __forceinline__ C read_as(const void* data, int64_t index, DType dtype) {
  if (dtype == DType::float16) return widen(static_cast<const float16*>(data)[index]);
  if (dtype == DType::bfloat16) return widen(static_cast<const bfloat16*>(data)[index]);
  return static_cast<const C*>(data)[index];
}

template <typename C>
__device__ __forceinline__ Tap<C> tap_at(const DeformConvProblem& p, const TapIndex& at) {
  const int64_t channel = mask_channel(p, at), offset = index_of(p.offset, at, 2 * channel);
  const C y = read_as<C>(p.offset.data, offset, p.sampling_dtype);
  const C x = read_as<C>(p.offset.data, offset + p.offset.strides[1], p.sampling_dtype);
  const C scale =
      p.mask.data ? read_as<C>(p.mask.data, index_of(p.mask, at, channel), p.sampling_dtype) : C(1);
  return tap_with(p, at, y, x, scale);
}

// Index in the columns of channel `channel` of a sample.
__device__ __forceinline__ int64_t column_at(const DeformConvProblem& p, const Part& part,
                                             const TapIndex& at, int32_t row, int32_t channel) {
  int32_t group = channel;
  const int32_t in_group = part.group_size.divide(group);
  const int64_t tap = ((row * p.groups + group) * p.kernel_height + at.kernel_y) * p.kernel_width +
                      at.kernel_x;
  return tap * part.group_size.divisor + in_group;
}

// N channels of the four cells of a tap, widened; 0 outside the map. All reads come before the first
// number is used: if it were widened at once, one read would wait for the other.
template <int N, typename T>
__device__ __forceinline__ void load_cells(const T* __restrict__ image,
                                           const Tap<compute_t<T>>& tap, int64_t channels,
                                           int32_t channel, compute_t<T> (&values)[4][N]) {
  Pack<T, N> packs[4];
#pragma unroll
  for (int cell = 0; cell < 4; ++cell)
    packs[cell] = pack_or_zeros<T, N>(image + tap.pixel[cell] * channels + channel,
                                      tap.pixel[cell] >= 0);
#pragma unroll
  for (int cell = 0; cell < 4; ++cell) {
#pragma unroll
    for (int i = 0; i < N; ++i) values[cell][i] = widen(packs[cell].values[i]);
  }
}

template <int N, typename T>
__device__ __forceinline__ Pack<T, N> blended(const Tap<compute_t<T>>& tap,
                                              const compute_t<T> (&cells)[4][N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i)
    pack.values[i] =
        narrow<T>(tap.scale * (tap.weight[0] * cells[0][i] + tap.weight[1] * cells[1][i] +
                               tap.weight[2] * cells[2][i] + tap.weight[3] * cells[3][i]));
  return pack;
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads, sizeof(T) > 2 ? 1 : kResidentThreads / kThreads > 4 ? 5 : 4)
    columns_kernel(const DeformConvProblem p, const Part part, const T* __restrict__ input,
                   T* __restrict__ columns) {
  using C = compute_t<T>;
  const int32_t lane = threadIdx.x % part.lanes, teams = kThreads / part.lanes;
  const int32_t size = static_cast<int32_t>(p.channels / p.deformable_groups);
  for (int64_t index = int64_t(blockIdx.x) * teams + threadIdx.x / part.lanes;
       index < part.samples; index += int64_t(gridDim.x) * teams) {
    int32_t row;
    const TapIndex at = sample_at(part, static_cast<int32_t>(index), row);
    const Tap<C> tap = tap_at<C>(p, at);
    const T* image = input + at.image * p.height * p.width * p.channels;
    for (int32_t i = lane * N; i < size; i += part.lanes * N) {
      const int32_t channel = at.group * size + i;
      C cells[4][N];
      load_cells<N>(image, tap, p.channels, channel, cells);
      *reinterpret_cast<Pack<T, N>*>(columns + column_at(p, part, at, row, channel)) =
          blended<N, T>(tap, cells);
    }
  }
}

// The sum over the lanes of a team, in its first lane; all of the team, and nobody else, is here.
template <typename C>
__device__ __forceinline__ C team_sum(C value, int32_t lanes, unsigned team) {
  for (int32_t step = lanes / 2; step > 0; step /= 2)
    value += __shfl_down_sync(team, value, step, lanes);
  return value;
}

template <typename T, int N, bool with_input>
__global__ void __launch_bounds__(kThreads, with_input ? 1 : sizeof(T) == 4 ? 4 : 3)
    backward_kernel(const DeformConvProblem p, const Part part, const T* __restrict__ input,
                    const DeformConvGradients gradients, T* columns) {
  using C = compute_t<T>;
  const int32_t lane = threadIdx.x % part.lanes, teams = kThreads / part.lanes;
  const int32_t size = static_cast<int32_t>(p.channels / p.deformable_groups);
  // the lanes of this team within its warp
  const unsigned team = (part.lanes == 32 ? 0xffffffffu : (1u << part.lanes) - 1u)
                        << (threadIdx.x % 32 / part.lanes * part.lanes);
  for (int64_t index = int64_t(blockIdx.x) * teams + threadIdx.x / part.lanes;
       index < part.samples; index += int64_t(gridDim.x) * teams) {
    int32_t row;
    const TapIndex at = sample_at(part, static_cast<int32_t>(index), row);
    const Tap<C> tap = tap_at<C>(p, at);
    const int64_t image = at.image * p.height * p.width * p.channels;
    TapSums<C> sums = {C(0), C(0), C(0), C(0)};
    for (int32_t i = lane * N; i < size; i += part.lanes * N) {
      const int32_t channel = at.group * size + i;
      Pack<T, N>* column =
          reinterpret_cast<Pack<T, N>*>(columns + column_at(p, part, at, row, channel));
      const Pack<T, N> pack = *column;
      C cells[4][N], grad[N];
      load_cells<N>(input + image, tap, p.channels, channel, cells);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        grad[j] = widen(pack.values[j]);
        sums.value += grad[j] * cells[0][j];
        sums.top_step += grad[j] * (cells[1][j] - cells[0][j]);
        sums.left_step += grad[j] * (cells[2][j] - cells[0][j]);
        sums.right_step += grad[j] * (cells[3][j] - cells[1][j]);
      }
      *column = blended<N, T>(tap, cells);
      if (!with_input) continue;
      C* grad_image = static_cast<C*>(gradients.input) + image;
#pragma unroll
      for (int cell = 0; cell < 4; ++cell) {
        if (tap.pixel[cell] < 0) continue;
        C terms[N];
#pragma unroll
        for (int j = 0; j < N; ++j) terms[j] = tap.scale * tap.weight[cell] * grad[j];
        atomic_add_pack<N>(grad_image + tap.pixel[cell] * p.channels + channel, terms);
      }
    }
    sums.value = team_sum(sums.value, part.lanes, team);
    sums.top_step = team_sum(sums.top_step, part.lanes, team);
    sums.left_step = team_sum(sums.left_step, part.lanes, team);
    sums.right_step = team_sum(sums.right_step, part.lanes, team);
    if (lane == 0) store_gradients(p, gradients, at, tap, sums);
  }
}

// ---- gradient of the input by lists ------------------------------------------------------------

// A term of the sum of a cell: the tap in the columns of group 0 of the convolution, and its factor.
template <typename C>
struct Term {
  C factor;
  int32_t tap;
};

// Cells are counted (image of the part, deformable group, pixel). Lists lie one behind another in
// an order that varies.
template <typename C>
struct Lists {
  int64_t cells;
  int32_t pixels;    // of a map
  Divider map_size;  // the same
  int32_t* counts;   // [cells] terms of each
  int32_t* begins;   // [cells] where its list begins
  int32_t* used;     // [1] room that lists have taken
  int32_t* places;   // [samples, 4] in the list of each cell, -1: no term
  Term<C>* terms;    // [samples * 4]
};

// Calls use(cell of the part, index of the cell in the tap, factor) for the terms of a sample.
template <typename C, typename Use>
__device__ __forceinline__ void for_each_term(const DeformConvProblem& p, const Part& part,
                                              const Lists<C>& lists, const TapIndex& at,
                                              const Use& use) {
  const Tap<C> tap = tap_at<C>(p, at);
  const int64_t map =
      ((at.image - part.first_image) * p.deformable_groups + at.group) * lists.pixels;
#pragma unroll
  for (int cell = 0; cell < 4; ++cell) {
    const C factor = tap.scale * tap.weight[cell];
    use(tap.pixel[cell] < 0 || factor == C(0) ? -1 : map + tap.pixel[cell], cell, factor);
  }
}

template <typename C>
__global__ void __launch_bounds__(kThreads)
    count_terms(const DeformConvProblem p, const Part part, const Lists<C> lists) {
  FCOS_GRID_LOOP(int64_t, index, part.samples) {
    int32_t row;
    const TapIndex at = sample_at(part, static_cast<int32_t>(index), row);
    for_each_term<C>(p, part, lists, at, [&](int64_t cell, int i, C) {
      lists.places[4 * index + i] = cell < 0 ? -1 : atomicAdd(lists.counts + cell, 1);
    });
  }
}

// Room for the lists: one addition for a block of cells.
template <typename C>
__global__ void __launch_bounds__(kThreads) place_lists(const Lists<C> lists) {
  __shared__ int32_t sums[kThreads / 32];
  __shared__ int32_t first;
  const int64_t cell = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int32_t count = cell < lists.cells ? lists.counts[cell] : 0;
  const int32_t until = warp_prefix(count);  // including this one
  if (lane == 31) sums[warp] = until;
  __syncthreads();
  int32_t before = 0, all = 0;
  for (int w = 0; w < kThreads / 32; ++w) {
    if (w < warp) before += sums[w];
    all += sums[w];
  }
  if (threadIdx.x == 0) first = atomicAdd(lists.used, all);
  __syncthreads();
  if (cell < lists.cells) lists.begins[cell] = first + before + until - count;
}

template <typename C>
__global__ void __launch_bounds__(kThreads)
    fill_lists(const DeformConvProblem p, const Part part, const Lists<C> lists) {
  const int32_t taps = p.kernel_height * p.kernel_width;
  FCOS_GRID_LOOP(int64_t, index, part.samples) {
    int32_t row;
    const TapIndex at = sample_at(part, static_cast<int32_t>(index), row);
    const int32_t tap = row * static_cast<int32_t>(p.groups) * taps +
                        at.kernel_y * p.kernel_width + at.kernel_x;
    for_each_term<C>(p, part, lists, at, [&](int64_t cell, int i, C factor) {
      if (cell >= 0) lists.terms[lists.begins[cell] + lists.places[4 * index + i]] = {factor, tap};
    });
  }
}

// A team takes a cell. written: no other part has terms of it.
template <typename T, int N, bool written>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const DeformConvProblem p, const Part part, const Lists<compute_t<T>> lists,
                  const T* __restrict__ columns, void* grad_input) {
  using C = compute_t<T>;
  const int32_t lane = threadIdx.x % part.lanes, teams = kThreads / part.lanes;
  const int32_t size = static_cast<int32_t>(p.channels / p.deformable_groups);
  const int32_t taps = p.kernel_height * p.kernel_width;
  for (int64_t cell = int64_t(blockIdx.x) * teams + threadIdx.x / part.lanes; cell < lists.cells;
       cell += int64_t(gridDim.x) * teams) {
    const int32_t count = lists.counts[cell];
    if (!written && count == 0) continue;
    const Term<C>* terms = lists.terms + lists.begins[cell];
    int32_t map = static_cast<int32_t>(cell);
    const int32_t pixel = lists.map_size.divide(map);
    const int32_t group = part.deformable_groups.divide(map);  // map: the image within the part
    const int64_t to = ((part.first_image + map) * lists.pixels + pixel) * p.channels;
    for (int32_t i = lane * N; i < size; i += part.lanes * N) {
      const int32_t channel = group * size + i;
      int32_t conv_group = channel;
      const int32_t in_group = part.group_size.divide(conv_group);
      const T* from = columns + int64_t(conv_group) * taps * part.group_size.divisor + in_group;
      C sums[N];
#pragma unroll
      for (int j = 0; j < N; ++j) sums[j] = C(0);
#pragma unroll 4
      for (int32_t k = 0; k < count; ++k) {
        const Term<C> term = terms[k];
        const auto pack = *reinterpret_cast<const Pack<T, N>*>(
            from + int64_t(term.tap) * part.group_size.divisor);
#pragma unroll
        for (int j = 0; j < N; ++j) sums[j] += term.factor * widen(pack.values[j]);
      }
      if (written) {
        Pack<T, N> result;
#pragma unroll
        for (int j = 0; j < N; ++j) result.values[j] = narrow<T>(sums[j]);
        *reinterpret_cast<Pack<T, N>*>(static_cast<T*>(grad_input) + to + channel) = result;
        continue;
      }
      auto* sum = reinterpret_cast<Pack<C, N>*>(static_cast<C*>(grad_input) + to + channel);
      Pack<C, N> total = *sum;
#pragma unroll
      for (int j = 0; j < N; ++j) total.values[j] += sums[j];
      *sum = total;
    }
  }
}

int64_t samples_of(const DeformConvProblem& p, int64_t count) {
  return count * p.deformable_groups * p.kernel_height * p.kernel_width;
}

// Cells of the images that `count` positions can touch.
int64_t cells_of(const DeformConvProblem& p, int64_t count) {
  const int64_t images = (count - 1) / (int64_t(p.out_height) * p.out_width) + 2;
  return (images < p.num_images ? images : p.num_images) * p.deformable_groups * p.height * p.width;
}

int64_t aligned(int64_t bytes) { return ceil_div<int64_t>(bytes, 16) * 16; }

template <typename T>
int64_t lists_bytes(const DeformConvProblem& p, int64_t count) {
  const int64_t samples = samples_of(p, count), cells = cells_of(p, count);
  if (count == 0 || p.channels == 0 || cells == 0 || cells >= kMaxCount32 || 4 * samples >= kMaxCount32) return 0;
  const int64_t bytes = aligned(4 * (cells + 1)) + aligned(4 * cells) + 16 * samples +
                        4 * samples * static_cast<int64_t>(sizeof(Term<compute_t<T>>));
  return bytes <= kColumnBytesCuda ? bytes : 0;
}

// Cuts `memory` of lists_bytes into lists.
template <typename C>
Lists<C> lists_of(const DeformConvProblem& p, const Part& part, int32_t count, void* memory) {
  Lists<C> lists = {cells_of(p, count), p.height * p.width, Divider(int64_t(p.height) * p.width),
                    static_cast<int32_t*>(memory), nullptr, nullptr, nullptr, nullptr};
  unsigned char* bytes = static_cast<unsigned char*>(memory) + aligned(4 * (lists.cells + 1));
  lists.used = lists.counts + lists.cells;
  lists.begins = reinterpret_cast<int32_t*>(bytes);
  bytes += aligned(4 * lists.cells);
  lists.terms = reinterpret_cast<Term<C>*>(bytes);
  lists.places = reinterpret_cast<int32_t*>(bytes + 4 * int64_t(part.samples) * sizeof(Term<C>));
  return lists;
}

template <typename T, int N>
const char* gather_input(const DeformConvProblem& p, const Part& part, int64_t first, int32_t count,
                         const DeformConvGradients& gradients, const void* columns, void* memory,
                         cudaStream_t stream) {
  using C = compute_t<T>;
  Lists<C> lists = lists_of<C>(p, part, count, memory);
  // of the images of this part only
  const int64_t images = (part.first + count - 1) / (int64_t(p.out_height) * p.out_width) + 1;
  lists.cells = images * lists.pixels * p.deformable_groups;
  const char* error =
      error_text(cudaMemsetAsync(lists.counts, 0, aligned(4 * (cells_of(p, count) + 1)), stream));
  if (error) return error;
  const unsigned blocks = grid_size(part.samples);
  count_terms<C><<<blocks, kThreads, 0, stream>>>(p, part, lists);
  place_lists<C><<<static_cast<unsigned>(ceil_div<int64_t>(lists.cells, kThreads)), kThreads, 0,
                   stream>>>(lists);
  fill_lists<C><<<blocks, kThreads, 0, stream>>>(p, part, lists);
  const Part wide(p, first, count, N, 1);
  const unsigned cell_blocks = grid_size(lists.cells * wide.lanes);
  if (gradients.input_written) {
    gather_kernel<T, N, true><<<cell_blocks, kThreads, 0, stream>>>(
        p, wide, lists, static_cast<const T*>(columns), gradients.input);
  } else {
    gather_kernel<T, N, false><<<cell_blocks, kThreads, 0, stream>>>(
        p, wide, lists, static_cast<const T*>(columns), gradients.input);
  }
  return launch_error();
}

// ---- launches ----------------------------------------------------------------------------------

// Whether N channels at a time stay within one group of either kind and are aligned.
template <typename T, int N>
bool fits(const DeformConvProblem& p, const void* columns) {
  return p.channels / p.groups % N == 0 && p.channels / p.deformable_groups % N == 0 &&
         fits_pack<T, N>(static_cast<const T*>(p.input)) &&
         fits_pack<T, N>(static_cast<const T*>(columns));
}

template <typename T, int N>
const char* launch_columns_of(const DeformConvProblem& p, int64_t first, int32_t count,
                              void* columns, cudaStream_t stream) {
  const Part part(p, first, count, N, kLanePacks);
  columns_kernel<T, N><<<grid_size(int64_t(part.samples) * part.lanes), kThreads, 0, stream>>>(
      p, part, static_cast<const T*>(p.input), static_cast<T*>(columns));
  return launch_error();
}

template <typename T>
const char* launch_columns(const DeformConvProblem& p, int64_t first, int32_t count, void* columns,
                           cudaStream_t stream) {
  constexpr int N = 16 / sizeof(T);
  return fits<T, N>(p, columns) ? launch_columns_of<T, N>(p, first, count, columns, stream)
                                : launch_columns_of<T, 1>(p, first, count, columns, stream);
}

template <typename T, int N>
const char* launch_backward_of(const DeformConvProblem& p, int64_t first, int32_t count,
                               const DeformConvGradients& gradients, void* columns, void* lists,
                               cudaStream_t stream) {
  const Part part(p, first, count, N, kLanePacks);
  const unsigned blocks = grid_size(int64_t(part.samples) * part.lanes);
  const T* input = static_cast<const T*>(p.input);
  if (!lists) {
    backward_kernel<T, N, true>
        <<<blocks, kThreads, 0, stream>>>(p, part, input, gradients, static_cast<T*>(columns));
    return launch_error();
  }
  const char* error = gather_input<T, N>(p, part, first, count, gradients, columns, lists, stream);
  if (error) return error;
  backward_kernel<T, N, false>
      <<<blocks, kThreads, 0, stream>>>(p, part, input, gradients, static_cast<T*>(columns));
  return launch_error();
}

template <typename T>
const char* launch_backward(const DeformConvProblem& p, int64_t first, int32_t count,
                            const DeformConvGradients& gradients, void* columns, void* lists,
                            cudaStream_t stream) {
  constexpr int N = 16 / sizeof(T);
  const bool aligned_input =
      gradients.input_written
          ? fits_pack<T, N>(static_cast<T*>(gradients.input))
          : fits_pack<compute_t<T>, N>(static_cast<compute_t<T>*>(gradients.input));
  return fits<T, N>(p, columns) && aligned_input
             ? launch_backward_of<T, N>(p, first, count, gradients, columns, lists, stream)
             : launch_backward_of<T, 1>(p, first, count, gradients, columns, lists, stream);
}

}  // namespace

const char* deform_conv_columns_cuda(const DeformConvProblem& problem, int64_t first, int32_t count,
                                     void* columns, void* stream) {
  if (problem.channels == 0) return nullptr;
  return FCOS_DISPATCH(problem.dtype, launch_columns, problem, first, count, columns,
                       static_cast<cudaStream_t>(stream));
}

int64_t deform_conv_lists_cuda(const DeformConvProblem& problem, int64_t count) {
  return FCOS_DISPATCH(problem.dtype, lists_bytes, problem, count);
}

const char* deform_conv_backward_cuda(const DeformConvProblem& problem, int64_t first,
                                      int32_t count, const DeformConvGradients& gradients,
                                      void* columns, void* lists, void* stream) {
  return FCOS_DISPATCH(problem.dtype, launch_backward, problem, first, count, gradients, columns,
                       lists, static_cast<cudaStream_t>(stream));
}

}  // namespace fcos_core
