"""Times contenders against each other and prints a table; shared by bench_*.py.

Contenders take turns, round by round, so that a change of the machine's speed hits all of them alike.  A cell is the
median over the rounds; `spread` is the interquartile range of the first contender over its median.

On a GPU a round is a row of calls between two CUDA events, as many as fill some milliseconds, and counts the time of
one of them: that of the GPU, or of the host where it cannot keep the GPU busy.  `--queue` lets the GPU wait until the
calls of a round are queued, which leaves the host's time out unless an operator synchronises.
"""

import argparse
import time

import torch

import fcos_core

MILLISECONDS = 10  # of a row of calls on a GPU


def arguments(description):
    """Command line of a benchmark, applied: threads and device."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    parser.add_argument("--rounds", type=int, default=11, help="turns of each contender")
    parser.add_argument("--queue", action="store_true", help="GPU: fill its queue first, to leave out the host's time")
    parsed = parser.parse_args()
    if parsed.threads:
        torch.set_num_threads(parsed.threads)
    return parsed


def once(function):
    """Wall time of one call in ms."""
    begin = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - begin)


def row_of_calls(function, calls, queue):
    """Time of one of some calls in a row, in ms, by CUDA events.

    queue: whether the GPU waits until they are queued; or for how many cycles, for each of them.
    """
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    if queue:
        cycles = 200000 if queue is True else queue  # 200000 are about 0.1 ms, for the host to make a call
        torch.cuda._sleep(calls * cycles)
    begin.record()
    for _ in range(calls):
        function()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / calls


def measure(contenders, device, rounds, queue=False):
    """contenders: {name: function}; returns {name: sorted times in ms}."""
    times = {name: [] for name in contenders}
    calls = {}
    for name, function in contenders.items():
        function()
        if device != "cpu":
            row_of_calls(function, 3, False)
            calls[name] = max(1, min(100, int(MILLISECONDS / row_of_calls(function, 3, False))))
    for _ in range(rounds):
        for name, function in contenders.items():
            times[name].append(once(function) if device == "cpu" else row_of_calls(function, calls[name], queue))
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
        times = measure(contenders, options.device, options.rounds, options.queue)
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
