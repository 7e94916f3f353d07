"""Write docs/recipes.md: every value of every recipe beside that of its source.

Ours are read from the resolved configs. Which values are compared, what the sources say and why ours differs stands in
recipes.yml. A value that differs without a reason is an error, and so is a reason for one that does not.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config
from mmengine.registry import (
    HOOKS,
    MODELS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    TRANSFORMS,
    DefaultScope,
)

from pelk_mm.engine.launch import load_config

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PAGE, SOURCES = DOCS / 'recipes.md', DOCS / 'recipes.yml'
REGISTRIES = (MODELS, HOOKS, OPTIM_WRAPPERS, OPTIMIZERS, PARAM_SCHEDULERS, TRANSFORMS)
HEAD = '| value | where | ours | source | named | same, or why not |\n|---|---|---|---|---|---|'


@dataclass
class Row:
    """One value of a recipe.

    Attributes:
        what (str): Its name on the page.
        at (str): Where ours is: a path as for :func:`look_up`, or a function of ``DERIVED`` with ``()``.
        theirs (Any): The source's value; a dict holds one for each model of the recipe.
        source (str): Key of ``sources``; by default that of the recipe.
        why (str): Why ours differs.
    """

    what: str
    at: str
    theirs: Any
    source: str = ''
    why: str = ''


def look_up(cfg: Mapping, path: str) -> Any:
    """Look a value of a config up.

    Args:
        cfg (Mapping): A resolved config.
        path (str): Keys with dots between them. ``[EMAHook]`` takes the entries of a list that have this type, in any
            scope, ``[0]`` the first. What is not set is the default of the class that ``type`` names.

    Returns:
        Any: The value, None if absent, or a list if several entries have different ones.
    """
    found: list = []
    for value in _values(cfg, re.findall(r'[^.\[\]]+|\[\w+\]', path)):
        if value not in found:
            found.append(value)
    return found if len(found) > 1 else found[0] if found else None


def _values(node: Any, steps: list[str]) -> list:
    if not steps or node is None:
        return [node]
    step, *rest = steps
    if not step.startswith('['):
        return _values(node[step] if step in node else _default(node.get('type'), step), rest)
    name = step[1:-1]
    if name.isdigit():
        return _values(node[int(name)], rest)
    entries = [node] if isinstance(node, Mapping) else node
    return [value for entry in entries if entry['type'].rpartition('.')[2] == name for value in _values(entry, rest)]


def _default(type_name: str | None, argument: str) -> Any:
    """Return the default of an argument of a registered class or of the classes that it inherits from."""
    for registry in REGISTRIES if type_name else ():
        with registry.switch_scope_and_registry(None) as scoped:
            built = scoped.get(type_name)
        for cls in inspect.getmro(built) if built else ():
            parameter = inspect.signature(cls.__init__).parameters.get(argument)
            if parameter is not None and parameter.default is not inspect.Parameter.empty:
                return parameter.default
    return None


def batch(cfg: Config) -> int:
    """Return the images of an optimiser step: GPUs of the file name times images of each, as in ``auto_scale_lr``."""
    gpus = re.search(r'_(\d+)xb\d+', Path(cfg.filename).stem)
    per_step = look_up(cfg, 'optim_wrapper.accumulative_counts') or 1
    images = int(gpus[1]) * cfg.train_dataloader.batch_size * per_step if gpus else None
    if images != cfg.auto_scale_lr.base_batch_size:
        raise ValueError(f'{cfg.filename}: by its name a step has {images} images, by auto_scale_lr '
                         f'{cfg.auto_scale_lr.base_batch_size}')
    return cfg.auto_scale_lr.base_batch_size


def ema_decay(cfg: Config) -> float | None:
    momentum = look_up(cfg, 'custom_hooks[EMAHook].momentum')
    return None if momentum is None else 1 - momentum


def buffers_averaged(cfg: Config) -> bool | None:
    hooks = [hook for hook in cfg.get('custom_hooks', []) if hook.type.endswith('EMAHook')]
    return any(hook.get('update_buffers') for hook in hooks) if hooks else None


def last_schedule(cfg: Config) -> Mapping:
    return cfg.param_scheduler if isinstance(cfg.param_scheduler, Mapping) else cfg.param_scheduler[-1]


def fall_end(cfg: Config) -> int:
    """Return the epoch or iteration at which the last schedule ends, by default the training's last as in MMEngine."""
    return last_schedule(cfg).get('end') or cfg.train_cfg.get('max_epochs') or cfg.train_cfg.max_iters


def warmup_start(cfg: Config) -> float | None:
    """Return the learning rate of the first step of the warm-up."""
    factor = look_up(cfg, 'param_scheduler[LinearLR].start_factor')
    return None if factor is None else factor * cfg.optim_wrapper.optimizer.lr


def _decays(key: str) -> Callable[[Config], bool]:
    return lambda cfg: cfg.optim_wrapper.get('paramwise_cfg', {}).get(f'{key}_decay_mult') != 0


def embedding_decays(cfg: Config) -> bool:
    keys = cfg.optim_wrapper.get('paramwise_cfg', {}).get('custom_keys', {})
    return not any('position_embedding' in key and value.get('decay_mult') == 0 for key, value in keys.items())


def width_factor(cfg: Config) -> float:
    """Return the width factor of PeLK or SLaK: the one that is set, else the arch's."""
    backbone = cfg.model.backbone
    return backbone.get('width_factor') or MODELS.get(backbone.type).arch_settings[backbone.arch]['width_factor']


