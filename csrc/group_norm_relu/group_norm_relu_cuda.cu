// CUDA kernels of group normalisation with ReLU in channels_last, see group_norm_relu.h.
//
// Three kernels a pass: sums of each channel over a part of an image's pixels; what follows from
// them for each channel; and the map, element by element. In the first and the last a thread keeps
// to a pack of 16 bytes of channels and walks over pixels, so that the numbers of its channels stay
// in registers, and neighbouring threads have neighbouring packs. The map is read twice, which no
// kernel can avoid that does not hold an image on the chip.
#include "group_norm_relu.h"

namespace fcos_core {
namespace {

constexpr int kParts = 128;  // of an image, at most; a part is a block
constexpr int kLeast = 16;   // pixels that are worth a thread's while

template <typename T>
struct Wide {
  static constexpr int value = 16 / sizeof(T);
};

// How a block of kThreads looks at [pixels, channels]: `across` threads next to each other take
// packs of channels, `down` of them pixels.
struct Shape {
  int64_t pixels;
  int packs, across, down;
  int parts, part_pixels;
};

Shape shape_of(const GroupNormProblem& p, int wide) {
  Shape shape;
  shape.pixels = p.pixels;
  shape.packs = static_cast<int>(p.channels / wide);
  shape.across = 1;
  while (shape.across < shape.packs && shape.across < kThreads) shape.across *= 2;
  shape.down = kThreads / shape.across;
  const int64_t most = ceil_div<int64_t>(p.pixels, static_cast<int64_t>(shape.down) * kLeast);
  shape.parts = static_cast<int>(most < kParts ? most : kParts);
  shape.part_pixels = static_cast<int>(ceil_div<int64_t>(p.pixels, shape.parts));
  return shape;
}

// Numbers of a channel of an image.
template <typename C>
struct Pair {
  C first, second;
};

// Calls visit(pack of channels, first channel, pixel) for the elements of a thread, and done(...)
// after each pack of channels; all threads of a block go through it together.
template <typename Visit, typename Done>
__device__ __forceinline__ void walk(const Shape& shape, const Visit& visit, const Done& done) {
  const int column = threadIdx.x % shape.across, row = threadIdx.x / shape.across;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * shape.part_pixels;
  const int64_t end = min(begin + shape.part_pixels, shape.pixels);
  for (int first = 0; first < shape.packs; first += shape.across) {
    const int pack = first + column;
    if (pack < shape.packs) visit(pack, begin + row, end);
    done(pack, row);
  }
}

// The sum of each thread's numbers over the rows of threads, in row 0.
template <typename C, int N>
__device__ __forceinline__ void add_rows(const Shape& shape, Pair<C> (&sums)[N], int row) {
  __shared__ Pair<C> shared[kThreads];
#pragma unroll
  for (int k = 0; k < N; ++k) {
    __syncthreads();
    shared[threadIdx.x] = sums[k];
    __syncthreads();
    if (row == 0) {
      for (int other = 1; other < shape.down; ++other) {
        const Pair<C> more = shared[other * shape.across + threadIdx.x];
        sums[k].first += more.first;
        sums[k].second += more.second;
      }
    }
  }
}

// What a block leaves of a pack of channels in partials [image, part, channel].
template <typename C, int N>
__device__ __forceinline__ void leave_sums(const Shape& shape, Pair<C> (&sums)[N], int pack, int row,
                                           Pair<C>* partials) {
  if (pack >= shape.packs)
    for (int k = 0; k < N; ++k) sums[k] = {C(0), C(0)};
  add_rows(shape, sums, row);
  if (row > 0 || pack >= shape.packs) return;
  const int64_t part = blockIdx.y * static_cast<int64_t>(shape.parts) + blockIdx.x;
#pragma unroll
  for (int k = 0; k < N; ++k) partials[(part * shape.packs + pack) * N + k] = sums[k];
}

template <typename T, int N>
__device__ __forceinline__ Pack<T, N> load(const T* from, int64_t pixel, int packs, int pack) {
  return reinterpret_cast<const Pack<T, N>*>(from)[pixel * packs + pack];
}

// ---- forward ---------------------------------------------------------------------------------

// partials [image, part, channel]: sums of x - x0 and of its square, x0 the first value of the group.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    sum_values(const Shape shape, int group_size, const T* __restrict__ input,
               Pair<compute_t<T>>* partials) {
  using C = compute_t<T>;
  constexpr int N = Wide<T>::value;
  const T* image = input + blockIdx.y * shape.pixels * shape.packs * N;
  Pair<C> sums[N];
  walk(
      shape,
      [&](int pack, int64_t begin, int64_t end) {
        C base[N];
#pragma unroll
        for (int k = 0; k < N; ++k) {
          sums[k] = {C(0), C(0)};
          base[k] = widen(image[(pack * N + k) / group_size * group_size]);
        }
#pragma unroll 4
        for (int64_t pixel = begin; pixel < end; pixel += shape.down) {
          const Pack<T, N> values = load<T, N>(image, pixel, shape.packs, pack);
#pragma unroll
          for (int k = 0; k < N; ++k) {
            const C value = widen(values.values[k]) - base[k];
            sums[k].first += value;
            sums[k].second += value * value;
          }
        }
      },
      [&](int pack, int row) {
        leave_sums(shape, sums, pack, row, partials);
      });
}

// The sum of two numbers over the threads of a block of kFinishThreads, in all of them.
constexpr int kFinishThreads = 128;

__device__ __forceinline__ Pair<double> finish_sum(Pair<double> value) {
  __shared__ Pair<double> warps[kFinishThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) {
    value.first += __shfl_xor_sync(0xffffffffu, value.first, offset);
    value.second += __shfl_xor_sync(0xffffffffu, value.second, offset);
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  Pair<double> total = {0, 0};
  for (int w = 0; w < kFinishThreads / 32; ++w) {
    total.first += warps[w].first;
    total.second += warps[w].second;
  }
  return total;
}

// Where the block (group, image) finds its channels.
struct Group {
  int64_t image, size, first, index;

  __device__ __forceinline__ explicit Group(const GroupNormProblem& p)
      : image(blockIdx.y),
        size(p.channels / p.num_groups),
        first(blockIdx.x * size),
        index(image * p.num_groups + blockIdx.x) {}
};

// A block makes mean and rstd of a group of an image, and scale and shift of its channels.
template <typename T>
__global__ void __launch_bounds__(kFinishThreads)
    finish_moments(const GroupNormProblem p, int parts, const Pair<compute_t<T>>* partials,
                   compute_t<T>* mean, compute_t<T>* rstd, Pair<compute_t<T>>* affine) {
  using C = compute_t<T>;
  const Group group(p);
  const int size = static_cast<int>(group.size);
  Pair<double> sums = {0, 0};
#pragma unroll 4
  for (int i = threadIdx.x; i < parts * size; i += kFinishThreads) {
    const int part = i / size;
    const Pair<C> pair = partials[(group.image * parts + part) * p.channels + group.first + i -
                                  part * size];
    sums.first += pair.first;
    sums.second += pair.second;
  }
  sums = finish_sum(sums);
  const double count = static_cast<double>(p.pixels) * size, shift = sums.first / count;
  const double base = widen(static_cast<const T*>(
      p.input)[group.image * p.pixels * p.channels + group.first]);
  const double variance = sums.second / count - shift * shift;
  const C m = static_cast<C>(base + shift);
  // a NaN stays
  const C r = static_cast<C>(1 / sqrt((variance < 0 ? 0 : variance) + p.eps));
  if (threadIdx.x == 0) {
    mean[group.index] = m;
    rstd[group.index] = r;
  }
  for (int64_t channel = group.first + threadIdx.x; channel < group.first + size;
       channel += kFinishThreads) {
    const C scale = r * static_cast<const C*>(p.weight)[channel];
    affine[group.image * p.channels + channel] = {
        scale, static_cast<const C*>(p.bias)[channel] - m * scale};
  }
}

template <typename C>
__device__ __forceinline__ C normalised(C value, const Pair<C>& affine) {
  return value * affine.first + affine.second;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    normalise(const Shape shape, const T* __restrict__ input,
              const Pair<compute_t<T>>* __restrict__ affine, T* __restrict__ output) {
  using C = compute_t<T>;
  constexpr int N = Wide<T>::value;
  const int64_t first = blockIdx.y * shape.pixels * shape.packs * N;
  walk(
      shape,
      [&](int pack, int64_t begin, int64_t end) {
        Pair<C> numbers[N];
#pragma unroll
        for (int k = 0; k < N; ++k)
          numbers[k] = affine[(blockIdx.y * static_cast<int64_t>(shape.packs) + pack) * N + k];
#pragma unroll 4
        for (int64_t pixel = begin; pixel < end; pixel += shape.down) {
          Pack<T, N> values = load<T, N>(input + first, pixel, shape.packs, pack);
#pragma unroll
          for (int k = 0; k < N; ++k) {
            const C value = normalised(static_cast<C>(widen(values.values[k])), numbers[k]);
            values.values[k] = narrow<T>(value < C(0) ? C(0) : value);  // NaN stays
          }
          reinterpret_cast<Pack<T, N>*>(output + first)[pixel * shape.packs + pack] = values;
        }
      },
      [](int, int) {});
}

// ---- backward --------------------------------------------------------------------------------

// What the backward knows of a channel of an image. Not scale and shift, as in the forward, since
// these may be infinite where the normalised value is not.
template <typename C>
struct Channel {
  C mean, rstd, weight, bias;

  // (x - m) r
  __device__ __forceinline__ C normalised(C value) const { return (value - mean) * rstd; }
  // Whether the ReLU lets a gradient pass.
  __device__ __forceinline__ bool passes(C normalised) const {
    return normalised * weight + bias > C(0);
  }
};

template <typename C>
__device__ __forceinline__ Channel<C> channel_at(const GroupNormProblem& p, const C* mean,
                                                 const C* rstd, int64_t image, int64_t channel) {
  const int64_t group = image * p.num_groups + channel / (p.channels / p.num_groups);
  return {mean[group], rstd[group], static_cast<const C*>(p.weight)[channel],
          static_cast<const C*>(p.bias)[channel]};
}

// partials [image, part, channel]: sums of d and of d h.
template <typename T>
__global__ void __launch_bounds__(kThreads, 3)
    sum_gradients(const GroupNormProblem p, const Shape shape, const T* __restrict__ grad,
                  const compute_t<T>* mean, const compute_t<T>* rstd,
                  Pair<compute_t<T>>* partials) {
  using C = compute_t<T>;
  constexpr int N = Wide<T>::value;
  const int64_t offset = blockIdx.y * shape.pixels * shape.packs * N;
  const T* input = static_cast<const T*>(p.input) + offset;
  Pair<C> sums[N];
  walk(
      shape,
      [&](int pack, int64_t begin, int64_t end) {
        Channel<C> numbers[N];
#pragma unroll
        for (int k = 0; k < N; ++k) {
          numbers[k] = channel_at(p, mean, rstd, blockIdx.y, static_cast<int64_t>(pack) * N + k);
          sums[k] = {C(0), C(0)};
        }
#pragma unroll 2
        for (int64_t pixel = begin; pixel < end; pixel += shape.down) {
          const Pack<T, N> values = load<T, N>(input, pixel, shape.packs, pack);
          const Pack<T, N> grads = load<T, N>(grad + offset, pixel, shape.packs, pack);
#pragma unroll
          for (int k = 0; k < N; ++k) {
            const C h = numbers[k].normalised(widen(values.values[k]));
            const C d = numbers[k].passes(h) ? static_cast<C>(widen(grads.values[k])) : C(0);
            sums[k].first += d;
            sums[k].second += d * h;
          }
        }
      },
      [&](int pack, int row) {
        leave_sums(shape, sums, pack, row, partials);
      });
}

// A block adds up a group of an image: sums of its channels, and c1 / M and c2 / M. `across`: a power
// of two; as many threads take channels, the others parts of them.
template <typename T>
__global__ void __launch_bounds__(kFinishThreads)
    finish_gradients(const GroupNormProblem p, int parts, int across,
                     const Pair<compute_t<T>>* partials, compute_t<T>* sums,
                     Pair<compute_t<T>>* group_means) {
  using C = compute_t<T>;
  __shared__ Pair<double> rows[kFinishThreads];
  const Group group(p);
  const int column = threadIdx.x % across, row = threadIdx.x / across;
  Pair<double> weighted = {0, 0};
  for (int64_t offset = column; offset - column < group.size; offset += across) {
    const int64_t channel = group.first + offset;
    Pair<double> sum = {0, 0};
    if (offset < group.size) {
#pragma unroll 4
      for (int part = row; part < parts; part += kFinishThreads / across) {
        const Pair<C> pair = partials[(group.image * parts + part) * p.channels + channel];
        sum.first += pair.first;
        sum.second += pair.second;
      }
    }
    __syncthreads();
    rows[threadIdx.x] = sum;
    __syncthreads();
    if (row > 0 || offset >= group.size) continue;
    for (int other = column + across; other < kFinishThreads; other += across) {
      sum.first += rows[other].first;
      sum.second += rows[other].second;
    }
    sums[group.image * p.channels + channel] = static_cast<C>(sum.first);
    sums[(p.num_images + group.image) * p.channels + channel] = static_cast<C>(sum.second);
    const double weight = static_cast<const C*>(p.weight)[channel];
    weighted.first += weight * sum.first;
    weighted.second += weight * sum.second;
  }
  weighted = finish_sum(weighted);
  const double count = static_cast<double>(p.pixels) * group.size;
  if (threadIdx.x == 0)
    group_means[group.index] = {static_cast<C>(weighted.first / count),
                                static_cast<C>(weighted.second / count)};
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    spread_gradients(const GroupNormProblem p, const Shape shape, const T* __restrict__ grad,
                     const compute_t<T>* mean, const compute_t<T>* rstd,
                     const Pair<compute_t<T>>* __restrict__ group_means,
                     T* __restrict__ grad_input) {
  using C = compute_t<T>;
  constexpr int N = Wide<T>::value;
  const int64_t offset = blockIdx.y * shape.pixels * shape.packs * N;
  const T* input = static_cast<const T*>(p.input) + offset;
  walk(
      shape,
      [&](int pack, int64_t begin, int64_t end) {
        Channel<C> numbers[N];
        Pair<C> means[N];  // c1 / M and c2 / M
#pragma unroll
        for (int k = 0; k < N; ++k) {
          const int64_t channel = static_cast<int64_t>(pack) * N + k;
          numbers[k] = channel_at(p, mean, rstd, blockIdx.y, channel);
          means[k] = group_means[blockIdx.y * p.num_groups + channel / (p.channels / p.num_groups)];
        }
#pragma unroll 2
        for (int64_t pixel = begin; pixel < end; pixel += shape.down) {
          const Pack<T, N> values = load<T, N>(input, pixel, shape.packs, pack);
          Pack<T, N> grads = load<T, N>(grad + offset, pixel, shape.packs, pack);
#pragma unroll
          for (int k = 0; k < N; ++k) {
            const C h = numbers[k].normalised(widen(values.values[k]));
            const C d = numbers[k].passes(h) ? static_cast<C>(widen(grads.values[k])) : C(0);
            grads.values[k] = narrow<T>(numbers[k].rstd * (numbers[k].weight * d - means[k].first -
                                                           h * means[k].second));
          }
          reinterpret_cast<Pack<T, N>*>(grad_input + offset)[pixel * shape.packs + pack] = grads;
        }
      },
      [](int, int) {});
}

// ---- launches --------------------------------------------------------------------------------

template <typename T>
bool fits(const GroupNormProblem& p, const void* other) {
  constexpr int N = Wide<T>::value;
  return p.channels % N == 0 && p.channels / N < (int64_t(1) << 20) && p.num_images < 65536 &&
         p.pixels > 0 && p.pixels < (int64_t(1) << 31) && p.num_images * p.channels > 0 &&
         p.channels < (int64_t(1) << 23) &&
         fits_pack<T, N>(static_cast<const T*>(p.input)) &&
         fits_pack<T, N>(static_cast<const T*>(other));
}

template <typename T>
int64_t scratch_of(const GroupNormProblem& p) {
  const Shape shape = shape_of(p, Wide<T>::value);
  return 2 * p.num_images * p.channels * (shape.parts + 1);
}

dim3 groups_grid(const GroupNormProblem& p) {
  return dim3(static_cast<unsigned>(p.num_groups), static_cast<unsigned>(p.num_images));
}

template <typename T>
const char* forward(const GroupNormProblem& p, void* output, void* mean, void* rstd, void* scratch,
                    cudaStream_t stream) {
  using C = compute_t<T>;
  const Shape shape = shape_of(p, Wide<T>::value);
  const dim3 grid(shape.parts, static_cast<unsigned>(p.num_images));
  const T* input = static_cast<const T*>(p.input);
  Pair<C>* partials = static_cast<Pair<C>*>(scratch);
  Pair<C>* affine = partials + p.num_images * p.channels * shape.parts;
  sum_values<T><<<grid, kThreads, 0, stream>>>(
      shape, static_cast<int>(p.channels / p.num_groups), input, partials);
  finish_moments<T><<<groups_grid(p), kFinishThreads, 0, stream>>>(
      p, shape.parts, partials, static_cast<C*>(mean), static_cast<C*>(rstd), affine);
  normalise<T><<<grid, kThreads, 0, stream>>>(shape, input, affine, static_cast<T*>(output));
  return launch_error();
}

template <typename T>
const char* backward(const GroupNormProblem& p, const void* grad, const void* mean,
                     const void* rstd, void* grad_input, void* sums, void* scratch,
                     cudaStream_t stream) {
  using C = compute_t<T>;
  const Shape shape = shape_of(p, Wide<T>::value);
  const dim3 grid(shape.parts, static_cast<unsigned>(p.num_images));
  const T* from = static_cast<const T*>(grad);
  const C *m = static_cast<const C*>(mean), *r = static_cast<const C*>(rstd);
  Pair<C>* partials = static_cast<Pair<C>*>(scratch);
  Pair<C>* group_means = partials + p.num_images * p.channels * shape.parts;
  sum_gradients<T><<<grid, kThreads, 0, stream>>>(p, shape, from, m, r, partials);
  int across = 1;
  while (across < kFinishThreads && across < p.channels / p.num_groups) across *= 2;
  finish_gradients<T><<<groups_grid(p), kFinishThreads, 0, stream>>>(
      p, shape.parts, across, partials, static_cast<C*>(sums), group_means);
  spread_gradients<T><<<grid, kThreads, 0, stream>>>(p, shape, from, m, r, group_means,
                                                     static_cast<T*>(grad_input));
  return launch_error();
}

}  // namespace

bool group_norm_relu_fits(const GroupNormProblem& problem, const void* other) {
  return FCOS_DISPATCH(problem.dtype, fits, problem, other);
}

int64_t group_norm_relu_scratch(const GroupNormProblem& problem) {
  return FCOS_DISPATCH(problem.dtype, scratch_of, problem);
}

const char* group_norm_relu_cuda(const GroupNormProblem& problem, void* output, void* mean,
                                 void* rstd, void* scratch, void* stream) {
  return FCOS_DISPATCH(problem.dtype, forward, problem, output, mean, rstd, scratch,
                       static_cast<cudaStream_t>(stream));
}

const char* group_norm_relu_backward_cuda(const GroupNormProblem& problem, const void* grad,
                                          const void* mean, const void* rstd, void* grad_input,
                                          void* sums, void* scratch, void* stream) {
  return FCOS_DISPATCH(problem.dtype, backward, problem, grad, mean, rstd, grad_input, sums,
                       scratch, static_cast<cudaStream_t>(stream));
}

}  // namespace fcos_core
