// Schemas, checks and dispatch of the NMS family, see nms.h for what the ops compute.
//
//   nms          boxes [M, 4], scores [M]              -> kept indices, int64, ascending
//   ml_nms       boxes [M, 4], scores [M], labels [M]  -> kept indices, int64, ascending
//   batched_nms  boxes [N, K, 4], scores [N, K], labels [N, K] (below 0: padding)
//                                                      -> keep mask, bool [N, K]
// All three are one function, "which boxes of [N, K] stay". It is implemented by a CPU kernel, by CUDA
// kernels, and by a composite of ATen ops, which serves GPUs when the library was built without CUDA.
// On a GPU batched_nms does not synchronize; the other two do so once, for the size of the result.
#include "nms.h"

#include <algorithm>

#include "../check.h"

namespace fcos_core {
namespace nms {
namespace {

// boxes [N, K, 4], scores [N, K], labels int64 [N, K] or undefined -> bool [N, K].
using KeepMask = at::Tensor (*)(const at::Tensor& boxes, const at::Tensor& scores,
                                const at::Tensor& labels, bool skip_negative, double threshold);

at::Tensor keep_mask_cpu(const at::Tensor& boxes, const at::Tensor& scores,
                         const at::Tensor& labels, bool skip_negative, double threshold) {
  const at::Tensor b = boxes.contiguous(), s = scores.contiguous();
  const at::Tensor l = labels.defined() ? labels.contiguous() : labels;
  at::Tensor keep = at::empty(s.sizes(), s.options().dtype(at::kBool));
  nms_cpu(const_data(b), dtype_of(b), const_data(s), dtype_of(s),
          l.defined() ? static_cast<const int64_t*>(const_data(l)) : nullptr, skip_negative,
          s.size(0), s.size(1), threshold, static_cast<bool*>(mutable_data(keep)));
  return keep;
}

#ifdef WITH_CUDA
at::Tensor keep_mask_cuda(const at::Tensor& boxes, const at::Tensor& scores,
                          const at::Tensor& labels, bool skip_negative, double threshold) {
  const int64_t num_lists = scores.size(0), num_boxes = scores.size(1);
  FCOS_CHECK(num_boxes <= kMaxListCuda, "nms", "boxes",
             joined("to be at most ", kMaxListCuda, " in a list"), num_boxes, "drop low scores");
  const CudaScope scope(boxes);
  const at::Tensor b = boxes.contiguous(), s = scores.contiguous();
  const at::Tensor l = labels.defined() ? labels.contiguous() : labels;
  at::Tensor keep = at::empty(s.sizes(), s.options().dtype(at::kBool));
  const at::Tensor scratch =
      at::empty({nms_cuda_scratch_bytes(dtype_of(b), num_lists, num_boxes)},
                s.options().dtype(at::kByte));
  check_launch("nms", nms_cuda(const_data(b), dtype_of(b), const_data(s), dtype_of(s),
                               l.defined() ? static_cast<const int64_t*>(const_data(l)) : nullptr,
                               skip_negative, num_lists, num_boxes, threshold,
                               mutable_data(scratch), static_cast<bool*>(mutable_data(keep)),
                               scope.stream));
  return keep;
}
#endif

// ---- composite -------------------------------------------------------------------------------

constexpr int64_t kMaxPairs = int64_t(1) << 24;  // pairs of boxes whose IoU is held at a time

// Order of falling score per row, ties by index, NaN last. Sorting int64 keys that already hold
// the index gives it without a stable sort, which torch before 1.9 does not offer.
at::Tensor falling_order(const at::Tensor& scores) {
  const int64_t num_boxes = scores.size(1);
  const at::Tensor nan = scores.ne(scores);
  // Dense ranks over all rows: the same score has the same rank.
  const at::Tensor rank = std::get<1>(at::_unique2(
      scores.masked_fill(nan, 0), /*sorted=*/true, /*return_inverse=*/true));
  const at::Tensor place = (scores.numel() - rank).masked_fill(nan, scores.numel() + 1);
  return (place * num_boxes + at::arange(num_boxes, place.options())).argsort(/*dim=*/int64_t(1));
}

// Pairwise IoU of boxes [N, A, 4] and [N, B, 4] -> [N, A, B], the formula of box_iou.h.
at::Tensor pairwise_iou(const at::Tensor& a, const at::Tensor& b) {
  const auto side = [](const at::Tensor& low, const at::Tensor& high) {
    const at::Tensor length = high - low + 1;
    return length.masked_fill(length.lt(0), 0);
  };
  const auto area = [&](const at::Tensor& boxes) {
    return side(boxes.select(-1, 0), boxes.select(-1, 2)) *
           side(boxes.select(-1, 1), boxes.select(-1, 3));
  };
  const at::Tensor rows = a.unsqueeze(2), columns = b.unsqueeze(1);
  const auto overlap = [&](int64_t low, int64_t high) {
    return side(at::max(rows.select(-1, low), columns.select(-1, low)),
                at::min(rows.select(-1, high), columns.select(-1, high)));
  };
  const at::Tensor intersection = overlap(0, 2) * overlap(1, 3);
  return intersection / (area(a).unsqueeze(2) + area(b).unsqueeze(1) - intersection);
}

// Greedy NMS is the only solution of keep[i] = not any(suppresses[i, j] & keep[j], j before i):
// iterating the equation settles at least one more box each time, in practice nearly all at once.
// The boxes go through it in blocks, so that memory stays bounded; each iteration synchronises.
at::Tensor keep_mask_composite(const at::Tensor& boxes, const at::Tensor& scores,
                               const at::Tensor& labels, bool skip_negative, double threshold) {
  at::NoGradGuard no_grad;
  const int64_t num_lists = scores.size(0), num_boxes = scores.size(1);
  if (scores.numel() == 0) return at::empty(scores.sizes(), scores.options().dtype(at::kBool));

  const auto compute = boxes.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor order = falling_order(
      scores.to(scores.scalar_type() == at::kDouble ? at::kDouble : at::kFloat));
  const at::Tensor sorted_boxes =
      boxes.to(compute).gather(1, order.unsqueeze(-1).expand({num_lists, num_boxes, 4}));
  const at::Tensor sorted_labels = labels.defined() ? labels.gather(1, order) : labels;
  at::Tensor keep = skip_negative ? sorted_labels.ge(0)
                                  : at::ones(scores.sizes(), scores.options().dtype(at::kBool));

  const int64_t block =
      std::max<int64_t>(1, std::min<int64_t>(1024, kMaxPairs / (num_lists * num_boxes)));
  for (int64_t begin = 0; begin < num_boxes; begin += block) {
    const int64_t end = std::min(begin + block, num_boxes);
    at::Tensor suppresses =
        pairwise_iou(sorted_boxes.slice(1, begin, end), sorted_boxes.slice(1, 0, end))
            .gt(threshold);  // [N, block, end]
    if (labels.defined())
      suppresses = suppresses.logical_and(
          sorted_labels.slice(1, begin, end).unsqueeze(2).eq(
              sorted_labels.slice(1, 0, end).unsqueeze(1)));
    const at::Tensor before =
        suppresses.slice(2, 0, begin).logical_and(keep.slice(1, 0, begin).unsqueeze(1)).any(-1);
    const at::Tensor position = at::arange(end - begin, order.options());
    const at::Tensor within = suppresses.slice(2, begin, end)
                                  .logical_and(position.unsqueeze(0).lt(position.unsqueeze(1)));

    const at::Tensor alive = keep.slice(1, begin, end).logical_and(before.logical_not());
    at::Tensor settled = alive, previous;
    do {
      previous = settled;
      settled = alive.logical_and(within.logical_and(previous.unsqueeze(1)).any(-1).logical_not());
    } while (!settled.equal(previous));
    keep.slice(1, begin, end).copy_(settled);
  }
  return at::empty_like(keep).scatter_(1, order, keep);
}

// ---- ops -------------------------------------------------------------------------------------

void check_threshold(const char* function, double iou_threshold) {
  FCOS_CHECK(iou_threshold >= 0, function, "iou_threshold", "to be at least 0", iou_threshold,
             "a threshold of 1 or more keeps every box");
}

// The labels of ml_nms as int64. Legacy: the ancestors passed them as float tensors.
at::Tensor whole_labels(const char* function, const at::Tensor& labels) {
  if (at::isIntegralType(labels.scalar_type(), /*includeBool=*/false)) return labels.to(at::kLong);
  check_floating(function, "labels", labels);
  const at::Tensor whole = labels.to(at::kLong);
  FCOS_CHECK(whole.to(labels.scalar_type()).eq(labels).all().item<bool>(), function, "labels",
             "to hold class ids", "fractions or non-finite values", "pass an int64 tensor");
  return whole;
}

void check_list(const char* function, const at::Tensor& boxes, const at::Tensor& scores) {
  check_floating(function, "boxes", boxes);
  check_floating(function, "scores", scores);
  check_shape(function, "boxes", boxes, boxes.dim() == 2 && boxes.size(1) == 4, "[M, 4]");
  check_shape(function, "scores", scores, scores.dim() == 1, "[M]");
  FCOS_CHECK(scores.size(0) == boxes.size(0), function, "scores",
             joined("to have one entry per box (", boxes.size(0), ")"), scores.size(0),
             "pass the scores of these boxes");
  check_same_device(function, "scores", scores, "boxes", boxes);
}

at::Tensor kept_indices(const at::Tensor& keep) { return at::nonzero(keep.squeeze(0)).squeeze(1); }

template <KeepMask keep_mask>
at::Tensor nms(const at::Tensor& boxes, const at::Tensor& scores, double iou_threshold) {
  check_list("nms", boxes, scores);
  check_threshold("nms", iou_threshold);
  return kept_indices(
      keep_mask(boxes.unsqueeze(0), scores.unsqueeze(0), at::Tensor(), false, iou_threshold));
}

template <KeepMask keep_mask>
at::Tensor ml_nms(const at::Tensor& boxes, const at::Tensor& scores, const at::Tensor& labels,
                  double iou_threshold) {
  check_list("ml_nms", boxes, scores);
  check_shape("ml_nms", "labels", labels,
              labels.dim() == 1 && labels.size(0) == scores.size(0), "[M], one per box");
  check_same_device("ml_nms", "labels", labels, "boxes", boxes);
  check_threshold("ml_nms", iou_threshold);
  return kept_indices(keep_mask(boxes.unsqueeze(0), scores.unsqueeze(0),
                                whole_labels("ml_nms", labels).unsqueeze(0), false,
                                iou_threshold));
}

template <KeepMask keep_mask>
at::Tensor batched_nms(const at::Tensor& boxes, const at::Tensor& scores, const at::Tensor& labels,
                       double iou_threshold) {
  const char* function = "batched_nms";
  check_floating(function, "boxes", boxes);
  check_floating(function, "scores", scores);
  check_integral(function, "labels", labels);
  check_shape(function, "boxes", boxes, boxes.dim() == 3 && boxes.size(2) == 4, "[N, K, 4]");
  const auto list_shape = boxes.sizes().slice(0, 2);
  check_shape(function, "scores", scores, scores.sizes() == list_shape,
              "[N, K], one per box");
  check_shape(function, "labels", labels, labels.sizes() == list_shape,
              "[N, K], one per box");
  check_same_device(function, "scores", scores, "boxes", boxes);
  check_same_device(function, "labels", labels, "boxes", boxes);
  check_threshold(function, iou_threshold);
  return keep_mask(boxes, scores, labels.to(at::kLong), true, iou_threshold);
}

}  // namespace

FCOS_LIBRARY_FRAGMENT(fcos_core, m) {
  m.def("nms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor");
  m.def("ml_nms(Tensor boxes, Tensor scores, Tensor labels, float iou_threshold) -> Tensor");
  m.def("batched_nms(Tensor boxes, Tensor scores, Tensor labels, float iou_threshold) -> Tensor");
  // The composite by name, for tests without a GPU.
  m.def("_batched_nms_composite(Tensor boxes, Tensor scores, Tensor labels, float iou_threshold)"
        " -> Tensor",
        TORCH_FN(batched_nms<keep_mask_composite>));
}

TORCH_LIBRARY_IMPL(fcos_core, CPU, m) {
  m.impl("nms", TORCH_FN(nms<keep_mask_cpu>));
  m.impl("ml_nms", TORCH_FN(ml_nms<keep_mask_cpu>));
  m.impl("batched_nms", TORCH_FN(batched_nms<keep_mask_cpu>));
}

#ifdef WITH_CUDA
TORCH_LIBRARY_IMPL(fcos_core, CUDA, m) {
  m.impl("nms", TORCH_FN(nms<keep_mask_cuda>));
  m.impl("ml_nms", TORCH_FN(ml_nms<keep_mask_cuda>));
  m.impl("batched_nms", TORCH_FN(batched_nms<keep_mask_cuda>));
}
#else
TORCH_LIBRARY_IMPL(fcos_core, CUDA, m) {
  m.impl("nms", TORCH_FN(nms<keep_mask_composite>));
  m.impl("ml_nms", TORCH_FN(ml_nms<keep_mask_composite>));
  m.impl("batched_nms", TORCH_FN(batched_nms<keep_mask_composite>));
}
#endif

}  // namespace nms
}  // namespace fcos_core
