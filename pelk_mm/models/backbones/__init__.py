from .large_kernel_net import LargeKernelNet
from .pelk import PeLK

__all__ = ['LargeKernelNet', 'PeLK']
