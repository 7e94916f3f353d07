"""The launch functions' changes of a config; real runs of a toy model, in a thread and on two processes."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import BaseLoop, IterBasedTrainLoop

from pelk_mm.checkpoints.loading import safe_load
from pelk_mm.engine import KeepPreviousRunHook
from pelk_mm.engine.launch import configure_testing, configure_training, load_config, run
from pelk_mm.engine.processes import prepare_cpu_processes
from pelk_mm.engine.runners import OWN_HOOKS
from pelk_mm.testing.processes import free_port

pytestmark = pytest.mark.slow

needs_no_gpu = pytest.mark.skipif(get_device() != 'cpu', reason='about machines without a GPU')

TOY_MODULE = '''
import torch
from mmcv.cnn import build_norm_layer
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import nn


@DATASETS.register_module()
class ToyDataset(torch.utils.data.Dataset):
    """Sixteen points of a straight line."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        return dict(inputs=torch.full((1, 2, 2), index / 16), target=torch.tensor(index / 8))


@MODELS.register_module()
class ToyModel(BaseModel):

    def __init__(self, norm_cfg):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.norm = build_norm_layer(norm_cfg, 2)[1]

    def forward(self, inputs, target, mode='tensor'):
        y = self.norm(self.conv(torch.stack(inputs))).mean((1, 2, 3))
        if mode == 'loss':
            return dict(loss=(y - torch.stack(target)).square().mean())
        return list(y)


@METRICS.register_module()
class CountSamples(BaseMetric):

    def process(self, data_batch, data_samples):
        self.results += [1] * len(data_samples)

    def compute_metrics(self, results):
        return dict(count=len(results))
