"""Names of 0.1.0, which live in :mod:`pelk_mm.checkpoints`."""

from ..checkpoints.atomic import atomic_save as save_whole  # noqa: F401
from ..checkpoints.convert import (  # noqa: F401
    BACKBONE_NAMES,
    CONVNEXT_NAMES,
    SLAK_NAMES,
    convert_file,
    convert_main,
    rename,
)
from ..checkpoints.entries import add_weights_option, find_weights, load_weights_and_meta  # noqa: F401
from ..checkpoints.loading import add_trust_option, safe_load  # noqa: F401
from ..checkpoints.publish import publish_file  # noqa: F401
