from .digit_scenes import DIGIT_CLASSES, SEGMENTATION_CLASSES, make_digit_scenes

__all__ = ['DIGIT_CLASSES', 'SEGMENTATION_CLASSES', 'make_digit_scenes']
