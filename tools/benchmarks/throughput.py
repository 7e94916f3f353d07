"""Images per second and the cost of training of PeLK and its peers: the paper's Table 8, repeated on one harness.

Inference is of deployed models in eval mode, all of them timed in one run, in fp32 with TF32 off and in bf16; --tf32
adds fp32 with TF32 on in convolutions and matrix products, the default of PyTorch 1.10, which the paper measured with.
A training step is forward, backward and AdamW, one model after the other, in fp32 and under bf16 autocast. Every model
is a backbone with average pooling and a linear classifier, randomly initialised; inputs are random too.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from mmengine.registry import MODELS
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from pelk_mm import compat
from pelk_mm.testing.benchmark import environment, peak_memory, rotating, save_report, time_paired, why_no_device

# Name -> backbone, channels of its last stage.
BACKBONES = {
    'SLaK-T': (dict(type='pelk_mm.SLaK', arch='tiny'), 998),
    'PeLK-T': (dict(type='pelk_mm.PeLK', arch='tiny'), 998),
    'PeLK-T-101': (dict(type='pelk_mm.PeLK', arch='tiny-101'), 998),
    'ConvNeXt-T': (dict(type='mmpretrain.ConvNeXt', arch='tiny'), 768),
    'Swin-T': (dict(type='mmpretrain.SwinTransformer', arch='tiny', pad_small_map=True), 768),
    'RepLKNet-31B': (dict(type='mmpretrain.RepLKNet', arch='31B'), 1024),
}
# Table 8: ratios of images per second.
PAPER_RATIOS = {('PeLK-T', 'SLaK-T'): 1138 / 754, ('PeLK-T-101', 'PeLK-T'): 1077 / 1138}
DTYPES = dict(fp32=torch.float32, tf32=torch.float32, bf16=torch.bfloat16)
TRAINING = ((224, 128), (512, 16))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--models', nargs='+', default=list(BACKBONES), choices=list(BACKBONES))
    parser.add_argument('--device', default='cuda', help='cpu runs a small version: batch 1, fp32, no training')
    parser.add_argument('--dtypes', nargs='+', choices=list(DTYPES), help='by default fp32 and bf16, on the CPU fp32')
    parser.add_argument('--tf32', action='store_true', help='add fp32 with TF32 on, as in PyTorch 1.10; needs a GPU')
    parser.add_argument('--size', type=int, default=224, help='side of the image, for inference')
    parser.add_argument('--batch', type=int, help='for inference; by default 128, on the CPU 1')
    parser.add_argument('--no-training', action='store_true', help='time only inference')
    parser.add_argument('--seconds', type=float, default=5.0, help='time to spend on each model and setting')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the results')
    parser.add_argument('--plot', type=Path, metavar='FILE', help='draw the images per second')
    args = parser.parse_args()
    on_cpu = torch.device(args.device).type == 'cpu'
    args.batch = args.batch or (1 if on_cpu else 128)
    args.dtypes = args.dtypes or (['fp32'] if on_cpu else ['fp32', 'bf16'])
    if args.tf32 and 'tf32' not in args.dtypes:
        args.dtypes.insert(args.dtypes.index('fp32') + 1 if 'fp32' in args.dtypes else 0, 'tf32')
    if on_cpu and 'tf32' in args.dtypes:
        parser.error('TF32 needs a GPU: leave out --tf32, or give --device cuda')
    args.training = [] if on_cpu or args.no_training else list(TRAINING)
    return args


class Classifier(nn.Module):
    """A backbone with average pooling and a linear layer for 1000 classes."""

    def __init__(self, name: str) -> None:
        super().__init__()
        config, width = BACKBONES[name]
        self.backbone = MODELS.build(dict(config))
        self.head = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 1000)."""
        features = self.backbone(x)[-1]
        return self.head(features if features.ndim == 2 else features.mean((2, 3)))


def deployed(name: str) -> Classifier:
    model = Classifier(name).eval()
    if hasattr(model.backbone, 'switch_to_deploy'):
        model.backbone.switch_to_deploy()
    return model


