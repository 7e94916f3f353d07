from .large_kernel_net import LargeKernelNet
from .pelk import PeLK
from .slak import SLaK

__all__ = ['LargeKernelNet', 'PeLK', 'SLaK']
