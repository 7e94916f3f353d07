"""The peripheral convolution: a depthwise convolution whose large kernel is expanded from few parameters."""

from .interface import available_backends, peripheral_conv2d

__all__ = ['available_backends', 'peripheral_conv2d']
