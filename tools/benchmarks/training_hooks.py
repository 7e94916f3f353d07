"""Time of a training step with and without the hooks that our tools add: CheckFiniteHook and PreemptionHook.

One run of MMEngine's Runner alternates between blocks of steps with both hooks and blocks with neither, so that other
work of the machine affects both equally. Within the blocks with hooks the time in the hooks themselves is counted, too:
on a CPU that is the cost, without the noise of the steps. Polls are counted apart: with several processes a poll mostly
waits for the slowest, as the next step would. The model is PeLK with a linear classifier; images are random.
"""

import argparse
import functools
import itertools
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable

import torch
import torch.multiprocessing
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from rich.console import Console
from rich.table import Table
from torch import nn

from pelk_mm.compat import setup
from pelk_mm.engine import CheckFiniteHook, PreemptionHook
from pelk_mm.models import PeLK
from pelk_mm.testing.benchmark import environment
from pelk_mm.testing.processes import free_port

# What a step calls of the hooks; the optimiser calls the last one.
METHODS = ('before_train_iter', 'after_train_iter', '_before_step')


class Classifier(BaseModel):
    """PeLK, pooling and a linear layer."""

    def __init__(self, arch: str) -> None:
        super().__init__()
        self.backbone = PeLK(arch)
        self.head = nn.Linear(self.backbone.channels[-1], 1000)

    def forward(self, inputs, labels, mode='tensor'):
        scores = self.head(self.backbone(inputs)[-1])
        return dict(loss=nn.functional.cross_entropy(scores, labels))


class Alternate(Hook):
    """Take the measured hooks out of every second block of steps, and time the blocks."""

    priority = 'HIGHEST'

    def __init__(self, block: int) -> None:
        self.block = block
        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        # Of the blocks with hooks, the parts in these and in polls; and those of the running block.
        self.in_hooks: list[tuple[float, float]] = []
        self.counted = Counter()

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if batch_idx % self.block:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        with_hooks = batch_idx // self.block % 2 == 0
        # The first two blocks warm up.
        if batch_idx > 2 * self.block:
            self.seconds[not with_hooks].append((now - self.start) / self.block)
            if not with_hooks:
                # Within ``after_train_iter``, so counted there, too.
                polls = self.counted['ask']
                self.in_hooks.append(((self.counted.total() - 2 * polls) / self.block, polls / self.block))
        if batch_idx == 0:
            self.all = list(runner.hooks)
            self.measured = [hook for hook in self.all if isinstance(hook, (CheckFiniteHook, PreemptionHook))]
            for hook, method in itertools.product(self.measured, METHODS):
                if hasattr(hook, method):
                    setattr(hook, method, self._count(getattr(hook, method)))
            # Both hooks ask by this one.
            self.measured[0].poll.ask = self._count(self.measured[0].poll.ask)
        elif with_hooks:
            self.measured[0].before_train(runner)
        if not with_hooks:
            self.measured[0].after_train(runner)
        runner._hooks = self.all if with_hooks else [hook for hook in self.all if hook not in self.measured]
        self.counted = Counter()
        self.start = time.perf_counter()

    def _count(self, method: Callable) -> Callable:

        @functools.wraps(method)
        def counted(*args, **kwargs):
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.counted[method.__name__] += time.perf_counter() - start

        return counted


def measure(rank: int, args: argparse.Namespace, arch: str, processes: int, port: int, results) -> None:
    setup()
    torch.set_num_threads(max(1, args.threads // processes))
    on_gpu, wrapper = torch.cuda.is_available(), None
    if processes > 1:
        torch.distributed.init_process_group('nccl' if on_gpu else 'gloo', f'tcp://127.0.0.1:{port}',
                                             rank=rank, world_size=processes)
        device_ids = [rank] if on_gpu else None
        wrapper = dict(type='MMDistributedDataParallel', device_ids=device_ids, broadcast_buffers=False)
    alternate = Alternate(args.block)
    steps = args.block * (2 * args.pairs + 2) + 1
    image = torch.randn(3, args.size, args.size)
    with tempfile.TemporaryDirectory() as folder:
        Runner(
            model=Classifier(arch),
            work_dir=folder,
            train_dataloader=dict(
                batch_size=args.batch,
                num_workers=0,
                collate_fn=dict(type='default_collate'),
                sampler=dict(type='InfiniteSampler', shuffle=False),
                dataset=[dict(inputs=image, labels=label) for label in range(args.batch * processes)]),
            train_cfg=dict(by_epoch=False, max_iters=steps),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-5)),
            default_hooks=dict(checkpoint=None),
            custom_hooks=[alternate, CheckFiniteHook(interval=args.interval), PreemptionHook(interval=args.interval)],
            cfg=dict(model_wrapper_cfg=wrapper) if wrapper else None,
            log_level='ERROR',
            default_scope='mmengine').train()
    if rank == 0:
        results.put((alternate.seconds, [statistics.median(part) for part in zip(*alternate.in_hooks)]))
    if dist.is_distributed():
        torch.distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--archs', nargs='+', default=['atto', 'tiny'])
    parser.add_argument('--processes', nargs='+', type=int, default=[1, 2])
    parser.add_argument('--batch', type=int, default=2, help='images for each process')
    parser.add_argument('--size', type=int, default=224, help='side of the images')
    parser.add_argument('--interval', type=int, default=50, help='of both hooks')
    parser.add_argument('--block', type=int, default=50,
                        help='steps with, then as many without the hooks; each block with hooks begins with a poll, so '
                        'one shorter than the interval shows too much')
    parser.add_argument('--pairs', type=int, default=4, help='pairs of blocks')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads(), help='of the CPU, for all processes')
    args = parser.parse_args()
    console = Console()
    console.print(environment('cuda' if torch.cuda.is_available() else 'cpu'))
    table = Table('model', 'processes', 'ms without', 'ms with', 'overhead', 'quartiles of pairs', 'ms in hooks',
                  'share', 'ms in polls',
                  title=f'a step, {args.batch} x {args.size} x {args.size} each, interval {args.interval}')
    context = torch.multiprocessing.get_context('spawn')
    for arch in args.archs:
        for processes in args.processes:
            results = context.SimpleQueue()
            torch.multiprocessing.spawn(measure, (args, arch, processes, free_port(), results), processes)
            seconds, (in_hooks, polls) = results.get()
            ratios = [on / off - 1 for on, off in zip(seconds[True], seconds[False])]
            off, on = (statistics.median(seconds[key]) for key in (False, True))
            quarters = statistics.quantiles(ratios, n=4)
            table.add_row(f'PeLK {arch}', str(processes), f'{1e3 * off:.1f}', f'{1e3 * on:.1f}',
                          f'{statistics.median(ratios):+.2%}', f'{quarters[0]:+.2%} ... {quarters[2]:+.2%}',
                          f'{1e3 * in_hooks:.2f}', f'{in_hooks / off:.2%}', f'{1e3 * polls:.2f}')
    console.print(table)


if __name__ == '__main__':
    main()
