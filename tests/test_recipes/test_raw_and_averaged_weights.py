"""Raw and averaged weights: averaged as SLaK does, validated both, and each loaded by name wherever one loads."""

import copy
import itertools
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.fileio import load
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from torch import nn
from torch.utils.data import Dataset

from pelk_mm.checkpoints.convert import BACKBONE_NAMES, convert_file
from pelk_mm.checkpoints.entries import find_weights
from pelk_mm.checkpoints.publish import publish_file
from pelk_mm.deploy import load_trained
from pelk_mm.engine import LoadWeightsHook, PretrainedBackbone
from pelk_mm.engine.hooks.preemption import EXIT_CODE
from pelk_mm.engine.launch import configure_testing, configure_training, run

ROOT = Path(__file__).resolve().parents[2]
RUN_NAMES = itertools.count()


@MODELS.register_module()
class AveragedToy(BaseModel):
    """Its score is a function of its weights and of the norm's statistics."""

    def __init__(self, classes=3):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, classes)

    def forward(self, image, label, mode='tensor'):
        scores = self.head(self.backbone(image).mean((2, 3)))
        if mode == 'loss':
            return dict(loss=nn.functional.cross_entropy(scores, label))
        return [dict(score=score) for score in scores.mean(1).tolist()]


@DATASETS.register_module()
class AveragedImages(Dataset):

    def __init__(self):
        self.images = torch.randn(12, 3, 5, 5, generator=torch.Generator().manual_seed(0)) + 1

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return dict(image=self.images[index], label=index % 3)


@METRICS.register_module()
class MeanScore(BaseMetric):

    def process(self, data_batch, data_samples):
        self.results += [sample['score'] for sample in data_samples]

    def compute_metrics(self, results):
        return dict(score=sum(results) / len(results))


def imagenet_ema_hook(**changes):
    hook = Config.fromfile(ROOT / 'configs/imagenet/pelk-tiny_32xb128_in1k.py').custom_hooks[0].to_dict()
    assert (hook['type'], hook['momentum']) == ('EMAHook', 1e-4)
    return dict(hook, momentum=0.3, **changes)


def toy_config(work_dir, hooks, classes=3, **changes):
    images = dict(type='AveragedImages')
    data = dict(batch_size=4, num_workers=0, collate_fn=dict(type='default_collate'), dataset=images)
    evaluation = dict(data, sampler=dict(type='DefaultSampler', shuffle=False))
    return Config(
        dict(
            default_scope='mmpretrain',
            model=dict(type='mmengine.AveragedToy', classes=classes),
            work_dir=str(work_dir),
            experiment_name=f'averaged{next(RUN_NAMES)}',
            train_dataloader=dict(data, sampler=dict(type='DefaultSampler', shuffle=True)),
            val_dataloader=evaluation,
            test_dataloader=evaluation,
            train_cfg=dict(type='pelk_mm.ResumableEpochBasedTrainLoop', max_epochs=1),
            val_cfg=dict(),
            test_cfg=dict(),
            val_evaluator=dict(type='mmengine.MeanScore'),
            test_evaluator=dict(type='mmengine.MeanScore'),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.5)),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
            custom_hooks=hooks,
            randomness=dict(seed=0),
            data_checks=False,
            log_level='ERROR',
            **changes))


