"""Every operator once, forward and backward, over its sample inputs: what compute-sanitizer watches.

    python -m tests.layers.exercise [--device cuda] [--small] [--require-cuda-kernels]

Values are checked by the tests; here only that all is finite where it should be, and that nothing fails.
"""
import argparse
import importlib
import sys
import warnings

import torch

from fcos_core.layers._library import load

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# modules of tests/reference with a function `exercise(device, dtype, small)`, which returns how many calls it made
OPERATORS = (
    "nms",
    "sigmoid_focal_loss",
    "roi_align",
    "roi_pool",
    "deform_conv",
    "deform_psroi_pooling",
    "iou_loss",
    "group_norm_relu",
)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--op", nargs="+", default=OPERATORS)
    parser.add_argument("--small", action="store_true", help="leave out the large samples: sanitizers are slow")
    parser.add_argument(
        "--simple-products",
        action="store_true",
        help="in half precision, only matrix products that cuBLAS does without bulk copies, which racecheck and "
        "initcheck of CUDA 13.0 do not understand: one ends with an internal error, the other misses what they write",
    )
    parser.add_argument("--require-cuda-kernels", action="store_true", help="fail if the library has none")
    args = parser.parse_args(arguments)
    load()
    if args.require_cuda_kernels and not torch.ops.fcos_core._built_with_cuda():
        print("exercise: expected a library with CUDA kernels; FORCE_CUDA=1 python -m fcos_core.build --force")
        return 1
    warnings.simplefilter("ignore")
    total = 0
    for name in args.op:
        module = importlib.import_module("tests.reference." + name)
        options = {"simple_products": args.simple_products} if name == "deform_conv" else {}
        calls = sum(module.exercise(torch.device(args.device), dtype, args.small, **options) for dtype in DTYPES)
        if args.device != "cpu":
            torch.cuda.synchronize()
        print("{:<24} {:5d} calls".format(name, calls), flush=True)
        total += calls
    print("{} calls of {} operators on {}".format(total, len(args.op), args.device))
    return 0


if __name__ == "__main__":
    sys.exit(main())