'''

TOY_CONFIG = '''
model = dict(type='ToyModel', norm_cfg=dict(type='SyncBN', requires_grad=True))
dataset = dict(type='ToyDataset')
train_dataloader = dict(batch_size=4, num_workers=0, dataset=dataset, sampler=dict(type='DefaultSampler', shuffle=True))
test_dataloader = dict(batch_size=4, num_workers=0, dataset=dataset, sampler=dict(type='DefaultSampler', shuffle=False))
test_evaluator = dict(type='CountSamples')
train_cfg = dict(by_epoch=True, max_epochs=2)
test_cfg = dict()
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.1))
randomness = dict(seed=3)
'''


@pytest.fixture
def toy(tmp_path):
    """A folder with the toy module, its config ``toy.py``, and the same without the import, ``plain.py``."""
    (tmp_path / 'toy_module.py').write_text(TOY_MODULE)
    (tmp_path / 'plain.py').write_text(TOY_CONFIG)
    (tmp_path / 'toy.py').write_text(f"custom_imports = dict(imports=['toy_module'])\n{TOY_CONFIG}")
    return tmp_path


def launch(root, folder, *command: str, **variables) -> str:
    """Run a tool in ``folder``; return what it printed."""
    environment = dict(os.environ, PYTHON=sys.executable, OMP_NUM_THREADS='1', **variables)
    environment['PYTHONPATH'] = f'{root}:{folder}'
    command = [command[0], str(root / 'tools' / command[1]), *command[2:]]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def weights(path) -> dict:
    return safe_load(str(path), 'cpu')['state_dict']


@needs_no_gpu
def test_two_cpu_processes_train_and_test(root, toy):
    output = launch(root, toy, 'bash', 'dist_train.sh', 'toy.py', '2', '--work-dir', 'two', PORT=str(free_port()))
    assert '2 processes on the CPU with gloo; 1 SyncBN of the model become AllReduceBN' in output
    assert '[2/2]' in output
    assert set(weights(toy / 'two/epoch_2.pth')) == set(weights(toy / 'two/epoch_1.pth'))
    arguments = ('toy.py', 'two/epoch_2.pth', '2', '--out', 'out.pkl')
    output = launch(root, toy, 'bash', 'dist_test.sh', *arguments, PORT=str(free_port()))
    assert 'count: 16' in output
    assert (toy / 'out.pkl').stat().st_size > 0


def test_work_dir_is_the_argument_else_the_configs_else_its_name(toy):
    file = str(toy / 'plain.py')
    options = {'model.norm_cfg.type': 'BN', 'train_dataloader.batch_size': 8, 'work_dir': 'from/config'}
    cfg = load_config(file, options)
    assert (cfg.work_dir, cfg.model.norm_cfg.type, cfg.train_dataloader.batch_size) == ('from/config', 'BN', 8)
    assert load_config(file).work_dir == 'work_dirs/plain'
    assert load_config(file, options, 'argument').work_dir == 'argument'


def test_mmpretrain_configs_get_its_loader_defaults(toy):
    """PyTorch's default is 0 workers."""
    with open(toy / 'plain.py', 'a') as file:
        file.write("default_scope = 'mmpretrain'\nval_dataloader = dict(batch_size=2)\n")
    options = {'train_dataloader.num_workers': 2, 'test_dataloader.collate_fn.type': 'other'}
    cfg = load_config(str(toy / 'plain.py'), options)
    loaders = cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader
    assert [loader.persistent_workers for loader in loaders] == [True, False, False]
    assert [loader.collate_fn.type for loader in loaders] == ['default_collate', 'default_collate', 'other']
    cfg = load_config(str(toy / 'plain.py'), dict(val_dataloader=None))
    assert cfg.val_dataloader is None


def config(**values) -> Config:
    return Config(dict(optim_wrapper=dict(type='OptimWrapper'), model=dict(type='ToyModel'), **values))


def test_resume_takes_the_latest_or_a_file(tmp_path):
    cfg = config(load_from='pretrained.pth')
    configure_training(cfg, resume='auto')
    assert (cfg.resume, cfg.load_from) == (True, None)
    file = tmp_path / 'a.pth'
    with pytest.raises(FileNotFoundError, match=f'--resume: no such file, {file}'):
        configure_training(cfg, resume=str(file))
    file.touch()
    configure_training(cfg, resume=str(file))
    assert (cfg.resume, cfg.load_from) == (True, str(file))


def test_amp_switches_the_wrapper(monkeypatch):
    monkeypatch.setattr('pelk_mm.engine.launch.get_device', lambda: 'cpu')
    with pytest.raises(ValueError, match='--amp needs a GPU'):
        configure_training(config(), amp=True)
    monkeypatch.setattr('pelk_mm.engine.launch.get_device', lambda: 'cuda')
    cfg = config()
    configure_training(cfg, amp=True)
    assert cfg.optim_wrapper == dict(type='AmpOptimWrapper', loss_scale='dynamic')
    cfg.optim_wrapper.type = 'ApexOptimWrapper'
    with pytest.raises(ValueError, match="got 'ApexOptimWrapper'"):
        configure_training(cfg, amp=True)


def test_auto_scale_lr_needs_its_base():
    with pytest.raises(ValueError, match='auto_scale_lr.base_batch_size'):
        configure_training(config(), auto_scale_lr=True)
    cfg = config(auto_scale_lr=dict(enable=False, base_batch_size=16))
    configure_training(cfg, auto_scale_lr=True)
    assert cfg.auto_scale_lr.enable is True


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / 'weights.pth').touch()
    return str(tmp_path / 'weights.pth')


def task(scope: str) -> Config:
    return config(
        default_scope=scope,
        test_evaluator=[dict(type='SomeMetric')],
        default_hooks=dict(visualization=dict(type='SomeHook')),
        visualizer=dict(type='SomeVisualizer'),
        test_dataloader=dict(dataset=dict(type='Wrapper', dataset=dict(pipeline=[dict(type='Load')]))))


def test_a_missing_checkpoint_is_named():
    with pytest.raises(FileNotFoundError, match='checkpoint: no such file, nowhere.pth'):
        configure_testing(task('mmseg'), 'nowhere.pth')
    cfg = task('mmseg')
    configure_testing(cfg, 'https://example.com/a.pth')
    assert cfg.load_from == 'https://example.com/a.pth'


def test_out(tmp_path, checkpoint):
    """Predictions of every task, or a folder of label maps; nothing is overwritten."""
    file, folder = str(tmp_path / 'out.pkl'), str(tmp_path / 'maps')
    for scope, kind in (('mmpretrain', 'mmengine.DumpResults'), ('mmseg', 'mmengine.DumpResults'),
                        ('mmdet', 'mmdet.DumpDetResults')):
        cfg = task(scope)
        configure_testing(cfg, checkpoint, out=file)
        assert cfg.test_evaluator == [dict(type='SomeMetric'), dict(type=kind, out_file_path=file)]
    cfg = task('mmseg')
    configure_testing(cfg, checkpoint, out=folder)
    assert cfg.test_evaluator == [dict(type='SomeMetric', output_dir=folder, keep_results=True)]
    with pytest.raises(ValueError, match='--out must end with .pkl'):
        configure_testing(task('mmdet'), checkpoint, out=folder)
    for out in (checkpoint, str(tmp_path)):
        with pytest.raises(FileExistsError, match='--out: .* exists'):
            configure_testing(cfg, checkpoint, out=out)


def test_show_dir_sets_what_each_toolbox_reads(checkpoint, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cfgs = {scope: task(scope) for scope in ('mmpretrain', 'mmseg', 'mmdet')}
    for cfg in cfgs.values():
        configure_testing(cfg, checkpoint, show_dir='pictures', wait_time=1)
    hooks = {scope: cfg.default_hooks.visualization for scope, cfg in cfgs.items()}
    same = dict(type='SomeHook', show=False, wait_time=1)
    assert hooks['mmpretrain'] == dict(same, enable=True, interval=1, out_dir='pictures')
    assert hooks['mmseg'] == dict(same, draw=True)
    assert cfgs['mmseg'].visualizer.save_dir == 'pictures'
    assert hooks['mmdet'] == dict(same, draw=True, test_out_dir=str(tmp_path / 'pictures'))
    cfg = config(default_scope='mmseg')
    with pytest.raises(ValueError, match='default_hooks.visualization'):
        configure_testing(cfg, checkpoint, show=True)


def test_tta_wraps_the_model_and_swaps_the_innermost_pipeline(checkpoint):
    cfg = task('mmseg')
    with pytest.raises(ValueError, match='missing: tta_model, tta_pipeline'):
        configure_testing(cfg, checkpoint, tta=True)
    cfg.tta_model, cfg.tta_pipeline = dict(type='SegTTAModel'), [dict(type='TestTimeAug')]
    configure_testing(cfg, checkpoint, tta=True)
    assert cfg.model == dict(type='SegTTAModel', module=dict(type='ToyModel'))
    assert cfg.test_dataloader.dataset.dataset.pipeline == [dict(type='TestTimeAug')]
    # mmdet's flips by default, as its own tools/test.py, and with what the config has of the two.
    cfg = task('mmdet')
    steps = [dict(type='Resize', scale=(8, 8)), dict(type='PackDetInputs', meta_keys=('img_id', ))]
    cfg.test_dataloader.dataset.dataset.pipeline = steps
    no_model = cfg.copy()
    cfg.tta_model = dict(type='DetTTAModel', tta_cfg=dict(max_per_img=7))
    configure_testing(cfg, checkpoint, tta=True)
    assert cfg.model == dict(type='DetTTAModel', tta_cfg=dict(max_per_img=7), module=dict(type='ToyModel'))
    first, augmentation = cfg.test_dataloader.dataset.dataset.pipeline
    assert (first, augmentation.type) == (steps[0], 'TestTimeAug')
    flips, (packing, ) = augmentation.transforms
    assert [flip.prob for flip in flips] == [1, 0]
    assert {'flip', 'flip_direction', 'ori_shape'} <= set(packing.meta_keys)
    configure_testing(no_model, checkpoint, tta=True)
    assert no_model.model.tta_cfg == dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)


def earlier_run(folder, content=''):
    (folder / 'epoch_1.pth').write_text(content)
    (folder / 'last_checkpoint').write_text('epoch_1.pth')


def handle_previous_run(folder, action='move', **runner):
    """As much of a runner as the hook needs, its training loop built; the messages that it logs."""
    loop, messages = BaseLoop.__new__(IterBasedTrainLoop), []
    logger = SimpleNamespace(info=messages.append)
    defaults = dict(_train_loop=loop, _resume=False, _load_from=None, cfg={}, work_dir=str(folder), logger=logger)
    KeepPreviousRunHook(action).before_run(SimpleNamespace(**{**defaults, **runner}))
    return messages


def test_checkpoints_of_an_earlier_run_are_moved_not_overwritten(tmp_path):
    for number in (1, 2):
        earlier_run(tmp_path, f'run {number}')
        message, = handle_previous_run(tmp_path)
        assert f'now in {tmp_path}/previous_{number}' in message
        assert '--cfg-options previous_run=stop' in message
    kept = {str(file.relative_to(tmp_path)): file.read_text() for file in tmp_path.rglob('*.pth')}
    assert kept == {'previous_1/epoch_1.pth': 'run 1', 'previous_2/epoch_1.pth': 'run 2'}
    assert not (tmp_path / 'last_checkpoint').exists()
    assert handle_previous_run(tmp_path, 'stop') == []


@pytest.mark.parametrize('changes', [
    dict(action='overwrite'), dict(_resume=True), dict(cfg=dict(resume=True)), dict(_train_loop={}),
    dict(_train_loop=None)
])
def test_checkpoints_stay_where_that_is_asked_for_or_nothing_is_overwritten(tmp_path, changes):
    """A resumed training, and a test."""
    earlier_run(tmp_path)
    assert handle_previous_run(tmp_path, **changes) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ['epoch_1.pth', 'last_checkpoint']


def test_a_run_stops_before_an_earlier_one_on_request(toy, monkeypatch):
    monkeypatch.syspath_prepend(toy)
    work_dir = toy / 'work_dirs/plain'
    work_dir.mkdir(parents=True)
    earlier_run(work_dir)
    cfg = load_config(str(toy / 'toy.py'), {'previous_run': 'stop', 'model.norm_cfg.type': 'BN'}, str(work_dir))
    with pytest.raises(FileExistsError, match='holds 1 checkpoints of an earlier run: choose another --work-dir'):
        run(cfg, 'train')
    assert (work_dir / 'epoch_1.pth').exists()
    cfg.previous_run = 'mv'
    with pytest.raises(ValueError, match="previous_run must be one of move, overwrite, stop, got 'mv'"):
        run(cfg, 'train')


def test_only_the_first_process_moves_and_nothing_that_the_run_starts_from(tmp_path, monkeypatch):
    earlier_run(tmp_path)
    with pytest.raises(ValueError, match='another --work-dir'):
        handle_previous_run(tmp_path, _load_from=str(tmp_path / 'epoch_1.pth'))
    monkeypatch.setattr('pelk_mm.engine.hooks.previous_run.is_main_process', lambda: False)
    assert handle_previous_run(tmp_path) == []
    assert (tmp_path / 'epoch_1.pth').exists()


def test_upstreams_tools_use_it_where_a_base_config_names_it(toy, monkeypatch):
    """As its tools/train.py builds the runner."""
    monkeypatch.syspath_prepend(toy)
    cfg = load_config(str(toy / 'toy.py'), {'model.norm_cfg.type': 'BN', 'default_hooks': dict(previous_run=None)})
    cfg.merge_from_dict(dict(runner_type='pelk_mm.CheckedRunner', work_dir=str(toy / 'work')))
    runner = RUNNERS.build(cfg)
    kinds = [type(hook) for hook in runner.hooks]
    assert set(OWN_HOOKS.values()) - set(kinds) == {KeepPreviousRunHook}
    assert 'PreemptionHook' in (toy / 'work/toy.py').read_text()


def test_other_launchers_need_gpus():
    with pytest.raises(ValueError, match="must be \"pytorch\".*got 'slurm'"):
        prepare_cpu_processes(config(), 'slurm')


IN_A_THREAD = '''
import signal, threading
from pelk_mm.engine.launch import configure_testing, configure_training, load_config, run

def train():
    cfg = load_config('toy.py', {'train_dataloader.num_workers': 1, 'model.norm_cfg.type': 'BN'})
    configure_training(cfg)
    run(cfg, 'train')
    configure_testing(cfg, 'work_dirs/toy/epoch_2.pth')
    metrics.update(run(cfg, 'test'))

def fail():
    cfg = load_config('toy.py', {'train_dataloader.batch_size': 100, 'model.norm_cfg.type': 'None'})
    try:
        run(cfg, 'train')
    except KeyError as error:
        metrics['error'] = str(error)

metrics = {}
for target in (train, fail):
    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
print(metrics, signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
'''


def test_run_in_a_thread_as_notebooks_and_ray_do(toy, root):
    (toy / 'script.py').write_text(IN_A_THREAD)
    environment = dict(os.environ, PYTHONPATH=f'{root}:{toy}', OMP_NUM_THREADS='1')
    result = subprocess.run([sys.executable, 'script.py'], cwd=toy, env=environment, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1].startswith("{'count': 16, 'error': "), result.stderr
    assert result.stdout.splitlines()[-1].endswith(' True')
    # The run that failed before it trained has moved nothing.
    assert (toy / 'work_dirs/toy/epoch_2.pth').exists()
