"""The former place of :mod:`pelk_mm.diagnostics.environment`."""

from ..diagnostics.environment import *  # noqa: F403
