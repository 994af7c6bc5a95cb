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

}  // namespace fcos_core
