"""Bring a checkpoint released by SLaK's authors to the names of pelk_mm.SLaK."""

from pelk_mm.checkpoints.convert import SLAK_NAMES, convert_main

if __name__ == '__main__':
    print(convert_main(__doc__, SLAK_NAMES, 'checkpoint of a classifier, segmentor or detector, file or URL'))
