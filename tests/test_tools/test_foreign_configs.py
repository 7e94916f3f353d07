"""Tools with configs of the toolboxes themselves, named by their prefix, whose backbones are not ours."""

import json

import pytest
import torch

from pelk_mm.analysis import build_model
from pelk_mm.engine.launch import load_config
from pelk_mm.testing.random_weights import randomise
from pelk_mm.testing.tiny_models import write_images

RESNET = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
FCN = 'mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py'


def test_costs(run_tool):
    _, printed = run_tool('analysis_tools/get_flops.py', RESNET, '--json')
    counts = json.loads(printed.splitlines()[-1])
    # As published.
    assert counts['mparams'] == pytest.approx(25.56, abs=0.01)
    assert counts['gmacs'] == pytest.approx(4.09, abs=0.01)


def test_the_preprocessor_beside_the_model_belongs_to_it():
    """Without it an exported classifier would not normalise its input."""
    preprocessor = build_model(load_config(RESNET), 'cpu').data_preprocessor
    assert preprocessor.mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert preprocessor.to_rgb is True


def test_norms_of_heads_are_folded_and_proven(printed_by, tmp_path):
    images = write_images(tmp_path, 1)
    model = build_model(load_config(FCN), 'cpu')
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'fcn.pth')
    printed_by('model_converters/switch_to_deploy.py', FCN, tmp_path / 'fcn.pth', tmp_path / 'out.pth',
               '--json', tmp_path / 'errors.json', '--images', images, '--cfg-options',
               'test_dataloader.dataset.pipeline.1.scale=(64,32)')
    numbers = json.loads((tmp_path / 'errors.json').read_text())
    layers = {each['name']: each for each in numbers['differences']}
    assert [name for name, each in layers.items() if each['alone']] == [
        'decode_head.convs.0', 'decode_head.convs.1', 'decode_head.conv_cat'
    ]  # yapf: disable
    assert {'backbone.layer1', 'backbone.layer4', 'backbone', 'output'} <= set(layers)
    assert max(each['relative'] for each in layers.values()) < 1e-5
    assert (numbers['images'], numbers['detections']) == (1, None)
    assert numbers['parameters'][0] > numbers['parameters'][1] > 12e6
    assert (tmp_path / 'out.py').exists()


def test_a_mask2former_of_mmseg_is_deployed_and_proven(printed_by, tmp_path):
    """Its ``_forward`` takes no images without data samples; the comparison goes by ``encode_decode``."""
    backbone = dict(_delete_=True, type='pelk_mm.PeLK', arch='atto', out_indices=[0, 1, 2, 3])
    (tmp_path / 'mask2former.py').write_text(f"""
_base_ = 'mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py'
custom_imports = dict(imports=['pelk_mm.models'], allow_failed_imports=False)
model = dict(backbone=dict(gap_before_final_norm=False, **{backbone}), data_preprocessor=dict(size=(64, 64)),
             decode_head=dict(in_channels=[31, 62, 124, 249], num_queries=10))
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64)), dict(type='PackSegInputs')]))
""")
    model = build_model(load_config(str(tmp_path / 'mask2former.py')), 'cpu')
    torch.save(dict(state_dict=randomise(model).state_dict()), tmp_path / 'mask2former.pth')
    printed_by('model_converters/switch_to_deploy.py', tmp_path / 'mask2former.py',
               tmp_path / 'mask2former.pth', tmp_path / 'out.pth', '--json', tmp_path / 'errors.json',
               '--images', write_images(tmp_path, 1))
    numbers = json.loads((tmp_path / 'errors.json').read_text())
    assert {'backbone', 'output'} <= {each['name'] for each in numbers['differences']}
    assert max(each['relative'] for each in numbers['differences']) < 1e-4
    assert numbers['predictions']['decisions'] == 64 * 80
    assert numbers['predictions']['equal'] >= 0.999 * 64 * 80
    assert (tmp_path / 'out.pth').exists()
