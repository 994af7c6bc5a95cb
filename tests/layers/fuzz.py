"""Calls of the operators that nobody would write, by the thousand, each checked: answered rightly or refused in words.

    python -m tests.layers.fuzz [--op roi_align ...] [--device cuda] [--calls 100000] [--seed 7] [--first 812] [--quiet]

A call starts from a sample of the operator (tests/reference) and is bent in up to three places, by the types of its
registered schema: shapes, dtypes, strides, devices, values, numbers, types.  Then it must either

- raise one of `REFUSALS` in words of ours (`<operator>: expected <argument> <rule>, got <value>; <advice>`) or of
  torch's own argument parsing, never as an internal assertion, a CUDA error or a C++ exception; or
- answer, if the rules of `fuzz_rules.py` do not say that the call is certainly wrong, with results of the right shape,
  dtype and device, without writing to its arguments; results and gradients must be those of the same call on plain
  contiguous copies, and now and then those of the slow reference.

Call i of a seed is always the same, whatever the others do.  Each is printed before it is made, so the last line
before a crash names it; `--first I --calls 1` makes it alone.
"""

import argparse
import collections
import contextlib
import functools
import operator
import os
import random
import re
import sys
import warnings

import numpy as np
import torch

from fcos_core.layers._library import load

try:
    import resource
except ImportError:  # Windows
    resource = None

REFUSALS = (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError, OverflowError)
FORBIDDEN = re.compile(
    r"INTERNAL ASSERT|report a bug|CUDA error|std::|bad_alloc|out_of_range|basic_string|vector|segmentation"
    r"|device-side|misaligned|CUDNN|CUBLAS|Unknown error",
    re.IGNORECASE,
)
OURS = re.compile(r"^(\w+|fcos_core::\w+): expected .+, got .+; .+", re.DOTALL)
# the words of torch where it parses arguments, finds a kernel or keeps track of gradients
TORCHS = re.compile(
    r"^(fcos_core::\w+|_?\w+)\(\) (expected|is missing|takes|received|got|Expected)"
    r"|^Could not run 'fcos_core::"
    r"|^There were no tensor arguments to this function"
    r"|^Overflow when unpacking|^can't convert|^Cannot input a tensor of dimension other than 0"
    r"|^int too large to convert|^Unable to cast|^value cannot be converted"
    r"|^Failed to convert|^only (Tensors|integer|one element)|^a Tensor with \d+ elements cannot be converted"
    r"|^(Int|Float|Sym)\w* (is not|argument)|^must be real number"
    r"|^Only Tensors of floating point and complex dtype can require gradients"
    r"|^Could not infer dtype|^Trying to create tensor with negative dimension"
    r"|^Expected !is_symbolic\(\) to be true",  # torch 2.0 of the smallest int64, which it cannot store as a size
)
TOO_MUCH_MEMORY = re.compile(
    r"you tried to allocate (\d+) bytes|Tried to allocate ([\d.]+) GiB"
    r"|Storage size calculation overflowed|integer multiplication overflow"
)
MEMORY = 1 << 30  # bytes that a run may reserve beyond what it started with
COMPARED = 1 << 20  # of larger results so many numbers are compared, and no gradients

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
ALL_DTYPES = DTYPES + [
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.complex128,
]
NAN, INF = float("nan"), float("inf")
INTS = [0, 1, 2, 3, 4, 5, 7, 8, 16, 63, -1, -2, 2**15, 2**31 - 1, 2**31, 2**32 + 1, 2**40, 2**62, 2**63 - 1]
INTS += [-(2**31), -(2**63), 2**63, -(2**64), 10**30]
FLOATS = [0.0, -0.0, 0.1, 0.5, 1.0, 2.0, -1.0, NAN, INF, -INF, 1e308, -1e308, 1e-308, 5e-324, 2.0**31, 2.0**63, 1e-10]
VALUES = [NAN, INF, -INF, 1e30, -1e30, 3e38, 65504.0, 2.0**31, -(2.0**31), 2.0**63, -1.0, 0.0, -0.0, 0.5, 1e-40]
ODD = [
    None,
    "1",
    "x",
    [],
    [1.0],
    (1, 2),
    {},
    1j,
    True,
    b"1",
    object(),
    10**400,
    np.float32(1),
    np.int64(1),
]

