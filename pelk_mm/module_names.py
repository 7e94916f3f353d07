"""Names of modules and parameters as they are without wrappers."""

from __future__ import annotations

from collections.abc import Collection

# What torch.compile, checkpoint_wrapper and FSDP call the module that they wrap, which is nobody else's name.
PRIVATE_PARTS = ('_orig_mod', '_checkpoint_wrapped_module', '_fsdp_wrapped_module')
# That of DDP, DataParallel and averaged models may also be a model's own.
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
