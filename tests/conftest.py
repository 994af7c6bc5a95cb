"""Fixtures shared by all tests."""
import logging
import os
import random
import sys

import numpy as np
import pytest
import torch


def devices():
    """The devices that this machine can test on."""
    return ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def pytest_configure(config):
    # float32 means float32
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    # the tests are about the compiled operators: a library that cannot be built is an error here, no reason to go on
    # with those that serve instead, which have tests of their own
    os.environ.setdefault("FCOS_CORE_FALLBACK", "0")
    config.addinivalue_line("markers", "slow: takes more than about ten seconds")


@pytest.fixture(autouse=True)
def seeds():
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def loggers():
    """A test that sets up the log of a run leaves no handlers behind, and hides no messages from later tests."""

    def ours():
        known = logging.root.manager.loggerDict
        names = [name for name in known if name.split(".")[0] in ("fcos_core", "atss_core")]
        return [logging.getLogger(name) for name in names + ["fcos_core"]]

    def reset():
        for logger in ours():
            logger.handlers[:] = []
            logger.setLevel(logging.NOTSET)
            logger.propagate, logger.disabled = True, False

    reset()  # also what a fixture of a whole module has set up
    yield
    reset()


@pytest.fixture(autouse=True)
def compiled_code():
    """torch.compile refuses a function that was compiled too often, and the tests of a file share functions."""
    yield
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


@pytest.fixture(autouse=True)
def memory():
    """A large test leaves no memory in torch's pool, where other processes that test beside this one cannot use it."""
    yield
    if torch.cuda.is_initialized() and torch.cuda.memory_reserved() > 1 << 30:
        torch.cuda.empty_cache()


@pytest.fixture(params=devices())
def device(request):
    """Each device in turn."""
    return torch.device(request.param)
