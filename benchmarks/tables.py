"""All operators beside their peers, in tables: `python benchmarks/tables.py [--device cuda] [--op nms ...] [--quick]`.

Contenders are fcos_core, torchvision, mmcv if it can be imported, the formula under torch.compile where an operator is
one, and for deformable convolution a plain convolution of the same size.  A cell is

    ms (times the floor), host ms, MB, error

- ms: median time of one call.  On a GPU by CUDA events around a row of calls, queued ahead so that the host is left
  out; inputs are rotated over sets that together exceed the second-level cache.  On a CPU by the clock.
- floor: what moving the bytes that any implementation must move, or doing its products, takes at the rates measured
  when the tables begin: the larger of both.  Every input once, every output once, no intermediate.
- host: wall time until a call returns, the GPU not waited for unless the operator does.
- MB: peak memory of one call above its inputs, its results included.
- error: of the result, or for "both" of the gradient, |result - exact| / |exact| in float64 of the formula in torch, or
  of fcos_core in float64 where there is none.
"""

import argparse
import gc
import os
import statistics
import sys
import time

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks import compare, tables_cases  # noqa: E402

CYCLES_PER_MS = 2000000  # of a GPU's clock, at most
L2_TIMES = 3  # inputs in turn take so many times the second-level cache


# ---- one measurement ------------------------------------------------------------------------------


class Device:
    """Where is measured, and its ceilings."""

    def __init__(self, name, quick):
        self.name, self.quick = name, quick
        self.on_gpu = name != "cpu"
        self.cache = 32 << 20
        if self.on_gpu:
            self.cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0) or 64 << 20
        self.bandwidth = self._copy_rate()  # bytes a second, read and written
        self.rates = {}  # what products are done in -> operations a second

    def _copy_rate(self):
        source = torch.ones((1 << 28) if self.on_gpu else (1 << 25))
        source = source.to(self.name)
        target = torch.empty_like(source)
        return 2 * source.numel() * 4 / (1e-3 * self.time(lambda: target.copy_(source), 5))

    def rate(self, products):
        if products not in self.rates:
            size = 8192 if self.on_gpu else 1024
            dtype = torch.float32 if products == "tf32" else getattr(torch, products)
            tables_cases.allow_tf32(products == "tf32")
            a, b = (torch.randn(size, size, device=self.name).to(dtype) for _ in range(2))
            self.rates[products] = 2 * size**3 / (1e-3 * self.time(lambda: a @ b, 5))
        return self.rates[products]

    def time(self, function, rounds):
        """Median ms of a call, without the host where it is a GPU's."""
        if not self.on_gpu:
            function()
            return statistics.median(compare.once(function) for _ in range(rounds))
        compare.row_of_calls(function, 2, False)
        once = compare.row_of_calls(function, 3, False)
        calls = max(3, min(50, int(compare.MILLISECONDS / max(once, 1e-3))))
        # the host may take as long as a call did, and then some
        queue = int(max(200000, min(once, 1.0) * CYCLES_PER_MS * 1.5))
        return statistics.median(compare.row_of_calls(function, calls, queue) for _ in range(rounds))

    def host_time(self, function, ms):
        """Least ms until a call returns, of calls whose work waits in a queue that never fills."""
        if not self.on_gpu:
            return None
        calls = max(2, min(20, int(20 / ms)))
        times = []
        for _ in range(3):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(calls):
                function()
            times.append(1000 * (time.perf_counter() - begin) / calls)
        torch.cuda.synchronize()
        return min(times)

    def peak(self, function):
        if not self.on_gpu:
            return None
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6


def in_turn(function, sets):
    """Call with the next of some inputs each time."""
    state = [0]

    def call():
        state[0] = (state[0] + 1) % len(sets)
        return function(*sets[state[0]])

    return call


def relative_error(result, exact):
    result, exact = result.detach().double().flatten(), exact.detach().double().flatten()
    return float((result - exact).norm() / exact.norm().clamp(min=1e-300))


def measure(device, case, function, exact):
    """ms, host ms, MB, error; or why not."""
    num_sets = 1
    if device.on_gpu:
        num_sets = max(1, min(4, -(-L2_TIMES * device.cache // max(1, case.input_bytes))))
    try:
        sets = [case.inputs(device.name, seed) for seed in range(num_sets)]
        error = None if exact is None else relative_error(function(*sets[0]), exact)
        peak = device.peak(lambda: function(*sets[0]))
        call = in_turn(function, sets)
        ms = device.time(call, 3 if device.quick else 7)
        return ms, device.host_time(call, ms), peak, error
    except Exception as problem:  # a peer may lack a dtype or a device
        return str(problem).split("\n")[0][:40]


# ---- tables ---------------------------------------------------------------------------------------


def cell(measured, floor):
    if isinstance(measured, str):
        return "- ({})".format(measured.replace("|", "/"))
    ms, host, peak, error = measured
    parts = ["{:.3g} ({:.1f}x)".format(ms, ms / floor)]
    parts += [] if host is None else ["host {:.3g}".format(host)]
    parts += [] if peak is None else ["{:.3g} MB".format(peak)]
    parts += [] if error is None else ["{:.1e}".format(error)]
    return ", ".join(parts)


def print_table(device, title, cases):
    """One row a case."""
    header = None
    for case in cases:
        floors = {"bytes": case.bytes / device.bandwidth}
        if case.flops:
            floors["products"] = case.flops / device.rate(case.products)
        what = max(floors, key=floors.get)
        floor = 1000 * floors[what]
        exact = case.exact(*case.inputs(device.name, 0)) if case.exact else None
        if header is None:
            header = list(case.contenders)
            names = ["case", "floor ms"] + header
            print("\n## {}\n\n| {} |\n|{}".format(title, " | ".join(names), "---|" * len(names)))
        cells = [
            cell(measure(device, case, case.contenders[n], exact), floor) if n in case.contenders else "-"
            for n in header
        ]
        print("| {} | {:.3g} {} | {} |".format(case.name, floor, what, " | ".join(cells)), flush=True)
        del exact
        gc.collect()
        if device.on_gpu:
            torch.cuda.empty_cache()


def main(arguments=None):
    """Print the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--op", nargs="+", choices=sorted(tables_cases.TABLES), default=list(tables_cases.TABLES))
    parser.add_argument("--threads", type=int, default=0, help="CPU: 0 is as torch chooses")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which takes a minute")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = Device(options.device, options.quick)
    where = torch.cuda.get_device_name() if device.on_gpu else "{} threads".format(torch.get_num_threads())
    print("torch {}, {}, copies at {:.0f} GB/s".format(torch.__version__, where, device.bandwidth / 1e9))
    for name in options.op:
        title, cases = tables_cases.TABLES[name]
        print_table(device, title, cases(device.on_gpu, not options.no_compile))
    for products, rate in device.rates.items():
        print("\nproducts in {}: {:.1f} TFLOP/s".format(products, rate / 1e12))
    return 0


if __name__ == "__main__":
    sys.exit(main())
