"""One process with a batch of four and two with two each train the same weights, for every task.

Gradients of two processes are averaged, each of a loss that is a mean over its own half of the batch. That is the
gradient of the full batch if both halves count the same: so do images of one size in classification and segmentation,
and in detection images that each have one instance, one positive anchor, and all other anchors and regions as
negatives, with nothing drawn at random. Norms are SyncBN's stand-in on the CPU, which has the statistics of both.
Random transforms stay on: they follow the sample, not the process. Drop path and dropout are off, as each process
draws its own.

All is computed in double precision, where the rounding of sums in another order is too small to be taken for anything
else. The optimiser is SGD: Adam divides a gradient by its magnitude, and would make full steps of the rounding where
the gradient is zero. Learning rates are low where training is chaotic, as it is in decoders whose norms have the
statistics of four numbers.

Run as a script it is one of the processes.
"""

import json
import os
import signal
import sys
import time
from functools import partialmethod, wraps
from pathlib import Path

import pytest
import torch
from mmdet.models.task_modules import AnchorGenerator
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.utils import digit_version
from mmpretrain.models import ImageClassifier

from pelk_mm.datasets import make_digit_scenes
from pelk_mm.engine.hooks.preemption import EXIT_CODE
from pelk_mm.engine.launch import load_config, run
from pelk_mm.testing.processes import free_port, run_ranks

pytestmark = [pytest.mark.skipif(get_device() != 'cpu', reason='about processes on the CPU'), pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
STOP = 7
BATCH = 4
SYNC_BN = dict(type='SyncBN', requires_grad=True)
BACKBONE = dict(
    depths=(1, 1, 1, 1),
    channels=(8, 8, 8, 16),
    kernel_sizes=(13, 9, 7, 5),
    width_factor=1.0,
    layer_scale_init_value=1.0,
    drop_path_rate=0.0,
    branch_norm_cfg=SYNC_BN,
    init_cfg=None)
SHARDED = 'configs/imagenet/pelk-base_dense_32xb128-fsdp_in1k.py'
SPARSITY = dict(type='pelk_mm.DynamicSparsityHook', sparsity=0.4, update_interval=5, prune_rate=0.3)
CASES = {
    f'{task}{suffix}': (task, hooks)
    for task in ('classification', 'segmentation', 'detection')
    for suffix, hooks in (('', []), ('-sparse', [SPARSITY]))
}


def classification(data):
    return 'pelk-atto_1xb64_digits', {
        'model.head.in_channels': 16,
        'train_dataloader.dataset.data_root': str(data),
    }


def segmentation(data):
    # With weights of classes the mean is one over the weights of the pixels, which no two halves share.
    head = dict(channels=8, norm_cfg=SYNC_BN, dropout_ratio=0.0, loss_decode=dict(class_weight=None))
    return 'pelk-atto_upernet_1xb8-1600it_digits-128x128', {
        'model.data_preprocessor.size': (64, 64),
        'model.decode_head': dict(head, in_channels=[8, 8, 8, 16]),
        'model.auxiliary_head': dict(head, in_channels=8),
        'train_dataloader.dataset.data_root': str(data),
        'train_dataloader.dataset.pipeline.3.crop_size': (64, 64),
    }


def detection(data):
    # The best anchor or region of the instance is positive, all others are negative, and the sampler takes all. With
    # mmdet's PseudoSampler the loss would be divided by only the positives, and mmdet adds float32's epsilon to that
    # number: of two that is twice the share it is of four, and after 20 steps a statistic differs by 3e-6.
    assigner = dict(
        pos_iou_thr=1.1, neg_iou_thr=1.1, min_pos_iou=0.0, match_low_quality=True, gt_max_assign_all=False)
    targets = dict(assigner=assigner, sampler=dict(num=10000))
    options = {
        'model.neck': dict(in_channels=[8, 8, 8, 16], out_channels=8),
        'model.rpn_head': dict(in_channels=8, feat_channels=8),
        'model.roi_head.bbox_roi_extractor.out_channels': 8,
        'model.roi_head.mask_roi_extractor.out_channels': 8,
        'model.roi_head.mask_head': dict(num_convs=1, in_channels=8, conv_out_channels=8),
        'model.train_cfg.rpn': targets,
        # mmcv's NMS has no double precision.
        'model.train_cfg.rpn_proposal': dict(max_per_img=64, nms=None),
        'train_dataloader.dataset.data_root': f'{data}/',
        # Images of several sizes would be padded to the largest of each process.
        'train_dataloader.dataset.pipeline.2': dict(scales=[(32, 32)], keep_ratio=False),
    }
    for stage in range(3):
        head = dict(in_channels=8, conv_out_channels=8, fc_out_channels=16, num_shared_convs=1, norm_cfg=SYNC_BN)
        options[f'model.roi_head.bbox_head.{stage}'] = head
        options[f'model.train_cfg.rcnn.{stage}'] = targets
    return 'cascade-mask-rcnn_pelk-atto_fpn_1xb4-4e_digits', options


class Stop(Hook):
    """In process 1, asks for an end in the middle of a step."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        # Before they are asked to be gone: PyTorch 2.7 gave them no name.
        named = sys.platform.startswith('linux') and digit_version(torch.__version__) >= digit_version('2.11')
        assert has_gloo_threads() or not named
        if runner.rank == 1 and runner.iter + 1 == STOP:
            signal.raise_signal(signal.SIGTERM)


def train(task, hooks, data, work_dir, world_size, launcher, **changes):
    """Train with the task's config of the digits, made tiny."""
    name, options = globals()[task](data)
    cfg = load_config(str(ROOT / f'configs/digits/{name}.py'), {'model.backbone': BACKBONE, **options}, str(work_dir))
    cfg.train_dataloader.update(
        batch_size=BATCH // world_size,
        num_workers=0,
        persistent_workers=False,
        sampler=dict(type='InfiniteSampler', shuffle=True),
        batch_sampler=None)
    cfg.train_cfg = dict(type='pelk_mm.ResumableIterBasedTrainLoop', max_iters=STEPS, val_interval=STEPS)
    lr = 0.02 if task == 'classification' else 0.002
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=lr, momentum=0.9))
    cfg.param_scheduler = None
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=STEPS // 2)
    cfg.custom_hooks = hooks
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.randomness = dict(seed=7)
    cfg.log_level = 'ERROR'
    cfg.update(changes)
    run(cfg, 'train', launcher)


