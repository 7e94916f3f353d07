"""The former place of :mod:`pelk_mm.diagnostics.finding`."""

from ..diagnostics.finding import *  # noqa: F403
from ..diagnostics.finding import has_error as has_fault  # noqa: F401
