"""The registries of PeLK-MM: children of MMEngine's, under the scope ``pelk_mm``.

Every toolbox finds our modules by the prefix, e.g. ``type='pelk_mm.PeLK'`` in a config whose ``default_scope``
is ``mmseg``. ``locations`` make the import happen at the first look-up.
"""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_WEIGHT_INITIALIZERS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='pelk_mm', locations=['pelk_mm.models'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='pelk_mm', locations=['pelk_mm.engine'])
LOOPS = Registry('loop', parent=MMENGINE_LOOPS, scope='pelk_mm', locations=['pelk_mm.engine'])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='pelk_mm',
    locations=['pelk_mm.engine'])
WEIGHT_INITIALIZERS = Registry(
    'weight initializer', parent=MMENGINE_WEIGHT_INITIALIZERS, scope='pelk_mm', locations=['pelk_mm.engine'])
