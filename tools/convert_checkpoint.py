"""Convert weights of detectors and of their bodies between this package and other frameworks.

To this package:    python tools/convert_checkpoint.py fcos_resnet50_fpn_coco.pth fcos_torchvision.pth
                    writes the weights and, as fcos_torchvision.yaml, the config that belongs to them
From this package:  python tools/convert_checkpoint.py runs/one/model_final.pth mine.pth --to mmdet
                    python tools/convert_checkpoint.py FCOS_imprv_R_50_FPN_1x.pth other.pth --to detectron2 \\
                        --config-file configs/fcos/fcos_imprv_R_50_FPN_1x.yaml

A file need not be converted to be loaded: MODEL.WEIGHT takes it as it is.
"""

import argparse
import sys

FAMILIES = ("fcos_core", "torchvision", "detectron2", "adelaidet", "mmdet", "caffe2")


def parse_arguments(arguments=None):
    """The command line as a namespace: input, output, source, target, config_file, train_batch_norm, opts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", help="file of weights")
    parser.add_argument("output", help="file to write")
    parser.add_argument("--from", dest="source", choices=("auto",) + FAMILIES, default="auto", help="default: by names")
    parser.add_argument("--to", dest="target", choices=FAMILIES[:-1], default="fcos_core")
    parser.add_argument(
        "--config-file", default="", help="of a model of this package; default: the config that the file carries"
    )
    parser.add_argument(
        "--train-batch-norm", action="store_true", help="for bodies whose batch norms are to be trained, not constant"
    )
    parser.add_argument("opts", nargs="*", help="KEY VALUE pairs on top of --config-file")
    return parser.parse_intermixed_args(arguments)  # options stand between and behind the names of the files


def main(arguments=None):
    """Run the tool; returns the exit code."""
    args = parse_arguments(arguments)

    from fcos_core.utils import command_line

    return command_line.exit_code_of(lambda: run(args))


def run(args):
    """Convert, save and print; returns the exit code."""
    from fcos_core.config import load_config
    from fcos_core.utils.checkpoint import read_weights
    from fcos_core.utils.weights_formats.base import as_text
    from fcos_core.utils.weights_formats.convert import convert, save_conversion

    def make_config(settings):
        return load_config("", [word for pair in settings.items() for word in pair])[0]

    config = load_config(args.config_file, args.opts)[0] if args.config_file else None
    checkpoint = read_weights(config or make_config({}), args.input)
    source = None if args.source == "auto" else args.source
    conversion = convert(checkpoint, source, args.target, make_config, config, args.train_batch_norm)
    weights = conversion.weights
    print(f"{args.input}: {weights.format}, {len(weights.state)} tensors, {len(weights.ignored)} left out")
    print("Wrote " + ", ".join(save_conversion(conversion, args.output)))
    if conversion.settings:
        print("Config that belongs to the weights: " + as_text(conversion.settings))
    if conversion.assumed and weights.format != "fcos_core":
        print("Of these the file does not say, but models of this kind usually have: " + as_text(conversion.assumed))
    for note in conversion.notes:
        print("Note: " + note)
    return 0


if __name__ == "__main__":
    sys.exit(main())