# What the rules say about one operator, see fuzz_rules.py.  two_formulas: its layouts are computed by different ones.
Rules = collections.namedtuple("Rules", "samples wrong results reference two_formulas")
Rules.__new__.__defaults__ = (False,)
HUGE = 1e15  # squares and products of a few such numbers overflow
Problem = collections.namedtuple("Problem", "op device seed index call text")


# ---- operators and their schemas


def schemas():
    """{operator without namespace: its schema}, all of those that take a tensor."""
    load()
    found = {}
    for schema in torch._C._jit_get_all_schemas():
        space, _, name = schema.name.partition("::")
        if space == "fcos_core" and any(kind_of(a) in ("Tensor", "Tensor?") for a in schema.arguments):
            found[name] = schema
    return found


def schema_is_composite(schema):
    """Made of torch's operators, some of which take sparse tensors."""
    return schema.name.endswith("_composite")


def kind_of(argument):
    """The type of an argument as schemas write it, without sizes of lists and without symbols."""
    text = str(argument.type)
    for written, kind in (("Optional[Tensor]", "Tensor?"), ("Tensor?", "Tensor?"), ("Tensor", "Tensor")):
        if text == written:
            return kind
    if text in ("List[int]", "List[SymInt]", "int[]", "SymInt[]"):
        return "int[]"
    return {"SymInt": "int"}.get(text, text)


# ---- bending a call


class Call:
    """One call, bent: `arguments` as they are passed, `bends` in words, `mode` a name of `MODES`."""

    def __init__(self, rng, schema, arguments, device):
        self.rng, self.schema, self.arguments, self.device = rng, schema, list(arguments), device
        self.bends, self.mode, self.extra = [], "plain", {}

    def __str__(self):
        mode = "" if self.mode == "plain" else ", {}".format(self.mode)
        return "{}({}{}){}".format(
            self.schema.name.split("::")[1],
            ", ".join(describe(a) for a in self.arguments),
            "".join(", {}={!r}".format(*item) for item in self.extra.items()),
            mode,
        ) + ("  <- " + "; ".join(self.bends) if self.bends else "")

    def named(self):
        return dict(zip((a.name for a in self.schema.arguments), self.arguments))

    def tensors(self):
        return [a for a in self.arguments if isinstance(a, torch.Tensor)]


def describe(value):
    if not isinstance(value, torch.Tensor):
        return repr(value) if len(repr(value)) < 60 else repr(value)[:57] + "..."
    text = "{}{}".format(str(value.dtype).split(".")[1], list(value.shape))
    if value.layout != torch.strided:
        return text + str(value.layout)
    text += "" if value.is_contiguous() else " strides {}".format(list(value.stride()))
    text += "" if value.device.type == "cpu" else " " + str(value.device)
    return text + (" grad" if value.requires_grad else "")


def bend(call):
    """Change one argument, or how many there are."""
    rng = call.rng
    if rng.random() < 0.03:
        if rng.random() < 0.4 and call.arguments:
            call.arguments.pop()
            call.bends.append("one argument less")
        elif rng.random() < 0.5:
            call.arguments.append(rng.choice(ODD[:9]))
            call.bends.append("one argument more")
        else:
            call.extra = {"unknown": 1}
            call.bends.append("unknown keyword")
        return
    i = rng.randrange(len(call.arguments))
    kinds = [kind_of(a) for a in call.schema.arguments]
    if i >= len(kinds):
        return
    kind = kinds[i]
    if kind in ("Tensor", "Tensor?"):
        value, how = bend_tensor(call, call.arguments[i], kind == "Tensor?")
    elif rng.random() < 0.1:
        value, how = rng.choice(ODD), "odd"
    elif kind == "float":
        value, how = rng.choice(FLOATS + INTS[:8]), "number"
    elif kind == "bool":
        value, how = rng.choice([True, False, 0, 1]), "bool"
    elif kind == "int[]":
        value = [rng.choice(INTS[:6] if rng.random() < 0.6 else INTS) for _ in range(rng.choice([2, 2, 2, 2, 1, 3, 0]))]
        how = "numbers"
        if rng.random() < 0.1:
            value, how = rng.choice(INTS), "one number"
    else:
        value, how = rng.choice(INTS), "number"
    call.bends.append("{}: {}".format(call.schema.arguments[i].name, how))
    call.arguments[i] = value


