"""Which device, and can this torch compute on it."""
import logging

import pytest
import torch

from fcos_core.utils import preflight
from fcos_core.utils.preflight import DeviceError, check_architecture, check_device, resolve_device

CU102 = ["sm_37", "sm_50", "sm_60", "sm_70", "sm_75"]
CU130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize(
    "capability, arch_list, status",
    [
        ((7, 5), CU102, "ok"),
        ((8, 6), CU102, "unsupported"),
        ((8, 6), CU102 + ["compute_75"], "ptx"),
        ((8, 9), CU130, "ok"),  # sm_86 code runs on sm_89
        ((8, 7), ["sm_80"], "ok"),
        ((8, 0), ["sm_86"], "unsupported"),  # but not the other way round
        ((9, 0), ["sm_90a"], "ok"),
        ((10, 3), ["sm_100a"], "unsupported"),
        ((10, 3), ["sm_100f"], "ok"),
        ((12, 0), ["compute_90a"], "unsupported"),
        ((12, 0), ["sm_90", "compute_90"], "ptx"),
        ((7, 0), CU130, "unsupported"),
        ((7, 0), CU130 + ["compute_120"], "unsupported"),
        ((9, 0), [], "unsupported"),
    ],
)
def test_architecture_rules(capability, arch_list, status):
    assert check_architecture(capability, arch_list).status == status


def test_architecture_messages_say_what_to_install():
    new = check_architecture((12, 0), CU102, "1.7.1", "10.2").message
    for words in ("sm_120", "torch 1.7.1", "torch 2.7", "12.8", "MODEL.DEVICE cpu"):
        assert words in new
    old = check_architecture((6, 1), CU130, "2.14.1", "13.0").message
    assert "older" in old and "previous-versions" in old
    assert "minutes" in check_architecture((8, 6), CU102 + ["compute_75"]).message


def pretend_gpus(monkeypatch, count, capability=(8, 6), arch_list=CU130):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: arch_list, raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def test_cuda_without_a_gpu_names_the_way_out(monkeypatch):
    pretend_gpus(monkeypatch, 0)
    with pytest.raises(DeviceError, match="MODEL.DEVICE cpu"):
        resolve_device("cuda")
    assert resolve_device("auto") == torch.device("cpu") == resolve_device("cpu")


def test_devices_with_gpus(monkeypatch):
    pretend_gpus(monkeypatch, 2)
    assert resolve_device("auto", 1) == torch.device("cuda", 1)
    assert resolve_device("cuda") == torch.device("cuda", 0)
    assert resolve_device("cuda:1", 0) == torch.device("cuda", 1)
    for name, rank in (("cuda:2", 0), ("cuda", 3)):
        with pytest.raises(DeviceError, match="2 GPUs"):
            resolve_device(name, rank)


def test_unknown_device():
    with pytest.raises(DeviceError, match="'gpu'"):
        resolve_device("gpu")


def test_check_device_stops_or_warns(monkeypatch, caplog):
    logger = logging.getLogger(preflight.__name__)
    pretend_gpus(monkeypatch, 1, (8, 6), CU102)
    with pytest.raises(DeviceError, match="sm_86"):
        check_device(torch.device("cuda", 0), logger)
    check_device(torch.device("cpu"), logger)
    pretend_gpus(monkeypatch, 1, (8, 6), ["compute_75"])
    check_device(torch.device("cuda", 0), logger)
    assert "PTX" in caplog.text
    caplog.clear()
    pretend_gpus(monkeypatch, 1, (8, 6), CU130)
    check_device(torch.device("cuda", 0), logger)
    assert not caplog.records
