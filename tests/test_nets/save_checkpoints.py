"""Write checkpoints_0_1_0.pth: small backbones of this code in both forms, with their outputs.

    python tests/test_nets/save_checkpoints.py

The file in the repository was written before the networks moved to ``pelk_mm.nets``; tests load it with today's code.
Written anew, it would show nothing. It is of use as a template when the next form of the code is to be compared.
"""

from pathlib import Path

import torch

from pelk_mm.models import PeLK, SLaK
from pelk_mm.testing.random_weights import randomise

ARCH = dict(depths=(1, 1, 1, 1), channels=(2, 3, 3, 4), kernel_sizes=(9, 7, 7, 7))
MAPS = dict(out_indices=(0, 1, 2, 3), gap_before_final_norm=False)
# Class, and arguments as configs have them.
NETS = {
    'pelk': (PeLK, dict(arch=ARCH, drop_path_rate=0.1, layer_scale_init_value=1.0)),
    'pelk-grids': (PeLK, dict(arch=ARCH, grids=[[2, 2, 1], None, None, [1, 1, 3]], center=3, base=3, **MAPS)),
    'pelk-dense': (PeLK, dict(
        arch=ARCH, grids='dense', conv_ratio=1, position_embedding=False, small_kernel=None, width_factor=1.0)),
    'pelk-norms': (PeLK, dict(
        arch=ARCH, norm_cfg=dict(type='BN', eps=1e-3), branch_norm_cfg=None, act_cfg=dict(type='ReLU'), **MAPS)),
    'pelk-two-stages': (PeLK, dict(arch=ARCH, out_indices=(1, ), branch_norm_cfg=dict(type='SyncBN'), in_channels=1)),
    'slak-maps': (SLaK, dict(arch=ARCH, stripe_width=3, **MAPS)),
    'slak-no-square': (SLaK, dict(arch=ARCH, small_kernel=False, branch_norm_cfg=None)),
}


def save(path: Path) -> None:
    """Write arguments, weights and outputs of every net in training form and deployed."""
    content = {}
    for number, (name, (kind, arguments)) in enumerate(NETS.items()):
        net = randomise(kind(**arguments), seed=number, scale=2).eval()
        images = torch.rand(1, arguments.get('in_channels', 3), 33, 40,
                            generator=torch.Generator().manual_seed(number))
        with torch.no_grad():
            forms = dict(training=(pack(net), net(images)))
            net.switch_to_deploy()
            forms['deployed'] = pack(net), net(images)
        content[name] = dict(type=kind.__name__, arguments=arguments, images=images, forms=forms)
    torch.save(content, path)


def pack(net: torch.nn.Module) -> tuple[dict[str, tuple], torch.Tensor]:
    """The shapes of a state dict by name, and its values one behind the other: a file has overhead for each tensor."""
    state = net.state_dict()
    return {name: tuple(value.shape) for name, value in state.items()}, torch.cat(
        [value.flatten().float() for value in state.values()])


if __name__ == '__main__':
    save(Path(__file__).with_name('checkpoints_0_1_0.pth'))
