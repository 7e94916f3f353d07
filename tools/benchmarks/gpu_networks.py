"""Step 3 of gpu.sh: images per second and training steps of the networks and their peers.

Ours need torch only; peers are timm's, if it is installed. Every model is randomly initialised, has a classifier for
1000 classes, and is measured by itself. Inference is of the deployed form in the named dtype; training is forward,
backward and AdamW in fp32, or under bf16 autocast. Peers run on planes and channels-last in eager inference, and
channels-last otherwise. Compiled models come last, as compilation takes most of the time.
"""

import argparse
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelk_mm.nets import PeLK, SLaK
from pelk_mm.testing.benchmark import peak_memory, rotating, time_paired, why_no_device
from pelk_mm.testing.measurements import Measurements, step_parser
from pelk_mm.testing.operator_methods import SHRUNK

GROWN = dict(arch=dict(depths=(3, 3, 9, 3), channels=(96, 192, 384, 768), kernel_sizes=(51, 49, 47, 13), center=7),
             conv_ratio=1, width_factor=1, small_kernel=None, position_embedding=False, branch_norm_layer=None)
OURS: dict[str, Callable[..., nn.Module]] = {
    'PeLK-T': partial(PeLK, 'tiny'),
    'PeLK-T, width 1.0': partial(PeLK, 'tiny', width_factor=1.0),
    'PeLK-T-101': partial(PeLK, 'tiny-101'),
    'SLaK-T': partial(SLaK, 'tiny'),
    'grown ConvNeXt-T-51': partial(PeLK, **GROWN),
}
# timm's names. RepLKNet is neither there nor here.
PEERS = {
    'ConvNeXt-T': 'convnext_tiny',
    'InceptionNeXt-T': 'inception_next_tiny',
    'Swin-T': 'swin_tiny_patch4_window7_224',
    'CAFormer-S18': 'caformer_s18',
}
DTYPES = dict(fp32=torch.float32, tf32=torch.float32, bf16=torch.bfloat16)
FORMATS = dict(planes=torch.contiguous_format, channels_last=torch.channels_last)
# Goals of the ratio of images per second, in eager inference.
RATIOS = (('PeLK-T', 'SLaK-T', 3.0), ('PeLK-T-101', 'PeLK-T', 0.97), ('PeLK-T, width 1.0', 'ConvNeXt-T', 1.0))


def parse_args() -> argparse.Namespace:
    parser = step_parser(__doc__, 'networks')
    parser.add_argument('--batch', type=int, default=128)
    parser.add_argument('--size', type=int, default=224, help='side of the image')
    parser.add_argument('--seconds', type=float, default=1.0, help='time to spend on each model')
    return parser.parse_args()


