"""What is inside a checkpoint, whether a config's model can take it, and what to do if not.

A file is only ever loaded as tensors and plain values: what would run code is refused, and named.
"""

from __future__ import annotations

from ..install_hints import require

require('mmengine', by='pelk_mm.doctors.checkpoint')

import difflib
import math
import re
import shlex
import zipfile
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import Tensor, nn

from pelk_mm.analysis.model_building import WeightsOnMeta, build_model
from pelk_mm.compat import UnsafeCheckpoint
from pelk_mm.engine.checkpoint_files import find_damage
from pelk_mm.engine.checkpoints import CONVNEXT_NAMES, SLAK_NAMES, rename, safe_load
from pelk_mm.engine.sparsity import unpack_mask

from .finding import Finding

# Entries that hold weights: first those that MMEngine and others load, then those that are averages or copies.
WEIGHTS = ('state_dict', 'model')
AVERAGES = ('ema_state_dict', 'model_ema', 'state_dict_ema', 'ema')

# Names of other code bases: who uses them, the patterns, the tool that converts the file.
RELEASES = (
    ("SLaK's release", SLAK_NAMES, 'slak_to_pelk_mm.py'),
    ("ConvNeXt's release", CONVNEXT_NAMES, 'convnext_to_mmpretrain.py'),
)

# A prefix of at most so many parts is looked for.
_PREFIX_PARTS = 3
_LISTED = 4

_NO_MODEL = 'This is no checkpoint of a model; look for the file that training saved.'
_AGAIN = 'Copy or download it again, and compare its size. Of a stopped training, resume from the checkpoint before.'


@dataclass
class Match:
    """How the tensors of a checkpoint fit a model.

    Attributes:
        own (dict[str, tuple]): Shapes of the model's tensors, by name.
        found (dict[str, tuple]): Shapes of the checkpoint's tensors, by name, renamed if a renaming was tried.
        matched (set[str]): Names with the same shape in both.
    """

    own: dict[str, tuple[int, ...]]
    found: dict[str, tuple[int, ...]]
    matched: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.matched = {name for name, shape in self.own.items() if self.found.get(name) == shape}

    @property
    def other_shapes(self) -> list[str]:
        """Names in both, with different shapes."""
        return [name for name in self.own if name in self.found and name not in self.matched]

    @property
    def missing(self) -> list[str]:
        """Names of the model that the checkpoint has not."""
        return [name for name in self.own if name not in self.found]

    @property
    def unused(self) -> list[str]:
        """Names of the checkpoint that the model has not."""
        return [name for name in self.found if name not in self.own]

    def percent(self, component: str | None = None) -> float:
        """Share of the model's values that the checkpoint fills, in the whole or in one child of the model."""
        sizes = {
            name: math.prod(shape)
            for name, shape in self.own.items() if component is None or _component(name) == component
        }
        return 100 * sum(size for name, size in sizes.items() if name in self.matched) / max(sum(sizes.values()), 1)

    def components(self) -> list[str]:
        """The children of the model."""
        return list(dict.fromkeys(map(_component, self.own)))


