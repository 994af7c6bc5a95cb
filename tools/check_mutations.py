"""Break the kernels on purpose, one at a time, and see that the tests of the operator notice.

    python tools/check_mutations.py --device cpu
    python tools/check_mutations.py --device cuda --jobs 8

Each mutant is a copy of the package in a temporary folder with one change of a source, built there and tested by
tests/layers/test_<operator>.py.  Ends with one line for each: caught by which test, or SURVIVED; the exit code says
whether all were caught.  About two minutes of one core for each mutant.
"""

import argparse
import collections
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TREE = ("csrc", "fcos_core", "tests", "tools", "pyproject.toml", "setup.py", "README.md")

# what: in words; file: below csrc; old: text that stands there once; new: takes its place
Mutation = collections.namedtuple("Mutation", "device what file old new")

MUTATIONS = [
    # ---- indices off by one
    Mutation(
        "cuda",
        "a box is not compared with the one before it",
        "nms/nms_cuda.cu",
        "const int last = column < row ? kWord : thread;",
        "const int last = column < row ? kWord : thread - 1;",
    ),
    Mutation(
        "cuda",
        "the last bin of a pixel is left out",
        "roi_align/roi_align_cuda.cu",
        "i <= y.last_bin[row]",
        "i < y.last_bin[row]",
    ),
    Mutation(
        "cuda",
        "a pixel has the weight of its first bin in all of them",
        "roi_align/roi_align_slices.h",
        "axis.weight_of(first + i, slot)",
        "axis.weight_of(first, slot)",
    ),
    Mutation(
        "cuda",
        "of equal maxima the last one counts",
        "roi_pool/roi_pool_cuda.cu",
        "places[k] = value > largest[k] ? place",
        "places[k] = value >= largest[k] ? place",
    ),
    Mutation(
        "cuda",
        "the column of a bin is that of its neighbour",
        "roi_pool/roi_pool_cuda.cu",
        "roi.x.range(bin % width, x0, x1);",
        "roi.x.range((bin + 1) % width, x0, x1);",
    ),
    Mutation(
        "cuda",
        "the right class is the one after it",
        "sigmoid_focal_loss/sigmoid_focal_loss_cuda.cu",
        "column == work.num_classes.divisor",
        "column == work.num_classes.divisor + 1",
    ),
    Mutation(
        "cuda",
        "a slope is taken between the wrong cells",
        "deform_conv/deform_conv_cuda.cu",
        "(cells[3][j] - cells[1][j])",
        "(cells[3][j] - cells[2][j])",
    ),
    Mutation(
        "cuda",
        "the last tap of a row is left out",
        "deform_psroi_pooling/deform_psroi_pooling_cuda.cu",
        "for (int j = 0; j < bin.x_taps; ++j) {\n            const Pack",
        "for (int j = 0; j + 1 < bin.x_taps; ++j) {\n            const Pack",
    ),
    # ---- guards that are missing
    Mutation(
        "cuda",
        "boxes that earlier tiles struck stay",
        "nms/nms_cuda.cu",
        "segment <= position && !(step > 0 && sorted.struck[i])",
        "segment <= position",
    ),
    Mutation(
        "cuda",
        "rois without an image are pooled",
        "roi_align/roi_align.h",
        "return image >= T(0) && image < static_cast<T>(p.num_images) ?",
        "return image >= T(0) ?",
    ),
    Mutation(
        "cuda",
        "bins without a maximum have a gradient",
        "roi_pool/roi_pool_cuda.cu",
        "if (place < 0 || place >= pixels) continue;\n    atomic_add",
        "atomic_add",
    ),
    Mutation(
        "cuda",
        "what lies in the first row of a band alone is left out",
        "roi_pool/roi_pool_bands.h",
        "last_row(of_bins[row]) < begin",
        "last_row(of_bins[row]) <= begin",
    ),
    Mutation(
        "cuda",
        "later rois are taken for the first ones",
        "roi_pool/roi_pool_bands.h",
        "scan + static_cast<int>(found & (kBandScan - 1))",
        "static_cast<int>(found & (kBandScan - 1))",
    ),
    Mutation(
        "cuda",
        "cells outside the map are read",
        "deform_conv/deform_conv_cuda.cu",
        "tap.pixel[cell] >= 0);",
        "tap.pixel[cell] >= -1);",
    ),
    Mutation(
        "cuda",
        "the gradient of cells outside the map is added",
        "deform_conv/deform_conv_cuda.cu",
        "if (tap.pixel[cell] < 0) continue;",
        "",
    ),
    Mutation(
        "cuda",
        "labels beyond the classes are taken for background",
        "sigmoid_focal_loss/sigmoid_focal_loss_cuda.cu",
        "target <= static_cast<int64_t>(work.num_classes.divisor);",
        "true;",
    ),
    Mutation(
        "cuda",
        "boxes of weight 0 are looked at",
        "iou_loss/iou_loss_cuda.cu",
        "if (weight != T(0))\n    pair",
        "pair",
    ),
    Mutation(
        "cuda",
        "what is negative stays",
        "group_norm_relu/group_norm_relu_cuda.cu",
        "narrow<T>(value < C(0) ? C(0) : value)",
        "narrow<T>(value)",
    ),
    # ---- the CPU
    Mutation(
        "cpu",
        "an overlap equal to the threshold suppresses",
        "nms/nms_cpu.cpp",
        "found |= iou > threshold;",
        "found |= iou >= threshold;",
    ),
    Mutation(
        "cpu",
        "kept boxes of the block's first tile are forgotten",
        "nms/nms_cpu.cpp",
        "const int64_t tile_begin = num_kept / kTile * kTile;",
        "const int64_t tile_begin = ceil_div(num_kept, kTile) * kTile;",
    ),
    Mutation(
        "cpu",
        "the map ends one pixel early",
        "roi_align/roi_align.h",
        "position <= static_cast<T>(grid.pixels)))",
        "position < static_cast<T>(grid.pixels - 1)))",
    ),
    Mutation(
        "cpu",
        "bins without a maximum have a gradient",
        "roi_pool/roi_pool_cpu.cpp",
        "if (argmax[bin] >= 0) plane",
        "if (argmax[bin] >= -1) plane",
    ),
    Mutation(
        "cpu",
        "the bottom right cell is read one row too far",
        "deform_conv/deform_conv.h",
        "has_bottom = top + 1 < height",
        "has_bottom = top + 1 <= height",
    ),
    Mutation(
        "cpu",
        "channels of the next group are read",
        "deform_conv/deform_conv_cpu.cpp",
        "const int64_t stop = std::min(end, (group + 1) * group_size);",
        "const int64_t stop = end;",
    ),
]


