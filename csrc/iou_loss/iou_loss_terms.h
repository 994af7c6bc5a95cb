// The formulas of iou_loss.h for one pair of boxes, for the CPU and the GPU.
//
// Areas are rounded before they are added, on a GPU too, so that the union of a box with itself is
// its area to the last bit.
#pragma once

#include <cmath>

#include "../box_iou.h"
#include "iou_loss.h"

namespace fcos_core {

FCOS_HOST_DEVICE FCOS_INLINE float iou_log(float x) {
  return FCOS_DEVICE_OR_HOST(logf(x), std::log(x));
}
FCOS_HOST_DEVICE FCOS_INLINE double iou_log(double x) {
  return FCOS_DEVICE_OR_HOST(log(x), std::log(x));
}

template <typename T>
struct IouBox {
  T side[4];  // left, top, right, bottom; or x1, y1, x2, y2
};

// A loss and its derivatives by the sides of the prediction.
template <typename T>
struct IouPair {
  T loss;
  T slope[4];
};

// ---- distances -------------------------------------------------------------------------------

template <typename T>
FCOS_HOST_DEVICE FCOS_INLINE T distances_area(const T (&side)[4]) {
  return rounded_product(side[0] + side[2], side[1] + side[3]);
}

template <IouKind kind, typename T>
FCOS_HOST_DEVICE FCOS_INLINE IouPair<T> pair_of_distances(const IouBox<T>& pred,
                                                          const IouBox<T>& target) {
  T inner[4], outer[4];
  for (int i = 0; i < 4; ++i) {
    inner[i] = pred.side[i] < target.side[i] ? pred.side[i] : target.side[i];
    outer[i] = pred.side[i] > target.side[i] ? pred.side[i] : target.side[i];
  }
  const T intersection = distances_area(inner);
  const T join =
      distances_area(pred.side) + distances_area(target.side) - intersection;
  const T enclosing = distances_area(outer) + T(1e-7);
  const T iou = (intersection + T(1)) / (join + T(1));
  IouPair<T> pair;
  T by_intersection, by_join, by_enclosing = T(0);  // derivatives of the loss
  if (kind == IouKind::iou) {
    pair.loss = -iou_log(iou);
    by_intersection = T(-1) / (intersection + T(1));
    by_join = T(1) / (join + T(1));
  } else {
    pair.loss = T(1) - iou;
    by_intersection = T(-1) / (join + T(1));
    by_join = iou / (join + T(1));
    if (kind == IouKind::giou) {
      pair.loss = T(1) - (iou - (enclosing - join) / enclosing);
      by_join -= T(1) / enclosing;
      by_enclosing = join / enclosing / enclosing;
    }
  }
  // the union falls as the intersection grows
  by_intersection -= by_join;
  for (int i = 0; i < 4; ++i) {
    const int across = 1 - i % 2;  // a side and its opposite, of the other axis
    T slope = by_join * (pred.side[across] + pred.side[across + 2]);
    if (pred.side[i] < target.side[i])
      slope += by_intersection * (inner[across] + inner[across + 2]);
    if (kind == IouKind::giou && pred.side[i] > target.side[i])
      slope += by_enclosing * (outer[across] + outer[across + 2]);
    pair.slope[i] = slope;
  }
  return pair;
}

// ---- boxes -----------------------------------------------------------------------------------

// One axis of a pair of boxes: the interval low..high of each.
template <typename T>
struct IouAxis {
  T pred, target;    // lengths
  T inner, outer;    // of intersection (not negative) and enclosing interval
  T inner_slope[2];  // their derivatives by low and high of the prediction
  T outer_slope[2];
  bool reversed;     // then the upper end is the lower
};

template <typename T>
FCOS_HOST_DEVICE FCOS_INLINE IouAxis<T> iou_axis(T low, T high, T target_low, T target_high) {
  IouAxis<T> axis;
  axis.reversed = low > high;
  if (axis.reversed) high = low;
  axis.pred = high - low;
  axis.target = target_high - target_low;
  const T inner =
      (high < target_high ? high : target_high) - (low > target_low ? low : target_low);
  axis.outer = (high > target_high ? high : target_high) - (low < target_low ? low : target_low);
  const bool meets = !(inner < T(0));  // also NaN, which then shows
  axis.inner = meets ? inner : T(0);
  axis.inner_slope[0] = meets && low > target_low ? T(-1) : T(0);
  axis.inner_slope[1] = meets && high < target_high ? T(1) : T(0);
  axis.outer_slope[0] = low < target_low ? T(-1) : T(0);
  axis.outer_slope[1] = high > target_high ? T(1) : T(0);
  return axis;
}

template <typename T>
FCOS_HOST_DEVICE FCOS_INLINE IouPair<T> pair_of_boxes(const IouBox<T>& pred,
                                                      const IouBox<T>& target) {
  const T tiny = T(1e-7);
  IouAxis<T> axes[2];
  for (int i = 0; i < 2; ++i)
    axes[i] = iou_axis(pred.side[i], pred.side[i + 2], target.side[i], target.side[i + 2]);
  const T intersection = rounded_product(axes[0].inner, axes[1].inner);
  const T join = rounded_product(axes[0].pred, axes[1].pred) +
                 rounded_product(axes[0].target, axes[1].target) - intersection + tiny;
  const T enclosing = rounded_product(axes[0].outer, axes[1].outer) + tiny;
  IouPair<T> pair;
  pair.loss = T(1) - (intersection / join - (enclosing - join) / enclosing);
  const T by_join = intersection / join / join - T(1) / enclosing;
  const T by_intersection = T(-1) / join - by_join;
  const T by_enclosing = join / enclosing / enclosing;
  for (int i = 0; i < 2; ++i) {
    const IouAxis<T>&axis = axes[i], &across = axes[1 - i];
    T slope[2];
    for (int end = 0; end < 2; ++end)
      slope[end] = by_join * (end ? across.pred : -across.pred) +
                   by_intersection * axis.inner_slope[end] * across.inner +
                   by_enclosing * axis.outer_slope[end] * across.outer;
    pair.slope[i] = axis.reversed ? slope[0] + slope[1] : slope[0];
    pair.slope[i + 2] = axis.reversed ? T(0) : slope[1];
  }
  return pair;
}

template <IouKind kind, typename T>
FCOS_HOST_DEVICE FCOS_INLINE IouPair<T> iou_pair(const IouBox<T>& pred, const IouBox<T>& target) {
  return kind == IouKind::box_giou ? pair_of_boxes(pred, target)
                                   : pair_of_distances<kind>(pred, target);
}

}  // namespace fcos_core
