"""Costs and figures of models as importable functions; the tools only parse arguments."""

from ..install_hints import require

require('mmengine', 'mmcv', by='pelk_mm.analysis')

from .complexity import Complexity, Cost, count_complexity, default_shape
from .mac_counter import peripheral_conv2d_flops
from .model_building import build_model, build_with_weights
from .paper import load_paper_tables

__all__ = [
    'Complexity', 'Cost', 'build_model', 'build_with_weights', 'count_complexity', 'default_shape', 'load_paper_tables',
    'peripheral_conv2d_flops'
]
