"""The former place of :mod:`pelk_mm.reports.digits_configs`."""

from ..reports.digits_configs import scale_config_to_digits as to_digits  # noqa: F401
