"""Does the input that a config describes fit the weights that are to be fed with it?"""
import logging

# How torchvision, timm and most others train on ImageNet: RGB in 0..1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def misfit(to_bgr255, pixel_mean, pixel_std, mean, std):
    """The keys of INPUT that differ from what weights were trained with.

    Args:
        to_bgr255, pixel_mean, pixel_std: the values in the config.
        mean, std: of RGB in 0..1, as the weights want it.

    Returns:
        "" if all fits, else the options to set, as they are written on a command line.
    """

    def near(a, b):
        return len(a) == len(b) and all(abs(x - y) < 2e-3 for x, y in zip(a, b))

    # BGR never fits: whatever the numbers, the first convolution sees the channels in another order.
    if not to_bgr255 and near(pixel_mean, mean) and near(pixel_std, std):
        return ""
    numbers = ["[{}]".format(",".join("{:g}".format(v) for v in values)) for values in (mean, std)]
    return "INPUT.TO_BGR255 False INPUT.PIXEL_MEAN {} INPUT.PIXEL_STD {}".format(*numbers)


def warn_of_misfit(input_options, mean, std, whose):
    """Log a warning if INPUT does not fit the weights.

    Args:
        input_options: section INPUT of a config.
        mean, std: of RGB in 0..1, as the weights want it.
        whose: name of the weights.

    Returns:
        bool: whether it fits.
    """
    options = misfit(input_options.TO_BGR255, input_options.PIXEL_MEAN, input_options.PIXEL_STD, mean, std)
    if options:
        logging.getLogger("fcos_core.input").warning(
            "The weights of %s want RGB images in 0..1 of their own mean and deviation, which INPUT does not give; "
            "set %s",
            whose,
            options,
        )
    return not options
