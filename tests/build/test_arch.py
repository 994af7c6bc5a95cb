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
