"""Fixtures shared by all tests."""
import random

import numpy as np
import pytest
import torch


def devices():
    """The devices that this machine can test on."""
    return ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than about ten seconds")


@pytest.fixture(autouse=True)
def seeds():
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(params=devices())
def device(request):
    """Each device in turn."""
    return torch.device(request.param)
