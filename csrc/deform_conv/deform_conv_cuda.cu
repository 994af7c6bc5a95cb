// CUDA kernels of deformable convolution, see deform_conv.h.
//
// Work split: a team of 1 to 32 lanes of a warp takes one sample, that is one (output position,
// deformable group, tap), and its lanes the packs of that group's channels, which lie side by side.
// The point is worked out once per lane and serves all its packs; four reads and one write per pack
// are contiguous over the team. Samples follow one another as the columns do, so neighbouring teams
// write neighbouring memory and read cells that the caches hold.
//
// The backward does all at once while a pack of the gradient of the columns is in registers: it
// adds to the gradient of the input (atomically, four floats at a time where the GPU can), sums for the
// gradients of offset and mask (shuffles in the team, no atomics), and puts the column in place of
// its gradient for the matrix product that follows.
#include "deform_conv.h"

namespace fcos_core {
namespace {

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

  Part(const DeformConvProblem& p, int64_t begin, int32_t count, int pack)
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
    while (lanes < 32 && lanes < p.channels / p.deformable_groups / pack) lanes *= 2;
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

// Index in the columns of channel `channel` of a sample.
__device__ __forceinline__ int64_t column_at(const DeformConvProblem& p, const Part& part,
                                             const TapIndex& at, int32_t row, int32_t channel) {
  int32_t group = channel;
  const int32_t in_group = part.group_size.divide(group);
  const int64_t tap = ((row * p.groups + group) * p.kernel_height + at.kernel_y) * p.kernel_width +
                      at.kernel_x;
  return tap * part.group_size.divisor + in_group;
}

// N channels of a cell, widened; 0 outside the map.
template <int N, typename T>
__device__ __forceinline__ void load_cell(const T* __restrict__ image, int32_t pixel,
                                          int64_t channels, int32_t channel,
                                          compute_t<T> (&values)[N]) {
  if (pixel < 0) {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = compute_t<T>(0);
    return;
  }
  const Pack<T, N> pack =
      *reinterpret_cast<const Pack<T, N>*>(image + pixel * channels + channel);
#pragma unroll
  for (int i = 0; i < N; ++i) values[i] = widen(pack.values[i]);
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
__global__ void __launch_bounds__(kThreads)
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
#pragma unroll
      for (int cell = 0; cell < 4; ++cell)
        load_cell<N>(image, tap.pixel[cell], p.channels, channel, cells[cell]);
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

template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
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
#pragma unroll
      for (int cell = 0; cell < 4; ++cell)
        load_cell<N>(input + image, tap.pixel[cell], p.channels, channel, cells[cell]);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        grad[j] = widen(pack.values[j]);
        sums.value += grad[j] * cells[0][j];
        sums.top_step += grad[j] * (cells[1][j] - cells[0][j]);
        sums.left_step += grad[j] * (cells[2][j] - cells[0][j]);
        sums.right_step += grad[j] * (cells[3][j] - cells[1][j]);
      }
      *column = blended<N, T>(tap, cells);
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
  const Part part(p, first, count, N);
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
                               const DeformConvGradients& gradients, void* columns,
                               cudaStream_t stream) {
  const Part part(p, first, count, N);
  backward_kernel<T, N><<<grid_size(int64_t(part.samples) * part.lanes), kThreads, 0, stream>>>(
      p, part, static_cast<const T*>(p.input), gradients, static_cast<T*>(columns));
  return launch_error();
}

template <typename T>
const char* launch_backward(const DeformConvProblem& p, int64_t first, int32_t count,
                            const DeformConvGradients& gradients, void* columns,
                            cudaStream_t stream) {
  constexpr int N = 16 / sizeof(T);
  return fits<T, N>(p, columns) && fits_pack<float, 4>(static_cast<float*>(gradients.input))
             ? launch_backward_of<T, N>(p, first, count, gradients, columns, stream)
             : launch_backward_of<T, 1>(p, first, count, gradients, columns, stream);
}

}  // namespace

const char* deform_conv_columns_cuda(const DeformConvProblem& problem, int64_t first, int32_t count,
                                     void* columns, void* stream) {
  if (problem.channels == 0) return nullptr;
  return FCOS_DISPATCH(problem.dtype, launch_columns, problem, first, count, columns,
                       static_cast<cudaStream_t>(stream));
}

const char* deform_conv_backward_cuda(const DeformConvProblem& problem, int64_t first,
                                      int32_t count, const DeformConvGradients& gradients,
                                      void* columns, void* stream) {
  return FCOS_DISPATCH(problem.dtype, launch_backward, problem, first, count, gradients, columns,
                       static_cast<cudaStream_t>(stream));
}

}  // namespace fcos_core
