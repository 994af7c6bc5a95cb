"""Seeding, and saving and restoring the state of every random generator, in plain types only.

Plain types matter: a checkpoint that holds a NumPy array or a tuple of a foreign class could not be read back with
`torch.load(weights_only=True)`.
"""

import random

import numpy as np
import torch


def seed_everything(seed):
    """Seed Python, NumPy, torch and all GPUs.

    Args:
        seed (int): non-negative.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  it is the global generator that libraries draw from
    torch.manual_seed(seed)  # seeds the GPUs too


def draw_seed():
    """A seed from the entropy of the system, 0 .. 2**31 - 1."""
    return random.SystemRandom().randrange(2**31)


def get_rng_state():
    """States of the generators of this process.

    Returns:
        dict: "python" (list), "numpy" (list), "torch" (uint8 tensor), "cuda" (uint8 tensor of this
        process's GPU, or None).
    """
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, keys.tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_rng_state(state):
    """Put the generators into the states that `get_rng_state` returned.

    The GPU state is ignored where there is no GPU.
    """
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