@contextmanager
def tensor_float(dtype: str) -> Iterator[None]:
    """Allow TF32 in convolutions and matrix products for ``'tf32'``, and forbid it otherwise."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = dtype == 'tf32'
    try:
        yield
    finally:
        for backend, allowed in zip(backends, before):
            backend.allow_tf32 = allowed


def inference(args: argparse.Namespace, dtype: str) -> dict[str, dict]:
    """Name -> seconds per call and images per second, of all models in one run."""
    def draw(seed: int) -> Tensor:
        return torch.randn(args.batch, 3, args.size, args.size, device=args.device, dtype=DTYPES[dtype])

    models = {name: deployed(name).to(args.device, DTYPES[dtype]) for name in args.models}
    runs = {name: torch.inference_mode()(model.forward) for name, model in models.items()}
    with tensor_float(dtype):
        times = time_paired(runs, rotating(draw, args.device), args.device, seconds=args.seconds, hide_launches=False)
    return {name: time.to_dict(args.batch) for name, time in times.items()}


def training(args: argparse.Namespace, name: str, dtype: str, size: int, batch: int) -> dict:
    """Measure seconds per step and peak memory of one model, or return why it could not be measured."""
    model = Classifier(name).to(args.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    precision = torch.autocast(torch.device(args.device).type, DTYPES[dtype], enabled=dtype == 'bf16')

    def step(inputs: tuple[Tensor, Tensor]) -> None:
        images, labels = inputs
        with precision:
            loss = F.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    inputs = rotating(lambda seed: (torch.randn(batch, 3, size, size, device=args.device),
                                    torch.randint(1000, (batch, ), device=args.device)), args.device)
    try:
        with tensor_float(dtype):
            memory = peak_memory(lambda: step(inputs[0]), args.device)
            time = time_paired({name: step}, inputs, args.device, seconds=args.seconds, hide_launches=False)[name]
    except torch.OutOfMemoryError:
        return dict(reason='not measured: out of memory')
    return dict(time.to_dict(batch), peak_memory=memory)


def ratios(results: dict[str, dict]) -> dict[str, dict[str, float]]:
    """Return the paper's ratios of images per second beside the measured ones."""
    return {
        f'{name} / {other}': dict(
            measured=results[name]['images_per_second'] / results[other]['images_per_second'], paper=paper)
        for (name, other), paper in PAPER_RATIOS.items() if name in results and other in results
    }


def show(console: Console, report: dict) -> None:
    for dtype, results in report['inference'].items():
        table = Table('model', 'images/s', 'ms', 'spread', title=f'inference, {dtype}, {report["setting"]}')
        for name, result in results.items():
            table.add_row(name, f'{result["images_per_second"]:.1f}', f'{1e3 * result["median"]:.2f}',
                          f'{result["spread"]:.1%}')
        console.print(table)
        for name, ratio in report['ratios'][dtype].items():
            console.print(f'{name}: {ratio["measured"]:.3f}, in the paper {ratio["paper"]:.3f}')
    for setting, results in report['training'].items():
        table = Table('model', 'ms a step', 'spread', 'peak MiB', title=f'training, {setting}')
        for name, result in results.items():
            if 'reason' in result:
                table.add_row(name, result['reason'])
            else:
                table.add_row(name, f'{1e3 * result["median"]:.1f}', f'{result["spread"]:.1%}',
                              f'{result["peak_memory"] / 2**20:.0f}')
        console.print(table)


def plot(report: dict, file: Path) -> None:
    names = list(next(iter(report['inference'].values())))
    height = 0.8 / len(report['inference'])
    figure = Figure(figsize=(7, 0.6 + 0.3 * len(names) * (1 + len(report['inference']))), layout='constrained')
    axes = figure.subplots()
    for index, (dtype, results) in enumerate(report['inference'].items()):
        bars = axes.barh([place + index * height for place in range(len(names))],
                         [results[name]['images_per_second'] for name in names], height, label=dtype)
        axes.bar_label(bars, fmt='%.3g', padding=3)
    axes.set_yticks([place + height * (len(report['inference']) - 1) / 2 for place in range(len(names))], names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel('images per second')
    axes.set_title(f'{report["environment"]["device_name"]}, {report["setting"]}', fontsize=9)
    axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def main() -> None:
    args = parse_args()
    console = Console()
    reason = why_no_device(args.device)
    if reason:
        console.print(reason)
        return
    compat.setup()
    # cuDNN picks its fastest algorithm, for the peers' sake.
    torch.backends.cudnn.benchmark = True
    with tensor_float('fp32'):
        stamp = environment(args.device)
    report = dict(environment=stamp, setting=f'{args.size}x{args.size}, batch {args.batch}',
                  inference={}, ratios={}, training={})
    for dtype in args.dtypes:
        with console.status(f'inference, {dtype}: {", ".join(args.models)}'):
            report['inference'][dtype] = inference(args, dtype)
        report['ratios'][dtype] = ratios(report['inference'][dtype])
    for dtype in args.dtypes:
        for size, batch in args.training:
            results = report['training'][f'{dtype}, {size}x{size}, batch {batch}'] = {}
            for name in args.models:
                with console.status(f'training, {dtype}, {size}x{size}: {name}'):
                    results[name] = training(args, name, dtype, size, batch)
                torch.cuda.empty_cache()
    console.print(report['environment'])
    show(console, report)
    if args.json:
        save_report(report, args.json)
    if args.plot:
        plot(report, args.plot)


if __name__ == '__main__':
    main()
