"""BatchNorm over the batches of all processes, on any device."""

from __future__ import annotations

from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn


class AllReduceBatchNorm2d(nn.BatchNorm2d):
    """Normalise over all processes as ``nn.SyncBatchNorm`` does, by plain collectives: on the CPU with gloo too.

    In training, mean, variance and gradients are those of all processes together; their shares of the batch may differ
    in size. In evaluation, and with one process, it is ``nn.BatchNorm2d``. Parameters, buffers and arguments
    are those of ``nn.BatchNorm2d``; it costs two small collectives forward and two backward.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W); N, H and W may differ between processes."""
        if not self.training or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(x)
        self._check_input_dim(x)
        # As nn.BatchNorm2d does, 16-bit input is summed in fp32.
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        # The deviations are summed once the mean is known: a difference of large sums would lose them.
        totals = _sum_over_processes(torch.cat((_sum_over_pixels(values), values.new_tensor([x.numel() / x.shape[1]]))))
        mean, count = totals[:-1] / totals[-1], totals[-1]
        centered = values - mean[:, None, None]
        variance = _sum_over_processes(_sum_over_pixels(centered.square())) / count
        if self.track_running_stats:
            self._update_statistics(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            return (centered * (scale * self.weight)[:, None, None] + self.bias[:, None, None]).to(x.dtype)
        return (centered * scale[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _update_statistics(self, mean: Tensor, variance: Tensor) -> None:
        number = cast(Tensor, self.num_batches_tracked).add_(1)
        momentum = 1 / float(number) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)


def _sum_over_pixels(x: Tensor) -> Tensor:
    return x.sum((0, 2, 3))


def _sum_over_processes(x: Tensor) -> Tensor:
    """Sum over the processes, forward and backward."""
    # Not at the top: a PyTorch without distributed training lacks it.
    from torch.distributed.nn.functional import all_reduce
    return all_reduce(x)
