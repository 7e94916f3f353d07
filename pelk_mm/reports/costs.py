"""Parameters and FLOPs of configs, for the columns of costs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from ..analysis import build_model, complexity, count_complexity, default_shape, mac_counter
from ..engine.steps import digest
from .runs import Run

# Density of the sparse networks of the paper, for pretrained zeros whose number no log holds.
PAPER_DENSITY = 0.6


class CostCounter:
    """Count parameters and FLOPs of each config once and keep them in a file.

    Args:
        cache (Path, optional): The file, JSON. None keeps nothing.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self.cache = cache
        self._known: dict[str, dict[str, float]] = {}
        if cache is not None and cache.is_file():
            self._known = json.loads(cache.read_text(encoding='utf-8'))
        # Other ways to count give other numbers.
        self._version = [Path(str(module.__file__)).read_text(encoding='utf-8') for module in (complexity, mac_counter)]

    def count(self, cfg: Config, density: float) -> dict[str, float]:
        """Return ``params`` in M and ``flops`` in G multiply-adds, in dense form, at the image size that papers use.

        Raises:
            Exception: Any error of building or running the model.
        """
        shape = default_shape(cfg)
        key = digest(cfg.model.to_dict(), shape, density, self._version)
        if key not in self._known:
            counted = count_complexity(build_model(cfg), shape, density)
            self._known[key] = dict(params=counted.total.params_counted / 1e6, flops=counted.total.macs / 1e9)
            if self.cache is not None:
                self.cache.parent.mkdir(parents=True, exist_ok=True)
                self.cache.write_text(json.dumps(self._known, indent=1), encoding='utf-8')
        return self._known[key]


def density_of(cfg: Config, runs: Sequence[Run]) -> float:
    """Return the share of non-zero weights: as logged, else as the hook's arguments say, else as in the paper."""
    logged = [run.density for run in runs if run.density is not None]
    if logged:
        return logged[0]
    for hook in cfg.get('custom_hooks') or ():
        if hook['type'] in ('DynamicSparsityHook', 'pelk_mm.DynamicSparsityHook'):
            return 1 - hook['sparsity'] if hook.get('sparsity') is not None else PAPER_DENSITY
    return 1.0