class Classifier(nn.Module):
    """One of our networks with average pooling and a linear layer for 1000 classes."""

    def __init__(self, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 1000)."""
        features = self.backbone(x)[-1]
        return self.head(features if features.ndim == 2 else features.mean((2, 3)))


def build(name: str, deploy: bool, args: argparse.Namespace) -> nn.Module:
    """Return a model in training mode, or deployed in eval mode."""
    if name in PEERS:
        import timm
        resized = dict(img_size=args.size) if name == 'Swin-T' else {}
        return timm.create_model(PEERS[name], num_classes=1000, **resized).train(not deploy)
    backbone = OURS[name](**(SHRUNK if args.tiny else {}))
    if deploy:
        backbone.eval().switch_to_deploy()
    with torch.no_grad():
        width = backbone.eval()(torch.zeros(1, 3, 64, 64))[-1].shape[1]
    return Classifier(backbone, width).train(not deploy)


def set_tf32(dtype: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype == 'tf32'


def inference(name: str, dtype: str, memory: str, mode: str, args: argparse.Namespace) -> dict:
    """Seconds of a call, images per second and peak memory."""
    set_tf32(dtype)
    place = dict(device=args.device, dtype=DTYPES[dtype], memory_format=FORMATS[memory])
    model = build(name, True, args).to(**place)
    run = torch.compile(model) if mode == 'compiled' else model
    inputs = rotating(lambda seed: torch.randn(args.batch, 3, args.size, args.size).to(**place), args.device, limit=4)
    with torch.inference_mode():
        peak = peak_memory(partial(run, inputs[0]), args.device)
        time = time_paired({name: run}, inputs, args.device, seconds=args.seconds, hide_launches=False, **args.rounds)
    return dict(time[name].to_dict(args.batch), peak_memory=peak)


def training(name: str, dtype: str, memory: str, mode: str, args: argparse.Namespace) -> dict:
    """Seconds of a step, images per second and peak memory."""
    set_tf32(dtype)
    place = dict(device=args.device, memory_format=FORMATS[memory])
    model = build(name, False, args).to(**place)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    precision = torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=dtype == 'bf16')
    forward = torch.compile(model) if mode == 'compiled' else model

    def step(inputs: tuple[Tensor, Tensor]) -> None:
        with precision:
            loss = F.cross_entropy(forward(inputs[0]).float(), inputs[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    inputs = rotating(lambda seed: (torch.randn(args.batch, 3, args.size, args.size).to(**place),
                                    torch.randint(1000, (args.batch, ), device=args.device)), args.device, limit=4)
    peak = peak_memory(partial(step, inputs[0]), args.device)
    time = time_paired({name: step}, inputs, args.device, seconds=args.seconds, hide_launches=False, **args.rounds)
    return dict(time[name].to_dict(args.batch), peak_memory=peak)


def plan(names: list[str]) -> list[tuple[Callable, str, str, str, str]]:
    """(function, model, dtype, memory format, eager or compiled), the most important first."""
    calls: list[tuple[Callable, str, str, str, str]] = []
    for dtype in ('fp32', 'bf16', 'tf32'):
        for name in names:
            calls += [(inference, name, dtype, memory, 'eager') for memory in FORMATS
                      if name in PEERS or memory == 'channels_last']
    calls += [(training, name, dtype, 'channels_last', 'eager') for dtype in ('bf16', 'fp32', 'tf32') for name in names]
    compared = [name for name in ('PeLK-T, width 1.0', 'ConvNeXt-T', 'PeLK-T') if name in names]
    for function, dtype, some in ((inference, 'bf16', compared), (training, 'bf16', compared),
                                  (inference, 'fp32', compared), (inference, 'bf16', names), (training, 'fp32', names)):
        calls += [(function, name, dtype, 'channels_last', 'compiled') for name in some]
    return list(dict.fromkeys(calls))


def ratios(results: dict) -> dict[str, dict]:
    """Measured ratios of images per second beside the goals; each model in its faster memory format."""
    found = {}
    for (name, other, goal), dtype in ((pair, dtype) for pair in RATIOS for dtype in DTYPES):
        rates = [max((results.get(f'inference, {model}, {dtype}, {memory}, eager', {}).get('images_per_second', 0)
                      for memory in FORMATS), default=0) for model in (name, other)]
        if all(rates):
            found[f'{name} / {other}, {dtype}'] = dict(measured=rates[0] / rates[1], goal=goal)
    return found


def main() -> None:
    args = parse_args()
    if reason := why_no_device(args.device):
        print(reason)
        return
    torch.backends.cudnn.benchmark = True
    args.rounds = dict(min_rounds=1, max_rounds=1) if args.tiny else dict(min_rounds=5, limit=20)
    names = list(OURS)
    if find_spec('timm'):
        names += PEERS
    else:
        print(f'{", ".join(PEERS)}: not measured: timm is not installed')
    calls = plan(names)
    if args.tiny:
        args.batch, args.size = 2, 64
        calls = [call for call in calls if call[2:] == ('fp32', 'channels_last', 'eager')]
    measurements = Measurements(args.json, args.device, args.limit, print)
    for function, *setting in calls:
        needs = 5 if setting[-1] == 'eager' else 90
        measurements.once(', '.join((function.__name__, *setting)), function, *setting, args, needs=needs)
        if setting[-1] == 'compiled':
            # Compiled code keeps its model.
            torch.compiler.reset()
    for name, ratio in ratios(measurements.report['results']).items():
        print(f'{name}: {ratio["measured"]:.3f}, goal {ratio["goal"]:.3f}')
    measurements.finish()


if __name__ == '__main__':
    main()
