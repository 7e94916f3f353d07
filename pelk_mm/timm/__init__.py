"""Names for ``timm.create_model``: ``import pelk_mm.timm`` registers the networks of :mod:`pelk_mm.nets` in timm.

``timm.list_models(module='pelk')`` lists them. Nothing else in this package imports this one.
"""

from ..install_hints import require

require('timm', by='pelk_mm.timm', instead='pelk_mm.nets has the same networks in plain PyTorch')

from . import pelk  # noqa: F401
from .model import PeLK, SLaK, TimmNet, checkpoint_filter_fn, net_state_dict

__all__ = ['PeLK', 'SLaK', 'TimmNet', 'checkpoint_filter_fn', 'net_state_dict']
