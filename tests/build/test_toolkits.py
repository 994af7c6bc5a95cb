"""Whether CUDA kernels are compiled, and by which toolkit."""

import os
import stat

import pytest

from fcos_core.build import BuildError, toolkits


@pytest.mark.parametrize(
    "force, torch_cuda, gpu, nvcc, expected",
    [
        ("", "13.0", True, (13, 0), True),
        ("", "12.1", True, (12, 4), True),  # another minor version links
        ("", "13.0", False, (13, 0), False),
        ("", "13.0", True, (12, 4), False),
        ("", "13.0", True, None, False),
        ("", None, False, (13, 0), False),
        ("0", "13.0", True, (13, 0), False),
        ("1", "13.0", False, (13, 0), True),
    ],
)
def test_decision(force, torch_cuda, gpu, nvcc, expected):
    assert toolkits.wants_cuda({"FORCE_CUDA": force}, torch_cuda, gpu, nvcc) is expected


@pytest.mark.parametrize(
    "force, torch_cuda, nvcc, message",
    [
        ("yes", "13.0", (13, 0), "expected FORCE_CUDA to be 0 or 1, got 'yes'"),
        ("1", None, (13, 0), "this torch is a CPU build"),
        ("1", "13.0", None, "there is no nvcc; install the CUDA toolkit 13.0"),
    ],
)
def test_what_cannot_be_asked_for(force, torch_cuda, nvcc, message):
    with pytest.raises(BuildError, match=message):
        toolkits.wants_cuda({"FORCE_CUDA": force}, torch_cuda, True, nvcc)


def make_nvcc(folder, version):
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\necho 'Cuda compilation tools, release {}, V{}.1'\n".format(version, version))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")
def test_places_and_version(tmp_path):
    first, second, third = tmp_path / "a b", tmp_path / "two", tmp_path / "three"
    make_nvcc(first, "12.4")
    make_nvcc(second, "11.8")
    make_nvcc(third, "13.0")
    path = str(third / "bin")
    assert toolkits.find_cuda_home({"CUDA_HOME": str(first), "CUDA_PATH": str(second), "PATH": path}) == str(first)
    assert toolkits.find_cuda_home({"CUDA_HOME": str(tmp_path), "CUDA_PATH": str(second)}) == str(second)
    assert toolkits.find_cuda_home({"PATH": path}) == str(third)
    assert toolkits.nvcc_version(str(first)) == (12, 4)
    assert toolkits.nvcc_version(None) is None


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")
def test_nvcc_on_path_may_be_a_script_that_calls_the_real_one(tmp_path):
    make_nvcc(tmp_path / "real", "13.0")
    script = make_nvcc(tmp_path / "front", "13.0")
    script.write_text("#!/bin/sh\necho '#$ TOP={}'\n".format(tmp_path / "real"))
    assert toolkits.find_cuda_home({"PATH": str(tmp_path / "front" / "bin")}) == str(tmp_path / "real")
