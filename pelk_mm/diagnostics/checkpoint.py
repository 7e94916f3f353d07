"""Report the content of a checkpoint, whether the model of a config can load it, and how to fix mismatches.

A file is only ever loaded as tensors and plain values; one that would run code is refused, and the code named.
"""

from __future__ import annotations

from ..install_hints import require

require('mmengine', by='pelk_mm.diagnostics.checkpoint')

import difflib
import math
import re
import shlex
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import Tensor, nn

from pelk_mm.analysis.model_building import build_model
from pelk_mm.checkpoints.convert import CONVNEXT_NAMES, SLAK_NAMES, rename
from pelk_mm.checkpoints.entries import AVERAGED_ENTRIES, ENTRIES, named_tensors
from pelk_mm.checkpoints.loading import UnsafeCheckpoint, checkpoint_error, safe_load
from pelk_mm.checkpoints.matching import Match, shorten
from pelk_mm.engine.sparsity import unpack_mask
from pelk_mm.nets import convnext_state_dict

from .finding import Finding, error, note, ok

# Entries that hold averages or copies of the weights.
AVERAGES = ('ema_state_dict', *AVERAGED_ENTRIES, 'ema')

# Names of other code bases: who uses them, the patterns, the tool that converts the file.
RELEASES = (
    ("SLaK's release", SLAK_NAMES, 'slak_to_pelk_mm.py'),
    ("ConvNeXt's release", CONVNEXT_NAMES, 'convnext_to_mmpretrain.py'),
)

# Prefixes of at most this many parts are tried.
_PREFIX_PARTS = 3
_LISTED = 4

_NO_MODEL = 'This is no checkpoint of a model; look for the file that training saved.'
_AGAIN = 'Copy or download it again, and compare its size. Of a stopped training, resume from the checkpoint before.'


