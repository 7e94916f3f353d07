"""Seeds that depend on the position in training, not on earlier random numbers."""

from __future__ import annotations

import random
import zlib

import numpy as np
import torch


def derive_seed(purpose: str, *key: int) -> int:
    """Mix a purpose and a key, e.g. (seed, rank, iteration), into a 32-bit seed; each gives an unrelated one."""
    return int(np.random.SeedSequence((zlib.crc32(purpose.encode()), *key)).generate_state(1)[0])


def seed_all(seed: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch (CPU and GPU)."""
    random.seed(seed)
    # OpenMMLab's transforms draw from NumPy's global generator.
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def get_rng_state() -> tuple:
    """Return the states of the generators of Python, NumPy and PyTorch (CPU and current GPU)."""
    gpu_state = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), gpu_state  # noqa: NPY002


def set_rng_state(state: tuple) -> None:
    """Set the states that :func:`get_rng_state` returned."""
    python_state, numpy_state, cpu_state, gpu_state = state
    random.setstate(python_state)
    np.random.set_state(numpy_state)  # noqa: NPY002
    torch.set_rng_state(cpu_state)
    if gpu_state is not None:
        torch.cuda.set_rng_state(gpu_state)
