"""Bring a checkpoint released by ConvNeXt's authors to the names of mmpretrain's ConvNeXt."""

from pelk_mm.checkpoints.convert import CONVNEXT_NAMES, convert_main

if __name__ == '__main__':
    print(convert_main(__doc__, CONVNEXT_NAMES, 'checkpoint of a classifier, segmentor or detector, file or URL'))
