"""Effective receptive fields: nets whose field is known, the published ratios' method, and the tool."""

import json
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from PIL import Image
from torch import nn

from pelk_mm.analysis import build_with_weights
from pelk_mm.analysis.erf import (
    ReceptiveField,
    draw_receptive_fields,
    find_images,
    high_contribution_regions,
    load_images,
    measure_receptive_field,
)
from pelk_mm.models import PeLK
from pelk_mm.testing.tiny_models import tiny_config, write_images

TOOL = 'analysis_tools/visualize_erf.py'


def mean_filter(size=7):
    conv = nn.Conv2d(3, 1, size, padding=size // 2, bias=False)
    nn.init.constant_(conv.weight, 1 / (3 * size * size))
    return conv


def positive_images(shape, count=3):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, 3, *shape, generator=generator) + 0.1 for _ in range(count)]


def regions(field):
    return {region.threshold: (region.side, region.ratio) for region in field.linear_regions()}


def test_one_mean_filter():
    field = measure_receptive_field(mean_filter(), positive_images((21, 31)))
    expected = np.zeros((21, 31))
    expected[7:14, 12:19] = 1 / 49
    np.testing.assert_allclose(field.contributions, expected, rtol=1e-6)
    assert field.feature_shape == (1, 21, 31)
    # 9 of the 49 equal shares are 18.4 %, 25 are 51.0 %.
    area = 21 * 31
    assert regions(field) == {0.2: (5, 25 / area), 0.3: (5, 25 / area), 0.5: (5, 25 / area), 0.99: (7, 49 / area)}


def test_two_mean_filters():
    second = nn.Conv2d(1, 1, 7, padding=3, bias=False)
    nn.init.constant_(second.weight, 1 / 49)
    field = measure_receptive_field(nn.Sequential(mean_filter(), second), positive_images((33, 33)))
    triangle = np.array([1, 2, 3, 4, 5, 6, 7, 6, 5, 4, 3, 2, 1]) / 49
    expected = np.zeros((33, 33))
    expected[10:23, 10:23] = np.outer(triangle, triangle)
    np.testing.assert_allclose(field.contributions, expected, rtol=1e-5)
    # Within +-1 lie (19 / 49)**2 = 15.0 %, within +-2 (29 / 49)**2 = 35.0 %, +-3 57.0 %, +-4 77.0 %, +-5 92.0 %.
    assert {t: side for t, (side, _) in regions(field).items()} == {0.2: 5, 0.3: 5, 0.5: 7, 0.99: 13}


def test_strides_and_the_mean_over_images():
    net = nn.Sequential(nn.Conv2d(3, 2, 4, stride=4, bias=False))
    nn.init.constant_(net[0].weight, 0.5)
    one, many = (measure_receptive_field(net, positive_images((32, 40), count)) for count in (1, 4))
    # The centre of a map of 8 x 10 is its row 4 and column 5: a patch of 4 x 4, two channels, three colours.
    expected = np.zeros((32, 40))
    expected[16:20, 20:24] = 0.5 * 2 * 3
    np.testing.assert_allclose(one.contributions, expected)
    np.testing.assert_allclose(many.contributions, expected)


def test_negative_features_and_gradients_do_not_contribute():
    conv = nn.Conv2d(3, 2, 3, padding=1, bias=False)
    nn.init.zeros_(conv.weight)
    with torch.no_grad():
        conv.weight[0, :, 1, 1] = 1.0
        conv.weight[0, 0, 1, 2] = -0.1
        conv.weight[1, :, 0, 0] = -1.0
    field = measure_receptive_field(conv, [torch.ones(1, 3, 5, 5)])
    assert field.contributions.sum() == field.contributions[2, 2] == 3


def test_scores_are_logarithmic():
    field = ReceptiveField(np.array([[9.0, 0.0], [0.0, 99.0]]), (1, 1, 1))
    np.testing.assert_allclose(field.scores, [[0.5, 0], [0, 1]])
    # The centre, row and column 1, has two thirds of the scores, and 92 % of the contributions.
    assert [region.side for region in field.regions((0.66, 0.9))] == [1, 3]
    assert [region.side for region in field.linear_regions((0.66, 0.9))] == [1, 1]


def test_squares_are_cut_at_the_border():
    scores = np.zeros((4, 9))
    scores[2, 4], scores[2, 0] = 1, 1
    small, large = high_contribution_regions(scores, (0.5, 0.99))
    assert (small.side, small.ratio) == (1, 1 / 36)
    assert (large.side, large.ratio) == (9, 1.0)


