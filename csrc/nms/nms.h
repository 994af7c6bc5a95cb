// Greedy non-maximum suppression. Members of the family: nms (one list of boxes), ml_nms (boxes of
// different labels do not touch each other), batched_nms (many images, fixed-size output).
//
// Of each list and label, boxes are taken in the order of falling score; a box is kept unless a box
// kept before overlaps it with IoU > iou_threshold. Exactly:
//   - IoU counts inclusive pixels (box_iou.h) and is computed and compared in float32, for float64
//     boxes in float64. An IoU equal to the threshold does not suppress.
//   - Equal scores: the lower index goes first. NaN scores go last, after -inf.
//   - Empty boxes and boxes with a NaN coordinate neither suppress nor are suppressed.
//
// Sources: greedy suppression as in Felzenszwalb et al., Object Detection with Discriminatively
// Trained Part Based Models (2010), section 5.2. No torch header here: kernels include this file.
#pragma once

#include <cstdint>
#include <cstring>

#include "../kernel.h"

namespace fcos_core {

// Marks what NMS keeps in `num_lists` lists of `num_boxes` boxes each.
//   boxes          [num_lists, num_boxes, 4]  x1 y1 x2 y2 in pixels, contiguous
//   scores         [num_lists, num_boxes]     contiguous, any floating dtype
//   labels         [num_lists, num_boxes]     or null: all boxes have the same label
//   skip_negative  labels below 0 mark padding: never kept, never suppressing
//   keep           [num_lists, num_boxes]     output, every element is written
// Work in O(boxes x kept boxes of the same list and label), memory in O(boxes).
void nms_cpu(const void* boxes, DType boxes_dtype, const void* scores, DType scores_dtype,
             const int64_t* labels, bool skip_negative, int64_t num_lists, int64_t num_boxes,
             double iou_threshold, bool* keep);

// The same on the GPU, bit for bit, queued on `stream` without waiting for it: the sizes of segments
// stay on the device, no block waits for another one, nothing is atomic. All pointers are device
// memory; `scratch` holds nms_cuda_scratch_bytes(...) bytes, aligned to 256. Returns null or
// CUDA's error message. Memory in O(boxes): about 200 bytes a box. A list has at most
// kMaxListCuda boxes.
constexpr int64_t kMaxListCuda = int64_t(1) << 30;

int64_t nms_cuda_scratch_bytes(DType boxes_dtype, int64_t num_lists, int64_t num_boxes);

const char* nms_cuda(const void* boxes, DType boxes_dtype, const void* scores, DType scores_dtype,
                     const int64_t* labels, bool skip_negative, int64_t num_lists,
                     int64_t num_boxes, double iou_threshold, void* scratch, bool* keep,
                     void* stream);

// Maps scores to integers that grow as scores fall: comparing them is a total order, unlike < on
// NaN. Shared by the kernels.
FCOS_HOST_DEVICE inline uint64_t rank_of(double score) {
  if (score != score) return ~uint64_t(0);  // NaN goes last
  if (score == 0.0) score = 0.0;            // -0 and +0 tie
  const uint64_t sign = uint64_t(1) << 63;
  uint64_t bits = 0;
  std::memcpy(&bits, &score, sizeof(bits));
  const uint64_t ascending = (bits & sign) ? ~bits : (bits | sign);
  return ~ascending;
}

}  // namespace fcos_core
