"""Times contenders against each other and prints a table; shared by bench_*.py.

Contenders take turns, round by round, so that a change of the machine's speed hits all of them alike.  A cell is the
median over the rounds; `spread` is the interquartile range of the first contender over its median.
"""

import argparse
import time

import torch

import fcos_core


def arguments(description):
    """Command line of a benchmark, applied: threads and device."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    parser.add_argument("--rounds", type=int, default=11, help="turns of each contender")
    parsed = parser.parse_args()
    if parsed.threads:
        torch.set_num_threads(parsed.threads)
    return parsed


def once(function, device):
    """Wall time of one call in ms, the device's queue included."""
    if device != "cpu":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    function()
    if device != "cpu":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - begin)


def measure(contenders, device, rounds):
    """contenders: {name: function}; returns {name: sorted times in ms}."""
    times = {name: [] for name in contenders}
    for function in contenders.values():
        once(function, device)
    for _ in range(rounds):
        for name, function in contenders.items():
            times[name].append(once(function, device))
    return {name: sorted(values) for name, values in times.items()}


def table(title, cases, options):
    """Print one row per case.

    Args:
        title (str): what is measured.
        cases: iterable of (name, {contender: function}), ours first; built one at a time, so only one is in memory.
        options: from `arguments`.
    """
    where = torch.cuda.get_device_name() if options.device != "cpu" else "{} threads".format(torch.get_num_threads())
    print(
        "{}\nfcos_core {}, torch {}, {} ({})\n".format(
            title, fcos_core.__version__, torch.__version__, options.device, where
        )
    )
    header = None
    for name, contenders in cases:
        times = measure(contenders, options.device, options.rounds)
        names = list(times)
        if header is None:
            header = names
            peers = header[1:]
            columns = (
                ["case"] + [n + " ms" for n in header] + ["{} / {}".format(p, header[0]) for p in peers] + ["spread"]
            )
            print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
        medians = [times[n][len(times[n]) // 2] if n in times else None for n in header]
        ours = times[header[0]]
        spread = (ours[3 * len(ours) // 4] - ours[len(ours) // 4]) / medians[0]
        cells = ["-" if m is None else "{:.3g}".format(m) for m in medians]
        ratios = ["-" if m is None else "{:.2f}".format(m / medians[0]) for m in medians[1:]]
        print("| " + " | ".join([name] + cells + ratios + ["{:.0%}".format(spread)]) + " |", flush=True)
