"""Which CUDA toolkits are found, which one is taken, and whether CUDA kernels are compiled at all."""

import json
import os
import stat

import pytest

from fcos_core.build import BuildError, toolkits
from fcos_core.build.toolkits import Toolkit

HERE_ONLY = pytest.mark.skipif(os.name == "nt", reason="the stand-in for nvcc is a shell script")


def toolkit(major, minor, origin="usual place"):
    return Toolkit("/cuda-{}.{}".format(major, minor), (major, minor), origin)


@pytest.mark.parametrize(
    "force, torch_cuda, gpu, found, expected",
    [
        ("", "13.0", True, [toolkit(13, 0)], (13, 0)),
        ("", "12.1", True, [toolkit(12, 4)], (12, 4)),  # another minor version links
        ("", "13.0", False, [toolkit(13, 0)], None),
        ("", "13.0", True, [toolkit(12, 4)], None),
        ("", "13.0", True, [], None),
        ("", None, False, [toolkit(13, 0)], None),
        ("0", "13.0", True, [toolkit(13, 0)], None),
        ("1", "13.0", False, [toolkit(13, 0)], (13, 0)),
    ],
)
def test_decision(force, torch_cuda, gpu, found, expected):
    chosen, why = toolkits.wants_cuda({"FORCE_CUDA": force}, torch_cuda, gpu, lambda: found)
    assert (chosen and chosen.version) == expected and why


@pytest.mark.parametrize(
    "force, torch_cuda, found, message",
    [
        ("yes", "13.0", [toolkit(13, 0)], "expected FORCE_CUDA to be 0 or 1, got 'yes'"),
        ("1", None, [toolkit(13, 0)], "this torch is a CPU build; install one with CUDA"),
        ("1", "13.0", [], "no CUDA 13 toolkit .* found: none; install CUDA 13.0"),
        ("1", "11.3", [toolkit(10, 2)], r"with CUDA 11.3; found: CUDA 10.2 in /cuda-10.2 \(usual place\); install"),
    ],
)
def test_what_cannot_be_asked_for(force, torch_cuda, found, message):
    with pytest.raises(BuildError, match=message):
        toolkits.wants_cuda({"FORCE_CUDA": force}, torch_cuda, True, lambda: found)


@pytest.mark.parametrize(
    "torch_cuda, versions, expected",
    [
        ("11.3", [(10, 2), (11, 8), (11, 3), (12, 0)], (11, 3)),
        ("11.3", [(10, 2), (11, 8), (11, 2), (12, 0)], (11, 2)),
        ("11.7", [(11, 8), (11, 6)], (11, 8)),  # equally near: the first
        ("13.0", [(12, 4), (13, 2)], (13, 2)),
    ],
)
def test_nearest_of_the_same_major_version(torch_cuda, versions, expected):
    chosen, why = toolkits.choose([toolkit(*version) for version in versions], torch_cuda)
    assert chosen.version == expected
    assert ("another minor version is fine" in why) == (".".join(map(str, expected)) != torch_cuda)


def test_a_wrong_cuda_home_is_passed_over_aloud():
    chosen, why = toolkits.choose([toolkit(10, 2, "CUDA_HOME"), toolkit(11, 3)], "11.3")
    assert chosen.version == (11, 3) and "CUDA_HOME names CUDA 10.2" in why


@pytest.mark.parametrize(
    "value, expected",
    [
        ("/usr/local/cuda-11.3:", "/usr/local/cuda-11.3"),
        (":/usr/local/cuda-11.3", "/usr/local/cuda-11.3"),
        ("/opt/my cuda;", "/opt/my cuda"),
        ('"C:\\Program Files\\CUDA\\v11.3";', "C:\\Program Files\\CUDA\\v11.3"),
        ("C:\\CUDA\\v11.3", "C:\\CUDA\\v11.3"),
        ("  ", ""),
        (":", ""),
        (None, ""),
    ],
)
def test_what_shells_leave_on_a_path(value, expected):
    assert toolkits.clean(value) == expected


def test_places_on_windows():
    environ = {"CUDA_PATH": "C:\\v10.2;", "CUDA_PATH_V11_3": "C:\\v11.3", "CUDA_PATH_V9_0": "C:\\v9.0", "PATH": ""}
    listed = ["C:\\Program Files\\NVIDIA GPU Computing Toolkit\\CUDA\\v11.3"]

    def listing(pattern):
        return listed if "NVIDIA GPU" in pattern else []

    found = toolkits.candidate_folders(environ, "win32", "C:\\env", "C:\\env\\Lib", listing)
    assert [origin for _, origin in found[:4]] == ["CUDA_PATH", "CUDA_PATH_V11_3", "CUDA_PATH_V9_0", "usual place"]
    assert found[0][0] == "C:\\v10.2" and found[3][0] == listed[0]
    assert any(origin == "conda" and folder.startswith("C:\\env") for folder, origin in found)


def test_newest_of_the_usual_places_comes_first():
    listed = ["/usr/local/cuda-9.2", "/usr/local/cuda-11.3", "/usr/local/cuda-10.2"]
    found = toolkits.candidate_folders({"PATH": ""}, "linux", "/env", "/site", lambda p: listed if "local" in p else [])
    places = [folder for folder, origin in found if origin == "usual place"]
    assert places[:4] == ["/usr/local/cuda", "/usr/local/cuda-11.3", "/usr/local/cuda-10.2", "/usr/local/cuda-9.2"]


def make_nvcc(folder, version):
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\necho 'Cuda compilation tools, release {}, V{}.1'\n".format(version, version))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@HERE_ONLY
def test_toolkits_of_a_machine(tmp_path):
    first, second, third = tmp_path / "a b", tmp_path / "two", tmp_path / "three"
    make_nvcc(first, "12.4")
    make_nvcc(second, "11.8")
    make_nvcc(third, "13.0")
    environ = {"CUDA_HOME": '"{}":'.format(first), "CUDA_PATH": str(second), "PATH": str(third / "bin")}
    found = toolkits.find_toolkits(environ)
    assert [(t.home, t.version, t.origin) for t in found[:3]] == [
        (str(first), (12, 4), "CUDA_HOME"),
        (str(second), (11, 8), "CUDA_PATH"),
        (str(third), (13, 0), "PATH"),
    ]
    # twice the same folder is one toolkit; one without nvcc is none
    again = toolkits.find_toolkits({"CUDA_HOME": str(third), "CUDA_PATH": str(tmp_path), "PATH": str(third / "bin")})
    assert [t.origin for t in again if t.home == str(third)] == ["CUDA_HOME"]
    assert not [t for t in again if t.home == str(tmp_path)]


@HERE_ONLY
def test_nvcc_on_path_may_be_a_script_that_calls_the_real_one(tmp_path):
    make_nvcc(tmp_path / "real", "13.0")
    script = make_nvcc(tmp_path / "front", "13.0")
    script.write_text("#!/bin/sh\necho '#$ TOP={}'\n".format(tmp_path / "real"))
    assert toolkits.find_toolkits({"PATH": str(tmp_path / "front" / "bin")})[0].home == str(tmp_path / "real")


def test_version_from_the_file_where_nvcc_does_not_run(tmp_path):
    assert toolkits.read_version(str(tmp_path)) is None
    (tmp_path / "version.json").write_text(json.dumps({"cuda": {"version": "11.8.89"}}))
    assert toolkits.read_version(str(tmp_path)) == (11, 8)
    (tmp_path / "version.json").write_text("{")
    assert toolkits.read_version(str(tmp_path)) is None