@pytest.mark.parametrize(('scores', 'thresholds', 'message'), [
    (np.ones((3, 3)), (0.0, ), r'thresholds must be in \(0, 1\], got 0.0'),
    (np.ones((3, 3)), (1.5, ), r'thresholds must be in \(0, 1\], got 1.5'),
    (np.zeros((3, 3)), (0.5, ), 'scores must have a positive sum'),
])
def test_wrong_scores(scores, thresholds, message):
    with pytest.raises(ValueError, match=message):
        high_contribution_regions(scores, thresholds)


@pytest.mark.parametrize(('net', 'images', 'message'), [
    (mean_filter(), [], 'images must hold at least one image'),
    (nn.Sequential(mean_filter(), nn.Flatten()), positive_images((9, 9)),
     r'Sequential must return a feature map \(1, C, h, w\) last, got \(1, 81\)'),
    (mean_filter(), [-image for image in positive_images((9, 9))], 'no pixel contributes'),
    (nn.Sequential(mean_filter(), nn.GELU()), [image * torch.nan for image in positive_images((9, 9))],
     'the gradients of Sequential are not finite'),
])
def test_fields_that_cannot_be_measured_are_refused(net, images, message):
    with pytest.raises(ValueError, match=message):
        measure_receptive_field(net, images)


def test_classification_backbones_return_maps():
    backbone = PeLK('atto', kernel_sizes=(7, 7, 7, 7))
    assert backbone.gap_before_final_norm
    assert measure_receptive_field(backbone, positive_images((64, 96), 1)).feature_shape == (249, 2, 3)


@pytest.mark.parametrize('name', [
    'mmpretrain::resnet/resnet18_8xb32_in1k.py', 'mmpretrain::deit/deit-tiny_4xb256_in1k.py',
    'mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py'
])
def test_backbones_of_the_toolboxes(name, tmp_path):
    cfg = Config.fromstring(f'_base_ = {name!r}', '.py')
    model = build_with_weights(cfg)
    Image.new('RGB', (30, 20), (200, 100, 50)).save(tmp_path / 'image.png')
    size = model.backbone.patch_embed.init_input_size if 'deit' in name else (64, 64)
    field = measure_receptive_field(model, load_images([tmp_path / 'image.png'], tuple(size), model))
    assert field.contributions.shape == tuple(size)
    assert field.feature_shape[0] == (192 if 'deit' in name else 512)


def test_map_before_the_final_norm():
    """A norm that doubles the features, and contributions without it."""
    norm = nn.BatchNorm2d(1, eps=0.0)
    norm.weight.data.fill_(2.0)
    net = nn.Sequential(mean_filter(), norm)
    images = positive_images((21, 31))
    after, before = (measure_receptive_field(net, images, before_norm=flag).contributions for flag in (False, True))
    np.testing.assert_allclose(before, measure_receptive_field(mean_filter(), images).contributions, rtol=1e-6)
    np.testing.assert_allclose(after, 2 * before, rtol=1e-6)
    # Nothing is left behind, and a norm that is not the last one stays.
    np.testing.assert_allclose(measure_receptive_field(net, images).contributions, after)
    inner = nn.Sequential(mean_filter(), norm, nn.ReLU())
    np.testing.assert_allclose(measure_receptive_field(inner, images, before_norm=True).contributions, after)


@pytest.mark.parametrize('backbone, norm', [
    (dict(type='pelk_mm.PeLK', arch='atto', kernel_sizes=(7, 7, 7, 7)), 'norm3'),
    (dict(type='mmpretrain.ConvNeXt', arch='atto'), 'norm3'),
    (dict(type='mmpretrain.SwinTransformer', arch='tiny', pad_small_map=True), 'norm3'),
    (dict(type='mmpretrain.ResNet', depth=18), None),
], ids=['pelk', 'convnext', 'swin', 'resnet'])
def test_final_norms_of_backbones(backbone, norm):
    torch.manual_seed(0)
    net, images = MODELS.build(dict(backbone)), positive_images((64, 64), 1)
    if norm:
        getattr(net, norm).weight.data.mul_(3.0)
    after, before = (measure_receptive_field(net, images, before_norm=flag).contributions for flag in (False, True))
    if norm is None:
        np.testing.assert_array_equal(after, before)
        return
    setattr(net, norm, nn.Identity())
    np.testing.assert_allclose(before, measure_receptive_field(net, images).contributions, rtol=1e-5)
    assert not np.allclose(before, after, rtol=0.1)


