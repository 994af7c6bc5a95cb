"""What the command ``fcos`` does: read a picture, detect, print, show."""

import argparse
import io
import time
import urllib.request

DESCRIPTION = """Detect the objects of COCO's 80 classes in a picture.

    fcos street.jpg
    fcos https://example.org/street.jpg --output found.jpg
"""
MODEL = "fcos_syncbn_bs32_c128_MNV2_FPN_1x"
SHORT_SIDE = 800  # pixels, of what the network sees


def parse_arguments(arguments=None):
    """The command line as a namespace."""
    parser = argparse.ArgumentParser(
        prog="fcos", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input_image", help="path or address (http, https) of a picture")
    parser.add_argument("--output", metavar="FILE", help="write the picture with the detections there; no window then")
    parser.add_argument("--model", default=MODEL, metavar="NAME", help="name of the model (%(default)s)")
    parser.add_argument("--weights", metavar="FILE", help="weights of that model; default: they are downloaded, once")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    return parser.parse_args(arguments)


def run(arguments=None):
    """Run the command; returns the exit code. What the user can mend is said in a sentence."""
    args = parse_arguments(arguments)

    from fcos_core.utils.command_line import exit_code_of
    from fcos_core.utils.logger import setup_logger

    setup_logger("fcos_core", "", 0)
    return exit_code_of(lambda: detect(args))


def detect(args):
    """Detect on the picture of the command line; returns the exit code."""
    import cv2

    from fcos.fcos import FCOS
    from fcos_core.visualize import has_display

    picture = resize(read(args.input_image), SHORT_SIDE)
    detector = FCOS(args.model, cpu_only=args.cpu, weights=args.weights)
    start = time.time()
    results = detector.detect(picture)
    seconds = time.time() - start
    print("{} detection{} in {}".format(len(results), "" if len(results) == 1 else "s", args.input_image))
    for result in results:
        box = ", ".join("{:.1f}".format(side) for side in result["box"])
        print("{} {:.2f} [{}]".format(result["label_name"], result["score"], box))
    print("{:.3f} s on {}".format(seconds, detector.device))
    if args.output:
        if not cv2.imwrite(args.output, detector.draw(picture, results)):
            raise OSError(2, "cannot be written", args.output)
        print("The picture with the detections is in {}".format(args.output))
    elif not has_display():
        print("There is no display to show the picture on: --output FILE writes it")
    else:
        detector.show_bboxes(picture, results)
    return 0


def read(source):
    """The picture of a path or an address, uint8 [H,W,3] blue, green, red.

    Raises:
        UnreadableError: it cannot be read or is no picture.
    """
    from fcos_core.engine.demo import UnreadableError, read_picture

    if not source.startswith(("http://", "https://")):
        return read_picture(source)
    request = urllib.request.Request(source, headers={"User-Agent": "fcos"})  # some servers refuse Python's own name
    try:
        with urllib.request.urlopen(request, timeout=60) as stream:
            content = stream.read()
    except OSError as error:
        raise UnreadableError("{} cannot be downloaded ({})".format(source, error)) from error
    return read_picture(io.BytesIO(content))


def resize(picture, short_side):
    """The picture [H,W,3], resized so that its short side has that many pixels."""
    import cv2

    height, width = picture.shape[:2]
    ratio = short_side / float(min(height, width))
    size = int(round(width * ratio)), int(round(height * ratio))
    return cv2.resize(picture, size)