def bend_tensor(call, tensor, optional):
    """Another tensor in the place of one, or none; and what was done."""
    rng = call.rng
    if optional and rng.random() < 0.15:
        return None, "None"
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
        others = [t for t in call.tensors() if t.layout == torch.strided]
        return (rng.choice(others), "another argument") if others else (tensor, "as it was")
    bends = LAYOUTS if rng.random() < 0.45 else (SHAPES if rng.random() < 0.4 else OTHERS)
    function = rng.choice(bends)
    try:
        return function(call, tensor), function.__name__
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        # not every bend fits every tensor
        return tensor, "{} does not fit ({})".format(function.__name__, str(error).split("\n")[0][:40])


# strides: the same numbers otherwise laid out


def permuted(call, t):
    order = list(range(t.dim()))
    call.rng.shuffle(order)
    back = [order.index(d) for d in range(t.dim())]
    return t.permute(order).contiguous().permute(back)


def channels_last(call, t):
    return t.contiguous(memory_format=torch.channels_last)


def sliced(call, t):
    """A part of a larger tensor full of NaN, or of the largest number."""
    poison = NAN if t.dtype.is_floating_point else (torch.iinfo(t.dtype).max if t.dtype not in NO_LIMITS else 1)
    steps = [call.rng.choice([1, 1, 2]) for _ in t.shape]
    begins = [call.rng.choice([0, 1]) for _ in t.shape]
    sizes = [b + s * n + 1 for b, s, n in zip(begins, steps, t.shape)]
    if functools.reduce(operator.mul, sizes, 1) >= 2**63:
        raise ValueError("too many elements")  # torch 1.9 and 1.10 would write behind the end of what they allocate
    whole = torch.full(sizes, poison, dtype=t.dtype, device=t.device)
    view = whole[tuple(slice(b, b + s * n, s) for b, s, n in zip(begins, steps, t.shape))]
    view.copy_(t)
    return view


def misaligned(call, t):
    """Contiguous, but one element behind an aligned address."""
    whole = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)
    return whole[1:].copy_(t.reshape(-1)).view(t.shape)


def strides_of_ones(call, t):
    """Any strides in dimensions of size 1, which mean nothing."""
    strides = [call.rng.choice([0, 1, 7, 2**20]) if n == 1 else s for n, s in zip(t.shape, t.stride())]
    return t.as_strided(t.shape, strides)


def expanded(call, t):
    """One slice again and again, with stride 0."""
    d = call.rng.randrange(t.dim())
    return t.narrow(d, 0, 1).expand(t.shape)


def negated_lazily(call, t):
    return torch._neg_view(t.neg())


NO_LIMITS = (torch.bool, torch.complex64, torch.complex128)
LAYOUTS = [permuted, channels_last, sliced, misaligned, strides_of_ones, expanded]
if hasattr(torch, "_neg_view"):  # torch 1.10 and newer
    LAYOUTS.append(negated_lazily)


# shapes


def one_less(call, t):
    d = call.rng.randrange(t.dim())
    return t.narrow(d, 0, t.shape[d] - 1)


def one_more(call, t):
    d = call.rng.randrange(t.dim())
    return torch.cat([t, t.narrow(d, 0, 1)], d)


def none_left(call, t):
    return t.narrow(call.rng.randrange(t.dim()), 0, 0)


def unsqueezed(call, t):
    return t.unsqueeze(call.rng.randrange(t.dim() + 1))


def selected(call, t):
    return t.select(call.rng.randrange(t.dim()), 0)


def flattened(call, t):
    return t.reshape(-1)


def transposed(call, t):
    return t.transpose(call.rng.randrange(t.dim()), call.rng.randrange(t.dim()))


def any_shape(call, t):
    shape = [call.rng.choice([0, 1, 2, 3, 4, 5]) for _ in range(call.rng.randrange(6))]
    return torch.zeros(shape, dtype=t.dtype, device=t.device)


def no_elements_of_huge_size(call, t):
    shape = list(t.shape)
    first, second = call.rng.sample(range(len(shape)), 2)
    shape[first], shape[second] = 0, call.rng.choice([2**20, 2**31, 2**40, 2**62])
    return torch.empty(shape, dtype=t.dtype, device=t.device)


