"""From a config file and command-line arguments to a running MMEngine runner, for all three tasks.

``tools/train.py`` and ``tools/test.py`` parse the arguments and call these functions in this order:
:func:`load_config`, then :func:`configure_training` or :func:`configure_testing`, then :func:`run`.
"""

from __future__ import annotations

import argparse
import copy
import errno
import os
import shutil
from pathlib import Path

import torch
from mmengine import dist
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .. import compat
from ..checkpoints.loading import add_trust_option
from ..checkpoints.resume import check_undamaged, find_last_checkpoint
from .hooks import LoadWeightsHook
from .nodes import check_file_everywhere, check_shared_folder, metrics_of
from .processes import leave_processes, naming_the_port, prepare_processes
from .runners import use_own_runner
from .sharding import FSDP_STRATEGIES

# What the system says when nothing more can be written: no space, no quota, no larger file.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# The environment variable that holds a process's rank, by launcher.
RANK_VARIABLES = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')

# What mmpretrain's and mmdet's own tools/test.py take where a config has no test-time augmentation: flipping. The last
# transform packs; mmdet's gets the keys that its merging of boxes needs.
TTA_MODELS: dict[str, dict] = dict(
    mmpretrain=dict(type='mmpretrain.AverageClsScoreTTA'),
    mmdet=dict(type='mmdet.DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)))
TTA_PACKING: dict[str, dict] = dict(
    mmpretrain=dict(),
    mmdet=dict(
        type='mmdet.PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')))


def parse_common_args(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Add the arguments that training and testing share, and parse."""
    parser.add_argument('--work-dir', help='folder for logs and results, default work_dirs/<name of the config>')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override values of the config, e.g. train_dataloader.batch_size=4 model.backbone.out_indices="[2,3]"')
    parser.add_argument(
        '--launcher', choices=['none', *RANK_VARIABLES], default='none', help='what starts several processes')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by some launchers')
    add_trust_option(parser)
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


# The name of 0.1.0.
parse_args = parse_common_args


def read_config(path: str) -> Config:
    """Parse a config as it is.

    Args:
        path (str): A file, or a config of an installed toolbox, such as ``mmseg::deeplabv3/<name>.py``.
    """
    compat.setup()
    # As MMEngine finds what configs inherit.
    return Config.fromfile(Config._get_cfg_path(path, '')[0] if '::' in path else path)


def load_config(path: str, options: dict | None = None, work_dir: str | None = None) -> Config:
    """Parse a config and decide on its ``work_dir``: the argument, else the config's, else ``./work_dirs/<name>``.

    Args:
        path (str): As for :func:`read_config`.
        options (dict, optional): Values to override, by dotted key, as ``--cfg-options`` gives them.
        work_dir (str, optional): Folder for logs and checkpoints.

    Returns:
        Config: The config, with the defaults that mmpretrain's own tools give its data loaders.
    """
    cfg = read_config(path)
    cfg.merge_from_dict(options or {})
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(path).stem)
    if cfg.get('default_scope') == 'mmpretrain':
        for part in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            loader = cfg.get(part)
            if isinstance(loader, dict):
                loader.setdefault('pin_memory', torch.cuda.is_available())
                loader.setdefault('persistent_workers', (loader.get('num_workers') or 0) > 0)
                loader.setdefault('collate_fn', dict(type='default_collate'))
    return cfg


def configure_training(cfg: Config, resume: str | None = None, amp: bool = False, auto_scale_lr: bool = False) -> None:
    """Put the arguments of ``tools/train.py`` into a config.

    Args:
        cfg (Config): Changed in place.
        resume (str, optional): Checkpoint to resume from, or ``'auto'``: the latest of the work directory, if any, else
            training starts, from the config's ``load_from`` if it names one.
        amp (bool): Train in mixed precision.
        auto_scale_lr (bool): Scale the learning rate from ``auto_scale_lr.base_batch_size`` to the batch size in use.

    Raises:
        FileNotFoundError: If the checkpoint to resume from is missing.
        ValueError: If the config or the device does not support what is asked for.
    """
    if resume is not None:
        if resume != 'auto':
            _check_checkpoint('--resume', resume)
        elif cfg.get('load_from') and not cfg.get('resume'):
            # For the first start, when there is nothing to resume from.
            cfg.start_from = cfg.load_from
        cfg.resume, cfg.load_from = True, None if resume == 'auto' else resume
    if amp:
        _use_amp(cfg)
    if auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config, the batch size that '
                             'its learning rate is for')
        cfg.auto_scale_lr.enable = True


def configure_testing(cfg: Config,
                      checkpoint: str,
                      out: str | None = None,
                      show: bool = False,
                      show_dir: str | None = None,
                      wait_time: float = 2,
                      tta: bool = False,
                      weights: str | None = None) -> None:
    """Put the arguments of ``tools/test.py`` into a config.

    Args:
        cfg (Config): Changed in place.
        checkpoint (str): File or URL of the weights.
        out (str, optional): Where predictions go: a ``.pkl`` file, or for mmseg a folder of label maps.
        show (bool): Show the predictions in windows.
        show_dir (str, optional): Folder for images of the predictions.
        wait_time (float): How long each window stays, in seconds.
        tta (bool): Test with test-time augmentation, see :func:`use_tta`.
        weights (str, optional): ``'raw'`` or ``'averaged'``, of a checkpoint of training with EMA. By default
            what MMEngine loads, the averaged ones.

    Raises:
        FileExistsError: If ``out`` exists: predictions are not overwritten.
        FileNotFoundError: If the checkpoint is missing.
        ValueError: If the config does not support what is asked for.
    """
    _check_checkpoint('checkpoint', checkpoint)
    cfg.load_from = checkpoint
    if weights is not None:
        choice = dict(type='pelk_mm.LoadWeightsHook', weights=weights, mode='test')
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), choice]
    if out is not None:
        _dump_predictions(cfg, out)
    if show or show_dir is not None:
        _draw_predictions(cfg, show, show_dir, wait_time)
    if tta:
        use_tta(cfg)


def run(cfg: Config, mode: str, launcher: str = 'none') -> dict | None:
    """Build the config's runner, on one process or as one of several, and run it.

    Args:
        cfg (Config): A config that :func:`configure_training` or :func:`configure_testing` has prepared.
        mode (str): ``'train'`` or ``'test'``.
        launcher (str): What started the processes: ``'none'``, ``'pytorch'`` (torchrun), ``'slurm'`` or ``'mpi'``.

    Returns:
        dict | None: The metrics, if ``mode`` is ``'test'``.

    Raises:
        SystemExit: After SIGTERM in training, as :class:`PreemptionHook` says.
        OSError: If the disk is full, or anything else cannot be read or written.
    """
    cfg.launcher = launcher
    _check_strategy(cfg, mode)
    resumed = cfg.get('load_from') if mode == 'train' and cfg.get('resume') else None
    first = launcher == 'none' or int(os.environ[RANK_VARIABLES[launcher]]) == 0
    if first and resumed and os.path.isfile(resumed):
        check_undamaged(resumed)
    if launcher != 'none':
        prepare_processes(cfg, launcher)
    cfg = cfg.copy()
    use_own_runner(cfg)
    with naming_the_port():
        runner = RUNNERS.build(cfg)
    check_shared_folder(cfg, mode)
    if mode == 'test':
        _test_one_set_of_weights(runner)
    if mode == 'train' and cfg.get('resume') and not resumed:
        _resume_from_last_checkpoint(runner, cfg.get('start_from'))
    if runner._load_from:
        check_file_everywhere('--resume' if runner._resume else 'load_from', runner._load_from)
    result = None
    stop: SystemExit | None = None
    try:
        result = getattr(runner, mode)()
    except SystemExit as error:
        # The frames of its traceback hold the runner.
        stop = error.with_traceback(None)
    except OSError as error:
        if mode == 'train' and error.errno in DISK_FULL:
            raise OSError(error.errno, _disk_full_message(error, runner.work_dir)) from error
        raise
    # Workers of loaders: the garbage collector would wait ten seconds for those that it finds.
    runner._train_loop = runner._val_loop = runner._test_loop = None
    del runner
    # Not after an error: the other processes would be waited for, which may never come.
    leave_processes()
    if stop is not None:
        raise stop
    return result if mode == 'test' else None


def _test_one_set_of_weights(runner: Runner) -> None:
    """Testing both would overwrite the predictions of the first by those of the second."""
    chosen = any(isinstance(hook, LoadWeightsHook) and hook.mode == 'test' for hook in runner.hooks)
    for hook in [hook for hook in runner.hooks if isinstance(hook, EMAHook)]:
        if chosen:
            runner.hooks.remove(hook)
        elif getattr(hook, 'evaluate_on_ema', False):
            hook.evaluate_on_origin = False


def _resume_from_last_checkpoint(runner: Runner, start_from: str | None) -> None:
    """Resume all processes from the newest undamaged checkpoint; MMEngine takes any that ``last_checkpoint`` names."""
    found = [find_last_checkpoint(runner.work_dir) if dist.is_main_process() else None]
    dist.broadcast_object_list(found)
    runner._load_from, runner._resume = found[0] or start_from, found[0] is not None


def _disk_full_message(error: OSError, work_dir: str) -> str:
    folder = os.path.dirname(error.filename) if error.filename else work_dir
    free = shutil.disk_usage(folder or '.').free / 2**20
    last = find_last_checkpoint(work_dir)
    kept = f'The last checkpoint, {last}, is undamaged' if last else 'There is no checkpoint yet'
    return (f'{error.strerror}. {error.filename or "A file of this training"} could not be written; {free:.1f} MiB are '
            f'free in {folder}. {kept}. Make room, and go on with --resume')


def _check_strategy(cfg: Config, mode: str) -> None:
    """Allow sharding only in training by several processes; tests run without it."""
    strategy = cfg.get('strategy', {}).get('type')
    if strategy not in FSDP_STRATEGIES:
        return
    if mode == 'test':
        # The checkpoint is that of the complete model.
        cfg.pop('runner_type')
        cfg.pop('strategy')
    elif cfg.launcher == 'none':
        raise ValueError('strategy FSDPStrategy shards a model over processes, and there is one: train with tools/'
                         'dist_train.sh, or leave runner_type and strategy out of the config')
    elif cfg.optim_wrapper.get('clip_grad'):
        raise ValueError('optim_wrapper.clip_grad must be None with strategy FSDPStrategy, got '
                         f'{cfg.optim_wrapper.clip_grad}: each process would clip by the norm of its own shard')


def _check_checkpoint(argument: str, path: str) -> None:
    if any(os.environ.get(variable, '0') != '0' for variable in RANK_VARIABLES.values()):
        # Checked with the others, once they have met: one that ends before leaves them waiting.
        return
    if '://' not in path and not os.path.isfile(path):
        raise FileNotFoundError(f'{argument}: no such file, {path}')


def _use_amp(cfg: Config) -> None:
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ValueError(f'--amp needs optim_wrapper.type "OptimWrapper" in the config, got {kind!r}')
    if get_device() == 'cpu':
        raise ValueError("--amp needs a GPU: MMEngine's mixed precision does not run on the CPU")
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def _dump_predictions(cfg: Config, out: str) -> None:
    if os.path.isfile(out) or os.path.isdir(out) and os.listdir(out):
        raise FileExistsError(f'--out: {out} exists; remove it or choose another name')
    metrics = metrics_of(cfg.test_evaluator)
    if out.endswith(('.pkl', '.pickle')):
        kind = 'mmdet.DumpDetResults' if cfg.get('default_scope') == 'mmdet' else 'mmengine.DumpResults'
        cfg.test_evaluator = [*metrics, dict(type=kind, out_file_path=out)]
    elif cfg.get('default_scope') == 'mmseg':
        cfg.test_evaluator = [dict(metric, output_dir=out, keep_results=True) for metric in metrics]
    else:
        raise ValueError(f'--out must end with .pkl or .pickle, got {out}')


def _draw_predictions(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ValueError('--show and --show-dir need a visualization hook, default_hooks.visualization in the config')
    hook.update(show=show, wait_time=wait_time)
    if cfg.get('default_scope') == 'mmpretrain':
        hook.update(enable=True, interval=1, out_dir=show_dir)
        return
    hook.draw = True
    if show_dir is not None and cfg.get('default_scope') == 'mmdet':
        # A relative folder would land under the work directory.
        hook.test_out_dir = os.path.abspath(show_dir)
    elif show_dir is not None:
        cfg.visualizer.save_dir = show_dir


def use_tta(cfg: Config) -> None:
    """Let the config's test-time augmentation, or its toolbox's default, wrap the model and the innermost pipeline.

    Args:
        cfg (Config): Changed in place: ``model``, ``tta_model``, ``tta_pipeline`` and the pipeline to test with.

    Raises:
        ValueError: If the config has no ``tta_model`` or no ``tta_pipeline``, and its toolbox no default, as mmseg.
    """
    scope = cfg.get('default_scope')
    missing = [key for key in ('tta_model', 'tta_pipeline') if key not in cfg]
    if missing and scope not in TTA_MODELS:
        raise ValueError(f'--tta needs tta_model and tta_pipeline in the config, missing: {", ".join(missing)}')
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if missing:
        print_log(f'--tta: the config has no {" and no ".join(missing)}: flipping, the default of {scope}.', 'current')
    if 'tta_model' not in cfg:
        cfg.tta_model = copy.deepcopy(TTA_MODELS[scope])
    if 'tta_pipeline' not in cfg:
        *steps, packing = copy.deepcopy(dataset.pipeline)
        flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
        packing = TTA_PACKING[scope] or packing
        cfg.tta_pipeline = [*steps, dict(type='TestTimeAug', transforms=[flips, [packing]])]
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
