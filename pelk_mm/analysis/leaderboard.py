"""The former place of :mod:`pelk_mm.reports`."""

from ..reports import *  # noqa: F403
