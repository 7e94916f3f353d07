"""Checkpoints: loaded safely, written atomically, resumed from, converted, published."""

from ..install_hints import require

require('mmengine', by='pelk_mm.checkpoints')
