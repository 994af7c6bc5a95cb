"""For which GPU architectures the kernels are compiled, and which GPUs that serves."""

import pytest

from fcos_core.build import BuildError, arch

CUDA_112 = [35, 37, 50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86]
CUDA_118 = CUDA_112 + [87, 89, 90]
CUDA_13 = [75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121]


@pytest.mark.parametrize(
    "asked, gpus, of_torch, known, expected",
    [
        ("8.6", [], [], CUDA_112, "86"),
        ("7.5;8.6+PTX", [89], [], CUDA_118, "75 86+PTX"),  # what the user asked for wins over the GPU
        ("Ampere", [], [], CUDA_118, "80 86+PTX"),
        ("8.6, 7.0 sm_75", [], [], CUDA_13, "75 86"),  # CUDA 13 has nothing below 7.5
        ("", [86], [60, 70], CUDA_112, "86+PTX"),
        ("", [75, 86], [], CUDA_118, "75 86+PTX"),
        ("", [89], [], CUDA_112, "86+PTX"),  # a GPU newer than the toolkit
        ("", [120], [], CUDA_118, "90+PTX"),
        ("", [], [37, 50, 60, 70, 75], CUDA_112, "37 50 60 70 75 86+PTX"),  # sm_86 whatever torch has
        ("", [], [37, 50, 60, 70, 75, 80, 86], CUDA_13, "75 80 86+PTX"),
        ("", [], [], [], ""),
    ],
)
def test_choice(asked, gpus, of_torch, known, expected):
    chosen, why = arch.choose(asked, gpus, of_torch, known)
    assert arch.render(chosen) == expected and why


def test_asked_for_what_nvcc_does_not_know():
    with pytest.raises(BuildError, match=r"LIST \(6.1\) to name architectures of this nvcc, which knows 75"):
        arch.choose("6.1", [], [], CUDA_13)
    _, why = arch.choose("6.1 8.6", [], [], CUDA_13)
    assert why == "TORCH_CUDA_ARCH_LIST without 61, unknown to this nvcc"
    with pytest.raises(BuildError, match="got 'fast'; for an RTX 30 card: TORCH_CUDA_ARCH_LIST=8.6"):
        arch.parse("8.6 fast")


def test_written_and_read_again():
    archs = [(75, False), (86, True), (120, False)]
    assert arch.parse(arch.render(archs)) == archs
    assert arch.parse("") == [] and arch.parse("9.0a;12.0") == [(90, False), (120, False)]


@pytest.mark.parametrize(
    "compiled, gpu, expected",
    [
        ("80", 86, "binary"),
        ("90 120", 121, "binary"),
        ("75+PTX", 86, "ptx"),
        ("86", 80, ""),
        ("75", 86, ""),
        ("86+PTX", 75, ""),
    ],
)
def test_which_gpus_a_library_serves(compiled, gpu, expected):
    assert arch.covers(arch.parse(compiled), gpu) == expected


def test_flags_and_help():
    assert arch.gencode_flags([(75, False), (86, True)]) == [
        "-gencode=arch=compute_75,code=sm_75",
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_86,code=compute_86",
    ]
    assert arch.known_from_help("Values: 'compute_75','compute_86', 'sm_75', 'sm_86', 'sm_120'.") == [75, 86, 120]


class FakeDriver(object):
    """The functions of libcuda that are asked, each with the code that it returns; arguments by reference."""

    def __init__(self, cuda=13000, capabilities=(), **codes):
        self.cuda, self.capabilities, self.codes = cuda, capabilities, codes

    def cuDriverGetVersion(self, number):
        number._obj.value = self.cuda
        return self.codes.get("version", 0)

    def cuInit(self, flags):
        return self.codes.get("init", 0)

    def cuDeviceGetCount(self, number):
        number._obj.value = len(self.capabilities)
        return self.codes.get("count", 0)

    def cuDeviceGet(self, device, index):
        device._obj.value = index + 40
        return self.codes.get("device", 0)

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = self.capabilities[device.value - 40][{75: 0, 76: 1}[attribute]]
        return self.codes.get("attribute", 0)


@pytest.mark.parametrize(
    "torch_cuda, driver, expected",
    [
        ("13.0", FakeDriver(capabilities=[(9, 0), (8, 6), (9, 0), (12, 0)]), [86, 90, 120]),
        ("12.4", FakeDriver(12040, [(8, 6)]), [86]),
        ("12.4", FakeDriver(12020, [(8, 6)]), None),  # torch may see it or not
        ("9.0.176", FakeDriver(12020, [(7, 0)]), [70]),
        ("13.0", FakeDriver(init=100), []),  # CUDA_VISIBLE_DEVICES hides all
        ("13.0", FakeDriver(init=999), None),
        ("13.0", FakeDriver(version=34), None),  # a stub
        ("13.0", FakeDriver(0), None),
        ("13.0", FakeDriver(capabilities=[(8, 6)], count=3), None),
        ("13.0", FakeDriver(capabilities=[(8, 6)], device=101), None),
        ("13.0", FakeDriver(capabilities=[(8, 6)], attribute=1), None),
        ("13.0", object(), None),  # no such functions
        ("thirteen", FakeDriver(), None),
        (None, FakeDriver(capabilities=[(8, 6)]), []),
    ],
)
def test_gpus_by_the_driver(torch_cuda, driver, expected):
    assert arch.of_driver(torch_cuda, driver) == expected


def test_driver_and_torch_see_the_same_gpus():
    torch = pytest.importorskip("torch")
    assert arch.of_driver(torch.version.cuda) in (arch.of_gpus(torch), None)