def test_images_are_found_and_prepared(tmp_path):
    (tmp_path / 'sub').mkdir()
    for index in range(6):
        Image.new('RGB', (8, 6), (10, 20, 30 + index)).save(tmp_path / ('sub' if index % 2 else '.') / f'{index}.PNG')
    (tmp_path / 'labels.txt').touch()
    paths = find_images(tmp_path, 3)
    assert [path.name for path in paths] == ['0.PNG', '4.PNG', '3.PNG']
    assert len(find_images(tmp_path, 50)) == 6
    # In the order of their names: 0, 2, 4, then sub/1, sub/3, sub/5.
    assert [path.name for path in find_images(tmp_path, 4, first=True)] == ['0.PNG', '2.PNG', '4.PNG', '1.PNG']
    assert len(find_images(tmp_path, 50, first=True)) == 6
    for kind, flag, expected in (('mmpretrain.ClsDataPreprocessor', 'to_rgb', (10, 20, 30)),
                                 ('mmseg.SegDataPreProcessor', 'bgr_to_rgb', (10, 20, 30)),
                                 ('mmdet.DetDataPreprocessor', 'rgb_to_bgr', (10, 20, 30)),
                                 ('mmpretrain.ClsDataPreprocessor', None, (30, 20, 10))):
        cfg = dict(type=kind, mean=[1.0, 2.0, 3.0], std=[2.0, 2.0, 2.0]) | ({flag: True} if flag else {})
        model = nn.Sequential(OrderedDict(data_preprocessor=MODELS.build(cfg), backbone=nn.Conv2d(3, 1, 1)))
        image, = load_images(paths[:1], (12, 20), model)
        assert image.shape == (1, 3, 12, 20)
        for value, mean, got in zip(expected, (1, 2, 3), image[0]):
            torch.testing.assert_close(got, torch.full((12, 20), (value - mean) / 2))


@pytest.mark.parametrize(('folder', 'count', 'error', 'message'), [
    ('missing', 3, FileNotFoundError, 'there is no folder .*missing'),
    ('.', 3, FileNotFoundError, 'no image in .* or below it: expected files with .*\\.png'),
    ('.', 0, ValueError, 'the number of images must be positive, got 0'),
])
def test_wrong_folders(folder, count, error, message, tmp_path):
    with pytest.raises(error, match=message):
        find_images(tmp_path / folder, count)


def test_squares_of_the_figure_are_the_regions():
    field = measure_receptive_field(mean_filter(), positive_images((21, 21)))
    figure = draw_receptive_fields([[field, field]], ['one', 'two'])
    axis = figure.axes[1]
    assert axis.get_title() == 'two, 21 x 21'
    assert [patch.get_width() for patch in axis.patches] == [5, 5, 5, 7]
    assert axis.patches[3].get_xy() == (6.5, 6.5)
    assert axis.images[0].get_array().max() == 0
    assert axis.images[0].get_array().min() == -6


def test_tool(tmp_path, run_tool):
    images, out, checkpoint, config = (tmp_path / name for name in ('images', 'out', 'checkpoint.pth', 'tiny.py'))
    images.mkdir()
    write_images(images, 2)
    tiny_config('classification').dump(str(config))
    trained = build_with_weights(Config.fromfile(config), seed=7)
    torch.save(dict(state_dict=trained.state_dict()), checkpoint)
    code, printed = run_tool(TOOL, config, config, '--checkpoints', 'none', checkpoint, '--images', images, '--sizes',
                             '64', '48x80', '--out', out, '--names', 'random', 'trained', '--first-images',
                             '--before-norm')
    assert code == 0, printed
    numbers = json.loads((out / 'erf.json').read_text())
    assert numbers['num_images'] == 2
    assert [model['name'] for model in numbers['models']] == ['random', 'trained']
    assert [entry['shape'] for entry in numbers['models'][1]['sizes']] == [[64, 64], [48, 80]]
    assert [entry['feature_shape'] for entry in numbers['models'][1]['sizes']] == [[16, 2, 2], [16, 1, 2]]
    first, second = (model['sizes'][0]['linear_regions'] for model in numbers['models'])
    assert [region['threshold'] for region in first] == [0.2, 0.3, 0.5, 0.99]
    assert all(0 < region['ratio'] <= 1 for region in first + second)
    assert (numbers['first_images'], numbers['before_norm']) == (True, True)
    field = measure_receptive_field(
        trained, load_images(find_images(images, 2), (64, 64), trained), before_norm=True)
    assert second == [vars(region) for region in field.linear_regions()]
    assert Image.open(out / 'erf.png').size[0] > 500
    assert 'images: all of them are used' in printed
    with pytest.raises(FileExistsError, match='erf.png exists and is not overwritten'):
        run_tool(TOOL, config, '--images', images, '--out', out)
    code, printed = run_tool(TOOL, config, config, '--checkpoints', 'none', '--images', images)
    assert code == 2
    assert '--checkpoints needs one for each of the 2 configs, got 1' in printed