def expanded_to_huge_size(call, t):
    d = call.rng.randrange(t.dim())
    return t.narrow(d, 0, 1).expand([2**34 if i == d else n for i, n in enumerate(t.shape)])


SHAPES = [one_less, one_more, none_left, unsqueezed, selected, flattened, transposed, any_shape]
SHAPES += [no_elements_of_huge_size, expanded_to_huge_size]


# all else


def another_dtype(call, t):
    return t.to(call.rng.choice(ALL_DTYPES))


def another_floating_dtype(call, t):
    return t.to(call.rng.choice(DTYPES))


def other_values(call, t):
    """Some entries replaced by numbers at the edges."""
    t = t.clone()
    values = (
        VALUES
        if t.dtype.is_floating_point
        else [0, 1, -1, 5, 127] + ([2**62, -(2**63)] if t.dtype == torch.int64 else [])
    )
    flat = t.view(-1)
    for _ in range(call.rng.choice([1, 1, 2, 5])):
        flat[call.rng.randrange(t.numel())] = call.rng.choice(values)
    return t


def all_values(call, t):
    return torch.full_like(
        t, call.rng.choice(VALUES) if t.dtype.is_floating_point else call.rng.choice([0, 1, -1, 100])
    )


def random_values(call, t):
    generator = torch.Generator().manual_seed(call.rng.randrange(2**31))
    return (torch.randn(t.shape, generator=generator) * call.rng.choice([0.1, 3, 50, 1e4])).to(t.device, t.dtype)


def wants_gradient(call, t):
    return t.detach().requires_grad_()


def intermediate(call, t):
    """The result of an operation, of which autograd knows."""
    return t.detach().requires_grad_() * 1


def parameter(call, t):
    return torch.nn.Parameter(t.detach())


def on_another_device(call, t):
    others = [d for d in ("meta", "cpu", "cuda") if d != t.device.type and (d != "cuda" or torch.cuda.is_available())]
    return t.to(call.rng.choice(others))


def all_on_meta(call, t):
    call.arguments[:] = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in call.arguments]
    return t.to("meta")


def sparse(call, t):
    return t.detach().to_sparse()


def no_tensor(call, t):
    return call.rng.choice(ODD + [1, 2.5])


def as_array(call, t):
    return t.detach().cpu().numpy()


def as_list(call, t):
    return t.detach().reshape(-1)[:5].tolist()


def another_argument(call, t):
    return call.rng.choice(call.tensors())


OTHERS = [another_dtype, another_floating_dtype, another_floating_dtype, other_values, other_values, all_values]
OTHERS += [random_values, random_values, wants_gradient, wants_gradient, wants_gradient, intermediate, parameter]
OTHERS += [on_another_device, all_on_meta, sparse, no_tensor, as_array, as_list, another_argument]

MODES = ["plain"] * 8 + ["no_grad", "inference", "autocast"]


@contextlib.contextmanager
def mode_of(call):
    if call.mode == "no_grad":
        with torch.no_grad():
            yield
    elif call.mode == "inference" and hasattr(torch, "inference_mode"):
        with torch.inference_mode():
            yield
    elif call.mode == "autocast" and hasattr(torch, "autocast"):
        with torch.autocast(call.device.type, dtype=torch.bfloat16):
            yield
    else:
        yield


def make_call(schema, rules, device, seed, index):
    """Call `index` of a seed."""
    name = schema.name.split("::")[1]
    rng = random.Random("{}/{}/{}".format(name, seed, index))
    samples = small_samples(name, rules, device, rng.choice(DTYPES + [torch.float32, torch.float64]))
    call = Call(rng, schema, rng.choice(samples), device)
    call.mode = rng.choice(MODES)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 2, 3])):
        bend(call)
    if rng.random() < 0.3:
        call.arguments[:] = [
            a.detach().requires_grad_()
            if isinstance(a, torch.Tensor) and a.layout == torch.strided and a.dtype in DTYPES and rng.random() < 0.8
            else a
            for a in call.arguments
        ]
    return call


_samples = {}


