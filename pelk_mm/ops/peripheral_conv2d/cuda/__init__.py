"""The CUDA backend: kernels in CUDA C++ (README.md), compiled at first use by the NVRTC that PyTorch brings."""
