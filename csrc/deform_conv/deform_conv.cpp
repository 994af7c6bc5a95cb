// Schema, checks, matrix products, autograd and autocast of deformable convolution; deform_conv.h
// says what it computes.
//
//   deform_conv            input, weight, offset, mask or none, bias or none -> output
//   _deform_conv_backward  grad of that and the rest -> gradients of the five; those of an absent
//                          mask or bias are empty
// Results have the memory format of what they belong to: output and gradient of the input that of
// the input, the other gradients that of their tensors.
#include "deform_conv.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "../autograd.h"
#include "../check.h"

namespace fcos_core {
namespace deform_conv {
namespace {

const char* const kName = "deform_conv";
constexpr int64_t kLargest = int64_t(1) << 20;  // stride, padding, dilation, numbers of groups

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// The numbers of a call, y before x.
struct Options {
  at::IntArrayRef stride, padding, dilation;
  int64_t groups, deformable_groups;
};

struct Arguments {
  at::Tensor input, weight, offset, mask, bias;  // mask and bias may be undefined
  Options options;
  int64_t out_height, out_width;

  int64_t num_images() const { return input.size(0); }
  int64_t channels() const { return input.size(1); }
  int64_t out_channels() const { return weight.size(0); }
  int64_t num_taps() const { return weight.size(2) * weight.size(3); }
  int64_t positions() const { return out_height * out_width; }
  std::vector<int64_t> out_sizes() const {
    return {num_images(), out_channels(), out_height, out_width};
  }
};

// ---- checks ------------------------------------------------------------------------------------

void check_pair(const char* argument, at::IntArrayRef pair, int64_t least) {
  FCOS_CHECK(pair.size() == 2 && *std::min_element(pair.begin(), pair.end()) >= least &&
                 *std::max_element(pair.begin(), pair.end()) <= kLargest,
             kName, argument, joined("to be two numbers in ", least, "..", kLargest), pair,
             "the first is for y, the second for x");
}

void check_groups(const char* argument, int64_t groups, const char* what, int64_t channels) {
  FCOS_CHECK(groups >= 1 && groups <= kLargest && channels % groups == 0, kName, argument,
             joined("to divide ", what, " (", channels, ")"), groups, "1 is no grouping");
}

void check_like_features(const char* argument, const at::Tensor& t, const at::Tensor& input) {
  FCOS_CHECK(t.scalar_type() == input.scalar_type(), kName, argument,
             joined("of the dtype of input (", text_of(input.scalar_type()), ")"), t.scalar_type(),
             "convert one of them with .to(dtype)");
  check_same_device(kName, argument, t, "input", input);
}

void check_sampling(const char* argument, const at::Tensor& t, const Arguments& a, int64_t count) {
  check_floating(kName, argument, t);
  check_same_device(kName, argument, t, "input", a.input);
  const int64_t expected[4] = {a.num_images(), count, a.out_height, a.out_width};
  check_shape(kName, argument, t, t.sizes() == at::IntArrayRef(expected),
              text_of(at::IntArrayRef(expected)).c_str());
}

int64_t out_size(const Arguments& a, int axis) {
  const Options& o = a.options;
  const int64_t reach = o.dilation[axis] * (a.weight.size(2 + axis) - 1) + 1;
  const int64_t padded = a.input.size(2 + axis) + 2 * o.padding[axis];
  FCOS_CHECK(a.weight.size(2 + axis) >= 1 && padded >= reach, kName,
             axis ? "padded input width" : "padded input height",
             joined("to be at least the extent of the kernel (", reach, ")"), padded,
             "use more padding or less dilation");
  return (padded - reach) / o.stride[axis] + 1;
}

Arguments checked(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& offset,
                  const OptionalTensor& mask, const OptionalTensor& bias, const Options& options) {
  Arguments a = {input, weight, offset, mask ? *mask : at::Tensor(), bias ? *bias : at::Tensor(),
                 options, 0, 0};
  check_floating(kName, "input", input);
  check_shape(kName, "input", input, input.dim() == 4, "[N, C, H, W]");
  check_shape(kName, "weight", weight, weight.dim() == 4, "[O, C / groups, kernel height, width]");
  check_like_features("weight", weight, input);
  check_pair("stride", options.stride, 1);
  check_pair("padding", options.padding, 0);
  check_pair("dilation", options.dilation, 1);
  check_groups("groups", options.groups, "the channels of input", a.channels());
  check_groups("groups", options.groups, "the channels of output", a.out_channels());
  check_groups("deformable_groups", options.deformable_groups, "the channels of input",
               a.channels());
  FCOS_CHECK(weight.size(1) == a.channels() / options.groups, kName, "weight",
             joined("with ", a.channels() / options.groups, " channels in dimension 1, ",
                    a.channels(), " of input / ", options.groups, " groups"),
             weight.sizes(), "see the docstring of the function");
  const int64_t height = input.size(2), width = input.size(3), limit = int64_t(1) << 30;
  FCOS_CHECK(height < limit && width < limit && height * width < limit, kName, "input",
             "of fewer than 2^30 cells", input.sizes(), "split the map");
  FCOS_CHECK(weight.size(2) < limit && weight.size(3) < limit && a.num_taps() < limit, kName,
             "weight", "of fewer than 2^30 taps", weight.sizes(), "this is no kernel");
  a.out_height = out_size(a, 0);
  a.out_width = out_size(a, 1);
  FCOS_CHECK(a.out_height < limit && a.out_width < limit && a.positions() < limit, kName, "output",
             "to have fewer than 2^30 positions", a.positions(), "split the map");
  check_sampling("offset", offset, a, options.deformable_groups * a.num_taps() * 2);
  if (a.mask.defined())
    check_sampling("mask", a.mask, a, options.deformable_groups * a.num_taps());
  if (a.bias.defined()) {
    check_like_features("bias", a.bias, input);
    check_shape(kName, "bias", a.bias, a.bias.dim() == 1 && a.bias.size(0) == a.out_channels(),
                "[O], one per channel of output");
  }
  return a;
}

void check_grad(const Arguments& a, const at::Tensor& grad) {
  check_floating(kName, "grad", grad);
  check_same_device(kName, "grad", grad, "input", a.input);
  const std::vector<int64_t> expected = a.out_sizes();
  check_shape(kName, "grad", grad, grad.sizes() == at::IntArrayRef(expected),
              text_of(at::IntArrayRef(expected)).c_str());
}

// ---- what CPU and CUDA share -------------------------------------------------------------------

at::ScalarType compute_dtype(const at::Tensor& features) {
  return features.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor empty_for(const at::Tensor& like, at::IntArrayRef sizes, at::ScalarType dtype,
                     at::MemoryFormat format) {
  return at::empty(sizes, like.options().dtype(dtype), format);
}

// `t` itself if it is so already, else a copy made in one pass.
at::Tensor converted(const at::Tensor& t, at::ScalarType dtype, at::MemoryFormat format) {
  if (t.scalar_type() == dtype) return t.contiguous(format);
  return empty_for(t, t.sizes(), dtype, format).copy_(t);
}

DeformMap map_of(const at::Tensor& t) {
  DeformMap map = {nullptr, {0, 0, 0, 0}};
  if (!t.defined()) return map;
  map.data = const_cast<void*>(const_data(t));
  std::copy_n(t.strides().begin(), 4, map.strides);
  return map;
}

// Tensors in the dtype and layout that a kernel reads, and the problem that points into them.
struct Prepared {
  at::Tensor input, weight, offset, mask;  // weight: [groups, O / groups, taps * C / groups]
  DeformConvProblem problem;
};

// `dtype` is that of the columns, `sampling` that of offset and mask.
Prepared prepare(const Arguments& a, at::ScalarType dtype, at::ScalarType sampling) {
  const Options& o = a.options;
  Prepared p;
  p.input = converted(a.input.detach(), dtype, at::MemoryFormat::ChannelsLast);
  p.weight = a.weight.detach().to(dtype).permute({0, 2, 3, 1}).contiguous().view(
      {o.groups, a.out_channels() / o.groups, a.num_taps() * a.weight.size(1)});
  p.offset = a.offset.detach().to(sampling);
  if (a.mask.defined()) p.mask = a.mask.detach().to(sampling);
  const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
  DeformConvProblem& q = p.problem;
  q.input = const_data(p.input);
  q.dtype = dtype_of(p.input);
  q.offset = map_of(p.offset);
  q.mask = map_of(p.mask);
  q.sampling_dtype = dtype_of(p.offset);
  q.num_images = a.num_images();
  q.channels = a.channels();
  q.groups = o.groups;
  q.deformable_groups = o.deformable_groups;
  q.height = narrow(a.input.size(2));
  q.width = narrow(a.input.size(3));
  q.out_height = narrow(a.out_height);
  q.out_width = narrow(a.out_width);
  q.kernel_height = narrow(a.weight.size(2));
  q.kernel_width = narrow(a.weight.size(3));
  for (int axis = 0; axis < 2; ++axis) {
    q.stride[axis] = narrow(o.stride[axis]);
    q.padding[axis] = narrow(o.padding[axis]);
    q.dilation[axis] = narrow(o.dilation[axis]);
  }
  return p;
}

// A map [N, O, Ho, Wo], contiguous in either format, as [N, Ho * Wo, groups, O / groups].
at::Tensor rows_of(const at::Tensor& map, int64_t groups) {
  return map.permute({0, 2, 3, 1}).view(
      {map.size(0), map.size(2) * map.size(3), groups, map.size(1) / groups});
}

// out = a b, or out += a b, for each group; all are [rows, groups, columns] but b, which has the
// groups first. Only variants that write into `out`: autocast leaves those alone.
void multiply(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b, bool add) {
  if (b.size(0) == 1) {
    at::Tensor result = out.select(1, 0);
    add ? at::addmm_out(result, result, a.select(1, 0), b[0])
        : at::mm_out(result, a.select(1, 0), b[0]);
    return;
  }
  at::Tensor result = out.transpose(0, 1);
  add ? at::baddbmm_out(result, result, a.transpose(0, 1), b)
      : at::bmm_out(result, a.transpose(0, 1), b);
}

// out += a^T b for each group; out is [groups, columns of a, columns of b], a and b as above.
void add_outer(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
  if (out.size(0) == 1) {
    at::Tensor result = out[0];
    at::addmm_out(result, result, a.select(1, 0).t(), b.select(1, 0));
    return;
  }
  at::Tensor result = out;
  at::baddbmm_out(result, result, a.permute({1, 2, 0}), b.transpose(0, 1));
}

// The gradient of the weight from that of the matrix [groups, O / groups, taps * C / groups].
at::Tensor weight_gradient(const Arguments& a, const at::Tensor& matrix) {
  const at::Tensor& w = a.weight;
  return converted(
      matrix.view({w.size(0), w.size(2), w.size(3), w.size(1)}).permute({0, 3, 1, 2}),
      w.scalar_type(), w.suggest_memory_format());
}

// Gradients in the compute dtype, and the pointers to them.
struct GradientBuffers {
  at::Tensor input, offset, mask;
  DeformConvGradients pointers;

  explicit GradientBuffers(const Arguments& a, bool input_written = false) {
    const at::ScalarType dtype = compute_dtype(a.input);
    input = empty_for(a.input, a.input.sizes(), input_written ? a.input.scalar_type() : dtype,
                      at::MemoryFormat::ChannelsLast);
    if (!input_written) input.zero_();
    offset = empty_for(a.offset, a.offset.sizes(), dtype, a.offset.suggest_memory_format());
    if (a.mask.defined())
      mask = empty_for(a.mask, a.mask.sizes(), dtype, a.mask.suggest_memory_format());
    pointers.input = mutable_data(input);
    pointers.input_written = input_written;
    pointers.offset = map_of(offset);
    pointers.mask = map_of(mask);
  }

  Gradients results(const Arguments& a, const at::Tensor& weight, const at::Tensor& bias) const {
    return Gradients(
        converted(input, a.input.scalar_type(), a.input.suggest_memory_format()), weight,
        offset.to(a.offset.scalar_type()),
        mask.defined() ? mask.to(a.mask.scalar_type()) : at::empty({0}, a.offset.options()), bias);
  }
};

// ---- CPU ---------------------------------------------------------------------------------------
// Blocks of positions are the unit of work: a thread writes the columns of one, which stay in its
// cache, and multiplies them. Blocks depend on sizes only, and inside a parallel loop a matrix
// product runs on one thread, so the number of threads does not change a bit.

constexpr int64_t kLanes = 16;  // sums of the gradient of the weight that run side by side
constexpr int64_t kLaneBytes = int64_t(64) << 20;  // for all of them
// Positions that a matrix product sums. MKL cuts longer sums into as many parts as torch has
// threads, even where it runs on one.
constexpr int64_t kSumRows = 128;

struct Blocks {
  int64_t rows, per_image, total;

  explicit Blocks(const Arguments& a) {
    const int64_t row_bytes = std::max<int64_t>(1, a.channels() * a.num_taps()) *
                              static_cast<int64_t>(c10::elementSize(compute_dtype(a.input)));
    // at least kLanes blocks if each can have 64 rows
    const int64_t share = ceil_div(a.num_images() * a.positions(), kLanes);
    rows = std::max<int64_t>(1, std::min(kBlockBytes / row_bytes, std::max<int64_t>(64, share)));
    rows = std::min(rows, a.positions());
    per_image = ceil_div(a.positions(), rows);
    rows = ceil_div(a.positions(), per_image);
    total = a.num_images() * per_image;
  }
};

struct Block {
  int64_t image;
  int32_t first, count;

  Block(const Blocks& blocks, int64_t index, int64_t positions) : image(index / blocks.per_image) {
    const int64_t begin = (index % blocks.per_image) * blocks.rows;
    first = static_cast<int32_t>(begin);
    count = static_cast<int32_t>(std::min(blocks.rows, positions - begin));
  }

  at::Tensor of(const at::Tensor& rows) const { return rows[image].narrow(0, first, count); }
};

// Threads of a parallel loop do not inherit what the calling thread has switched off.
struct WorkerGuards {
  at::NoGradGuard no_grad;
  BelowAutograd below_autograd;
  BelowAutocast below_autocast;
};

// Calls work(index, columns) for 0..count-1 in parallel; each thread has columns of its own, for
// one block. The loop has two rounds at least: one alone would run outside of it, where a matrix
// product takes all threads.
template <typename Work>
void for_each_block(int64_t count, const Blocks& blocks, const at::Tensor& weight,
                    const Work& work) {
  if (count == 0) return;
  at::parallel_for(0, std::max<int64_t>(count, 2), 1, [&](int64_t begin, int64_t end) {
    WorkerGuards guards;
    const at::Tensor columns =
        at::empty({blocks.rows, weight.size(0), weight.size(2)}, weight.options());
    for (int64_t i = begin; i < std::min(end, count); ++i) work(i, columns);
  });
}

at::Tensor forward_cpu(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& offset,
                       const OptionalTensor& mask, const OptionalTensor& bias,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                       int64_t groups, int64_t deformable_groups) {
  const Arguments a = checked(input, weight, offset, mask, bias,
                              {stride, padding, dilation, groups, deformable_groups});
  const at::ScalarType dtype = compute_dtype(input);
  const Prepared p = prepare(a, dtype, dtype);
  const at::Tensor output = empty_for(input, a.out_sizes(), dtype, input.suggest_memory_format());
  const at::Tensor rows = rows_of(output, groups), w = p.weight.transpose(1, 2);
  at::Tensor b;
  if (a.bias.defined()) b = a.bias.detach().to(dtype).view({groups, a.out_channels() / groups});
  const Blocks blocks(a);
  for_each_block(blocks.total, blocks, p.weight, [&](int64_t index, const at::Tensor& columns) {
    const Block block(blocks, index, a.positions());
    deform_conv_columns_cpu(p.problem, block.image, block.first, block.count,
                            mutable_data(columns));
    const at::Tensor out = block.of(rows);
    if (b.defined()) out.copy_(b);
    multiply(out, columns.narrow(0, 0, block.count), w, b.defined());
  });
  return output.to(input.scalar_type());
}

Gradients backward_cpu(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight,
                       const at::Tensor& offset, const OptionalTensor& mask, bool with_bias,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                       int64_t groups, int64_t deformable_groups) {
  const Arguments a = checked(input, weight, offset, mask, {},
                              {stride, padding, dilation, groups, deformable_groups});
  check_grad(a, grad);
  const at::ScalarType dtype = compute_dtype(input);
  const Prepared p = prepare(a, dtype, dtype);
  const at::Tensor g = converted(grad.detach(), dtype, grad.suggest_memory_format());
  const at::Tensor rows = rows_of(g, groups);
  const GradientBuffers buffers(a);

  const Blocks blocks(a);
  const int64_t weight_bytes = std::max<int64_t>(1, p.weight.numel() * p.weight.element_size());
  const int64_t lanes = std::max<int64_t>(
      1, std::min({kLanes, kColumnBytes / kBlockBytes, blocks.total, kLaneBytes / weight_bytes}));
  const int64_t outputs = p.weight.size(1), columns_size = p.weight.size(2);
  const auto like = p.weight.options();
  const at::Tensor grad_weight = at::zeros({lanes, groups, outputs, columns_size}, like);
  const at::Tensor grad_bias = at::zeros({lanes, groups, outputs}, like);
  const at::Tensor grad_columns = at::empty({lanes, blocks.rows, groups, columns_size}, like);
  for (int64_t begin = 0; begin < blocks.total; begin += lanes) {
    const int64_t some = std::min(lanes, blocks.total - begin);
    // 1. Each thread some blocks: all but the gradient of the input.
    for_each_block(some, blocks, p.weight, [&](int64_t lane, const at::Tensor& columns) {
      const Block block(blocks, begin + lane, a.positions());
      const at::Tensor out = block.of(rows), gc = grad_columns[lane].narrow(0, 0, block.count);
      multiply(gc, out, p.weight, false);
      deform_conv_backward_taps_cpu(p.problem, block.image, block.first, block.count,
                                    const_data(gc), buffers.pointers, mutable_data(columns));
      for (int64_t row = 0; row < block.count; row += kSumRows) {
        const int64_t count = std::min<int64_t>(kSumRows, block.count - row);
        add_outer(grad_weight[lane], out.narrow(0, row, count), columns.narrow(0, row, count));
      }
      if (with_bias) grad_bias[lane].add_(out.sum(0));
    });
    // 2. Each thread some channels of all blocks, since points of any two blocks may meet.
    constexpr int64_t kUnit = 16;
    at::parallel_for(0, ceil_div(a.channels(), kUnit), 1, [&](int64_t first, int64_t last) {
      for (int64_t lane = 0; lane < some; ++lane) {
        const Block block(blocks, begin + lane, a.positions());
        deform_conv_backward_input_cpu(p.problem, block.image, block.first, block.count,
                                       const_data(grad_columns[lane]), first * kUnit,
                                       std::min(last * kUnit, a.channels()), buffers.pointers);
      }
    });
  }
  for (int64_t lane = 1; lane < lanes; ++lane) {
    grad_weight[0].add_(grad_weight[lane]);
    grad_bias[0].add_(grad_bias[lane]);
  }
  // copies, since views of the first lane would keep all of them in memory
  return buffers.results(a, weight_gradient(a, grad_weight[0].clone()),
                         with_bias ? grad_bias[0].flatten().clone().to(weight.scalar_type())
                                   : at::empty({0}, weight.options()));
}

// ---- CUDA --------------------------------------------------------------------------------------
// Positions are counted through all images and taken in parts of equal size that fit into scratch;
// of whole images if one fits.

#ifdef WITH_CUDA
// The most positions whose columns fit, evened out.
int64_t rows_per_part(const Arguments& a) {
  const int64_t unit = a.positions(), total = a.num_images() * unit;
  const int64_t row_bytes = std::max<int64_t>(
      1, std::max(a.channels(), a.options.deformable_groups) * a.num_taps() *
             static_cast<int64_t>(a.input.element_size()));
  const int64_t most = std::max<int64_t>(1, kColumnBytesCuda / row_bytes);
  if (total > 0 && unit <= most)
    return ceil_div(a.num_images(), ceil_div(a.num_images(), most / unit)) * unit;
  return ceil_div(total, std::max<int64_t>(1, ceil_div(total, most)));
}

// What kernels read offset and mask in: as they are, if one conversion while reading suffices.
at::ScalarType sampling_dtype(const Arguments& a) {
  const at::ScalarType dtype = a.offset.scalar_type(), wide = compute_dtype(a.input);
  const bool same = !a.mask.defined() || a.mask.scalar_type() == dtype;
  return same && wide == at::kFloat && dtype != at::kDouble ? dtype : wide;
}

at::Tensor forward_cuda(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& offset,
                        const OptionalTensor& mask, const OptionalTensor& bias,
                        at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                        int64_t groups, int64_t deformable_groups) {
  const Arguments a = checked(input, weight, offset, mask, bias,
                              {stride, padding, dilation, groups, deformable_groups});
  const CudaScope scope(input);
  const at::ScalarType dtype = input.scalar_type();
  const Prepared p = prepare(a, dtype, sampling_dtype(a));
  const at::Tensor output =
      empty_for(input, a.out_sizes(), dtype, at::MemoryFormat::ChannelsLast);
  const at::Tensor rows = rows_of(output, groups).flatten(0, 1), w = p.weight.transpose(1, 2);
  const int64_t step = rows_per_part(a);
  const at::Tensor scratch = at::empty({step, groups, p.weight.size(2)}, p.input.options());
  for (int64_t first = 0; first < rows.size(0); first += step) {
    const int64_t count = std::min(step, rows.size(0) - first);
    check_launch(kName, deform_conv_columns_cuda(p.problem, first, static_cast<int32_t>(count),
                                                 mutable_data(scratch), scope.stream));
    const at::Tensor out = rows.narrow(0, first, count), columns = scratch.narrow(0, 0, count);
    if (!a.bias.defined()) {
      multiply(out, columns, w, false);
    } else if (groups == 1) {  // the one form that cublas fuses
      at::Tensor result = out.select(1, 0);
      at::addmm_out(result, a.bias.detach(), columns.select(1, 0), w[0]);
    } else {
      out.copy_(a.bias.detach().view({groups, a.out_channels() / groups}));
      multiply(out, columns, w, true);
    }
  }
  return output.contiguous(input.suggest_memory_format());
}

Gradients backward_cuda(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight,
                        const at::Tensor& offset, const OptionalTensor& mask, bool with_bias,
                        at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                        int64_t groups, int64_t deformable_groups) {
  const Arguments a = checked(input, weight, offset, mask, {},
                              {stride, padding, dilation, groups, deformable_groups});
  check_grad(a, grad);
  if (wants_determinism()) at::globalContext().alertNotDeterministic("deform_conv_backward_cuda");
  const CudaScope scope(input);
  BelowAutocast below_autocast;
  const at::ScalarType dtype = input.scalar_type();
  const Prepared p = prepare(a, dtype, sampling_dtype(a));
  const at::Tensor g = converted(grad.detach(), dtype, at::MemoryFormat::ChannelsLast);
  const at::Tensor rows = rows_of(g, groups).flatten(0, 1);
  const int64_t step = rows_per_part(a);
  const at::Tensor lists =
      at::empty({deform_conv_lists_cuda(p.problem, step)}, p.input.options().dtype(at::kByte));
  // with lists, a cell is summed at once from all positions of its image
  const bool whole = a.positions() > 0 && step % a.positions() == 0;
  const GradientBuffers buffers(a, whole && lists.numel() > 0);
  // parts of a half dtype are added up in float32
  const bool in_parts = step < rows.size(0) && dtype != compute_dtype(input);
  const at::Tensor part = at::zeros_like(p.weight);
  const at::Tensor sum = in_parts ? part.to(at::kFloat) : part;
  const at::Tensor scratch = at::empty({step, groups, p.weight.size(2)}, p.input.options());
  for (int64_t first = 0; first < rows.size(0); first += step) {
    const int64_t count = std::min(step, rows.size(0) - first);
    const at::Tensor out = rows.narrow(0, first, count), columns = scratch.narrow(0, 0, count);
    multiply(columns, out, p.weight, false);
    check_launch(kName, deform_conv_backward_cuda(p.problem, first, static_cast<int32_t>(count),
                                                  buffers.pointers, mutable_data(scratch),
                                                  lists.numel() ? mutable_data(lists) : nullptr,
                                                  scope.stream));
    if (in_parts && first > 0) part.zero_();
    add_outer(part, out, columns);
    if (in_parts) sum.add_(part);
  }
  return buffers.results(a, weight_gradient(a, sum),
                         with_bias ? g.sum({0, 2, 3}) : at::empty({0}, weight.options()));
}
#endif

// ---- dispatch, autograd, autocast --------------------------------------------------------------

at::Tensor call_forward(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& offset,
                        const OptionalTensor& mask, const OptionalTensor& bias,
                        at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                        int64_t groups, int64_t deformable_groups) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("fcos_core::deform_conv", "")
                       .typed<decltype(forward_cpu)>();
  return op.call(input, weight, offset, mask, bias, stride, padding, dilation, groups,
                 deformable_groups);
}

Gradients call_backward(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight,
                        const at::Tensor& offset, const OptionalTensor& mask, bool with_bias,
                        at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                        int64_t groups, int64_t deformable_groups) {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("fcos_core::_deform_conv_backward", "")
                       .typed<decltype(backward_cpu)>();
  return op.call(grad, input, weight, offset, mask, with_bias, stride, padding, dilation, groups,
                 deformable_groups);
}

Variables backward_of(Context& context, const Variables& grads) {
  const Variables saved = context.get_saved_variables();
  const OptionalTensor mask = saved[3].defined() ? OptionalTensor(saved[3]) : OptionalTensor();
  const bool with_bias = context.data("with_bias").toBool();
  const Gradients g =
      call_backward(grads[0], saved[0], saved[1], saved[2], mask, with_bias,
                    context.data("stride").toIntVector(), context.data("padding").toIntVector(),
                    context.data("dilation").toIntVector(), context.data("groups").toInt(),
                    context.data("deformable_groups").toInt());
  return {std::get<0>(g), std::get<1>(g), std::get<2>(g), mask ? std::get<3>(g) : at::Tensor(),
          with_bias ? std::get<4>(g) : at::Tensor()};
}

at::Tensor forward_autograd(const at::Tensor& input, const at::Tensor& weight,
                            const at::Tensor& offset, const OptionalTensor& mask,
                            const OptionalTensor& bias, at::IntArrayRef stride,
                            at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                            int64_t deformable_groups) {
  check_given(kName, "input", input, "weight", weight, "offset", offset);
  const auto forward = [&](Context& context) -> Variables {
    context.save_for_backward({input, weight, offset, mask ? *mask : at::Tensor()});
    context.data("with_bias") = bias && bias->defined();
    context.data("stride") = stride.vec();
    context.data("padding") = padding.vec();
    context.data("dilation") = dilation.vec();
    context.data("groups") = groups;
    context.data("deformable_groups") = deformable_groups;
    return {call_forward(input, weight, offset, mask, bias, stride, padding, dilation, groups,
                         deformable_groups)};
  };
  return differentiable<DeformConv>({input, weight, offset, mask, bias}, forward, backward_of)[0];
}

Gradients backward_autograd(const at::Tensor& grad, const at::Tensor& input,
                            const at::Tensor& weight, const at::Tensor& offset,
                            const OptionalTensor& mask, bool with_bias, at::IntArrayRef stride,
                            at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                            int64_t deformable_groups) {
  check_given(kName, "grad", grad, "input", input, "weight", weight, "offset", offset);
  const auto forward = [&]() -> Variables {
    const Gradients g = call_backward(grad, input, weight, offset, mask, with_bias, stride, padding,
                                      dilation, groups, deformable_groups);
    return {std::get<0>(g), std::get<1>(g), std::get<2>(g), std::get<3>(g), std::get<4>(g)};
  };
  const Variables g = differentiable_once(kName, {grad, input, weight, offset, mask}, forward);
  return Gradients(g[0], g[1], g[2], g[3], g[4]);
}

// Like a convolution: features and weights in the dtype of autocast. Offset and mask stay as they
// are, the kernels take any.
at::Tensor forward_autocast(const at::Tensor& input, const at::Tensor& weight,
                            const at::Tensor& offset, const OptionalTensor& mask,
                            const OptionalTensor& bias, at::IntArrayRef stride,
                            at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                            int64_t deformable_groups) {
  BelowAutocast guard;
  const at::ScalarType dtype = autocast_dtype(input);
  return call_forward(autocast_to(dtype, input), autocast_to(dtype, weight), offset, mask,
                      bias ? OptionalTensor(autocast_to(dtype, *bias)) : bias, stride, padding,
                      dilation, groups, deformable_groups);
}

}  // namespace

FCOS_LIBRARY_FRAGMENT(fcos_core, m) {
  m.def("deform_conv(Tensor input, Tensor weight, Tensor offset, Tensor? mask, Tensor? bias,"
        " int[2] stride, int[2] padding, int[2] dilation, int groups, int deformable_groups)"
        " -> Tensor");
  m.def("_deform_conv_backward(Tensor grad, Tensor input, Tensor weight, Tensor offset,"
        " Tensor? mask, bool with_bias, int[2] stride, int[2] padding, int[2] dilation, int groups,"
        " int deformable_groups) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(fcos_core, CPU, m) {
  m.impl("deform_conv", TORCH_FN(forward_cpu));
  m.impl("_deform_conv_backward", TORCH_FN(backward_cpu));
}

TORCH_LIBRARY_IMPL(fcos_core, CUDA, m) {
#ifdef WITH_CUDA
  m.impl("deform_conv", TORCH_FN(forward_cuda));
  m.impl("_deform_conv_backward", TORCH_FN(backward_cuda));
#else
  m.impl("deform_conv", torch::CppFunction::makeFromBoxedFunction<&without_cuda>());
  m.impl("_deform_conv_backward",
         torch::CppFunction::makeFromBoxedFunction<&without_cuda>());
#endif
}

TORCH_LIBRARY_IMPL(fcos_core, Autograd, m) {
  m.impl("deform_conv", TORCH_FN(forward_autograd));
  m.impl("_deform_conv_backward", TORCH_FN(backward_autograd));
}

FCOS_REGISTER_AUTOCAST(fcos_core, "deform_conv", forward_autocast)

}  // namespace deform_conv
}  // namespace fcos_core
