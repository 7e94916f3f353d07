"""Loading of pretrained backbones that says what it loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from mmengine.logging import MMLogger
from mmengine.model import BaseModule, PretrainedInit, update_init_info
from torch import Tensor, nn

from pelk_mm.module_names import WRAPPER_PARTS, clean_name
from pelk_mm.registry import WEIGHT_INITIALIZERS

from .checkpoints import WEIGHTS, find_weights, safe_load


@WEIGHT_INITIALIZERS.register_module()
class PretrainedBackbone(PretrainedInit):
    """Initialise a backbone from a checkpoint of any model that contains one.

    Unlike MMEngine's ``Pretrained`` it finds the prefix of the backbone's parameters by itself, counts what matched,
    unpickles nothing but tensors and plain values, and refuses a checkpoint that does not fit rather than training on
    from random weights. As with ``Pretrained``, what it loads has the last word: the initialisation of the backbone's
    own children comes before it.

    Args:
        checkpoint (str, optional): Path or URL. None trains the backbone from scratch, and the log says so.
        prefix (str, optional): What precedes the backbone's own names in the checkpoint, '' for nothing. By default
            the one under which most names are found (``backbone.``, ``module.backbone.``, none, ...).
        weights (str, optional): Which weights of a checkpoint of training with EMA: ``'raw'``, as the optimiser left
            them, or ``'averaged'``. By default the raw ones, from which SLaK's and ConvNeXt's recipes start, and of a
            published checkpoint those that it has. The log says which entry they are from.
        key (str, optional): Entry of the checkpoint that holds the parameters, instead of ``weights``. By default
            ``state_dict``, else ``model``, else the checkpoint itself; of one that MMEngine's EMAHook has been in,
            ``ema_state_dict``, which holds the raw weights.
        skip_mismatched (bool): Leave parameters whose shapes differ as they were initialised, e.g. kernels of another
            size, instead of refusing the checkpoint. They are listed in the log. Defaults to False.
        map_location (str): Where tensors are loaded to. Defaults to 'cpu'.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it holds anything but plain data, lacks ``weights`` or ``key``, both are given, nothing in it
            matches, it is not clear which part is meant, shapes differ, or it belongs to the deployed form and the
            backbone to the training form or vice versa.

    Examples:
        >>> backbone = dict(
        ...     type='pelk_mm.PeLK',
        ...     init_cfg=dict(type='pelk_mm.PretrainedBackbone', checkpoint='work_dirs/pelk-tiny/epoch_300.pth'))
    """

    def __init__(self,
                 checkpoint: str | None = None,
                 prefix: str | None = None,
                 key: str | None = None,
                 skip_mismatched: bool = False,
                 map_location: str = 'cpu',
                 weights: str | None = None) -> None:
        super().__init__(checkpoint, prefix=prefix, map_location=map_location)
        if weights not in (None, *WEIGHTS):
            raise ValueError(f'init_cfg.weights must be None or one of {WEIGHTS}, got {weights!r}')
        if key is not None and weights is not None:
            raise ValueError('init_cfg.key names an entry and init_cfg.weights finds it: give one of them, got '
                             f'{key!r} and {weights!r}')
        self.key = key
        self.weights = weights
        self.skip_mismatched = skip_mismatched

    def __call__(self, module: nn.Module) -> None:
        """Load into ``module``, in place."""
        logger = MMLogger.get_current_instance()
        name = type(module).__name__
        if self.checkpoint is None:
            logger.warning(f'{name} trains from scratch: its init_cfg names no checkpoint. Give one by --cfg-options '
                           'model.backbone.init_cfg.checkpoint=PATH')
            return
        # MMEngine defers only the type 'Pretrained' until the children are initialised.
        for child in module.children():
            if isinstance(child, BaseModule) and not child.is_init:
                child.init_weights()

        source, entry = self._state_dict()
        # Names without wrappers, on both sides: of torch.compile, of FSDP.
        state_dict = module.state_dict()
        own_keys = {clean_name(key): key for key in state_dict}
        own = {key: state_dict[own_keys[key]] for key in own_keys}
        prefix = self._prefix(source, own)
        found = {clean_name(key[len(prefix):]): value for key, value in source.items() if key.startswith(prefix)}
        same_name = own.keys() & found.keys()
        if not same_name:
            raise ValueError(f'{self._where(entry)} has none of the {len(own)} keys of {name} under the prefix '
                             f'{prefix!r}, for example no {prefix + next(iter(own))!r}; its first keys are '
                             f'{_some(source)}. Check that it is a checkpoint of this kind of backbone')
        self._refuse_other_form(own, found, name, entry)
        mismatched = [key for key in own if key in found and found[key].shape != own[key].shape]
        if mismatched and not self.skip_mismatched:
            raise ValueError(f'{self._where(entry)} was saved by another variant of {name}: {len(mismatched)} of '
                             f'{len(same_name)} tensors have other shapes, {_shapes(mismatched, found, own)}. Set '
                             'arch, kernel_sizes, center and width_factor of the backbone as in the config it was '
                             'trained with, or init_cfg.skip_mismatched=True to leave these as they are initialised')

        module.load_state_dict({own_keys[key]: found[key] for key in same_name - set(mismatched)}, strict=False)
        logger.info(f'{name}: {len(same_name) - len(mismatched)} of {len(own)} keys loaded from '
                    f'{self._where(entry)}, prefix {prefix!r}; {len(source) - len(found)} keys lie outside of it')
        not_built = {key for key in found if getattr(module, 'is_of_unbuilt_stage', lambda key: False)(key)}
        if not_built:
            logger.info(f'{name}: {len(not_built)} keys are of stages and norms that out_indices leaves out')
        missing, unused = own.keys() - found.keys(), found.keys() - own.keys() - not_built
        for what, keys in (('not in the checkpoint, left as initialised', missing),
                           ('in the checkpoint, but not in the model, and not used', unused)):
            if keys:
                logger.warning(f'{name}: {len(keys)} keys are {what}: {", ".join(sorted(keys))}')
        if mismatched:
            logger.warning(f'{name}: {len(mismatched)} tensors have other shapes and are left as initialised: '
                           f'{_shapes(mismatched, found, own, len(mismatched))}')
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=self._get_init_info())

    def _state_dict(self) -> tuple[Mapping[str, Tensor], str | None]:
        """The tensors of the checkpoint by name, and the entry of it that they were found in."""
        try:
            content = safe_load(self.checkpoint, self.map_location)
        except FileNotFoundError as error:
            raise FileNotFoundError(f'init_cfg.checkpoint {self.checkpoint!r} does not exist. Train the classifier '
                                    'first or give the right path; None trains from scratch') from error
        except ValueError as error:
            raise ValueError(f'init_cfg.checkpoint: {error}') from error
        entry, state_dict = self.key, content
        if entry is None and isinstance(content, Mapping):
            state_dict, entry = find_weights(content, self.weights, repr(self.checkpoint))
        elif entry is not None:
            if not isinstance(content, Mapping) or entry not in content:
                entries = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
                raise ValueError(f'init_cfg.key must be an entry of {self.checkpoint!r}, got {entry!r}, it has '
                                 f'{entries}')
            state_dict = content[entry]
        tensors = {}
        if isinstance(state_dict, Mapping):
            tensors = {key: value for key, value in state_dict.items() if isinstance(value, Tensor)}
        if not tensors:
            raise ValueError(f'{self._where(entry)} holds no tensors')
        return tensors, entry

    def _prefix(self, source: Mapping[str, Tensor], own: Collection[str]) -> str:
        if self.prefix is not None:
            return self.prefix
        counts = Counter()
        for key in source:
            parts = key.split('.')
            for start in range(len(parts)):
                if parts[start] not in WRAPPER_PARTS and clean_name('.'.join(parts[start:])) in own:
                    counts['.'.join([*parts[:start], ''])] += 1
        ranking = counts.most_common(2)
        if len(ranking) == 2 and ranking[0][1] == ranking[1][1]:
            raise ValueError(f'{self.checkpoint!r} holds the backbone under {ranking[0][0]!r} and {ranking[1][0]!r}: '
                             'say by init_cfg.prefix which one to load')
        return ranking[0][0] if ranking else ''

    def _refuse_other_form(self, own: Mapping[str, Tensor], found: Mapping[str, Tensor], name: str,
                           entry: str | None) -> None:
        """Merged convolutions have a bias where those in training form have none; their weights mean another thing."""
        for holder, other, form, cure in (
            (found, own, 'deployed', 'load the checkpoint that training saved, and deploy afterwards'),
            (own, found, 'training', 'build the backbone, load, and call switch_to_deploy() afterwards')):
            merged = [
                key for key in holder.keys() - other.keys()
                if key.endswith('.bias') and key[:-len('bias')] + 'weight' in own.keys() & found.keys()
            ]
            if merged:
                raise ValueError(f'{self._where(entry)} has the {form} form of {name}, the model has not: '
                                 f'{len(merged)} convolutions have a bias in one and none in the other, e.g. '
                                 f'{min(merged)}: {cure}. (branch_norm_cfg=None makes such convolutions too.)')

    def _where(self, entry: str | None) -> str:
        return f'{self.checkpoint!r}' + (f' ({entry})' if entry else '')


def _some(keys: Collection[str], count: int = 3) -> str:
    return ', '.join(list(keys)[:count]) + (', ...' if len(keys) > count else '')


def _shapes(keys: Collection[str], found: Mapping[str, Tensor], own: Mapping[str, Tensor], count: int = 3) -> str:
    return _some([f'{key} {tuple(found[key].shape)} in the checkpoint, {tuple(own[key].shape)} here' for key in keys],
                 count)
