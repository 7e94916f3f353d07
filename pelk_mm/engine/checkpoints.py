"""Names of 0.1.0, which live in :mod:`pelk_mm.checkpoints`."""

from ..checkpoints.atomic import atomic_save as save_whole  # noqa: F401
from ..checkpoints.convert import BACKBONE_NAMES, CONVNEXT_NAMES, SLAK_NAMES, convert_file, rename  # noqa: F401
from ..checkpoints.entries import find_weights, load_weights_and_meta  # noqa: F401
from ..checkpoints.loading import safe_load  # noqa: F401
from ..checkpoints.publish import publish_file  # noqa: F401