def examine_checkpoint(path: str | Path, cfg: Config | None = None) -> list[Finding]:
    """Look at a checkpoint, and at how it fits the model of a config.

    Args:
        path (str | Path): File.
        cfg (Config, optional): A config with ``model``.

    Returns:
        list[Finding]: What was found; the last ones are about the config.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint: no such file, {path}')
    fault = examine_file(path)
    if fault is not None:
        return [fault]
    content = _load_or_refuse(path)
    if isinstance(content, Finding):
        return [content]
    size = path.stat().st_size / 2**20
    findings = [Finding('ok', 'file', f'{path}, {size:.1f} MiB: tensors and plain values alone')]
    if not isinstance(content, Mapping):
        return [
            *findings,
            Finding('fault', 'content', f'is a {type(content).__name__}, not a dict of tensors', _NO_MODEL)
        ]
    findings.append(
        Finding(
            'ok', 'entries',
            ', '.join(_describe(name, value) for name, value in content.items() if not isinstance(value, Tensor))
            or 'bare tensors'))
    if content.get('meta'):
        findings.append(Finding('ok', 'meta', _describe_meta(content['meta'])))
    entry, tensors = find_weights(content)
    if not tensors:
        return [*findings, Finding('fault', 'weights', 'none of the entries holds tensors by name', _NO_MODEL)]
    findings += _weights(path, content, entry, tensors)
    findings += _training_state(content, tensors)
    if cfg is not None:
        findings += match_config(path, tensors, cfg, entry if entry in AVERAGES else None)
    return findings


def examine_file(path: Path) -> Finding | None:
    """What is wrong with a file before anything of it is unpickled; None if nothing is seen."""
    with open(path, 'rb') as file:
        head = file.read(64)
    if not head:
        return Finding('fault', 'file', f'{path} is empty', _AGAIN)
    if head.startswith(b'version https://git-lfs'):
        return Finding('fault', 'file', f'{path} is a pointer of Git LFS, not the file itself', 'git lfs pull')
    if head.lstrip().startswith((b'<', b'{')):
        return Finding('fault', 'file', f'{path} is a text, perhaps an error page of a download, not a checkpoint',
                       _AGAIN)
    # Files of PyTorch before 1.6 are no archives, and have no checksums.
    if head.startswith(b'PK\x03\x04') and (damage := find_damage(path)):
        how = 'damaged' if zipfile.is_zipfile(path) else 'truncated'
        return Finding('fault', 'file', f'{path} is {how}: {damage}', _AGAIN)
    return None


def find_weights(content: Mapping[str, Any]) -> tuple[str | None, dict[str, Tensor]]:
    """The entry of a checkpoint that holds the weights, None if they lie bare, and its tensors by name."""
    for entry in (*WEIGHTS, *AVERAGES):
        if isinstance(content.get(entry), Mapping):
            tensors = _tensors(content[entry])
            if tensors:
                return entry, tensors
    return None, _tensors(content)


def match_config(path: Path, tensors: Mapping[str, Tensor], cfg: Config, key: str | None = None) -> list[Finding]:
    """How tensors fit the model of a config, as MMEngine would load them, and which renaming would help.

    Args:
        path (Path): Where the tensors are from, for the cures.
        tensors (Mapping[str, Tensor]): By name.
        cfg (Config): With ``model``.
        key (str, optional): Entry of the checkpoint that a converter would have to be told.
    """
    model = build_model(cfg)
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    # MMEngine drops the 'module.' of a wrapped model by itself.
    found = {re.sub(r'^module\.', '', name): tuple(value.shape) for name, value in tensors.items()}
    match = Match(own, found)
    findings = [_matching('model', match)]
    if len(match.matched) == len(own):
        if match.unused:
            findings.append(Finding('note', 'not used', _some(match.unused)))
        return findings
    renaming, cure, renamed = _likely_renaming(path, tensors, match, key)
    form = _other_form(model, match)
    if form is not None:
        findings.append(form)
    elif len(renamed.matched) > len(match.matched):
        findings += [Finding('fault', 'names', f'{renaming}: with that {_numbers(renamed)}', cure), *_rest(renamed)]
    elif match.percent('backbone') > 99 and not match.other_shapes and 'backbone' not in map(_component, match.unused):
        # Backbones for dense prediction have norms that a classifier's lacks.
        lacking = sum(name.startswith('backbone.') for name in match.missing)
        findings.append(
            Finding(
                'note', 'pretrained',
                f'the backbone is there, but for {lacking} small tensors, and the rest is not: fine to '
                'train from, not to test',
                'Give it by --cfg-options model.backbone.init_cfg.checkpoint=PATH. To test, take a checkpoint of this '
                'very config.'))
    else:
        findings += _rest(match)
    return findings


def _load_or_refuse(path: Path) -> Any:
    try:
        return safe_load(str(path))
    except UnsafeCheckpoint as error:
        return Finding(
            'fault', 'code', f'{path} refused: to load it would {error.needs}. Nothing of it was run',
            'Do not load it by other means, unless you know who made it. Ask its author for the state_dict alone:\n'
            "torch.save(dict(state_dict=model.state_dict()), 'weights.pth')")
    except (ValueError, OSError) as error:
        # Files that end at once raise an EOFError without a word.
        message = str(error.__cause__ or error) or 'truncated at its very start'
    if re.search(r'unexpected EOF|truncated|Ran out of input', message):
        return Finding('fault', 'file', f'{path} is truncated: {message}', _AGAIN)
    return Finding('fault', 'file', f'{path} is not a checkpoint of PyTorch: {message.splitlines()[0]}',
                   'Give a file that torch.save wrote, .pth or .pt.')


def _weights(path: Path, content: Mapping, entry: str | None, tensors: Mapping[str, Tensor]) -> list[Finding]:
    count = sum(value.numel() for value in tensors.values())
    prefixes = Counter(name.partition('.')[0] for name in tensors)
    finding = Finding(
        'ok', 'weights', f'{len(tensors)} tensors of {count / 1e6:.3f} M values in {entry or "the file itself"}: ' +
        ', '.join(f'{prefix}.* {number}' for prefix, number in prefixes.most_common(6)))
    findings = [finding]
    averages = [name for name in AVERAGES if isinstance(content.get(name), Mapping)]
    if entry in AVERAGES:
        target = path.with_name(f'{path.stem}_weights.pth')
        findings.append(
            Finding(
                'fault', 'EMA', f'only averaged weights are there, in {entry}: loading finds no state_dict',
                _convert(path, target, {r'(?:module\.)?(.+)': r'\1'}, entry) +
                f"\nFor a backbone's init_cfg, key={entry!r} does without a new file."))
    elif 'ema_state_dict' in averages:
        findings.append(
            Finding(
                'ok', 'EMA', 'state_dict holds the averaged weights, those that were validated; '
                'ema_state_dict the plain ones, to resume with'))
    elif averages:
        findings.append(
            Finding('note', 'EMA', f'averaged weights are in {averages[0]}, and {entry} is what is loaded',
                    f'The converters take them by --key {averages[0]}.'))
    broken = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        findings.append(
            Finding('fault', 'values', f'{len(broken)} tensors hold NaN or infinity: {_some(broken)}',
                    'Training diverged before this was saved. Go back to an earlier checkpoint.'))
    return findings


def _training_state(content: Mapping, tensors: Mapping[str, Tensor]) -> list[Finding]:
    findings = []
    if 'optimizer' in content:
        findings.append(Finding('ok', 'optimizer', 'its state is there: training can be resumed'))
    else:
        findings.append(Finding('note', 'optimizer', 'no state: good to test and to train from, not to resume'))
    sparse = [value for value in tensors.values() if value.ndim in (2, 4)]
    density = sum(int(value.count_nonzero()) for value in sparse) / max(sum(value.numel() for value in sparse), 1)
    state = content.get('dynamic_sparsity')
    if state is None:
        findings.append(Finding('ok', 'density', f'{density:.4f} of the 2-D and 4-D weights are not zero; no masks'))
        return findings
    masks = {name: unpack_mask(mask['bits'], mask['shape']) for name, mask in state['masks'].items()}
    live = sum(int(mask.sum()) for mask in masks.values())
    size = sum(mask.numel() for mask in masks.values())
    findings.append(
        Finding(
            'ok', 'density', f'{density:.4f} of the 2-D and 4-D weights are not zero; {len(masks)} masks of '
            f'DynamicSparsityHook, density {live / max(size, 1):.4f} within them, at optimiser step {state["step"]}, '
            f'prune rate {state["prune_rate"]:.4f}'))
    wrong = [
        name for name, mask in masks.items()
        if name not in tensors or tensors[name].shape != mask.shape or bool(tensors[name][~mask].any())
    ]
    if wrong:
        findings.append(
            Finding(
                'fault', 'masks', f'{len(wrong)} masks do not fit their weights, which are missing or '
                f'not zero where they are dead: {_some(wrong)}',
                'The weights were changed after training. Load them with load_from and '
                "DynamicSparsityHook(init='zeros') instead of resuming."))
    return findings


def _likely_renaming(path: Path, tensors: Mapping[str, Tensor], match: Match,
                     key: str | None) -> tuple[str, str, Match]:
    """What the names probably are, the cure, and how the renamed tensors would fit."""
    best = ('', '', match)
    for who, names, tool in RELEASES:
        with suppress(ValueError):
            renamed, _ = rename(tensors, names)
            candidate = Match(match.own, {name: tuple(value.shape) for name, value in renamed.items()})
            if len(candidate.matched) > len(best[2].matched):
                command = ['python', f'tools/model_converters/{tool}', str(path), str(_beside(path))]
                best = (f'the names are those of {who}', shlex.join(command + (['--key', key] if key else [])),
                        candidate)
    old, new = _best_prefixes(match)
    # What fits as it is keeps its name: heads, where only the backbone is called otherwise.
    fitting = '|'.join(map(re.escape, sorted(set(map(_component, match.matched)))))
    names = {rf'(?:module\.)?((?:{fitting})\..+)': r'\1'} if fitting else {}
    names[rf'(?:module\.)?{re.escape(old)}(.+)'] = rf'{new}\1'
    with suppress(ValueError):
        renamed, _ = rename(tensors, names)
        candidate = Match(match.own, {name: tuple(value.shape) for name, value in renamed.items()})
        # Names of a release also begin alike; a mere prefix must explain more than it.
        if len(candidate.matched) > len(best[2].matched):
            cure = _convert(path, _beside(path), names, key)
            if new == 'backbone.':
                cure += "\nFor a backbone's init_cfg nothing is to do: PretrainedBackbone finds the prefix."
            best = (f'the prefix is {old!r}, the model has {new!r}', cure, candidate)
    return best


def _best_prefixes(match: Match) -> tuple[str, str]:
    """The prefix in the checkpoint, and that in the model, under which most names and shapes are the same."""
    endings: dict[tuple, list[str]] = {}
    for name, shape in match.own.items():
        for prefix in _prefixes(name):
            endings.setdefault((name[len(prefix):], shape), []).append(prefix)
    counts: Counter = Counter()
    for name, shape in match.found.items():
        for old in _prefixes(name):
            counts.update((old, new) for new in endings.get((name[len(old):], shape), ()))
    most = max(counts.values(), default=0)
    return min((pair for pair, count in counts.items() if count == most),
               key=lambda pair: len(pair[0] + pair[1]),
               default=('', ''))


def _prefixes(name: str) -> list[str]:
    parts = name.split('.')
    return [
        '.'.join([*parts[:number], '']) if number else '' for number in range(min(_PREFIX_PARTS,
                                                                                  len(parts) - 1) + 1)
    ]


def _other_form(model: nn.Module, match: Match) -> Finding | None:
    """Says so if the checkpoint is of the deployed form of the model, which the config describes in training form."""
    deploy = getattr(getattr(model, 'backbone', None), 'switch_to_deploy', None)
    if deploy is None:
        return None
    with WeightsOnMeta():
        deploy()
    deployed = Match({name: tuple(value.shape) for name, value in model.state_dict().items()}, match.found)
    if deployed.missing or len(deployed.matched) != len(deployed.own):
        return None
    return Finding(
        'fault', 'form', 'the checkpoint holds the deployed form, with merged branches; the config describes '
        'the training form', 'Use the config that was written beside it when it was deployed, or the '
        'checkpoint that training saved.')


def _rest(match: Match) -> list[Finding]:
    """What does not fit, tensor by tensor."""
    findings = []
    if match.other_shapes:
        shapes = [f'{name} {match.found[name]}, model {match.own[name]}' for name in match.other_shapes]
        findings.append(
            Finding(
                'fault', 'shapes', f'{len(shapes)} tensors have other shapes: {_some(shapes)}',
                'The checkpoint is of another variant: take the config that it was trained with (in its '
                'meta data: cfg), or set arch, kernel_sizes, center, num_classes as there.'))
    if match.missing:
        pairs = []
        for name in match.missing:
            # Of counters one is like the other.
            same = [other for other in match.unused if match.found[other] == match.own[name] != ()]
            close = difflib.get_close_matches(name, same, n=1, cutoff=0.6)
            pairs += [f'{close[0]} -> {name}'] if close else []
        findings.append(
            Finding(
                'fault', 'missing', f'{len(match.missing)} tensors of the model are not in the '
                f'checkpoint: {_some(match.missing)}', f'Likely renamed: {_some(pairs)}'
                if pairs else 'They would stay as initialised: look for the config that this was trained with.'))
    if match.unused:
        findings.append(Finding('note', 'not used', f'{len(match.unused)} tensors: {_some(match.unused)}'))
    return findings


def _matching(subject: str, match: Match) -> Finding:
    parts = ', '.join(f'{name} {match.percent(name):.1f} %' for name in match.components())
    complete = len(match.matched) == len(match.own)
    return Finding('ok' if complete else 'note', subject, f'{_numbers(match)} ({parts})')


def _numbers(match: Match) -> str:
    return (f'{match.percent():.1f} % of the values of the model are in the checkpoint, {len(match.matched)} of '
            f'{len(match.own)} tensors')


def _convert(path: Path, target: Path, names: Mapping[str, str], key: str | None) -> str:
    """The command that writes a renamed copy."""
    arguments = f'{str(path)!r}, {str(target)!r}, {dict(names)!r}' + (f', key={key!r}' if key else '')
    return 'python -c ' + shlex.quote(f'from pelk_mm.engine.checkpoints import convert_file; convert_file({arguments})')


def _beside(path: Path) -> Path:
    return path.with_name(f'{path.stem}_renamed.pth')


def _describe(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return f'{name} ({len(value)})'
    return f'{name} {value}' if isinstance(value, (int, float, str)) and len(str(value)) < 30 else name


def _describe_meta(meta: Any) -> str:
    if not isinstance(meta, Mapping):
        return str(meta)[:200]
    told = [f'{name} {meta[name]}' for name in ('experiment_name', 'epoch', 'iter', 'seed', 'time') if name in meta]
    classes = meta.get('dataset_meta', {}).get('classes')
    if classes:
        told.append(f'{len(classes)} classes')
    told.append('with its config' if meta.get('cfg') else 'without its config')
    return ', '.join(told)


def _tensors(value: Mapping) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in value.items() if isinstance(tensor, Tensor)}


def _component(name: str) -> str:
    return name.partition('.')[0]


def _some(names: list[str]) -> str:
    return ', '.join(names[:_LISTED]) + (f', and {len(names) - _LISTED} more' if len(names) > _LISTED else '')
