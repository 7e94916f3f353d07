"""Patches that every version of MMEngine needs, which :func:`pelk_mm.compat.setup` applies."""

from __future__ import annotations

from functools import partial, wraps

import mmengine.config.config
import mmengine.runner.activation_checkpointing
from mmengine.config import Config


def keep_scope_of_inherited_configs() -> None:
    """Keep parts inherited from ``pelk_mm::...`` in the scope of the config: mmpretrain, mmseg or mmdet.

    MMEngine marks inherited parts with the prefix as their toolbox, and would look for ``BaseSegDataset`` in
    ``pelk_mm``.
    """
    upstream = Config._get_cfg_path
    if hasattr(upstream, '__wrapped__'):
        return

    @wraps(upstream)
    def get_cfg_path(cfg_path, filename):
        path, scope = upstream(cfg_path, filename)
        return path, None if scope == 'pelk_mm' else scope

    Config._get_cfg_path = staticmethod(get_cfg_path)


def find_base_configs_at_once() -> None:
    """Take ``_base_ = 'mmseg::_base_/...'`` directly from the folder of the toolbox's configs.

    MMEngine first reads all metafiles of the toolbox, which takes more than a second for each inherited file, although
    they list no file of ``_base_``.
    """
    upstream = mmengine.config.config._get_external_cfg_path
    if hasattr(upstream, '__wrapped__'):
        return

    @wraps(upstream)
    def get_external_cfg_path(package_path, cfg_file):
        if cfg_file.startswith('_base_/'):
            raise ValueError(f'{cfg_file} is in no metafile')
        return upstream(package_path, cfg_file)

    mmengine.config.config._get_external_cfg_path = get_external_cfg_path


def checkpoint_without_reentry() -> None:
    """Let MMEngine's ``activation_checkpointing`` use the kind of checkpointing that PyTorch recommends.

    MMEngine chooses none, and PyTorch then warns and takes the reentrant one. That one passes no gradients if the
    input, such as an image, requires none, so the backbone is not trained.
    """
    module = mmengine.runner.activation_checkpointing
    if not isinstance(module.checkpoint, partial):
        module.checkpoint = partial(module.checkpoint, use_reentrant=False)
