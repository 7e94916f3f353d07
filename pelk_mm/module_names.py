"""Names of modules and parameters without the parts that wrappers add."""

from __future__ import annotations

from collections.abc import Collection

# The names that torch.compile, checkpoint_wrapper and FSDP give the wrapped module; no other module has them.
PRIVATE_PARTS = ('_orig_mod', '_checkpoint_wrapped_module', '_fsdp_wrapped_module')
# The name used by DDP, DataParallel and averaged models; a model itself may have it too.
WRAPPER_PARTS = (*PRIVATE_PARTS, 'module')


def clean_name(name: str, parts: Collection[str] = WRAPPER_PARTS) -> str:
    """Return the name of a module or parameter without the parts that wrappers add, wherever they are.

    Args:
        name (str): Of a module, a parameter, or the prefix of some, with its dot.
        parts (Collection[str]): The parts to leave out. Defaults to those of all wrappers.

    Examples:
        >>> from pelk_mm.module_names import clean_name
        >>> clean_name('module.backbone._orig_mod.stages.0._checkpoint_wrapped_module.blocks.1.gamma')
        'backbone.stages.0.blocks.1.gamma'
    """
    return '.'.join(part for part in name.split('.') if part not in parts)
