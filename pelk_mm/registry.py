"""The registries of PeLK-MM: children of MMEngine's, under the scope ``pelk_mm``.

Every toolbox finds our modules by the prefix, e.g. ``type='pelk_mm.PeLK'`` in a config whose ``default_scope``
is ``mmseg``. ``locations`` make the import happen at the first look-up.
"""

from .install_hints import require

require('mmengine', by='pelk_mm.registry')

import inspect
from collections.abc import Iterable
from difflib import get_close_matches
from functools import wraps
from typing import Any

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import RUNNERS as MMENGINE_RUNNERS
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_WEIGHT_INITIALIZERS
from mmengine.registry import Registry


class SuggestingRegistry(Registry):
    """A registry that suggests the nearest name for a misspelt type, or a misspelt argument of its classes.

    Raises:
        KeyError: From ``get`` and ``build``, if a type is unknown and resembles one registered here.
        TypeError: When a registered class is made, from a config or directly, if it does not take an argument.
    """

    def get(self, key: str):
        """Get as upstream does, but raise an error instead of returning None if a name is almost one of ours."""
        found = super().get(key)
        if found is None:
            hint = _suggest(key.removeprefix(f'{self.scope}.'), self.module_dict)
            if hint:
                raise KeyError(f'{key!r} is not in the {self.scope}::{self.name} registry{hint} It has: '
                               f'{", ".join(sorted(self.module_dict))}')
        return found

    def _register_module(self, module, *args, **kwargs) -> None:
        super()._register_module(module, *args, **kwargs)
        # A class without its own constructor shares one with classes that are not ours.
        if '__init__' in vars(module):
            module.__init__ = _checked(module)


def _checked(cls: Any):
    """Return the constructor of ``cls`` that refuses keyword arguments it does not take."""
    constructor = cls.__init__
    allowed = _argument_names(cls)

    @wraps(constructor)
    def __init__(self, *args, **kwargs):
        unknown = [] if allowed is None else [name for name in kwargs if name not in allowed]
        if allowed is not None and unknown:
            got = ', '.join(f'{name}={kwargs[name]!r}' for name in unknown)
            hint = _suggest(unknown[0], allowed) or '.'
            raise TypeError(f'{cls.__name__} does not take {got}{hint} It takes: {", ".join(sorted(allowed))}')
        constructor(self, *args, **kwargs)

    return __init__


def _argument_names(cls: type) -> set[str] | None:
    """Return the names of the constructor's arguments, with those of its base class; None if it takes any name."""
    names: set[str] = set()
    for base in cls.__mro__[:-1]:
        if '__init__' not in vars(base):
            continue
        _, *parameters = inspect.signature(vars(base)['__init__']).parameters.values()
        names |= {item.name for item in parameters if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)}
        if not any(item.kind is item.VAR_KEYWORD for item in parameters):
            return names
    return None


def _suggest(name: str, known: Iterable[str] | None) -> str:
    names = {each.lower(): each for each in known or ()}
    near = get_close_matches(name.lower(), names, n=1)
    return f': did you mean {names[near[0]]!r}?' if near else ''


MODELS = SuggestingRegistry('model', parent=MMENGINE_MODELS, scope='pelk_mm', locations=['pelk_mm.models'])
HOOKS = SuggestingRegistry('hook', parent=MMENGINE_HOOKS, scope='pelk_mm', locations=['pelk_mm.engine'])
FUNCTIONS = SuggestingRegistry(
    'function', parent=MMENGINE_FUNCTIONS, scope='pelk_mm', locations=['pelk_mm.engine'])
LOOPS = SuggestingRegistry('loop', parent=MMENGINE_LOOPS, scope='pelk_mm', locations=['pelk_mm.engine'])
OPTIM_WRAPPER_CONSTRUCTORS = SuggestingRegistry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='pelk_mm',
    locations=['pelk_mm.engine'])
RUNNERS = SuggestingRegistry('runner', parent=MMENGINE_RUNNERS, scope='pelk_mm', locations=['pelk_mm.engine'])
STRATEGIES = SuggestingRegistry('strategy', parent=MMENGINE_STRATEGIES, scope='pelk_mm', locations=['pelk_mm.engine'])
TRANSFORMS = SuggestingRegistry('transform', parent=MMENGINE_TRANSFORMS, scope='pelk_mm', locations=['pelk_mm.engine'])
WEIGHT_INITIALIZERS = SuggestingRegistry(
    'weight initializer', parent=MMENGINE_WEIGHT_INITIALIZERS, scope='pelk_mm', locations=['pelk_mm.engine'])
# What needs mmseg: found only where a config names it.
DATASETS = SuggestingRegistry(
    'dataset', parent=MMENGINE_DATASETS, scope='pelk_mm', locations=['pelk_mm.datasets.reach'])
METRICS = SuggestingRegistry('metric', parent=MMENGINE_METRICS, scope='pelk_mm', locations=['pelk_mm.datasets.reach'])
