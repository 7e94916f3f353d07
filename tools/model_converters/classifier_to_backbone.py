"""Take the backbone out of a classifier's checkpoint, under the backbone's own names."""

from pelk_mm.checkpoints.convert import BACKBONE_NAMES, convert_main

if __name__ == '__main__':
    print(convert_main(__doc__, BACKBONE_NAMES, 'checkpoint of a classifier, file or URL'))
