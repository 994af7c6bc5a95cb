"""Show the detections on the pictures of a folder, with the options of the old demo; tools/demo.py can more.

    python demo/fcos_demo.py --config-file configs/fcos/fcos_imprv_R_50_FPN_1x.yaml --weights FCOS_imprv_R_50_FPN_1x.pth

Without a display the pictures with detections are written to the folder of --output.
"""

import argparse
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def parse_arguments(arguments, config_file, weights):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default=config_file, metavar="FILE", help="yaml file (%(default)s)")
    parser.add_argument("--weights", default=weights, metavar="FILE", help="weights of the model (%(default)s)")
    parser.add_argument("--images-dir", default="demo/images", metavar="DIR", help="pictures (%(default)s)")
    parser.add_argument("--min-image-size", type=int, default=800, metavar="PIXELS", help="short side (%(default)s)")
    parser.add_argument("--output", default="output/demo", metavar="DIR", help="without a display (%(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="override the config")
    return parser.parse_args(arguments)


def main(
    arguments=None,
    config_file="configs/fcos/fcos_imprv_R_50_FPN_1x.yaml",
    weights="FCOS_imprv_R_50_FPN_1x.pth",
):
    """Run the demo; returns the exit code."""
    from fcos_core.utils.command_line import exit_code_of

    args = parse_arguments(arguments, config_file, weights)
    return exit_code_of(lambda: run(args))


def run(args):
    """Detect on the pictures of the command line."""
    import cv2

    sys.path.insert(0, HERE)
    from predictor import COCODemo

    from fcos_core.config import load_config
    from fcos_core.engine.demo import find_inputs, read_picture
    from fcos_core.visualize import show_picture

    cfg, _ = load_config(args.config_file, list(args.opts) + ["MODEL.WEIGHT", args.weights])
    with open(os.path.join(HERE, "thresholds.json"), encoding="utf-8") as stream:
        thresholds = json.load(stream)
    demo = COCODemo(cfg, thresholds, min_image_size=args.min_image_size)
    for path in find_inputs([args.images_dir]):
        drawn = demo.run_on_opencv_image(read_picture(path))
        if not show_picture(drawn, os.path.basename(path)):
            os.makedirs(args.output, exist_ok=True)
            target = os.path.join(args.output, os.path.splitext(os.path.basename(path))[0] + ".jpg")
            cv2.imwrite(target, drawn)
            print("{}: {}".format(path, target))


if __name__ == "__main__":
    sys.exit(main())
