"""Which device, and can this torch compute on it."""
import logging

import pytest
import torch

from fcos_core.build.facts import Driver
from fcos_core.utils import preflight
from fcos_core.utils.preflight import DeviceError, check_device, resolve_device

CU102 = ["sm_37", "sm_50", "sm_60", "sm_70", "sm_75"]
CU130 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


def pretend_gpus(monkeypatch, count, capability=(8, 6), arch_list=CU130):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: arch_list, raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def test_cuda_without_a_gpu_names_the_way_out(monkeypatch):
    pretend_gpus(monkeypatch, 0)
    with pytest.raises(DeviceError, match="MODEL.DEVICE cpu.*python -m fcos_core.doctor"):
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


def test_the_torch_that_is_proposed_fits_the_driver(monkeypatch):
    pretend_gpus(monkeypatch, 1, (8, 6), CU102)
    monkeypatch.setattr(preflight.facts, "driver_by_library", lambda: Driver("470.1", (11, 4)))
    monkeypatch.setattr(preflight.sys, "version_info", (3, 10, 1))
    with pytest.raises(DeviceError, match="torch==2.0.1 .*, or run with MODEL.DEVICE cpu"):
        check_device(torch.device("cuda", 0), logging.getLogger(preflight.__name__))


def test_check_device_stops_or_warns(monkeypatch, caplog):
    logger = logging.getLogger(preflight.__name__)
    pretend_gpus(monkeypatch, 1, (8, 6), CU102)
    with pytest.raises(DeviceError, match="check_device: torch .* has no code for this GPU .sm_86.; python -m pip"):
        check_device(torch.device("cuda", 0), logger)
    check_device(torch.device("cpu"), logger)
    pretend_gpus(monkeypatch, 1, (8, 6), ["compute_75"])
    check_device(torch.device("cuda", 0), logger)
    assert "PTX" in caplog.text
    caplog.clear()
    pretend_gpus(monkeypatch, 1, (8, 6), CU130)
    check_device(torch.device("cuda", 0), logger)
    assert not caplog.records
