// CPU kernels of deformable position-sensitive RoI pooling, see deform_psroi_pooling.h.
//
// All three walk over rows of P bins of a class of a RoI, whose taps are computed once for all its
// channels. The forward pass shares out the rows. The gradient of the input shares out (image,
// channel) pairs, since RoIs overlap but an output channel owns its input channels; that of the
// offsets shares out (RoI, class) pairs, which own theirs. So there are no races, every sum has the
// same order for any number of threads, and nothing is added atomically.
#include "deform_psroi_pooling.h"

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace fcos_core {
namespace {

template <typename Scalar>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

// Steps, in elements, through [., channels, rows, columns].
struct Steps {
  int64_t outer, channel, row, column;
};

Steps steps_of(int64_t channels, int64_t rows, int64_t columns, bool channels_last) {
  if (channels_last) return {channels * rows * columns, 1, channels * columns, channels};
  return {channels * rows * columns, rows * columns, columns, 1};
}

// One bin: its taps, and the input channel of output channel 0.
template <typename T>
struct Bin {
  PsroiTaps<T> x, y;
  PsroiTapCount x_count, y_count;
  int64_t group;

  bool undefined() const { return x_count.inside < 0 || y_count.inside < 0; }
  int64_t samples() const {
    return undefined() ? 0 : static_cast<int64_t>(x_count.inside) * y_count.inside;
  }
  // The output where no sample counts.
  T empty_value() const { return undefined() ? std::numeric_limits<T>::quiet_NaN() : T(0); }
};

// The bins of one row of a class of a RoI; one object serves a thread for all its rows.
template <typename T>
class BinRow {
 public:
  BinRow(const PsroiProblem& problem, bool slopes)
      : problem_(problem), taps_(2 * problem.sample_per_part), bins_(problem.pooled_size) {
    const size_t size = static_cast<size_t>(2 * taps_ * problem.pooled_size);
    cells_.resize(size);
    weights_.resize(size);
    if (slopes) slopes_.resize(size);
  }

  const std::vector<Bin<T>>& fill(int64_t roi, int64_t cls, int64_t ph) {
    const PsroiFrame<T> frame = psroi_frame<T>(problem_, roi, cls);
    for (int64_t pw = 0; pw < problem_.pooled_size; ++pw) {
      Bin<T>& bin = bins_[pw];
      bin.x = space(2 * pw);
      bin.y = space(2 * pw + 1);
      bin.x_count = psroi_taps(problem_, frame, ph, pw, /*along_x=*/true, bin.x);
      bin.y_count = psroi_taps(problem_, frame, ph, pw, /*along_x=*/false, bin.y);
      bin.group = psroi_group(problem_, ph, pw);
    }
    return bins_;
  }

 private:
  PsroiTaps<T> space(int64_t axis) {
    const int64_t at = axis * taps_;
    return {&cells_[at], &weights_[at], slopes_.empty() ? nullptr : &slopes_[at], 1};
  }

  const PsroiProblem& problem_;
  int64_t taps_;
  std::vector<Bin<T>> bins_;
  std::vector<int32_t> cells_;
  std::vector<T> weights_, slopes_;
};

// ---- loops over channels -----------------------------------------------------------------------
// Channels are the inner loop where they are innermost in memory. Plain overloads for float32,
// since compilers clone no templates.

template <typename From, typename To, typename T>
FCOS_INLINE void add_scaled_body(const From* from, int64_t from_step, To* to, int64_t to_step,
                                 int64_t count, T factor) {
  if (from_step == 1 && to_step == 1) {
    for (int64_t i = 0; i < count; ++i) to[i] += factor * static_cast<T>(from[i]);
  } else {
    for (int64_t i = 0; i < count; ++i)
      to[i * to_step] += factor * static_cast<T>(from[i * from_step]);
  }
}

// to[i] += factor * from[i]
FCOS_SIMD_CLONES void add_scaled(const float* from, int64_t from_step, float* to, int64_t to_step,
                                 int64_t count, float factor) {
  add_scaled_body(from, from_step, to, to_step, count, factor);
}

template <typename From, typename T>
void add_scaled(const From* from, int64_t from_step, T* to, int64_t to_step, int64_t count,
                T factor) {
  add_scaled_body(from, from_step, to, to_step, count, factor);
}

template <typename Scalar, typename T>
FCOS_INLINE T dot_body(const Scalar* a, const Scalar* b, int64_t b_step, int64_t count, T) {
  T lanes[8] = {};  // so that the additions need not wait for each other
  int64_t i = 0;
  if (b_step == 1) {
    for (; i + 8 <= count; i += 8)
      for (int64_t j = 0; j < 8; ++j)
        lanes[j] += static_cast<T>(a[i + j]) * static_cast<T>(b[i + j]);
  }
  for (; i < count; ++i) lanes[i % 8] += static_cast<T>(a[i]) * static_cast<T>(b[i * b_step]);
  return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) +
         ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

// sum of a[i] * b[i], in the type of the last argument
FCOS_SIMD_CLONES float dot(const float* a, const float* b, int64_t b_step, int64_t count,
                           float type) {
  return dot_body(a, b, b_step, count, type);
}

template <typename Scalar, typename T>
T dot(const Scalar* a, const Scalar* b, int64_t b_step, int64_t count, T type) {
  return dot_body(a, b, b_step, count, type);
}

// Items of at::parallel_for that are worth a thread, when one reads about `reads` numbers.
int64_t grain_of(int64_t reads) {
  return std::max<int64_t>(1, 65536 / std::max<int64_t>(1, reads));
}

// What all three passes need beside the problem: the steps, in elements, through input and output,
// and of the input from one output channel to the next.
struct Layout {
  Steps in, out;
  int64_t class_channels, input_step;

  explicit Layout(const PsroiProblem& p)
      : in(steps_of(p.output_dim * p.group_size * p.group_size, p.height, p.width,
                    p.channels_last)),
        out(steps_of(p.output_dim, p.pooled_size, p.pooled_size, p.channels_last)),
        class_channels(p.output_dim / p.num_classes),
        input_step(p.group_size * p.group_size * in.channel) {}

  // Of output channel d in a bin of an image.
  int64_t input_at(int64_t image, int64_t d, int64_t group) const {
    return image * in.outer + d * input_step + group * in.channel;
  }
  int64_t output_at(int64_t roi, int64_t d, int64_t ph, int64_t pw) const {
    return roi * out.outer + d * out.channel + ph * out.row + pw * out.column;
  }
};

template <typename T>
int64_t image_of(const PsroiProblem& p, int64_t roi) {
  return psroi_image(p, static_cast<const T*>(p.rois)[roi * 5]);
}

// ---- forward -----------------------------------------------------------------------------------

// Mean of one plane over a bin.
template <typename Scalar, typename T>
T pool_plane(const Bin<T>& bin, const Scalar* plane, const Steps& in) {
  const int64_t samples = bin.samples();
  if (samples == 0) return bin.empty_value();
  T sum = 0;
  for (int32_t i = 0; i < bin.y_count.taps; ++i) {
    const Scalar* row = plane + bin.y.cell[i] * in.row;
    T row_sum = 0;
    for (int32_t j = 0; j < bin.x_count.taps; ++j)
      row_sum += bin.x.weight[j] * static_cast<T>(row[bin.x.cell[j] * in.column]);
    sum += bin.y.weight[i] * row_sum;
  }
  return sum / static_cast<T>(samples);
}

// Means of `count` channels over a bin where channels are innermost; `sums` holds as many numbers.
template <typename Scalar, typename T>
void pool_pixels(const Bin<T>& bin, const Scalar* input, const Layout& at, int64_t count, T* sums,
                 Scalar* output) {
  const int64_t samples = bin.samples();
  std::fill(sums, sums + count, samples ? T(0) : bin.empty_value());
  if (samples) {
    for (int32_t i = 0; i < bin.y_count.taps; ++i)
      for (int32_t j = 0; j < bin.x_count.taps; ++j)
        add_scaled(input + bin.y.cell[i] * at.in.row + bin.x.cell[j] * at.in.column, at.input_step,
                   sums, int64_t(1), count, bin.y.weight[i] * bin.x.weight[j]);
  }
  const T divisor = static_cast<T>(samples ? samples : 1);
  for (int64_t d = 0; d < count; ++d) output[d] = static_cast<Scalar>(sums[d] / divisor);
}

template <typename Scalar>
void forward(const PsroiProblem& p, const Scalar* input, Scalar* output, int32_t* counts) {
  using T = typename Compute<Scalar>::type;
  const Layout at(p);
  const int64_t size = p.pooled_size;
  const auto rows = [&](int64_t begin, int64_t end) {
    BinRow<T> row(p, /*slopes=*/false);
    std::vector<T> sums(p.channels_last ? at.class_channels : 0);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t roi = item / size, ph = item % size, image = image_of<T>(p, roi);
      for (int64_t cls = 0; cls < p.num_classes; ++cls) {
        const std::vector<Bin<T>>& bins = row.fill(roi, cls, ph);
        const int64_t first = cls * at.class_channels, last = first + at.class_channels;
        for (int64_t pw = 0; pw < size; ++pw)
          counts[((roi * p.num_classes + cls) * size + ph) * size + pw] =
              static_cast<int32_t>(bins[pw].samples());
        if (p.channels_last) {
          for (int64_t pw = 0; pw < size; ++pw)
            pool_pixels(bins[pw], input + at.input_at(image, first, bins[pw].group), at,
                        at.class_channels, sums.data(), output + at.output_at(roi, first, ph, pw));
        } else {
          for (int64_t d = first; d < last; ++d)
            for (int64_t pw = 0; pw < size; ++pw)
              output[at.output_at(roi, d, ph, pw)] = static_cast<Scalar>(
                  pool_plane(bins[pw], input + at.input_at(image, d, bins[pw].group), at.in));
        }
      }
    }
  };
  at::parallel_for(0, p.num_rois * size, grain_of(16 * size * p.output_dim), rows);
}

// ---- gradient of the input ---------------------------------------------------------------------

// Adds what one output gives to the cells of its plane.
template <typename T>
void spread_plane(const Bin<T>& bin, T grad, T* plane, const Steps& in) {
  const int64_t samples = bin.samples();
  if (samples == 0) return;
  const T share = grad / static_cast<T>(samples);
  for (int32_t i = 0; i < bin.y_count.taps; ++i) {
    T* row = plane + bin.y.cell[i] * in.row;
    const T row_share = share * bin.y.weight[i];
    for (int32_t j = 0; j < bin.x_count.taps; ++j)
      row[bin.x.cell[j] * in.column] += row_share * bin.x.weight[j];
  }
}

// The same for `count` channels, where they are innermost.
template <typename Scalar, typename T>
void spread_pixels(const Bin<T>& bin, const Scalar* grad, T* grad_input, const Layout& at,
                   int64_t count) {
  const int64_t samples = bin.samples();
  if (samples == 0) return;
  const T share = T(1) / static_cast<T>(samples);
  for (int32_t i = 0; i < bin.y_count.taps; ++i)
    for (int32_t j = 0; j < bin.x_count.taps; ++j)
      add_scaled(grad, int64_t(1),
                 grad_input + bin.y.cell[i] * at.in.row + bin.x.cell[j] * at.in.column,
                 at.input_step, count, bin.y.weight[i] * bin.x.weight[j] * share);
}

// Output channels [first, last) of one image.
template <typename Scalar, typename T>
void spread_channels(const PsroiProblem& p, const Layout& at, int64_t image, int64_t first,
                     int64_t last, const Scalar* grad, T* grad_input, BinRow<T>& row) {
  for (int64_t roi = 0; roi < p.num_rois; ++roi) {
    if (image_of<T>(p, roi) != image) continue;
    for (int64_t cls = first / at.class_channels; cls * at.class_channels < last; ++cls) {
      const int64_t from = std::max(first, cls * at.class_channels);
      const int64_t to = std::min(last, (cls + 1) * at.class_channels);
      for (int64_t ph = 0; ph < p.pooled_size; ++ph) {
        const std::vector<Bin<T>>& bins = row.fill(roi, cls, ph);
        if (p.channels_last) {
          for (int64_t pw = 0; pw < p.pooled_size; ++pw)
            spread_pixels(bins[pw], grad + at.output_at(roi, from, ph, pw),
                          grad_input + at.input_at(image, from, bins[pw].group), at, to - from);
        } else {
          for (int64_t d = from; d < to; ++d)
            for (int64_t pw = 0; pw < p.pooled_size; ++pw)
              spread_plane(bins[pw], static_cast<T>(grad[at.output_at(roi, d, ph, pw)]),
                           grad_input + at.input_at(image, d, bins[pw].group), at.in);
        }
      }
    }
  }
}

template <typename Scalar, typename T>
void input_gradient(const PsroiProblem& p, const Scalar* grad, T* grad_input) {
  // there may be any number of images without cells
  if (p.height == 0 || p.width == 0) return;
  const Layout at(p);
  const int64_t reads = 16 * p.num_rois * p.pooled_size * p.pooled_size;
  const auto channels = [&](int64_t begin, int64_t end) {
    BinRow<T> row(p, /*slopes=*/false);
    while (begin < end) {
      const int64_t image = begin / p.output_dim, first = begin % p.output_dim;
      const int64_t last = std::min(p.output_dim, first + end - begin);
      spread_channels(p, at, image, first, last, grad, grad_input, row);
      begin += last - first;
    }
  };
  at::parallel_for(0, p.num_images * p.output_dim, grain_of(reads), channels);
}

// ---- gradient of the offsets -------------------------------------------------------------------

// d (sum over samples and channels of grad * sample) / d (position of the bin)
template <typename T>
struct Slopes {
  T x, y;
};

template <typename Scalar, typename T>
Slopes<T> slopes_of_plane(const Bin<T>& bin, T grad, const Scalar* plane, const Steps& in) {
  Slopes<T> sum{0, 0};
  for (int32_t i = 0; i < bin.y_count.taps; ++i) {
    const Scalar* row = plane + bin.y.cell[i] * in.row;
    T weighted = 0, sloped = 0;
    for (int32_t j = 0; j < bin.x_count.taps; ++j) {
      const T value = static_cast<T>(row[bin.x.cell[j] * in.column]);
      weighted += bin.x.weight[j] * value;
      sloped += bin.x.slope[j] * value;
    }
    sum.x += bin.y.weight[i] * sloped;
    sum.y += bin.y.slope[i] * weighted;
  }
  return {grad * sum.x, grad * sum.y};
}

template <typename Scalar, typename T>
Slopes<T> slopes_of_pixels(const Bin<T>& bin, const Scalar* grad, const Scalar* input,
                           const Layout& at, int64_t count) {
  Slopes<T> sum{0, 0};
  for (int32_t i = 0; i < bin.y_count.taps; ++i) {
    for (int32_t j = 0; j < bin.x_count.taps; ++j) {
      const T value = dot(grad, input + bin.y.cell[i] * at.in.row + bin.x.cell[j] * at.in.column,
                          at.input_step, count, T(0));
      sum.x += bin.y.weight[i] * bin.x.slope[j] * value;
      sum.y += bin.y.slope[i] * bin.x.weight[j] * value;
    }
  }
  return sum;
}

// Adds the slopes of the row of bins that `row` was filled with to x and y [A, A].
template <typename Scalar, typename T>
void add_slopes(const PsroiProblem& p, const Layout& at, int64_t roi, int64_t cls, int64_t ph,
                const std::vector<Bin<T>>& bins, const Scalar* grad, const Scalar* input, T* x,
                T* y) {
  const PsroiFrame<T> frame = psroi_frame<T>(p, roi, cls);
  const int64_t image = image_of<T>(p, roi), first = cls * at.class_channels;
  for (int64_t pw = 0; pw < p.pooled_size; ++pw) {
    const Bin<T>& bin = bins[pw];
    if (bin.samples() == 0) continue;
    Slopes<T> sum{0, 0};
    if (p.channels_last) {
      sum = slopes_of_pixels(bin, grad + at.output_at(roi, first, ph, pw),
                             input + at.input_at(image, first, bin.group), at, at.class_channels);
    } else {
      for (int64_t d = first; d < first + at.class_channels; ++d) {
        const Slopes<T> slopes =
            slopes_of_plane(bin, static_cast<T>(grad[at.output_at(roi, d, ph, pw)]),
                            input + at.input_at(image, d, bin.group), at.in);
        sum.x += slopes.x;
        sum.y += slopes.y;
      }
    }
    const T factor = static_cast<T>(p.trans_std) / static_cast<T>(bin.samples());
    const int64_t part = psroi_part(p, ph, pw);
    x[part] += sum.x * factor * frame.x.extent;
    y[part] += sum.y * factor * frame.y.extent;
  }
}

template <typename Scalar, typename T>
void trans_gradient(const PsroiProblem& p, const Scalar* grad, const Scalar* input, T* grad_trans) {
  const Layout at(p);
  const int64_t parts = p.part_size * p.part_size;
  const int64_t reads = 16 * p.pooled_size * p.pooled_size * at.class_channels;
  const auto classes = [&](int64_t begin, int64_t end) {
    BinRow<T> row(p, /*slopes=*/true);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t roi = item / p.num_classes, cls = item % p.num_classes;
      T* x = grad_trans + item * 2 * parts;
      for (int64_t ph = 0; ph < p.pooled_size; ++ph)
        add_slopes(p, at, roi, cls, ph, row.fill(roi, cls, ph), grad, input, x, x + parts);
    }
  };
  at::parallel_for(0, p.num_rois * p.num_classes, grain_of(reads), classes);
}