# Values that no single key holds.
DERIVED: dict[str, Callable[[Config], Any]] = dict(
    batch=batch,
    images=lambda cfg: batch(cfg) * cfg.train_cfg.max_iters,
    ema_decay=ema_decay,
    buffers_averaged=buffers_averaged,
    fall_end=fall_end,
    rate_each_step=lambda cfg: bool(last_schedule(cfg).get('convert_to_iter_based')),
    warmup_start=warmup_start,
    width_factor=width_factor,
    norms_decay=_decays('norm'),
    biases_decay=_decays('bias'),
    flat_decay=_decays('flat'),
    embedding_decays=embedding_decays,
    mixed_precision=lambda cfg: cfg.optim_wrapper.get('type') == 'AmpOptimWrapper',
    drop_last=lambda cfg: bool(cfg.train_dataloader.get('drop_last')))


@cache
def read(config: str) -> Config:
    return load_config(str(ROOT / config))


def our_value(cfg: Config, at: str) -> Any:
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        return DERIVED[at[:-2]](cfg) if at.endswith('()') else look_up(cfg, at)


def same(ours: Any, theirs: Any) -> bool:
    """Return whether two values are equal, tuples and lists alike, and floats to rounding."""
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, bool) or isinstance(theirs, bool) or not all(
            isinstance(value, (int, float)) for value in (ours, theirs)):
        return type(ours) is type(theirs) and ours == theirs
    return math.isclose(ours, theirs, rel_tol=1e-9)


def show(values: list) -> str:
    """Return a cell of the table: one value, or those of all models with slashes between them."""
    if all(same(value, values[0]) for value in values):
        values = values[:1]
    return ' / '.join(map(_text, values))


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ', '.join(f'({_text(part)})' if isinstance(part, (list, tuple)) else _text(part) for part in value)
    if isinstance(value, bool) or value is None:
        return {True: 'yes', False: 'no', None: 'none'}[value]
    if isinstance(value, float):
        return re.sub(r'e-0*', 'e-', f'{value:.6g}')
    return str(value)


def rows_of(recipes: Mapping, key: str) -> list[Row]:
    """Return the rows of a recipe: those of the one that it is ``like``, except what it is ``without``, and its own.

    Its own take the place of those of the same name. Rows that name no source have the recipe's; ``instead`` replaces
    sources of the rows of the other.
    """
    recipe = recipes[key]
    rows = {row.what: row for row in rows_of(recipes, recipe['like'])} if 'like' in recipe else {}
    for what in recipe.get('without', []):
        del rows[what]
    instead = {recipes[recipe['like']]['source']: recipe['source'], **recipe.get('instead', {})} if rows else {}
    rows = {what: replace(row, source=instead.get(row.source, row.source)) for what, row in rows.items()}
    rows |= {row['what']: Row(**{'source': recipe['source'], **row}) for row in recipe.get('rows', [])}
    return list(rows.values())


def make_page(data: Mapping, load: Callable[[str], Config] = read) -> str:
    """Compare all recipes.

    Args:
        data (Mapping): The ``introduction``; ``sources``, ``name`` and ``url`` by key; and ``recipes``: ``title``,
            ``note``, ``configs`` by model, ``source`` and ``rows``, the arguments of :class:`Row`, with ``like``,
            ``without`` and ``instead`` as in :func:`rows_of`.
        load (Callable): From the path of a config to the config.

    Raises:
        ValueError: With every value that differs without a reason or has a reason and is the same, and every path that
            leads nowhere in all recipes.
    """
    problems, parts, set_somewhere, used = [], [data['introduction']], {}, set()
    for key, recipe in data['recipes'].items():
        links = ', '.join(f'[{model}](../{path})' for model, path in recipe['configs'].items())
        parts += [f'## {recipe["title"]}\n', f'{links}. {recipe.get("note", "")}'.strip() + '\n', HEAD]
        for row in rows_of(data['recipes'], key):
            theirs = [row.theirs[model] if isinstance(row.theirs, dict) else row.theirs for model in recipe['configs']]
            ours = [our_value(load(path), row.at) for path in recipe['configs'].values()]
            set_somewhere[row.at] = set_somewhere.get(row.at) or any(value is not None for value in ours)
            used.add(row.source)
            equal = same(ours, theirs)
            if equal == bool(row.why):
                problems.append(f'{key}, {row.what}: ours {show(ours)}, theirs {show(theirs)}, ' +
                                (f'the same, but with a reason: {row.why}' if equal else 'without a reason'))
            cells = (row.what, f'`{row.at}`', show(ours), show(theirs), data['sources'][row.source]['name'],
                     'same' if equal else row.why or '**no reason written**')
            parts.append(f'| {" | ".join(cells)} |')
        parts.append('')
    parts.append('## Sources\n')
    parts += [f'- {source["name"]}: <{source["url"]}>' for key, source in data['sources'].items() if key in used]
    problems += [f'{path} is set in no recipe' for path, is_set in set_somewhere.items() if not is_set]
    if problems:
        raise ValueError('\n'.join(['recipes and their sources:', *problems]))
    return '\n'.join(parts) + '\n'


if __name__ == '__main__':
    PAGE.write_text(make_page(yaml.safe_load(SOURCES.read_text(encoding='utf-8'))), encoding='utf-8')
    print(PAGE)
