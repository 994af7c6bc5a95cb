"""The transforms that a config asks for."""
from . import transforms as T


def build_transforms(cfg, is_train=True):
    """Resize, random flip (training only), conversion to a tensor, normalisation, in this order.

    Args:
        cfg (CfgNode): keys INPUT.*.
        is_train (bool): take the *_TRAIN keys.

    Returns:
        Compose

    Raises:
        ValueError: INPUT.MIN_SIZE_RANGE_TRAIN is not a pair of a lower and an upper length.
    """
    if is_train:
        min_size, max_size = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN
        low_high = cfg.INPUT.MIN_SIZE_RANGE_TRAIN
        if low_high[0] != -1:
            if len(low_high) != 2 or low_high[0] > low_high[1]:
                raise ValueError(
                    "build_transforms: expected INPUT.MIN_SIZE_RANGE_TRAIN to be (low, high) with low <= high, got {}; "
                    "(-1, -1) turns it off".format(tuple(low_high))
                )
            min_size = range(low_high[0], low_high[1] + 1)
        flip_prob = cfg.INPUT.HORIZONTAL_FLIP_PROB_TRAIN
    else:
        min_size, max_size = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        flip_prob = 0
    return T.Compose([
        T.Resize(min_size, max_size),
        T.RandomHorizontalFlip(flip_prob),
        T.ToTensor(),
        T.Normalize(mean=cfg.INPUT.PIXEL_MEAN, std=cfg.INPUT.PIXEL_STD, to_bgr255=cfg.INPUT.TO_BGR255),
    ])
