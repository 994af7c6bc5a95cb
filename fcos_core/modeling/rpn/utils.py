"""Old names of the ways from maps to rows; the heads of this package use `levels.flatten_levels`."""
from fcos_core.modeling.rpn.levels import flatten_levels
from fcos_core.modeling.utils import cat

__all__ = ["cat", "concat_box_prediction_layers", "permute_and_flatten"]


def permute_and_flatten(layer, N, A, C, H, W):
    """A map [N, A * C, H, W] -> [N, H * W * A, C], row by row, at a location anchor by anchor."""
    return flatten_levels([layer.reshape(N, A * C, H, W)], A)


def concat_box_prediction_layers(box_cls, box_regression):
    """Predictions of all levels as rows: image by image, inside an image level by level.

    Args:
        box_cls: list of L tensors [N, A * C, H_l, W_l].
        box_regression: list of L tensors [N, A * 4, H_l, W_l].

    Returns:
        [N * R, C] and [N * R, 4].
    """
    anchors = box_regression[0].shape[1] // 4
    scores, regression = flatten_levels(box_cls, anchors), flatten_levels(box_regression, anchors)
    return scores.flatten(0, 1), regression.flatten(0, 1)