def small_samples(name, rules, device, dtype):
    """Those of the samples of an operator that take no time, made once."""
    key = (name, str(device), dtype)
    if key not in _samples:
        samples = [tuple(s) for s in rules.samples(device, dtype)]
        size = [sum(a.numel() for a in s if isinstance(a, torch.Tensor)) for s in samples]
        _samples[key] = [s for s, n in zip(samples, size) if n <= 12000]
        assert _samples[key], "no small sample of {}".format(name)
    return _samples[key]


# ---- judging it


def judge(call, rules, counts, with_reference):
    """What is wrong with how a call ends, in words; None if nothing is."""
    try:
        copies = [plain_copy(a) for a in call.arguments]
    except RuntimeError as error:
        if not TOO_MUCH_MEMORY.search(str(error)):
            raise
        copies = None
    function = getattr(torch.ops.fcos_core, call.schema.name.split("::")[1])
    try:
        with mode_of(call):
            results = function(*call.arguments, **call.extra)
    except Exception as error:
        return judge_refusal(call, error, counts)
    results = list(results) if isinstance(results, (tuple, list)) else [results]
    counts["answered"] += 1
    if any(t.device.type == "meta" for t in call.tensors()):
        return None
    if schema_is_composite(call.schema) and any(t.layout != torch.strided for t in call.tensors()):
        # some of torch's operators take sparse tensors, of which the rules know nothing
        return None
    reason = certainly_wrong(call, rules)
    if reason:
        return "answered, although " + reason
    if copies is None:
        return None
    for argument, copy in zip(call.arguments, copies):
        if isinstance(argument, torch.Tensor) and not same(argument, copy, 0):
            return "wrote to an argument"
    try:
        return (
            judge_kinds(call, rules, results)
            or judge_copies(call, rules, function, copies, results, counts)
            or (with_reference and judge_reference(call, rules, results, counts))
            or None
        )
    except RuntimeError as error:
        # there is room for one result, not for two
        if not TOO_MUCH_MEMORY.search(str(error)):
            raise
        return None


def judge_refusal(call, error, counts):
    counts["refused"] += 1
    text = str(error)
    said = "{}: {}".format(type(error).__name__, text.split("\n")[0][:300])
    if not isinstance(error, REFUSALS):
        return "raised " + said
    if any(t.device.type == "meta" for t in call.tensors()):
        return "said " + said if FORBIDDEN.search(text) else None
    memory = TOO_MUCH_MEMORY.search(text)
    if memory:
        of_cpu, of_gpu = memory.groups()
        size = int(of_cpu) if of_cpu else float(of_gpu or "inf") * 2**30
        return None if size > MEMORY / 8 else "lacked memory, said " + said
    sparse = any(t.layout != torch.strided for t in call.tensors())
    if schema_is_composite(call.schema) and sparse and not FORBIDDEN.search(text):
        # what is made of torch's operators ends in their words
        return None
    if FORBIDDEN.search(text) or not (OURS.search(text) or TORCHS.search(text)):
        return "said " + said
    counts["refused by us"] += bool(OURS.search(text))
    return None


def certainly_wrong(call, rules):
    """Why no answer can be right, or None."""
    schema = call.schema.arguments
    if call.extra:
        return "there is no such keyword"
    if len(call.arguments) != len(schema):
        return "it takes {} arguments".format(len(schema))
    for argument, value in zip(schema, call.arguments):
        if not possible(kind_of(argument), value):
            return "{} is no {}".format(argument.name, kind_of(argument))
    tensors = call.tensors()
    if len({str(t.device) for t in tensors}) > 1:
        return "there are two devices"
    if any(t.layout != torch.strided for t in tensors):
        return "a tensor is sparse"
    if call.mode == "autocast":
        # which converts dtypes; shapes and values are tried enough without it
        return None
    try:
        return rules.wrong(**call.named())
    except (TypeError, ValueError, RuntimeError):
        # numbers in strange clothes, such as tensors, of which the rules know nothing
        if all(isinstance(a, (int, float, torch.Tensor, list, type(None))) for a in call.arguments):
            raise
        return None


