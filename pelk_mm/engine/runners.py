"""MMEngine's runners with checks of the data: of annotation files, image files and label maps."""

from __future__ import annotations

from typing import Any

from mmengine.dist import is_main_process
from mmengine.runner import Runner
from mmengine.runner._flexible_runner import FlexibleRunner
from torch.utils.data import DataLoader

from pelk_mm.registry import RUNNERS

from .annotation_files import check_annotation_files
from .data_checks import enabled_checks
from .image_files import build_checked_dataloader
from .processes import nested_dicts


class _ChecksData:
    """The checks of both runners, as MMEngine calls no hook before data sets are built and workers started."""

    cfg: Any

    def build_dataloader(self, dataloader: DataLoader | dict, *args, **kwargs) -> DataLoader:
        """Build a loader; look for the files of its data, and have them checked as they load."""
        nodes = nested_dicts(self.cfg.get('model'))
        ignored = {node['ignore_index'] for node in nodes if isinstance(node.get('ignore_index'), int)}
        build = super().build_dataloader  # type: ignore[misc]
        return build_checked_dataloader(build, dataloader, enabled_checks(self.cfg), ignored, *args, **kwargs)

    def train(self):
        """Check annotation files, and train."""
        self._check_annotations('train', 'val')
        return super().train()  # type: ignore[misc]

    def val(self):
        """Check annotation files, and validate."""
        self._check_annotations('val')
        return super().val()  # type: ignore[misc]

    def test(self):
        """Check annotation files, and test."""
        self._check_annotations('test')
        return super().test()  # type: ignore[misc]

    def _check_annotations(self, *modes: str) -> None:
        if is_main_process() and 'annotation_files' in enabled_checks(self.cfg):
            check_annotation_files(self.cfg, modes)


@RUNNERS.register_module()
class CheckedRunner(_ChecksData, Runner):
    """MMEngine's ``Runner`` that checks data before work starts and as they load.

    Our tools take it where a config says ``Runner`` or nothing; a config for upstream's tools may name it.
    ``data_checks`` of the config switches checks off by name, see :mod:`pelk_mm.engine.data_checks`.

    Examples:
        >>> runner_type = 'pelk_mm.CheckedRunner'
        >>> data_checks = dict(label_maps=False)
    """


@RUNNERS.register_module()
class CheckedFlexibleRunner(_ChecksData, FlexibleRunner):
    """The same for ``FlexibleRunner``."""
