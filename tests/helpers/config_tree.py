"""The configs of this repository, each parsed once, and the optimisers that they describe."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import torch
import yaml
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn

from pelk_mm.analysis.model_building import build_model, quiet

ROOT = Path(__file__).resolve().parents[2]


@cache
def load(name: str | Path) -> Config:
    """Return the config of a path in the repository. All who ask get the same one: copy it before a change."""
    return Config.fromfile(ROOT / name)


@cache
def metafile_entries() -> list[dict]:
    """Return the models of all metafiles that the model index names."""
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    return [entry for path in index['Import'] for entry in yaml.safe_load((ROOT / path).read_text())['Models']]


def optimizer_of(cfg: Config, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimiser of a config for a model."""
    # MMEngine logs several lines for each parameter.
    with DefaultScope.overwrite_default_scope(cfg.default_scope), quiet(MMLogger.get_current_instance()):
        return build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper)).optimizer


def decays_of(cfg: Config) -> dict[str, float]:
    """Return the weight decay of every parameter of a config's model by its name."""
    model = build_model(cfg)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)]: group['weight_decay'] for group in optimizer_of(cfg, model).param_groups
            for parameter in group['params']}