def possible(kind, value):
    """Whether a value may stand for an argument; True where torch decides."""
    if kind == "Tensor":
        return isinstance(value, torch.Tensor)
    if kind == "Tensor?":
        return value is None or isinstance(value, torch.Tensor)
    if kind == "bool" and (value is None or isinstance(value, complex)):
        # which torch takes
        return True
    if value is None or isinstance(value, (str, bytes, dict, complex)) or type(value) is object:
        return False
    if kind == "int[]":
        numbers = value if isinstance(value, (list, tuple)) else [value]
        return all(possible("int", number) for number in numbers)
    if isinstance(value, (list, tuple)):
        return False
    if kind == "int":
        return not isinstance(value, float) and not (isinstance(value, int) and abs(value) > 2**63)
    return kind == "bool" or not (isinstance(value, int) and abs(value) >= 2**1024)


def plain_copy(argument):
    if not isinstance(argument, torch.Tensor) or argument.layout != torch.strided or argument.device.type == "meta":
        return argument
    try:
        copy = argument.detach().contiguous().clone()
    except RuntimeError as error:
        # torch 1.13 about a tensor without elements whose other sizes overflow
        if argument.numel() > 0 or "expected to contain only concrete integers" not in str(error):
            raise
        return argument
    return copy.requires_grad_(argument.requires_grad)


