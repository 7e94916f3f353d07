"""Write the files of run_0_1_0: a sparse training of this code, stopped after two iterations and after four.

    python tests/test_engine/save_sparse_run.py

The files in the repository were written by version 0.1.0; test_run_of_0_1_0.py resumes them with today's code. Written
anew, they would show nothing. The script is of use as a template when the next form of the code is to be compared.

``sparse.py`` is the config as the run dumped it, ``iter_2.pth`` its checkpoint without times and folders, and
``expected.pth`` holds the numbers of ``iter_4.pth`` and the outputs of ``iter_2.pth``.
"""

import os
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from mmpretrain.apis import get_model
from PIL import Image

import pelk_mm

FILES = Path(__file__).with_name('run_0_1_0')
WORK_DIR = Path('work_dirs/sparse')
# The config of PeLK-T for ImageNet, much smaller, with layer-wise decay, and new masks after every step.
CONFIG = """
_base_ = '{configs}/imagenet/pelk-tiny_32xb128_in1k.py'
data_preprocessor = dict(num_classes=6)
arch = dict(_delete_=True, depths=(1, 1), channels=(4, 6), kernel_sizes=(9, 7))
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(arch=arch, drop_path_rate=0.2, width_factor=1.0, layer_scale_init_value=1.0),
    head=dict(num_classes=6, in_channels=6))
crop = [dict(type='RandomCrop', crop_size=32, padding=4), dict(type='RandomFlip', prob=0.5)]
loading, packing = dict(type='LoadImageFromFile'), dict(type='PackInputs')
dataset = dict(_delete_=True, type='CustomDataset', data_root='data', pipeline=[loading, *crop, packing])
train_dataloader = dict(batch_size=4, num_workers=0, dataset=dataset)
val_dataloader = dict(batch_size=4, num_workers=0, dataset=dict(dataset, pipeline=[loading, packing]))
test_dataloader = val_dataloader
optim_wrapper = dict(
    constructor='pelk_mm.LayerDecayOptimWrapperConstructor',
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(layer_decay_rate=0.7, decay_type='layer_wise'))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, begin=1, end=2, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=2)
averaging, sparsity = _base_.custom_hooks
custom_hooks = [dict(averaging, momentum=0.1), dict(sparsity, update_interval=1)]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(by_epoch=False, interval=2, max_keep_ckpts=5))
"""


def write_images() -> None:
    """Write twelve images of 32 x 32 of six classes into ``data``: three batches an epoch."""
    random = np.random.RandomState(0)
    for number in range(12):
        file = Path('data', f'class_{number % 6}', f'{number}.png')
        file.parent.mkdir(parents=True, exist_ok=True)
        cells = random.randint(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(cells.repeat(4, 0).repeat(4, 1)).save(file)


def numbers(checkpoint: dict) -> dict[str, torch.Tensor]:
    """Return all numbers of a training's state, the values of each kind one behind the other, and the masks' bits."""
    scalars, optimizer = checkpoint['message_hub']['log_scalars'], checkpoint['optimizer']
    sparsity = checkpoint['dynamic_sparsity']
    kinds = {
        **{entry: checkpoint[entry].values() for entry in ('state_dict', 'ema_state_dict')},
        **{name: [state[name] for state in optimizer['state'].values()] for name in ('exp_avg', 'exp_avg_sq', 'step')},
        **{name: [group[name] for group in optimizer['param_groups']] for name in ('lr', 'weight_decay')},
        **{name: [scalars[f'train/{name}'].data[0]] for name in ('base_lr', 'grad_norm', 'loss')},
        'masks': [mask['bits'] for mask in sparsity['masks'].values()],
        'sparsity': [sparsity['step'], sparsity['prune_rate']],
    }
    return {name: torch.cat([torch.as_tensor(value).flatten().cpu() for value in values])
            for name, values in kinds.items()}


def outputs(config: str, checkpoint: str) -> torch.Tensor:
    """Return the logits of the model that mmpretrain builds from both files."""
    model = get_model(config, pretrained=checkpoint, device='cpu').eval()
    images = torch.randn(3, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(images, mode='tensor')


def load(file: Path) -> dict:
    """Load a checkpoint of MMEngine, which holds more than tensors."""
    return torch.load(file, map_location='cpu', weights_only=False)


def forget_times_and_folders(checkpoint: dict) -> dict:
    """Remove from a checkpoint all that says when and in which folder it was written."""
    checkpoint['meta'].update(time='', experiment_name='sparse')
    checkpoint['message_hub']['runtime_info'].update(experiment_name='sparse', last_ckpt='iter_2.pth')
    return checkpoint


def main() -> None:
    repository = Path(pelk_mm.__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_images()
        Path('sparse.py').write_text(CONFIG.format(configs=repository / 'configs'))
        sys.argv = ['train.py', 'sparse.py']
        runpy.run_path(str(repository / 'tools' / 'train.py'), run_name='__main__')
        FILES.mkdir(exist_ok=True)
        config, checkpoint = (str(FILES / name) for name in ('sparse.py', 'iter_2.pth'))
        shutil.copyfile(WORK_DIR / 'sparse.py', config)
        torch.save(forget_times_and_folders(load(WORK_DIR / 'iter_2.pth')), checkpoint)
        expected = dict(numbers=numbers(load(WORK_DIR / 'iter_4.pth')), outputs=outputs(config, checkpoint))
        torch.save(expected, FILES / 'expected.pth')


if __name__ == '__main__':
    main()