def examine_checkpoint(path: str | Path, cfg: Config | None = None) -> list[Finding]:
    """Examine a checkpoint, and how it fits the model of a config.

    Args:
        path (str | Path): File.
        cfg (Config, optional): A config with ``model``.

    Returns:
        list[Finding]: The results; the last ones are about the config.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint: no such file, {path}')
    damage = examine_file(path)
    content = _load(path) if damage is None else damage
    return [content] if isinstance(content, Finding) else list(_examine_content(path, content, cfg))


def examine_file(path: Path) -> Finding | None:
    """Check a file before anything of it is unpickled; None if nothing wrong is seen."""
    with open(path, 'rb') as file:
        head = file.read(64)
    if not head:
        return error('file', f'{path} is empty', _AGAIN)
    if head.startswith(b'version https://git-lfs'):
        return error('file', f'{path} is a pointer of Git LFS, not the file itself', 'git lfs pull')
    if head.lstrip().startswith((b'<', b'{')):
        return error('file', f'{path} is a text, perhaps an error page of a download, not a checkpoint', _AGAIN)
    # Files of PyTorch before 1.6 are no archives, and have no checksums.
    if head.startswith(b'PK\x03\x04') and (damage := checkpoint_error(path)):
        how = 'damaged' if zipfile.is_zipfile(path) else 'truncated'
        return error('file', f'{path} is {how}: {damage}', _AGAIN)
    return None


def match_config(path: Path, tensors: Mapping[str, Tensor], cfg: Config, key: str | None = None) -> Iterator[Finding]:
    """Report how tensors fit the model of a config, as MMEngine would load them, and which renaming would help.

    The commands name ``path``, and ``key``, the entry of it that holds the tensors, if a converter needs that.
    """
    model = build_model(cfg)
    own = model.state_dict()
    # MMEngine drops the 'module.' of a wrapped model by itself.
    match = Match(own, {re.sub(r'^module\.', '', name): value for name, value in tensors.items()})
    complete = len(match.matched) == len(own)
    parts = ', '.join(f'{name} {_percent(match, name):.1f} %' for name in dict.fromkeys(map(_component, own)))
    yield (ok if complete else note)('model', f'{_numbers(match)} ({parts})')
    if complete:
        if match.unused:
            yield note('not used', shorten(match.unused, _LISTED))
        return
    form, biases = match.other_form
    if form:
        yield error(
            'form', f'the checkpoint holds the {form} form, the config describes the other one: {len(biases)} '
            f'convolutions have a bias in one and none in the other, e.g. {min(biases)}',
            'Use the config that was written beside it when it was deployed, or the checkpoint that training saved.')
        return
    # Names of a release also begin alike: a mere prefix, which comes later, must explain more than it.
    guesses = [('', '', match), *_guess_names(path, tensors, model, match, key)]
    renaming, fix, renamed = max(guesses, key=lambda guess: len(guess[2].matched))
    if renaming:
        yield error('names', f'{renaming}: with that {_numbers(renamed)}', fix)
        yield from _rest(renamed)
    elif _percent(match, 'backbone') > 99 and not match.other_shapes and 'backbone' not in map(
            _component, match.unused):
        # Backbones for dense prediction have norms that a classifier's lacks.
        lacking = sum(name.startswith('backbone.') for name in match.missing)
        yield note(
            'pretrained', f'the backbone is there, except {lacking} small tensors, and the rest is not: fine to train '
            'from, not to test', 'Give it by --cfg-options model.backbone.init_cfg.checkpoint=PATH. To test, take a '
            'checkpoint of this very config.')
    else:
        yield from _rest(match)


def _load(path: Path) -> Any:
    try:
        return safe_load(path)
    except UnsafeCheckpoint as refused:
        return error(
            'code', f'{path} refused: to load it would {refused.needs}. Nothing of it was run',
            'Do not load it by other means, unless you know who made it. Ask its author for only the state_dict:\n'
            "torch.save(dict(state_dict=model.state_dict()), 'weights.pth')")
    except (ValueError, OSError) as failure:
        # Files that end at once raise an EOFError without a word.
        message = str(failure.__cause__ or failure) or 'truncated at its very start'
    if re.search(r'unexpected EOF|truncated|Ran out of input', message):
        return error('file', f'{path} is truncated: {message}', _AGAIN)
    return error('file', f'{path} is not a checkpoint of PyTorch: {message.splitlines()[0]}',
                 'Give a file that torch.save wrote, .pth or .pt.')


def _examine_content(path: Path, content: Any, cfg: Config | None) -> Iterator[Finding]:
    yield ok('file', f'{path}, {path.stat().st_size / 2**20:.1f} MiB: only tensors and plain values')
    if not isinstance(content, Mapping):
        yield error('content', f'is a {type(content).__name__}, not a dict of tensors', _NO_MODEL)
        return
    entries = [_describe(name, value) for name, value in content.items() if not isinstance(value, Tensor)]
    yield ok('entries', ', '.join(entries) or 'bare tensors')
    if content.get('meta'):
        yield ok('meta', _describe_meta(content['meta']))
    held = {name: named_tensors(content[name]) for name in (*ENTRIES, *AVERAGES)
            if isinstance(content.get(name), Mapping)}
    entry = next((name for name, tensors in held.items() if tensors), None)
    tensors = held[entry] if entry else named_tensors(content)
    if not tensors:
        yield error('weights', 'none of the entries holds tensors by name', _NO_MODEL)
        return
    yield from _examine_weights(path, entry, tensors, [name for name in held if name in AVERAGES])
    yield from _examine_training_state(content, tensors)
    if cfg is not None:
        yield from match_config(path, tensors, cfg, entry if entry in AVERAGES else None)


def _examine_weights(path: Path, entry: str | None, tensors: Mapping[str, Tensor],
                     averages: list[str]) -> Iterator[Finding]:
    count = sum(value.numel() for value in tensors.values())
    prefixes = Counter(map(_component, tensors)).most_common(6)
    yield ok(
        'weights', f'{len(tensors)} tensors of {count / 1e6:.3f} M values in {entry or "the file itself"}: ' +
        ', '.join(f'{prefix}.* {number}' for prefix, number in prefixes))
    if entry in AVERAGES:
        command = _convert(path, path.with_name(f'{path.stem}_weights.pth'), {r'(?:module\.)?(.+)': r'\1'}, entry)
        yield error('EMA', f'only averaged weights are there, in {entry}: loading finds no state_dict',
                    f"{command}\nFor a backbone's init_cfg, key={entry!r} does without a new file.")
    elif 'ema_state_dict' in averages:
        yield ok(
            'EMA', 'state_dict holds the averaged weights, those that were validated; ema_state_dict the plain ones, '
            'to resume with')
    elif averages:
        yield note('EMA', f'averaged weights are in {averages[0]}, and {entry} is what is loaded',
                   f'The converters take them by --key {averages[0]}.')
    broken = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        yield error('values', f'{len(broken)} tensors hold NaN or infinity: {shorten(broken, _LISTED)}',
                    'Training diverged before this was saved. Go back to an earlier checkpoint.')


def _examine_training_state(content: Mapping, tensors: Mapping[str, Tensor]) -> Iterator[Finding]:
    if 'optimizer' in content:
        yield ok('optimizer', 'its state is there: training can be resumed')
    else:
        yield note('optimizer', 'no state: good to test and to train from, not to resume')
    sparse = [value for value in tensors.values() if value.ndim in (2, 4)]
    density = sum(int(value.count_nonzero()) for value in sparse) / max(sum(value.numel() for value in sparse), 1)
    text = f'{density:.4f} of the 2-D and 4-D weights are not zero; '
    state = content.get('dynamic_sparsity')
    if state is None:
        yield ok('density', f'{text}no masks')
        return
    masks = {name: unpack_mask(mask['bits'], mask['shape']) for name, mask in state['masks'].items()}
    live, size = (sum(int(count(mask)) for mask in masks.values()) for count in (Tensor.sum, Tensor.numel))
    yield ok(
        'density', f'{text}{len(masks)} masks of DynamicSparsityHook, density {live / max(size, 1):.4f} within them, '
        f'at optimiser step {state["step"]}, prune rate {state["prune_rate"]:.4f}')
    wrong = [
        name for name, mask in masks.items()
        if name not in tensors or tensors[name].shape != mask.shape or bool(tensors[name][~mask].any())
    ]
    if wrong:
        yield error(
            'masks', f'{len(wrong)} masks do not fit their weights, which are missing or not zero where they are dead: '
            f'{shorten(wrong, _LISTED)}', 'The weights were changed after training. Load them with load_from and '
            "DynamicSparsityHook(init='zeros') instead of resuming.")


def _guess_names(path: Path, tensors: Mapping[str, Tensor], model: nn.Module, match: Match,
                 key: str | None) -> Iterator[tuple[str, str, Match]]:
    """Yield guesses of the code base or prefix, each with its fix and how the renamed tensors would fit."""
    target = path.with_name(f'{path.stem}_renamed.pth')
    option = ['--key', key] if key else []
    candidates = [(f'the names are those of {who}', names,
                   shlex.join(['python', f'tools/model_converters/{tool}', str(path), str(target), *option]))
                  for who, names, tool in RELEASES]
    old, new = _best_prefixes(match)
    # What fits as it is keeps its name: heads, where only the backbone is called otherwise.
    fitting = '|'.join(map(re.escape, sorted(set(map(_component, match.matched)))))
    names = {rf'(?:module\.)?((?:{fitting})\..+)': r'\1'} if fitting else {}
    names[rf'(?:module\.)?{re.escape(old)}(.+)'] = rf'{new}\1'
    hint = "\nFor a backbone's init_cfg nothing is to do: PretrainedBackbone finds the prefix."
    candidates.append((f'the prefix is {old!r}, the model has {new!r}', names,
                       _convert(path, target, names, key) + (hint if new == 'backbone.' else '')))
    own = model.state_dict()
    for text, names, fix in candidates:
        with suppress(ValueError):
            yield text, fix, Match(own, rename(tensors, names)[0])
    with suppress(ValueError):
        yield from _guess_convnext(path, tensors, model, option)


def _guess_convnext(path: Path, tensors: Mapping[str, Tensor], model: nn.Module,
                    options: list[str]) -> Iterator[tuple[str, str, Match]]:
    """Yield what :func:`_guess_names` does for a ConvNeXt that the model's PeLK can be grown from.

    Raises:
        ValueError: If the tensors are not a ConvNeXt's.
    """
    grids = getattr(getattr(model, 'backbone', None), 'grids', None)
    weights, own = convnext_state_dict(tensors), model.state_dict()
    found = {f'backbone.{name}': value for name, value in weights.backbone.items()}
    # Kernels grow to those of the model.
    found.update({name: own[name] for name in found if name.endswith('.large.weight') and name in own})
    if any('position_embedding' in name for name in own):
        options = [*options, '--position-embedding']
    fix = shlex.join(['python', 'tools/model_converters/grow_convnext.py', str(path),
                      str(path.with_name(f'{path.stem}_grown.pth')), *options, '--kernel-sizes',
                      *(str(grid.kernel_size) for grid in grids or ())])
    match = Match(own, found | weights.head)
    if grids and not match.unused:
        yield f'the names are those of a ConvNeXt ({weights.naming}), which can be grown', fix, match


def _best_prefixes(match: Match) -> tuple[str, str]:
    """Return the prefixes, in the checkpoint and in the model, under which most names and shapes are the same."""
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
    parts = name.split('.')[:-1][:_PREFIX_PARTS]
    return [''.join(f'{part}.' for part in parts[:number]) for number in range(len(parts) + 1)]


def _rest(match: Match) -> Iterator[Finding]:
    if match.other_shapes:
        yield error(
            'shapes', f'{len(match.other_shapes)} tensors have other shapes: {match.describe_shapes(_LISTED)}',
            'The checkpoint is of another variant: take the config that it was trained with (in its meta data: cfg), '
            'or set arch, kernel_sizes, center, num_classes as there.')
    if match.missing:
        pairs = []
        for name in match.missing:
            # Counters all look alike.
            same = [other for other in match.unused if match.found[other] == match.own[name] != ()]
            close = difflib.get_close_matches(name, same, n=1, cutoff=0.6)
            pairs += [f'{close[0]} -> {name}'] if close else []
        yield error(
            'missing', f'{len(match.missing)} tensors of the model are not in the checkpoint: '
            f'{shorten(match.missing, _LISTED)}', f'Likely renamed: {shorten(pairs, _LISTED)}'
            if pairs else 'They would stay as initialised: look for the config that this was trained with.')
    if match.unused:
        yield note('not used', f'{len(match.unused)} tensors: {shorten(match.unused, _LISTED)}')


def _percent(match: Match, component: str = '') -> float:
    """Return the share of the model's values that the checkpoint fills, in all of it or in one child."""
    sizes = {name: math.prod(shape) for name, shape in match.own.items() if component in ('', _component(name))}
    return 100 * sum(sizes.get(name, 0) for name in match.matched) / max(sum(sizes.values()), 1)


def _numbers(match: Match) -> str:
    return (f'{_percent(match):.1f} % of the values of the model are in the checkpoint, {len(match.matched)} of '
            f'{len(match.own)} tensors')


def _convert(path: Path, target: Path, names: Mapping[str, str], key: str | None) -> str:
    arguments = f'{str(path)!r}, {str(target)!r}, {dict(names)!r}' + (f', key={key!r}' if key else '')
    code = f'from pelk_mm.checkpoints.convert import convert_file; convert_file({arguments})'
    return f'python -c {shlex.quote(code)}'


def _describe(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return f'{name} ({len(value)})'
    return f'{name} {value}' if isinstance(value, (int, float, str)) and len(str(value)) < 30 else str(name)


def _describe_meta(meta: Any) -> str:
    if not isinstance(meta, Mapping):
        return str(meta)[:200]
    parts = [f'{name} {meta[name]}' for name in ('experiment_name', 'epoch', 'iter', 'seed', 'time') if name in meta]
    classes = meta.get('dataset_meta', {}).get('classes')
    if classes:
        parts.append(f'{len(classes)} classes')
    parts.append('with its config' if meta.get('cfg') else 'without its config')
    return ', '.join(parts)


def _component(name: str) -> str:
    return name.partition('.')[0]