def same(a, b, tolerance):
    """Whether two tensors hold the same numbers, relative to the largest; NaN equals NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.layout != torch.strided or a.device.type == "meta" or a.numel() == 0:
        return True
    a, b = (t.detach().reshape(-1)[:COMPARED] for t in (a, b))
    if not tolerance or not a.dtype.is_floating_point:
        return bool(((a == b) | ((a != a) & (b != b))).all())
    a, b = a.double(), b.double()
    finite = torch.isfinite(a) & torch.isfinite(b)
    if not bool(((a == b) | ((a != a) & (b != b)) | finite).all()):
        return False
    largest = max(float(a[finite].abs().max()), 1e-30) if bool(finite.any()) else 0.0
    return not bool(finite.any()) or float((a - b)[finite].abs().max()) <= tolerance * largest


def has_huge(t):
    return t.dtype.is_floating_point and t.numel() > 0 and not bool((t.detach().double().abs() < HUGE).all())


def judge_kinds(call, rules, results):
    """Shapes, dtypes and devices of the results."""
    if not all(isinstance(r, torch.Tensor) for r in results):
        return "returned {}".format([type(r).__name__ for r in results])
    if call.mode == "autocast":
        return None
    expected = rules.results(**call.named())
    for i, (result, (shape, dtype)) in enumerate(zip(results, expected)):
        if result.dtype != dtype or (shape is not None and tuple(result.shape) != tuple(shape)):
            return "result {} is {}, not {}{}".format(i, describe(result), str(dtype).split(".")[1], list(shape or []))
        if result.device != call.tensors()[0].device:
            return "result {} is on {}".format(i, result.device)
    return None if len(results) == len(expected) else "returned {} results".format(len(results))


TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def judge_copies(call, rules, function, copies, results, counts):
    """The results and gradients against those of plain copies of the arguments."""
    with mode_of(call):
        again = function(*copies)
    again = list(again) if isinstance(again, (tuple, list)) else [again]
    if any(bend.endswith(all_values.__name__) for bend in call.bends):
        # sums of equal huge numbers cancel out to what their order leaves
        return None
    if rules.two_formulas and any(has_huge(t) for t in call.tensors()):
        # one overflows where the other does not
        return None
    # a float64 result of half features is summed in float32
    coarsest = max(TOLERANCE.get(t.dtype, 0) for t in call.tensors() + results)
    for i, (result, other) in enumerate(zip(results, again)):
        if not same(result, other, coarsest if result.dtype in TOLERANCE else 0):
            return "result {} is not that of contiguous copies".format(i)
    counts["compared"] += 1
    if not results[0].requires_grad or not 0 < results[0].numel() <= COMPARED:
        return None
    leaves = [i for i, a in enumerate(call.arguments) if isinstance(a, torch.Tensor) and a.requires_grad]
    grad = torch.linspace(-1, 1, results[0].numel(), dtype=torch.float64).reshape(results[0].shape).to(results[0])
    if call.rng.random() < 0.3:
        grad = grad.mean().expand(grad.shape)
    try:
        grads = torch.autograd.grad(results[0], [call.arguments[i] for i in leaves], grad, allow_unused=True)
    except RuntimeError as error:
        if "expected one backward pass" in str(error) and "_backward" in call.schema.name:
            return None
        return "the gradient said {}".format(error)
    others = torch.autograd.grad(again[0], [copies[i] for i in leaves], grad.contiguous(), allow_unused=True)
    for i, a, b in zip(leaves, grads, others):
        if (a is None) != (b is None) or (a is not None and not same(a, b, 3 * coarsest)):
            return "the gradient of {} is not that of contiguous copies".format(call.schema.arguments[i].name)
    counts["gradients"] += 1
    return None


def judge_reference(call, rules, results, counts):
    """The results against the slow reference, where numbers are not too strange for it."""
    for t in call.tensors():
        if t.dtype.is_floating_point and not bool((t.detach().double().abs() < 1e6).all()):
            return None
    if call.mode == "autocast" or rules.reference is None:
        return None
    if not all(type(a) in (int, float, bool, list) or a is None or isinstance(a, torch.Tensor) for a in call.arguments):
        return None
    # a clone has no lazy sign, which numpy does not know
    arguments = {n: a.detach().cpu().clone() if isinstance(a, torch.Tensor) else a for n, a in call.named().items()}
    expected = rules.reference([r.detach().cpu() for r in results], **arguments)
    if expected is None:
        return None
    counts["reference"] += 1
    for i, (result, wanted) in enumerate(zip(results, expected)):
        if wanted is not None and not same(
            result.detach().cpu(), wanted.to(result.dtype), TOLERANCE.get(result.dtype, 0)
        ):
            return "result {} is not that of the reference".format(i)
    return None


# ---- running


@contextlib.contextmanager
def bounded_memory():
    """Huge allocations fail instead of filling the machine."""
    # AddressSanitizer needs terabytes of addresses for itself, and has a limit of its own
    if resource is None or not sys.platform.startswith("linux") or "libasan" in os.environ.get("LD_PRELOAD", ""):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as stream:
        now = int(stream.read().split()[0]) * resource.getpagesize()
    limit = now + MEMORY if hard == resource.RLIM_INFINITY else min(now + MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def run(op, rules, device="cpu", calls=2000, seed=0, first=0, say=None):
    """Make calls `first` to `first + calls - 1` of an operator.

    Args:
        op (str): its name.
        rules (Rules): of this operator.
        say: called with each call in words before it is made.

    Returns:
        (Counter, list of Problem): how the calls ended, and what must not be.
    """
    device = torch.device(device)
    if torch.cuda.is_available():
        # some arguments are on a GPU, and starting it takes more addresses than are left later
        torch.zeros(1, device="cuda")
    schema = schemas()[op]
    counts, problems = collections.Counter(), []
    with warnings.catch_warnings(), bounded_memory():
        warnings.simplefilter("ignore")
        for index in range(first, first + calls):
            call = make_call(schema, rules, device, seed, index)
            words = None
            if say:
                words = str(call)
                say("{} {} seed {} call {}: {}".format(op, device, seed, index, words))
            text = judge(call, rules, counts, with_reference=index % 4 == 0)
            counts["calls"] += 1
            if text:
                problems.append(Problem(op, str(device), seed, index, words or str(call), text))
    return counts, problems


def summary(op, counts):
    names = ("calls", "answered", "compared", "gradients", "reference", "refused", "refused by us")
    return "{}: {}".format(op, ", ".join("{} {}".format(counts[name], name) for name in names))


def main(arguments=None):
    from tests.layers.fuzz_rules import RULES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", nargs="+", default=None, help="operators without namespace; all of them if not given")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--quiet", action="store_true", help="do not print each call")
    args = parser.parse_args(arguments)
    found = []
    for op in args.op or sorted(schemas()):
        say = None if args.quiet else lambda text: print(text, flush=True)
        counts, problems = run(op, RULES[op], args.device, args.calls, args.seed, args.first, say)
        print(summary(op, counts), flush=True)
        for problem in problems:
            print(explain(problem), flush=True)
        found += problems
    print("{} problems".format(len(found)))
    return 1 if found else 0


def explain(problem):
    command = "python -m tests.layers.fuzz --op {0.op} --device {0.device} --seed {0.seed} --first {0.index} --calls 1"
    return "{0.text}\n    {0.call}\n    {1}".format(problem, command.format(problem))


if __name__ == "__main__":
    sys.exit(main())
