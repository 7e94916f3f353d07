"""A grown ConvNeXt as a user gets it: the tool, its checkpoint in a config, checked, loaded, deployed, exported."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper

from pelk_mm.analysis import build_model
from pelk_mm.checkpoints.pretrained import PretrainedBackbone
from pelk_mm.deploy import load_trained
from pelk_mm.engine.launch import load_config
from pelk_mm.testing.tiny_models import tiny_config, write_images

from ..test_nets.convnexts import DEPTHS, WIDTHS, logits_of, make_source, relative

GROW = 'model_converters/grow_convnext.py'


def grown_config(path, printed):
    """A classifier whose backbone is what the tool prints."""
    cfg = tiny_config('classification')
    cfg.model.backbone = eval(printed.rpartition('backbone: ')[2])
    cfg.model.head.update(in_channels=WIDTHS[-1], num_classes=5)
    cfg.model.data_preprocessor.num_classes = 5
    cfg.dump(path)
    return path


@pytest.fixture(params=[False, True], ids=['V1', 'V2'])
def grown(request, tmp_path, printed_by):
    """The source, the file made of it, a config for it, and what the tool printed."""
    source = make_source('facebookresearch', request.param)
    torch.save(dict(model=source.state_dict(), optimizer={}), tmp_path / 'convnext.pth')
    printed = printed_by(GROW, tmp_path / 'convnext.pth', tmp_path / 'grown.pth', '--kernel-sizes', 15, 13, 11, 9,
                         '--position-embedding', '--shape', 96, 64)
    return source, tmp_path / 'grown.pth', grown_config(tmp_path / 'grown.py', printed), printed


def test_the_tool_proves_and_its_checkpoint_is_complete(grown, printed_by):
    source, checkpoint, config, printed = grown
    count = len(source.state_dict())
    assert f'{count} tensors with the names of facebookresearch: {count - 2} of the backbone, 2 outside' in printed
    differences = [float(line.rpartition(' ')[2]) for line in printed.splitlines() if line.startswith('stage ')]
    assert len(differences) == 4
    assert 0 < max(differences) < 1e-5
    assert 'stage 1: K = 7 -> 15, 121 parameters a channel' in printed
    assert 'not in the source, and not written: norm0, norm1, norm2' in printed
    assert 'outside the backbone, kept: head.fc.weight' in printed
    cfg = load_config(str(config))
    arch = dict(depths=DEPTHS, channels=WIDTHS, kernel_sizes=(15, 13, 11, 9), center=7)
    assert {key: tuple(value) if key != 'center' else value for key, value in cfg.model.backbone.arch.items()} == arch
    settings = dict(type='pelk_mm.PeLK', conv_ratio=1.0, width_factor=1.0, small_kernel=None, branch_norm_cfg=None,
                    position_embedding=True)
    assert {key: cfg.model.backbone[key] for key in settings} == settings
    assert cfg.model.backbone.get('use_grn', False) == any('grn' in name for name in source.state_dict())
    model, meta = load_trained(cfg, str(checkpoint))
    assert meta['grown_from'] == 'convnext.pth'
    images = torch.rand(2, 3, 64, 52)
    with torch.no_grad():
        assert relative(model(images), logits_of(source, images)) < 1e-5
    before = checkpoint.read_bytes()
    printed = printed_by(GROW, checkpoint.with_name('convnext.pth'), checkpoint, code=2)
    assert checkpoint.read_bytes() == before
    assert 'exists and is not overwritten' in printed


def test_everything_else_knows_the_result(grown, tmp_path, printed_by):
    _, checkpoint, config, _ = grown
    printed_by('misc/check_checkpoint.py', checkpoint, config)
    printed = printed_by('misc/check_checkpoint.py', tmp_path / 'convnext.pth', config, code=1)
    assert 'the names are those of a ConvNeXt (facebookresearch), which can be grown: with that' in printed
    fix = next(line.split() for line in printed.splitlines() if 'grow_convnext.py' in line)
    assert fix[-6:] == ['--position-embedding', '--kernel-sizes', '15', '13', '11', '9']
    printed_by(GROW, *fix[fix.index('tools/' + GROW) + 1:])
    assert torch.load(tmp_path / 'convnext_grown.pth').keys() == torch.load(checkpoint).keys()
    cfg = load_config(str(config))
    model = build_model(cfg, 'cpu')
    # Downsampling has the same names: only that fits, and would leave the blocks as they are initialised.
    with pytest.raises(ValueError, match=r'is a ConvNeXt, .* e\.g\. stages\.0\.0\.dwconv\.weight: grow it first by'):
        PretrainedBackbone(str(tmp_path / 'convnext.pth'))(model.backbone)
    match = PretrainedBackbone(str(checkpoint))(model.backbone)
    assert (match.missing, match.unused, match.other_shapes) == ([], [], [])
    wrapper = build_optim_wrapper(model, dict(
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
        constructor='pelk_mm.LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=0.5, decay_type='layer_wise', flat_decay_mult=0.0)))
    settings = {id(parameter): (group['lr'], group['weight_decay'])
                for group in wrapper.optimizer.param_groups for parameter in group['params']}
    block = model.backbone.stages[0].blocks[0]
    assert settings[id(block.mixer.mixer.large.weight)] == (0.5**6, 0.05)
    scale = block.gamma if block.grn is None else block.grn.gamma
    assert settings[id(scale)] == (0.5**6, 0.0)


@pytest.mark.slow
def test_deployed_and_exported(grown, tmp_path, printed_by):
    source, checkpoint, config, _ = grown
    (tmp_path / 'images').mkdir()
    images = ('--images', write_images(tmp_path / 'images'))
    switch = ('model_converters/switch_to_deploy.py', config, checkpoint, tmp_path / 'deployed.pth')
    printed_by(*switch, *images)
    assert not any('position_embedding' in name
                   for name in torch.load(tmp_path / 'deployed.pth', weights_only=True)['state_dict'])
    # Without the embedding there is nothing to merge, and that is fine.
    cfg = load_config(str(config))
    cfg.model.backbone.position_embedding = False
    cfg.dump(tmp_path / 'plain.py')
    saved = torch.load(checkpoint, weights_only=True)
    saved['state_dict'] = {k: v for k, v in saved['state_dict'].items() if 'position_embedding' not in k}
    torch.save(saved, tmp_path / 'plain.pth')
    plain = ('model_converters/switch_to_deploy.py', tmp_path / 'plain.py', tmp_path / 'plain.pth')
    printed_by(*plain, tmp_path / 'plain_deployed.pth', *images)
    if not any('grn' in name for name in source.state_dict()):
        # A block of V1 is exported by test_export_and_demo; only V2 has a part that no other exported model has.
        return
    printed_by('model_converters/export.py', tmp_path / 'deployed.py', tmp_path / 'deployed.pth',
               tmp_path / 'grown.onnx', '--timing-seconds', 0, *images)


def test_a_segmentor_and_safetensors(tmp_path, printed_by):
    safetensors = pytest.importorskip('safetensors.torch')
    source = make_source('facebookresearch')
    weights = {f'backbone.{name}': value.clone() for name, value in source.state_dict().items()
               if not name.startswith(('head', 'norm'))}
    safetensors.save_file({**weights, 'backbone.norm2.weight': torch.rand(16), 'backbone.norm2.bias': torch.rand(16),
                           'decode_head.conv_seg.weight': torch.rand(4, 8, 1, 1)}, tmp_path / 'seg.safetensors')
    files = tmp_path / 'seg.safetensors', tmp_path / 'seg.pth'
    printed_by(GROW, *files, '--kernel-sizes', 15, 13, 11, 9)
    saved = torch.load(tmp_path / 'seg.pth', weights_only=True)['state_dict']
    assert 'decode_head.conv_seg.weight' in saved
    assert {name for name in saved if '.norm' in name and 'stages' not in name} == {
        'backbone.norm2.weight', 'backbone.norm2.bias'}
    assert 'backbone.stages.3.blocks.0.gamma' in saved


def test_a_file_without_a_convnext_writes_nothing(tmp_path, run_tool, printed_by):
    torch.save(dict(state_dict=dict(weight=torch.ones(1))), tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='no ConvNeXt with the names of facebookresearch, mmpretrain, timm'):
        run_tool(GROW, tmp_path / 'other.pth', tmp_path / 'grown.pth')
    torch.save(make_source('facebookresearch').state_dict(), tmp_path / 'convnext.pth')
    printed = printed_by(GROW, tmp_path / 'convnext.pth', tmp_path / 'grown.pth', '--tolerance', 0, code=1)
    assert 'NOT equal within 0. Nothing is written.' in printed
    assert not (tmp_path / 'grown.pth').exists()


def test_a_head_with_a_hidden_layer_is_left_out(tmp_path, printed_by):
    weights = make_source('facebookresearch').state_dict()
    torch.save({**weights, 'head.pre_logits.fc.weight': torch.rand(20, 20)}, tmp_path / 'mlp.pth')
    printed = printed_by(GROW, tmp_path / 'mlp.pth', tmp_path / 'grown.pth', '--kernel-sizes', 15, 13, 11, 9)
    assert 'left out (the head has a hidden layer): head.fc.weight' in printed
    saved = torch.load(tmp_path / 'grown.pth', weights_only=True)['state_dict']
    assert not any(name.startswith('head') for name in saved)
