"""What a build does about CUDA, all decisions together."""

import os
import sys

import pytest

from fcos_core.build import BuildError, arch, cuda, findings, hostcc, toolkits
from fcos_core.build.toolkits import Toolkit

CUDA_118 = Toolkit("/cuda-11.8", (11, 8), "CUDA_HOME")
TOO_NEW = hostcc.Choice(False, (), findings.host_too_new("gcc 13.2", "11.8", "gcc 11"))
REPLACED = hostcc.Choice(True, ("-ccbin", "g++-11"), findings.host_replaced("gcc 13.2", "11.8", "gcc 11", "g++-11"))


@pytest.fixture
def decide(monkeypatch):
    """`plan` with the parts given: toolkit, choice of a host compiler, FORCE_CUDA."""

    def call(toolkit, host, force=""):
        monkeypatch.setattr(toolkits, "wanted_here", lambda torch: (toolkit, "because"))
        monkeypatch.setattr(hostcc, "choose_here", lambda toolkit, environ: host)
        monkeypatch.setattr(arch, "known_to", lambda home: [75, 86])
        monkeypatch.setattr(arch, "of_gpus", lambda torch: [86])
        monkeypatch.setattr(arch, "of_torch", lambda torch: [])
        return cuda.plan(None, {"FORCE_CUDA": force})

    return call


def test_kernels_for_the_gpu(decide):
    plan = decide(CUDA_118, hostcc.Choice(True))
    assert plan.toolkit == CUDA_118 and plan.archs == "86+PTX"
    assert plan.why == "because, for 86+PTX (the GPUs that torch sees)"
    assert plan.flags == ("-gencode=arch=compute_86,code=sm_86", "-gencode=arch=compute_86,code=compute_86")


def test_another_host_compiler_is_given_and_said(decide):
    plan = decide(CUDA_118, REPLACED)
    assert plan.flags[-2:] == ("-ccbin", "g++-11") and "so the CUDA kernels are compiled with g++-11" in plan.why


@pytest.mark.parametrize("toolkit, host", [(None, None), (CUDA_118, TOO_NEW)])
def test_no_kernels(decide, toolkit, host):
    plan = decide(toolkit, host)
    assert plan.toolkit is None and plan.why == ("because" if host is None else str(TOO_NEW.finding))


def test_asked_for_and_impossible(decide):
    with pytest.raises(BuildError, match="plan: FORCE_CUDA is 1 but gcc 13.2 is newer"):
        decide(CUDA_118, TOO_NEW, force="1")


def test_what_torch_reads_from_the_environment():
    environ = {"CC": "gcc-13", "CUDA_HOME": "/cuda-10.2"}
    cuda.prepare_environment(cuda.Plan("", CUDA_118, "86", ("-ccbin", "g++-11")), environ)
    assert environ == {"CUDA_HOME": "/cuda-11.8", "TORCH_DONT_CHECK_COMPILER_ABI": "1"}
    environ = {"CC": sys.executable}  # a program that there is
    cuda.prepare_environment(cuda.Plan("", CUDA_118, "86", ()), environ)
    assert environ["CC"] == sys.executable
    environ = {"CC": "ccache gcc"}  # nvcc would look for a program of that name
    cuda.prepare_environment(cuda.Plan("", CUDA_118, "86", ()), environ)
    assert "CC" not in environ


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_a_toolkit_of_pip_lacks_a_name_for_the_linker(tmp_path):
    library = tmp_path / "cu13" / "lib" / "libcudart.so.13"
    library.parent.mkdir(parents=True)
    library.write_text("")
    for _ in range(2):
        (folder,) = cuda.link_folders(str(tmp_path / "cu13"), str(tmp_path / "temporary"))
        assert os.path.realpath(os.path.join(folder, "libcudart.so")) == str(library)
    (tmp_path / "cu13" / "lib" / "libcudart.so").write_text("")
    assert cuda.link_folders(str(tmp_path / "cu13"), str(tmp_path / "temporary")) == []
    assert cuda.link_folders(str(tmp_path / "nothing"), str(tmp_path / "temporary")) == []
