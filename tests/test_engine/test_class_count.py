"""Wrong class counts stop a run before it starts, with config key, data and fix; those of upstream pass."""

from importlib import import_module
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset
from mmengine.model import BaseModel
from mmengine.registry import HOOKS, DefaultScope
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from pelk_mm.engine import ClassCountHook
from pelk_mm.engine.launch import load_config

FIVE = Config(dict(model=dict(head=dict(num_classes=5))))


class Nothing(BaseModel):

    def forward(self, *args, **kwargs):
        """Never called."""


def instances(classes) -> BaseDataset:
    return BaseDataset('instances.json', metainfo=dict(classes=classes), data_root='data/mine', lazy_init=True)


@pytest.fixture(scope='module')
def runner_of(tmp_path_factory):
    """Give a runner a config and a loop over a data set, whose files are not read; its test loader is not built."""
    runner = Runner(Nothing(), str(tmp_path_factory.mktemp('work')), log_level='ERROR', experiment_name='class_count')

    def give(cfg: Config, dataset, hooks=()) -> Runner:
        runner.cfg, runner._hooks = cfg, list(hooks)
        runner._train_loop = EpochBasedTrainLoop(runner, DataLoader(dataset, sampler=[0]), max_epochs=1)
        runner._test_loop = dict()
        return runner

    return give


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
def test_every_head_is_named_with_its_fix(runner_of, config, keys):
    with pytest.raises(ValueError, match='--cfg-options') as error:
        ClassCountHook().before_run(runner_of(Config(config), instances(('cat', 'dog', 'cow'))))
    message = str(error.value)
    assert message.startswith('train_dataloader has 3 classes (cat, dog, cow; BaseDataset data/mine/instances.json), '
                              f'but {keys[0]} = 5')
    assert f'--cfg-options {" ".join(f"{key}=3" for key in keys)}, or' in message


@pytest.mark.parametrize('wrap', [lambda dataset: RepeatDataset(dataset, 2, lazy_init=True),
                                  lambda dataset: ConcatDataset([dataset], lazy_init=True)])
def test_wrapped_data_sets(runner_of, wrap):
    with pytest.raises(ValueError, match='cat, dog; BaseDataset data/mine/instances.json'):
        ClassCountHook().before_run(runner_of(FIVE, wrap(instances(('cat', 'dog')))))


def test_a_difference_that_is_meant_is_a_warning(runner_of, monkeypatch):
    runner, warnings = runner_of(FIVE, instances(('cat', 'dog'))), []
    monkeypatch.setattr(runner.logger, 'warning', warnings.append)
    ClassCountHook(strict=False).before_run(runner)
    assert ['model.head.num_classes = 5' in warning for warning in warnings] == [True]


def test_one_class_needs_its_comma_and_none_says_nothing(runner_of):
    ClassCountHook().before_run(runner_of(FIVE, instances(None)))
    runner = runner_of(Config(dict(model=dict(head=dict(num_classes=1)))), instances('cat'))
    with pytest.raises(ValueError, match=r"must be a tuple of names, got the string 'cat': .* \('cat', \)"):
        ClassCountHook().before_run(runner)


@pytest.mark.parametrize(('config', 'kind', 'cut'), [
    ('mmdet::mm_grounding_dino/coco/grounding_dino_swin-t_finetune_16xb4_1x_coco.py', 'CocoDataset',
     ('language_model', 'contrastive_cfg')),
    ('mmdet::glip/glip_atss_swin-t_a_fpn_dyhead_16xb2_ms-2x_funtune_coco.py', 'CocoDataset', ('language_model', )),
    ('mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py', 'CocoPanopticDataset', ()),
    ('mmseg::san/san-vit-b16_voc12aug-640x640.py', 'PascalVOCDataset', ('text_encoder', )),
    ('mmseg::stdc/stdc1_4xb12-80k_cityscapes-512x1024.py', 'CityscapesDataset', ()),
])
def test_upstream_heads_with_counts_of_their_own_pass(runner_of, config, kind, cut):
    """Caps, things without stuff, objects without background, edges; nothing is refused that trains upstream."""
    cfg = load_config(config)
    metainfo = getattr(import_module(f'{cfg.default_scope}.datasets'), kind).METAINFO
    runner = runner_of(cfg, BaseDataset('instances.json', metainfo=metainfo, lazy_init=True))
    ClassCountHook().before_run(runner)
    # The same model without its texts, or with a count that is of neither, is refused.
    head = cfg.model.get('decode_head') or cfg.model.get('bbox_head') or cfg.model.roi_head.bbox_head
    for key in cut:
        cfg.model.pop(key, None)
        head.pop(key, None)
    head.num_classes = 17
    with pytest.raises(ValueError, match='num_classes = 17') as error:
        ClassCountHook().before_run(runner)
    assert Path(config).name in str(error.value)


@pytest.mark.parametrize('where', [
    dict(bbox_head=dict(num_classes=256, contrastive_cfg=dict(max_text_len=256))),
    dict(backbone=dict(text_model=dict(type='HuggingCLIPLanguageBackbone')), bbox_head=dict(num_classes=80)),
])
def test_text_models_of_other_packages(runner_of, where):
    ClassCountHook().before_run(runner_of(Config(dict(model=where)), instances(('cat', 'dog', 'cow'))))


@pytest.mark.parametrize('own', ['mmpretrain.ClassNumCheckHook', 'mmdet.NumClassCheckHook'])
def test_the_toolboxes_own_hook_checks_in_its_place(runner_of, own):
    """One check, of the config's choice, not two."""
    with DefaultScope.overwrite_default_scope(own.partition('.')[0]):
        hook = HOOKS.build(dict(type=own))
    ClassCountHook().before_run(runner_of(FIVE, instances(('cat', 'dog')), [hook]))
    with pytest.raises(ValueError, match='has 2 classes'):
        ClassCountHook().before_run(runner_of(FIVE, instances(('cat', 'dog'))))