// Calls action(Scalar()) with the C++ type of a DType.
template <typename Action>
void with_scalar(DType dtype, const Action& action) {
  switch (dtype) {
    case DType::float64: return action(double());
    case DType::float32: return action(float());
    case DType::float16: return action(c10::Half());
    case DType::bfloat16: return action(c10::BFloat16());
  }
}

}  // namespace

void deform_psroi_pooling_cpu(const PsroiProblem& problem, const void* input, void* output,
                              int32_t* counts) {
  with_scalar(problem.dtype, [&](auto scalar) {
    using Scalar = decltype(scalar);
    forward(problem, static_cast<const Scalar*>(input), static_cast<Scalar*>(output), counts);
  });
}

void deform_psroi_pooling_backward_cpu(const PsroiProblem& problem, const void* grad,
                                       const void* input, void* grad_input, void* grad_trans) {
  with_scalar(problem.dtype, [&](auto scalar) {
    using Scalar = decltype(scalar);
    using T = typename Compute<Scalar>::type;
    const Scalar* g = static_cast<const Scalar*>(grad);
    input_gradient(problem, g, static_cast<T*>(grad_input));
    if (problem.trans)
      trans_gradient(problem, g, static_cast<const Scalar*>(input), static_cast<T*>(grad_trans));
  });
}

}  // namespace fcos_core
