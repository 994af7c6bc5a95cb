// Area and overlap of two boxes (x1, y1, x2, y2) in pixels: the one C++ home of the "+1".
// Legacy: coordinates name the first and the last pixel of a box, so a side is x2 - x1 + 1 long
// (maskrcnn-benchmark's convention; tests/layers/test_nms.py pins it). The Python home is
// fcos_core/structures/box_ops.py.
//
// Boxes without an inclusive extent (x2 <= x1 - 1 or y2 <= y1 - 1) have area 0 and overlap nothing.
// A NaN coordinate makes every overlap of that box NaN, which exceeds no threshold.
// The ternaries are written so that compilers turn the loops around them into min/max instructions.
//
// CPU and CUDA give the same bits: products are rounded before they are added or subtracted, which
// nvcc would merge into one instruction without that rounding.
#pragma once

#include "kernel.h"

namespace fcos_core {

FCOS_HOST_DEVICE FCOS_INLINE float rounded_product(float a, float b) {
  return FCOS_DEVICE_OR_HOST(__fmul_rn(a, b), a * b);
}
FCOS_HOST_DEVICE FCOS_INLINE double rounded_product(double a, double b) {
  return FCOS_DEVICE_OR_HOST(__dmul_rn(a, b), a * b);
}
FCOS_HOST_DEVICE FCOS_INLINE float rounded_quotient(float a, float b) {
  return FCOS_DEVICE_OR_HOST(__fdiv_rn(a, b), a / b);
}
FCOS_HOST_DEVICE FCOS_INLINE double rounded_quotient(double a, double b) {
  return FCOS_DEVICE_OR_HOST(__ddiv_rn(a, b), a / b);
}

// Length of the pixel run low..high; NaN stays NaN.
template <typename T>
FCOS_HOST_DEVICE FCOS_INLINE T box_side(T low, T high) {
  const T side = high - low + T(1);
  return side < T(0) ? T(0) : side;
}

template <typename T>
FCOS_HOST_DEVICE FCOS_INLINE T box_area(T x1, T y1, T x2, T y2) {
  return rounded_product(box_side(x1, x2), box_side(y1, y2));
}

// Intersection over union; the areas come from box_area.
template <typename T>
FCOS_HOST_DEVICE FCOS_INLINE T box_iou(T ax1, T ay1, T ax2, T ay2, T a_area,
                                       T bx1, T by1, T bx2, T by2, T b_area) {
  const T x1 = ax1 > bx1 ? ax1 : bx1;
  const T y1 = ay1 > by1 ? ay1 : by1;
  const T x2 = ax2 < bx2 ? ax2 : bx2;
  const T y2 = ay2 < by2 ? ay2 : by2;
  const T intersection = rounded_product(box_side(x1, x2), box_side(y1, y2));
  return rounded_quotient(intersection, a_area + b_area - intersection);
}

}  // namespace fcos_core
