"""The configs of this repository as their metafiles list them, with the figures of the paper."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .metrics import METRICS, is_number
from .run_files import Problems


@dataclass(frozen=True)
class Entry:
    """One config of the repository.

    Attributes:
        name (str): Name of the config.
        path (Path): The config, relative to the repository.
        data (str): The data set that it is trained on.
        figures (dict[str, float]): Published metrics in per cent, by keys of ``METRICS``.
        table (int | None): The table of the paper that the figures are from.
        row (str): The name of the method in that table.
        sources (dict[str, str]): Where the figures are from.
        labels (dict[str, str]): The row of an ablation, by column.
    """

    name: str
    path: Path
    data: str = ''
    figures: Mapping[str, float] = field(default_factory=dict)
    table: int | None = None
    row: str = ''
    sources: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The folder of the config below ``configs``."""
        return str(Path(*self.path.parent.parts[1:]))


def read_catalogue(root: Path) -> tuple[list[Entry], Problems]:
    """Read every metafile under ``configs`` of a repository; return the entries, and those that could not be read."""
    entries, problems = [], Problems()
    for metafile in sorted((root / 'configs').rglob('metafile.yml')):
        with problems.at(metafile):
            entries += read_metafile(metafile)
    return entries, problems


def read_metafile(metafile: Path) -> list[Entry]:
    """Read the models of a metafile.

    Raises:
        ValueError: If it is not a metafile.
    """
    try:
        models = (yaml.safe_load(metafile.read_text(encoding='utf-8')) or {}).get('Models') or []
        return [_entry(model) for model in models]
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f'is not a metafile: {" ".join(str(error).split())}') from error


def _entry(model: Mapping[str, Any]) -> Entry:
    figures, sources, tables = {}, {}, set()
    metadata = model.get('Metadata') or {}
    for result in model.get('Results') or []:
        source, published = result.get('Source', ''), dict(result['Metrics'])
        table = re.fullmatch(r'the paper, Table (\d+)', source)
        tables.add(int(table.group(1)) if table else None)
        for name, metric in METRICS.items():
            if metric.metafile_key in published:
                figures[name], sources[name] = published[metric.metafile_key], source
    for name, value in (('Name', model['Name']), ('Training Data', metadata.get('Training Data', ''))):
        if not isinstance(value, str):
            raise TypeError(f'{name} must be a text, got {value!r}')
    for name, value in figures.items():
        if not is_number(value):
            raise TypeError(f'{name} of {model["Name"]} must be a number, got {value!r}')
    labels = {column: str(label) for column, label in (metadata.get('Ablation') or {}).items()}
    return Entry(model['Name'], Path(model['Config']), metadata.get('Training Data', ''), figures,
                 tables.pop() if len(tables) == 1 else None, metadata.get('Row', ''), sources, labels)