@HOOKS.register_module()
class WatchModel(Hook):
    """Copies of the model after each iteration of training, in the order of trainings."""

    priority = 'LOWEST'
    states: ClassVar = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.states.append(copy.deepcopy(runner.model.state_dict()))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A training of three iterations with the hook of the ImageNet configs: states of the model, values, and file."""
    folder = tmp_path_factory.mktemp('trained')
    cfg = toy_config(folder, [imagenet_ema_hook(), dict(type='mmengine.WatchModel')])
    run(cfg, 'train')
    hub = MessageHub.get_current_instance()
    values = {name: hub.get_scalar(f'val/{name}').current() for name in ('score', 'score_origin')}
    return WatchModel.states, values, str(folder / 'epoch_1.pth')


def score_of(state):
    """In evaluation, on all images."""
    model = AveragedToy().eval()
    model.load_state_dict(state)
    with torch.no_grad():
        scores = [sample['score'] for sample in model(AveragedImages().images, None)]
    return sum(scores) / len(scores)


@pytest.fixture(scope='module')
def states(trained):
    """The average, computed here, and the raw weights."""
    watched = trained[0]
    average = {name: value.clone() for name, value in watched[0].items()}
    for state in watched[1:]:
        for name, value in average.items():
            if value.is_floating_point():
                value.lerp_(state[name], 0.3)
    return dict(raw=watched[-1], averaged=average)


def test_weights_and_statistics_of_norms_are_averaged(trained, states):
    content = torch.load(trained[2], weights_only=False)
    for name, value in states['averaged'].items():
        if value.is_floating_point():
            torch.testing.assert_close(content['state_dict'][name], value)
            assert torch.equal(content['ema_state_dict'][f'module.{name}'], states['raw'][name])
    assert not torch.allclose(states['averaged']['backbone.1.running_mean'], states['raw']['backbone.1.running_mean'])


def test_both_are_validated(trained, states):
    scores = {kind: score_of(state) for kind, state in states.items()}
    assert scores['raw'] != pytest.approx(scores['averaged'], rel=1e-3)
    assert trained[1] == pytest.approx(dict(score=scores['averaged'], score_origin=scores['raw']))


@pytest.mark.parametrize('hook', ['imagenet', 'mmengine', None, 'raw for training'])
@pytest.mark.parametrize('weights', [None, 'raw', 'averaged'])
def test_each_is_tested_by_name(tmp_path, trained, states, hook, weights):
    hooks = dict(imagenet=[imagenet_ema_hook()], mmengine=[dict(type='mmengine.EMAHook')])
    hooks['raw for training'] = [dict(type='pelk_mm.LoadWeightsHook', weights='raw')]
    cfg = toy_config(tmp_path, hooks.get(hook, []))
    configure_testing(cfg, trained[2], out=str(tmp_path / 'out.pkl'), weights=weights)
    assert run(cfg, 'test')['score'] == pytest.approx(score_of(states[weights or 'averaged']))
    predictions = load(tmp_path / 'out.pkl')
    assert len(predictions) == 12
    assert sum(sample['score'] for sample in predictions) / 12 == pytest.approx(score_of(states[weights or 'averaged']))


def test_without_ema_there_are_raw_weights_only(tmp_path):
    run(toy_config(tmp_path / 'train', []), 'train')
    path = str(tmp_path / 'train/epoch_1.pth')
    expected = score_of(torch.load(path, weights_only=False)['state_dict'])
    for weights in (None, 'raw'):
        cfg = toy_config(tmp_path / f'test_{weights}', [imagenet_ema_hook()])
        configure_testing(cfg, path, weights=weights)
        assert run(cfg, 'test')['score'] == pytest.approx(expected)
    cfg = toy_config(tmp_path / 'averaged', [])
    configure_testing(cfg, path, weights='averaged')
    with pytest.raises(ValueError, match=r"weights='averaged', but .*epoch_1.pth has one set.* are raw: .*out EMAHook"):
        run(cfg, 'test')


@pytest.mark.parametrize('weights', [None, 'raw', 'averaged'])
@pytest.mark.parametrize('ema', [True, False])
@pytest.mark.parametrize('classes', [3, 5])
def test_training_starts_from_what_is_named(tmp_path, trained, states, weights, ema, classes):
    """With another number of classes, too, where mmpretrain's hook fails to load its average."""
    hooks = [imagenet_ema_hook()] if ema else []
    if weights is not None:
        hooks.append(dict(type='pelk_mm.LoadWeightsHook', weights=weights))
    cfg = toy_config(tmp_path, hooks, classes, load_from=trained[2])
    cfg.optim_wrapper.optimizer.lr = 0.0
    run(cfg, 'train')
    content = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)
    # At a rate of zero weights stay, and so does their average.
    for entry, prefix in (('state_dict', ''), *([('ema_state_dict', 'module.')] if ema else [])):
        weight = content[entry][f'{prefix}backbone.0.weight']
        torch.testing.assert_close(weight, states[weights or 'averaged']['backbone.0.weight'])
        assert len(content[entry][f'{prefix}head.weight']) == classes


def test_resuming_takes_both(tmp_path, trained):
    hooks = [imagenet_ema_hook(), dict(type='pelk_mm.LoadWeightsHook', weights='averaged')]
    run(toy_config(tmp_path, hooks, resume=True, load_from=trained[2]), 'train')
    cfg = toy_config(tmp_path / 'again', [imagenet_ema_hook()], resume=True, load_from=trained[2])
    cfg.train_cfg.max_epochs = 2
    run(cfg, 'train')
    cfg = toy_config(tmp_path / 'straight', [imagenet_ema_hook()])
    cfg.train_cfg.max_epochs = 2
    run(cfg, 'train')
    again, straight = (
        torch.load(tmp_path / name / 'epoch_2.pth', weights_only=False) for name in ('again', 'straight'))
    for entry in ('state_dict', 'ema_state_dict'):
        for name, value in straight[entry].items():
            assert torch.equal(again[entry][name], value), (entry, name)


def test_resuming_with_nothing_to_resume_starts_from_load_from(tmp_path, trained, states):
    """A command of a cluster, which always has --resume, fine-tunes too."""
    for epochs, first in ((1, True), (2, False)):
        cfg = toy_config(tmp_path, [], load_from=trained[2])
        cfg.optim_wrapper.optimizer.lr, cfg.train_cfg.max_epochs = 0.0 if first else 0.1, epochs
        configure_training(cfg, resume='auto')
        run(cfg, 'train')
    first, second = (torch.load(tmp_path / f'epoch_{epoch}.pth', weights_only=False) for epoch in (1, 2))
    assert torch.equal(first['state_dict']['head.weight'], torch.load(
        trained[2], weights_only=False)['state_dict']['head.weight'])
    assert (first['meta']['iter'], second['meta']['iter']) == (3, 6)


