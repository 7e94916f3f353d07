"""Plain PyTorch operators: nothing here needs OpenMMLab."""

from .peripheral_conv2d import available_backends, peripheral_conv2d
from .sharing_grid import SharingGrid, expand_kernel, sum_over_cells

__all__ = ['SharingGrid', 'available_backends', 'expand_kernel', 'peripheral_conv2d', 'sum_over_cells']
