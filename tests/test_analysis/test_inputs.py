"""Number of channels that a model takes, and the tools that ask for it."""

import json

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from pelk_mm.analysis import build_model, count_complexity
from pelk_mm.analysis.erf import load_images
from pelk_mm.analysis.inputs import count_channels, displayable, fit_channels, normalisation
from pelk_mm.engine.launch import load_config
from pelk_mm.testing.tiny_models import tiny_config, write_images


def with_channels(task, channels):
    cfg = tiny_config(task)
    cfg.model.backbone.in_channels = channels
    cfg.model.data_preprocessor.update(mean=[120.0], std=[60.0])
    cfg.model.data_preprocessor.pop('bgr_to_rgb', None)
    return cfg


@pytest.mark.parametrize('channels', [1, 3, 4, 6])
@pytest.mark.parametrize('task', ['classification', 'segmentation', 'detection', 'one_stage_detection'])
def test_channels_are_those_of_the_backbone(task, channels):
    assert count_channels(build_model(with_channels(task, channels))) == channels


def test_another_number_of_means_is_refused():
    cfg = tiny_config('classification')
    cfg.model.backbone.in_channels = 6
    model = build_model(cfg)
    assert count_channels(model) == 6
    with pytest.raises(ValueError, match='mean must have 1 or 6 values, .* got 3'):
        normalisation(model.data_preprocessor, 6)
    mean, std = normalisation(model.data_preprocessor, 3)
    assert (mean.shape, std.shape) == ((3, 1, 1), (3, 1, 1))


@pytest.mark.parametrize(('config', 'channels'), [
    ('mmpretrain::resnet/resnet18_8xb16_cifar10.py', 3),
    ('mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py', 3),
    ('mmpretrain::lenet/lenet5_mnist.py', 1),
    # Its first convolution takes four pixels at once, 12 channels.
    ('mmdet::yolox/yolox_tiny_8xb8-300e_coco.py', 3),
])
def test_channels_of_other_backbones(config, channels):
    assert count_channels(build_model(load_config(config))) == channels


def test_modules_without_convolutions_take_colours():
    assert count_channels(nn.Linear(3, 2)) == 3
    assert count_channels(nn.Sequential(nn.ReLU(), nn.Conv2d(5, 2, 1))) == 5


@pytest.mark.parametrize('channels', [1, 6])
@pytest.mark.parametrize('task', ['classification', 'segmentation', 'detection'])
def test_costs(task, channels):
    """Only the stem depends on the channels."""
    models = [build_model(with_channels(task, count)) for count in (3, channels)]
    colours, others = (count_complexity(model, (64, 64)).total.macs for model in models)
    stem = next(module for module in models[0].backbone.modules() if isinstance(module, nn.Conv2d))
    side = 64 // stem.stride[0]
    assert others - colours == (channels - 3) * stem.out_channels * stem.weight[0, 0].numel() * side * side


@pytest.mark.parametrize('channels', [1, 4, 6])
def test_receptive_fields(channels, tmp_path, run_tool):
    with_channels('classification', channels).dump(str(tmp_path / 'config.py'))
    (tmp_path / 'images').mkdir()
    images = write_images(tmp_path / 'images', 1)
    code, printed = run_tool('analysis_tools/visualize_erf.py', tmp_path / 'config.py', '--images', images, '--sizes',
                             64, '--num-images', 1, '--device', 'cpu', '--out', tmp_path / 'out')
    assert code == 0, printed
    numbers = json.loads((tmp_path / 'out' / 'erf.json').read_text())
    region = numbers['models'][0]['sizes'][0]['regions'][-1]
    assert 0 < region['ratio'] <= 1


def test_images_for_other_channels(tmp_path):
    file = write_images(tmp_path, 1) / '0.png'
    image = cv2.imread(str(file))
    six = build_model(with_channels('classification', 6), 'cpu')
    tensor, = load_images([file], image.shape[:2], six)
    expected = (torch.from_numpy(image).permute(2, 0, 1).float() - 120) / 60
    torch.testing.assert_close(tensor[0], torch.cat([expected, expected]))
    grey, = load_images([file], (8, 8), build_model(with_channels('classification', 1), 'cpu'))
    assert grey.shape == (1, 1, 8, 8)
    loaded, = load_images([file], (8, 8), six, lambda path: np.full((4, 4, 6), 180, np.float32))
    assert loaded.unique().tolist() == [1.0]


def test_grey_and_colours_become_each_other():
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (4, 5, 3), np.uint8)
    grey = fit_channels(colours, 1, 'image')
    assert (grey.shape, grey.dtype) == ((4, 5, 1), np.uint8)
    np.testing.assert_array_equal(fit_channels(grey[..., 0], 3, 'image'), np.repeat(grey, 3, 2))
    with pytest.raises(ValueError, match='a.png has 4 channels, and the model takes 3'):
        fit_channels(np.zeros((4, 5, 4)), 3, 'a.png')


@pytest.mark.parametrize(('image', 'expected'), [
    (np.full((2, 2), 7, np.uint8), 7),
    (np.full((2, 2, 6), 7, np.uint8), 7),
    (np.full((2, 2, 1), 65535, np.uint16), 255),
    (np.full((2, 2, 3), 100, np.float32), 100),
    (np.full((2, 2, 2), 0.5), 255),
], ids=['grey', 'six', '16 bits', 'floats', 'unit'])
def test_any_image_can_be_shown(image, expected):
    shown = displayable(image)
    assert (shown.shape, shown.dtype) == ((2, 2, 3), np.uint8)
    assert set(shown.ravel().tolist()) == {expected}