def operator_of(mutation):
    return mutation.file.split("/")[0]


def make_tree(mutation, folder):
    """Copy the package and change the source."""
    skip = shutil.ignore_patterns("__pycache__", "_ext*")
    for name in TREE:
        source, target = os.path.join(ROOT, name), os.path.join(folder, name)
        if os.path.isdir(source):
            shutil.copytree(source, target, ignore=skip)
        else:
            shutil.copy(source, target)
    path = os.path.join(folder, "csrc", *mutation.file.split("/"))
    with open(path, encoding="utf-8") as stream:
        text = stream.read()
    found = text.count(mutation.old)
    if found != 1:
        raise ValueError("{}: expected {!r} once, found it {} times".format(path, mutation.old, found))
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(text.replace(mutation.old, mutation.new))


def _run(command, folder, environment):
    process = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return process.returncode, process.stdout.decode(errors="replace")


def verdict(mutation):
    """Build and test one mutant.

    Returns:
        tuple[bool, str]: whether it was caught, and by which test, or what went wrong.
    """
    with tempfile.TemporaryDirectory(prefix="fcos_core-mutant-") as folder:
        make_tree(mutation, folder)
        environment = dict(os.environ, FCOS_CORE_CACHE=os.path.join(folder, "cache"), PYTHONDONTWRITEBYTECODE="1")
        environment["FORCE_CUDA"] = "1" if mutation.device == "cuda" else "0"
        if mutation.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        environment["PYTHONPATH"] = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
        code, output = _run([sys.executable, "-m", "fcos_core.build"], folder, environment)
        if code:
            return False, "DID NOT BUILD: " + output.strip()[-300:]
        tests = "tests/layers/test_{}.py".format(operator_of(mutation))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", tests]
        if mutation.device == "cuda":
            command += ["-k", "cuda"]
        code, output = _run(command, folder, environment)
        failed = re.search(r"^(FAILED|ERROR) (\S+)", output, re.MULTILINE)
        if code in (0, 5):
            return False, "SURVIVED: " + (output.strip().splitlines() or [""])[-1]
        if code == 1 and failed:
            return True, "caught by " + failed.group(2).split("::", 1)[-1]
        return code < 0 or code > 5, "ended with {}: {}".format(code, (output.strip().splitlines() or [""])[-1])


def main(arguments=None):
    """Run the tool; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", nargs="+", choices=["cpu", "cuda"], default=["cpu"])
    parser.add_argument("--op", nargs="+", help="operators, such as nms; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    args = parser.parse_args(arguments)
    chosen = [m for m in MUTATIONS if m.device in args.device and (not args.op or operator_of(m) in args.op)]
    survivors = 0
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        futures = {pool.submit(verdict, mutation): mutation for mutation in chosen}
        for future in concurrent.futures.as_completed(futures):
            mutation, (caught, text) = futures[future], future.result()
            survivors += not caught
            print("{:4} {:20} {}: {}".format(mutation.device, operator_of(mutation), mutation.what, text), flush=True)
    print("{} mutants, {} not caught".format(len(chosen), survivors))
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
