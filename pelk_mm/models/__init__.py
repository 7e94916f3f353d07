"""Registered models; configs name them with the prefix ``pelk_mm.``."""

from .backbones import LargeKernelNet, PeLK, SLaK

__all__ = ['LargeKernelNet', 'PeLK', 'SLaK']
