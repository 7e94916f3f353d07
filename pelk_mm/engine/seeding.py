"""Seeds that depend on where training is, not on what was drawn before."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restore the generators of Python, NumPy and PyTorch (CPU and current GPU) afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