def has_gloo_threads():
    """Of this process. Those that are left can abort it while the interpreter ends."""
    return 'pt_gloo_runloop\n' in [file.read_text() for file in Path('/proc/self/task').glob('*/comm')]


def meet(rank, file):
    """Agree on a port. Process 0 draws it now, as others would have taken one that was drawn for later."""
    if rank == 0:
        part = file.with_suffix('.part')
        part.write_text(str(free_port()))
        part.rename(file)
    while not file.exists():
        time.sleep(0.01)
    os.environ['MASTER_PORT'] = file.read_text()


def compute_in_double_precision():
    """Also where the libraries ask for single precision."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    AnchorGenerator.grid_priors = partialmethod(AnchorGenerator.grid_priors, dtype=torch.float64)


def start_from_the_same_weights():
    """On upstream's stack FlexibleRunner has drawn other random numbers than Runner when it makes the model."""
    for method in ('__init__', 'init_weights'):
        original = getattr(ImageClassifier, method)

        @wraps(original)
        def seeded(*args, original=original, **kwargs):
            torch.manual_seed(0)
            return original(*args, **kwargs)

        setattr(ImageClassifier, method, seeded)


def one_process(rank, world_size, data, folder):
    """As a script: train every case."""
    compute_in_double_precision()
    start_from_the_same_weights()
    # MMEngine formats the config for each log and checkpoint, which would take longer than the training.
    Config.pretty_text = property(str)
    os.environ.update(MASTER_ADDR='127.0.0.1', WORLD_SIZE=str(world_size), RANK=str(rank), LOCAL_RANK=str(rank))
    for name, (task, hooks) in CASES.items():
        if world_size > 1:
            meet(rank, folder / f'{name}.port')
        train(task, hooks, data, folder / name, world_size, 'none' if world_size == 1 else 'pytorch')
        assert not has_gloo_threads()
    if world_size > 1:
        sharding = load_config(str(ROOT / SHARDED))
        changes = dict(runner_type=sharding.runner_type, strategy=sharding.strategy)
        meet(rank, folder / 'stopped.port')
        hooks = [dict(type=Stop), dict(type='pelk_mm.PreemptionHook', interval=1)]
        with pytest.raises(SystemExit, match=str(EXIT_CODE)):
            train('classification', hooks, data, folder / 'sharded', world_size, 'pytorch', **changes)
        assert not has_gloo_threads()
        meet(rank, folder / 'resumed.port')
        train('classification', [], data, folder / 'sharded', world_size, 'pytorch', resume=True, **changes)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Folders of the checkpoints of one process, and of two."""
    data = tmp_path_factory.mktemp('data') / 'digit_scenes'
    make_digit_scenes(data, num_cls_train=20, num_cls_val=10, num_scenes_train=16, num_scenes_val=2)
    file = data / 'scenes/annotations/instances_train.json'
    content = json.loads(file.read_text())
    first = {annotation['image_id']: annotation for annotation in reversed(content['annotations'])}
    file.write_text(json.dumps(dict(content, annotations=list(first.values()))))
    one, two = (tmp_path_factory.mktemp(f'processes_{number}') for number in (1, 2))
    run_ranks(__file__, [(0, 1, data, one), (0, 2, data, two), (1, 2, data, two)], data.parent,
              modules=('mmdet.models', 'mmpretrain.models', 'mmseg.models', 'pelk_mm.engine', 'pelk_mm.models'))
    return one, two


def load(folder, step=STEPS):
    return torch.load(folder / f'iter_{step}.pth', weights_only=False)


def largest_difference(first, second):
    """Of all weights and statistics."""
    return max(float((value - second[name]).abs().max()) for name, value in first.items())


@pytest.mark.parametrize('case', CASES)
def test_the_number_of_processes_makes_no_difference(trained, case):
    one, two = (load(folder / case) for folder in trained)
    assert one['state_dict'].keys() == two['state_dict'].keys()
    if case.endswith('-sparse'):
        masks = [content['dynamic_sparsity']['masks'] for content in (one, two)]
        assert masks[0].keys() == masks[1].keys()
        # A weight on the verge between being pruned and not would show here.
        assert [name for name, mask in masks[0].items() if not torch.equal(mask['bits'], masks[1][name]['bits'])] == []
    assert largest_difference(one['state_dict'], two['state_dict']) <= 1e-8
    # There was something to learn.
    assert largest_difference(one['state_dict'], load(trained[0] / case, STEPS // 2)['state_dict']) > 1e-3


def test_sharded_training_is_the_same_and_resumes(trained):
    """With the strategy of the config that shows FSDP, stopped by a SIGTERM: weights, statistics and momentum."""
    stopped = load(trained[1] / 'sharded', STOP)
    assert stopped['meta']['iter'] == STOP
    one, sharded = load(trained[0] / 'classification'), load(trained[1] / 'sharded')
    assert one['state_dict'].keys() == sharded['state_dict'].keys()
    assert largest_difference(one['state_dict'], sharded['state_dict']) <= 1e-8
    assert sharded['meta']['iter'] == STEPS
    names = [name for name in one['state_dict'] if 'running' not in name and 'tracked' not in name]
    assert set(sharded['optimizer']['state']) == set(names)
    for name, state in zip(names, one['optimizer']['state'].values()):
        assert (state['momentum_buffer'] - sharded['optimizer']['state'][name]['momentum_buffer']).abs().max() <= 1e-8


if __name__ == '__main__':
    one_process(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
