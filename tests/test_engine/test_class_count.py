"""Wrong class counts stop a run before it starts, with config key, data and cure; the shipped configs pass."""

from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset
from mmengine.logging import MMLogger
from mmengine.runner import BaseLoop
from torch.utils.data import DataLoader

from pelk_mm.engine import ClassCountHook
from pelk_mm.engine.launch import load_config

DIGITS = ('pelk-atto_1xb64_digits', 'pelk-atto_upernet_1xb8-1600it_digits-128x128',
          'cascade-mask-rcnn_pelk-atto_fpn_1xb4-4e_digits')


class Loop(BaseLoop):

    def __init__(self, dataloader):
        self.dataloader = dataloader

    def run(self):
        """Never called."""


def runner_of(cfg: Config, classes, wrap=lambda dataset: dataset) -> SimpleNamespace:
    """As much of a runner as the hook looks at, its test loader not built."""
    dataset = BaseDataset('instances.json', metainfo=dict(classes=classes), data_root='data/mine', lazy_init=True)
    return SimpleNamespace(
        cfg=cfg,
        _train_loop=Loop(DataLoader(wrap(dataset))),
        _test_loop=dict(),
        logger=MMLogger.get_instance('class_count'))


@pytest.mark.parametrize(('name', 'number'), list(zip(DIGITS, (10, 11, 10))))
def test_the_digit_configs_pass_and_a_class_too_many_does_not(root, name, number):
    cfg = load_config(str(root / f'configs/digits/{name}.py'))
    ClassCountHook().before_run(runner_of(cfg, tuple('abcdefghijk'[:number])))
    with pytest.raises(ValueError, match=f'train_dataloader has {number + 1} classes') as error:
        ClassCountHook().before_run(runner_of(cfg, tuple('abcdefghijkl'[:number + 1])))
    assert 'rpn_head' not in str(error.value)
    assert f'{name}.py' in str(error.value)


@pytest.mark.parametrize(('config', 'keys'), [
    (dict(model=dict(head=dict(num_classes=5))), ['model.head.num_classes']),
    (dict(model=dict(head=dict(num_classes=3)), data_preprocessor=dict(num_classes=5)),
     ['data_preprocessor.num_classes']),
    (dict(model=dict(decode_head=dict(num_classes=5), auxiliary_head=[dict(num_classes=5)])),
     ['model.decode_head.num_classes', 'model.auxiliary_head.0.num_classes']),
    (dict(
        model=dict(
            backbone=dict(num_classes=1000),
            rpn_head=dict(num_classes=1),
            roi_head=dict(bbox_head=[dict(num_classes=3), dict(num_classes=5)], mask_head=dict(num_classes=5)))),
     ['model.roi_head.bbox_head.1.num_classes', 'model.roi_head.mask_head.num_classes']),
])
def test_every_head_is_named_with_its_cure(config, keys):
    with pytest.raises(ValueError, match='--cfg-options') as error:
        ClassCountHook().before_run(runner_of(Config(config), ('cat', 'dog', 'cow')))
    message = str(error.value)
    assert message.startswith('train_dataloader has 3 classes (cat, dog, cow; BaseDataset data/mine/instances.json), '
                              f'but {keys[0]} = 5')
    assert f'--cfg-options {" ".join(f"{key}=3" for key in keys)}, or' in message


@pytest.mark.parametrize('wrap', [lambda dataset: RepeatDataset(dataset, 2, lazy_init=True),
                                  lambda dataset: ConcatDataset([dataset], lazy_init=True)])
def test_wrapped_data_sets(wrap):
    with pytest.raises(ValueError, match='cat, dog; BaseDataset data/mine/instances.json'):
        ClassCountHook().before_run(runner_of(Config(dict(model=dict(head=dict(num_classes=5)))), ('cat', 'dog'), wrap))


def test_a_difference_that_is_meant_is_a_warning(monkeypatch):
    runner = runner_of(Config(dict(model=dict(head=dict(num_classes=5)))), ('cat', 'dog'))
    warnings = []
    monkeypatch.setattr(runner.logger, 'warning', warnings.append)
    ClassCountHook(strict=False).before_run(runner)
    assert len(warnings) == 1
    assert 'model.head.num_classes = 5' in warnings[0]


def test_one_class_needs_its_comma():
    runner = runner_of(Config(dict(model=dict(head=dict(num_classes=1)))), ('cat', ))
    runner._train_loop.dataloader.dataset._metainfo['classes'] = 'cat'
    with pytest.raises(ValueError, match=r"must be a tuple of names, got the string 'cat': .* \('cat', \)"):
        ClassCountHook().before_run(runner)


def test_without_classes_nothing_is_said():
    ClassCountHook().before_run(runner_of(Config(dict(model=dict(head=dict(num_classes=5)))), None))