def loaded_backbone(checkpoint, **arguments):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    PretrainedBackbone(checkpoint, **arguments)(module)
    return module.state_dict()


def assert_backbone(found, state):
    for name in ('0.weight', '1.running_mean'):
        torch.testing.assert_close(found[name], state[f'backbone.{name}'])


@pytest.mark.parametrize('names', [None, ('model', 'model_ema'), ('state_dict', 'state_dict_ema')])
def test_backbones_start_from_raw_weights(tmp_path, trained, states, names):
    """Of checkpoints of MMEngine, of SLaK's and ConvNeXt's code, and of timm."""
    path = trained[2]
    if names is not None:
        path = str(tmp_path / 'other.pth')
        torch.save(dict(zip(names, (states['raw'], states['averaged']))), path)
    assert_backbone(loaded_backbone(path), states['raw'])
    assert_backbone(loaded_backbone(path, weights='raw'), states['raw'])
    assert_backbone(loaded_backbone(path, weights='averaged'), states['averaged'])
    entries = dict(zip(('raw', 'averaged'), names or ('ema_state_dict', 'state_dict')))
    for kind, key in entries.items():
        assert_backbone(loaded_backbone(path, key=key), states[kind])
    for weights in (None, 'raw', 'averaged'):
        target = str(tmp_path / f'{weights}.pth')
        convert_file(path, target, BACKBONE_NAMES, weights=weights)
        converted = torch.load(target, weights_only=True)['state_dict']
        assert_backbone(converted, states[weights or 'raw'])
        assert set(converted) == set(loaded_backbone(path))


@pytest.mark.parametrize('weights', [None, 'raw', 'averaged'])
def test_published_weights_are_those_named(tmp_path, trained, states, weights):
    path, *_ = publish_file(trained[2], str(tmp_path / 'published.pth'), weights)
    kind, other = ('raw', 'averaged') if weights == 'raw' else ('averaged', 'raw')
    content = torch.load(path, weights_only=True)
    assert content['meta']['weights'] == kind
    for name, value in states[kind].items():
        if value.is_floating_point():
            torch.testing.assert_close(content['state_dict'][name], value)
    # The one set there is may be taken by name, and without one; not under the other's.
    assert_backbone(loaded_backbone(str(path)), states[kind])
    assert_backbone(loaded_backbone(str(path), weights=kind), states[kind])
    reason = 'left out when it was published' if kind == 'averaged' else 'trained without EMAHook'
    for refused in (lambda: loaded_backbone(str(path), weights=other), lambda: find_weights(content, other)):
        with pytest.raises(ValueError, match=f"weights='{other}', but .* are {kind}.*{reason}"):
            refused()


@pytest.mark.parametrize('weights', [None, 'raw', 'averaged'])
def test_deployed_are_those_named(trained, states, weights):
    cfg = Config(dict(model=dict(type='mmengine.AveragedToy'), default_scope='mmengine'))
    model, meta = load_trained(cfg, trained[2], weights)
    assert meta['weights'] == (weights or 'averaged')
    assert_backbone(model.backbone.state_dict(), states[weights or 'averaged'])


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(weights='ema'), r"weights must be None or one of \('raw', 'averaged'\), got 'ema'"),
    (dict(weights='raw', mode='val'), "mode must be 'train' or 'test', got 'val'"),
])
def test_wrong_values_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LoadWeightsHook(**arguments)
    if 'mode' not in arguments:
        with pytest.raises(ValueError, match=message):
            PretrainedBackbone(None, **arguments)
    with pytest.raises(ValueError, match="give one of them, got 'model' and 'raw'"):
        PretrainedBackbone(None, key='model', weights='raw')


@HOOKS.register_module()
class StopAt(Hook):
    """Asks for an end in one iteration of all those of a validation, over both passes."""

    def __init__(self, number):
        self.number = number

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self.number -= 1
        if self.number == 0:
            next(hook for hook in runner.hooks if type(hook).__name__ == 'PreemptionHook')._asked_at = 0.0


# Three iterations a pass.
@pytest.mark.parametrize(('number', 'changes'), [
    (2, dict()), (5, dict()), (2, dict(evaluate_on_ema=False)), (2, dict(type='mmengine.EMAHook')),
])
def test_a_stop_in_validation_saves_each_as_what_it_is(tmp_path, trained, number, changes):
    hook = imagenet_ema_hook(**changes)
    if 'type' in changes:
        del hook['evaluate_on_origin']
    with pytest.raises(SystemExit) as error:
        run(toy_config(tmp_path, [hook, dict(type='mmengine.StopAt', number=number)]), 'train')
    assert error.value.code == EXIT_CODE
    stopped, expected = (torch.load(path, weights_only=False) for path in (tmp_path / 'epoch_1.pth', trained[2]))
    for entry in ('state_dict', 'ema_state_dict'):
        for name, value in expected[entry].items():
            assert torch.equal(stopped[entry][name], value), (entry, name)
