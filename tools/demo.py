"""Detect on pictures or videos: annotated copies, and a json file with all detections.

    python tools/demo.py --input street.jpg --weights runs/one/model_final.pth --output found
    python tools/demo.py --input folder --weights FCOS_R_50_FPN_1x.pth --config-file configs/fcos/fcos_R_50_FPN_1x.yaml

Pictures keep their names; a video gives a video. detections.json holds, per picture or video frame, the file, its width
and height in pixels, boxes (x1 y1 x2 y2), scores, labels and class names. Runs on the CPU too.
"""

import sys

from fcos_core.utils import command_line


def parse_arguments(arguments=None):
    """The command line as a namespace."""
    parser = command_line.make_parser(__doc__)
    parser.add_argument(
        "--input",
        "--images-dir",
        nargs="+",
        required=True,
        metavar="PATH",
        help="pictures, videos, folders of them, or patterns such as 'shots/*.png'",
    )
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint: path, URL or catalog:// name")
    parser.add_argument("--output", default="demo_output", metavar="DIR", help="folder of the results (%(default)s)")
    parser.add_argument("--config-file", default="", metavar="FILE", help="yaml file; default: that of the checkpoint")
    parser.add_argument(
        "--min-score",
        "--confidence",
        type=float,
        default=0.3,
        metavar="S",
        help="lowest score that is drawn and written (%(default)s)",
    )
    parser.add_argument(
        "--min-image-size", type=int, default=0, metavar="PIXELS", help="short side that the network sees"
    )
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1 or auto; default: the config's, else the CPU")
    command_line.add_options(parser)
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the tool; returns the exit code: 1 if nothing could be processed."""
    args = parse_arguments(arguments)
    return command_line.exit_code_of(lambda: detect(args))


def detect(args):
    """Detect on all inputs; returns the exit code."""
    from fcos_core.engine.demo import run_demo
    from fcos_core.engine.predictor import Predictor
    from fcos_core.utils.logger import setup_logger

    setup_logger("fcos_core", "", 0)
    opts = list(args.opts)
    if args.min_image_size > 0:
        opts += ["INPUT.MIN_SIZE_TEST", str(args.min_image_size)]
    predictor = Predictor.from_checkpoint(args.weights, args.config_file, opts, args.device)
    summary = run_demo(predictor, args.input, args.output, args.min_score)
    return 0 if summary.processed else 1


if __name__ == "__main__":
    sys.exit(main())
