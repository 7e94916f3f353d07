"""Necks and heads that do not fit the backbone: the error says what to set, and with that it runs."""

import copy
import re

import pytest
import torch
from torch import nn

from pelk_mm.analysis import build_model
from pelk_mm.engine.feature_misfits import explaining_misfits
from pelk_mm.engine.launch import run
from pelk_mm.testing.tiny_models import tiny_config

from .small_data import task_config

RIGHT = [8, 8, 16, 16]


def config(task, **changes):
    """A tiny model, with changes by dotted key."""
    cfg = tiny_config(task)
    cfg.merge_from_dict({f'model.{key.replace("__", ".")}': value for key, value in changes.items()})
    return cfg


def forward(model):
    """Features through neck and heads."""
    x = torch.rand(2, 3, 64, 64)
    if hasattr(model, 'decode_head'):
        features = model.extract_feat(x)
        heads = model.decode_head if isinstance(model.decode_head, nn.ModuleList) else [model.decode_head]
        return [head.forward(features) for head in (*heads, model.auxiliary_head)]
    if hasattr(model, 'rpn_head'):
        return model.rpn_head(model.extract_feat(x))
    return model(x, None, mode='tensor')


CASES = [
    # Task, what is changed, and the fixes in the message.
    ('segmentation', dict(backbone__gap_before_final_norm=True), ['backbone.gap_before_final_norm=False']),
    ('segmentation', dict(decode_head__in_channels=[8, 8, 16, 24]), [f'decode_head.in_channels={RIGHT}']),
    ('segmentation', dict(auxiliary_head__in_channels=24), ['auxiliary_head.in_channels=16']),
    ('segmentation', dict(auxiliary_head__in_index=1), ['auxiliary_head.in_channels=8']),
    ('segmentation', dict(backbone__out_indices=-1), ['backbone.out_indices=(0, 1, 2, 3)']),
    # Both are the defaults.
    ('segmentation', dict(backbone__out_indices=-1, backbone__gap_before_final_norm=True),
     ['backbone.gap_before_final_norm=False', 'backbone.out_indices=(0, 1, 2, 3)']),
    ('segmentation', dict(backbone__out_indices=(1, 2, 3)), ['backbone.out_indices=(0, 1, 2, 3)']),
    ('segmentation', dict(backbone__width_factor=2.0), ['decode_head.in_channels=[16, 16, 32, 32]',
                                                        'auxiliary_head.in_channels=32']),
    ('segmentation', dict(backbone__gap_before_final_norm=True, decode_head__in_channels=[1, 2, 3, 4]),
     ['backbone.gap_before_final_norm=False', f'decode_head.in_channels={RIGHT}']),
    ('segmentation', dict(backbone__type='pelk_mm.SLaK', backbone__arch__kernel_sizes=[7, 7, 7, 7],
                          backbone__gap_before_final_norm=True), ['backbone.gap_before_final_norm=False']),
    ('detection', dict(backbone__gap_before_final_norm=True), ['backbone.gap_before_final_norm=False']),
    ('detection', dict(neck__in_channels=[8, 8, 8, 16]), [f'neck.in_channels={RIGHT}']),
    ('one_stage_detection', dict(backbone__out_indices=(0, 1)), ['backbone.out_indices=(0, 1, 2, 3)']),
    ('one_stage_detection', dict(neck=dict(_delete_=True, type='ChannelMapper', in_channels=[8, 8, 16, 24],
                                           out_channels=8)), [f'neck.in_channels={RIGHT}']),
    ('classification', dict(head__in_channels=24), ['head.in_channels=16']),
    ('classification', dict(backbone__gap_before_final_norm=False), ['backbone.gap_before_final_norm=True']),
    ('classification', dict(backbone__out_indices=1), ['head.in_channels=8']),
    ('classification', dict(neck=dict(type='GlobalAveragePooling')), ['backbone.gap_before_final_norm=False']),
]


def error_of(model):
    """The error of a forward pass, explained if it can be."""
    try:
        with explaining_misfits(lambda: model):
            forward(model)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize('task, changes, fixes', CASES, ids=lambda value: str(value)[:60])
def test_the_message_says_what_to_set_and_that_helps(task, changes, fixes):
    cfg, seen = config(task, **changes), []
    while error := error_of(build_model(copy.deepcopy(cfg), 'cpu')):
        assert f'({type(error.__cause__).__name__}: {error.__cause__})' in str(error)
        found = re.findall(r'set model\.([\w.]+)=(.*?)(?=;|, say|\. \()', str(error))
        assert 1 <= len(found) <= len(fixes) - len(seen), str(error)
        cfg.merge_from_dict({f'model.{name}': eval(value) for name, value in found})
        seen += ['='.join(each) for each in found]
    assert seen == fixes


@pytest.mark.parametrize('task', ['classification', 'segmentation', 'detection', 'one_stage_detection'])
def test_models_that_fit_and_other_errors_stay_unchanged(task, monkeypatch):
    model = build_model(tiny_config(task), 'cpu')
    assert error_of(model) is None
    parts = [child for name, child in model.named_children() if name in ('backbone', 'neck', 'head', 'decode_head')]
    assert len(parts) == 2
    for part in parts:
        with monkeypatch.context() as patch:
            patch.setattr(type(part), 'forward', lambda *args: 1 / 0)
            assert type(error_of(model)) is ZeroDivisionError

            def fail(self, *args):
                raise RuntimeError('out of paper')

            patch.setattr(type(part), 'forward', fail)
            assert repr(error_of(model)) == "RuntimeError('out of paper')"


class Gate(nn.Module):
    """A neck of one's own that takes vectors."""

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, 16)

    def forward(self, features):
        return tuple(self.linear(each) for each in features)


def test_parts_of_ones_own_are_not_judged():
    model = build_model(tiny_config('classification'), 'cpu')
    model.neck = Gate(16)
    assert forward(model).shape == (2, 4)
    model.neck = Gate(17)
    assert 'mat1 and mat2 shapes cannot be multiplied (2x16 and 17x16)' in str(error_of(model))
    for get_model in (lambda: model, lambda: None):
        with pytest.raises(RuntimeError, match='^no module ran$'), explaining_misfits(get_model):
            raise RuntimeError('no module ran')


def test_the_backbone_may_lie_inside_of_wrappers():
    model = nn.ModuleDict(dict(module=build_model(config('segmentation', backbone__gap_before_final_norm=True), 'cpu')))
    fits_not = r'^decode_head \(UPerHead\) does not fit the backbone: '
    with pytest.raises(ValueError, match=fits_not), explaining_misfits(lambda: model):
        forward(model['module'])


def test_a_run_ends_with_the_explanation(tmp_path):
    cfg = task_config('classification', tmp_path)
    cfg.model.head.in_channels = 24
    with pytest.raises(ValueError, match=r'takes 24 channels and gets 16: set model.head.in_channels=16. .RuntimeErr'):
        run(cfg, 'train')
    cfg.model.head.in_channels = 16
    run(cfg, 'train')
    assert (tmp_path / 'work/epoch_1.pth').is_file()
