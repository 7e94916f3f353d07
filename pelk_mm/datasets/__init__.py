from ..install_hints import require

require('mmengine', 'PIL', 'scipy', by='pelk_mm.datasets')

from .digit_scenes import DIGIT_CLASSES, SEGMENTATION_CLASSES, make_digit_scenes

__all__ = ['DIGIT_CLASSES', 'SEGMENTATION_CLASSES', 'make_digit_scenes']
