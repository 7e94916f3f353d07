"""Initialise a backbone from a checkpoint, and log the loaded tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from mmengine.logging import MMLogger
from mmengine.model import BaseModule, PretrainedInit, update_init_info
from torch import Tensor, nn

from pelk_mm.module_names import WRAPPER_PARTS, clean_name
from pelk_mm.registry import WEIGHT_INITIALIZERS

from .entries import check_choice, find_weights, named_tensors
from .loading import safe_load
from .matching import Match, shorten


@WEIGHT_INITIALIZERS.register_module()
class PretrainedBackbone(PretrainedInit):
    """Initialise a backbone from a checkpoint of any model that contains one.

    Unlike MMEngine's ``Pretrained`` it finds the prefix of the backbone's parameters by itself, counts the matches,
    unpickles only tensors and plain values, and refuses a checkpoint that does not fit instead of training on from
    random weights. As with ``Pretrained``, it loads after the backbone's own children were initialised.

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
        check_choice(weights, key, 'init_cfg.')
        self.key = key
        self.weights = weights
        self.skip_mismatched = skip_mismatched

    def __call__(self, module: nn.Module) -> Match | None:
        """Load into ``module``, in place; return the match, None if there was no checkpoint."""
        logger = MMLogger.get_current_instance()
        name = type(module).__name__
        if self.checkpoint is None:
            logger.warning(f'{name} trains from scratch: its init_cfg names no checkpoint. Give one by --cfg-options '
                           'model.backbone.init_cfg.checkpoint=PATH')
            return None
        # MMEngine defers only the type 'Pretrained' until the children are initialised.
        for child in module.children():
            if isinstance(child, BaseModule) and not child.is_init:
                child.init_weights()

        tensors, where = self._load()
        # Names without wrappers, on both sides: of torch.compile, of FSDP.
        state_dict = module.state_dict()
        own_keys = {clean_name(key): key for key in state_dict}
        prefix = self._prefix(tensors, own_keys)
        found = {clean_name(key[len(prefix):]): value for key, value in tensors.items() if key.startswith(prefix)}
        match = Match({name: state_dict[key] for name, key in own_keys.items()}, found)
        if len(match.missing) == len(own_keys):
            raise ValueError(f'{where} has none of the {len(own_keys)} keys of {name} under the prefix {prefix!r}, for '
                             f'example no {prefix + next(iter(own_keys))!r}; its first keys are {shorten(tensors)}. '
                             'Check that it is a checkpoint of this kind of backbone')
        self._refuse_misfit(match, name, where)

        module.load_state_dict({own_keys[key]: found[key] for key in match.matched}, strict=False)
        logger.info(f'{name}: {len(match.matched)} of {len(own_keys)} keys loaded from {where}, prefix {prefix!r}; '
                    f'{len(tensors) - len(found)} keys lie outside of it')
        not_built = {key for key in match.unused if getattr(module, 'is_of_unbuilt_stage', lambda key: False)(key)}
        if not_built:
            logger.info(f'{name}: {len(not_built)} keys are of stages and norms that out_indices leaves out')
        for text, keys in (('not in the checkpoint, left as initialised', match.missing),
                           ('in the checkpoint, but not in the model, and not used', {*match.unused} - not_built)):
            if keys:
                logger.warning(f'{name}: {len(keys)} keys are {text}: {", ".join(sorted(keys))}')
        if match.other_shapes:
            logger.warning(f'{name}: {len(match.other_shapes)} tensors have other shapes and are left as initialised: '
                           f'{match.describe_shapes(len(match.other_shapes))}')
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=self._get_init_info())
        return match

    def _load(self) -> tuple[dict[str, Tensor], str]:
        """Return the tensors of the checkpoint by name, and its name and entry for messages."""
        try:
            content = safe_load(self.checkpoint, self.map_location)
            weights, entry = find_weights(content, self.weights, repr(self.checkpoint), self.key)
        except FileNotFoundError as error:
            raise FileNotFoundError(f'init_cfg.checkpoint {self.checkpoint!r} does not exist. Train the classifier '
                                    'first or give the right path; None trains from scratch') from error
        except ValueError as error:
            raise ValueError(f'init_cfg: {error}') from error
        tensors, where = named_tensors(weights), f'{self.checkpoint!r}' + (f' ({entry})' if entry else '')
        if not tensors:
            raise ValueError(f'{where} holds no tensors')
        return tensors, where

    def _prefix(self, keys: Collection[str], own: Collection[str]) -> str:
        if self.prefix is not None:
            return self.prefix
        counts: Counter[str] = Counter()
        for key in keys:
            parts = key.split('.')
            for start in range(len(parts)):
                if parts[start] not in WRAPPER_PARTS and clean_name('.'.join(parts[start:])) in own:
                    counts['.'.join([*parts[:start], ''])] += 1
        ranking = counts.most_common(2)
        if len(ranking) == 2 and ranking[0][1] == ranking[1][1]:
            raise ValueError(f'{self.checkpoint!r} holds the backbone under {ranking[0][0]!r} and {ranking[1][0]!r}: '
                             'say by init_cfg.prefix which one to load')
        return ranking[0][0] if ranking else ''

    def _refuse_misfit(self, match: Match, name: str, where: str) -> None:
        """Raise if the weights are a ConvNeXt's, of the other form, or of other shapes."""
        kernels = [key for key in match.unused if key.endswith(('.dwconv.weight', '.depthwise_conv.weight'))]
        if kernels and not any(key.startswith('stages.') for key in match.matched):
            raise ValueError(f'{where} is a ConvNeXt, whose blocks {name} has under no name, e.g. {kernels[0]}: '
                             'grow it first by tools/model_converters/grow_convnext.py')
        form, biases = match.other_form
        if form:
            fix = ('load the checkpoint that training saved, and deploy afterwards' if form == 'deployed' else
                   'build the backbone, load, and call switch_to_deploy() afterwards')
            raise ValueError(f'{where} has the {form} form of {name}, the model has not: {len(biases)} convolutions '
                             f'have a bias in one and none in the other, e.g. {min(biases)}: {fix}. '
                             '(branch_norm_cfg=None makes such convolutions too.)')
        if match.other_shapes and not self.skip_mismatched:
            count = len(match.matched) + len(match.other_shapes)
            raise ValueError(f'{where} was saved by another variant of {name}: {len(match.other_shapes)} of {count} '
                             f'tensors have other shapes, {match.describe_shapes()}. Set arch, kernel_sizes, center '
                             'and width_factor of the backbone as in the config it was trained with, or '
                             'init_cfg.skip_mismatched=True to leave these as they are initialised')
