"""The ablations: every row of the paper's tables has its config, and a form for the built-in data."""

from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from pelk_mm.analysis import build_model, load_paper_tables
from pelk_mm.models import PeLK
from pelk_mm.ops import SharingGrid, peripheral_conv2d
from pelk_mm.reports.digits_configs import DIGITS, scale_config_to_digits

from .helpers.config_tree import ROOT, load, metafile_entries

# By folder: the entries of its metafile, and the rows that the paper prints.
ENTRIES = {
    file.parent.name: [entry for entry in metafile_entries() if (ROOT / entry['Config']).parent == file.parent]
    for file in sorted((ROOT / 'configs/ablations').glob('*/metafile.yml'))
}
ROWS = {table: content['rows'] for table, content in load_paper_tables().items() if table in ENTRIES}
CONFIGS = [entry['Config'] for entries in ENTRIES.values() for entry in entries]


@cache
def scaled(path: str) -> Config:
    return scale_config_to_digits(load(path))


def sparsity_hooks(cfg: Config) -> list:
    return [hook for hook in cfg.get('custom_hooks', []) if hook.type == 'pelk_mm.DynamicSparsityHook']


def grids(cfg: Config) -> list:
    return build_model(Config(dict(model=cfg.model.backbone, default_scope=cfg.default_scope))).grids


def test_every_config_has_a_row():
    """Metafiles list them in the paper's order; their figures are compared in tests/test_recipes."""
    files = {str(path.relative_to(ROOT)) for path in (ROOT / 'configs/ablations').glob('*/*.py')}
    assert files == set(CONFIGS)
    assert len(files) == len(CONFIGS) == 51
    for table, entries in ENTRIES.items():
        assert (ROOT / 'configs/ablations' / table / 'README.md').is_file()
        assert len({tuple(entry['Metadata']['Ablation']) for entry in entries}) == 1
    for table, rows in ROWS.items():
        assert [entry['Config'] for entry in ENTRIES[table]] == [path for row in rows for path in row['configs']]


@pytest.mark.parametrize('row', ROWS['table1_dense_vs_stripe'])
def test_table1(row):
    cls, seg = map(load, row['configs'])
    assert (cls.train_cfg.max_epochs, seg.train_cfg.max_iters) == (120, 80000)
    for cfg in (cls, seg):
        backbone = build_model(cfg).backbone
        assert backbone.channels == ((124, 249, 499, 998) if row['sparsity'] else (96, 192, 384, 768))
        sizes = {tuple(conv.weight.shape[-2:]) for conv in backbone.stages[0].blocks[0].mixer.modules()
                 if isinstance(getattr(conv, 'weight', None), torch.Tensor) and conv.weight.ndim == 4}
        assert sizes == ({(51, 5), (5, 51), (5, 5)} if 'SLaK' in row['method'] else {(51, 51), (5, 5)})
        # Every channel is convolved.
        assert next(backbone.stages[0].blocks[0].mixer.parameters()).shape[0] == backbone.channels[0]
    assert [hook.sparsity for hook in sparsity_hooks(cls)] == [0.4] * row['sparsity']
    # As in SLaK's 80k file the zeros are loaded and not kept.
    assert sparsity_hooks(seg) == []


@pytest.mark.parametrize('row', ROWS['table5_sharing_grid'])
def test_table5(row):
    cfg = load(row['configs'][0])
    half = [1] * 17 if isinstance(row['grid'], str) else row['grid']
    assert [list(grid.half) for grid in grids(cfg)] == [half] * 4
    assert SharingGrid.from_half(half).kernel_size == 33
    assert round(SharingGrid.from_half(half).stored_ratio, 2) == row['param_ratio']
    assert not sparsity_hooks(cfg)
    assert (cfg.model.backbone.width_factor, cfg.model.backbone.position_embedding) == (1.0, False)
    assert cfg.train_cfg.max_epochs == 120


def test_a_table5_kernel_has_the_share_of_parameters_of_its_grid():
    stored = []
    for row in ROWS['table5_sharing_grid']:
        convs = [block.mixer.mixer.large for stage in build_model(load(row['configs'][0])).backbone.stages
                 for block in stage.blocks]
        stored.append(sum(conv.weight.numel() for conv in convs))
    ratios = [row['param_ratio'] for row in ROWS['table5_sharing_grid']]
    assert [round(count / stored[0], 2) for count in stored] == ratios


@pytest.mark.parametrize('row', ROWS['table6_central_region'])
def test_table6(row):
    cfg = load(row['configs'][0])
    first, *rest = grids(cfg)
    assert (list(first.half), first.kernel_size, first.center) == (row['grid'], 51, row['centre'])
    assert [(grid.kernel_size, grid.center) for grid in rest] == [(size, row['centre']) for size in (49, 47, 13)]
    assert build_model(cfg).backbone.stages[0].position_embedding is not None
    assert [hook.sparsity for hook in sparsity_hooks(cfg)] == [0.4]


@pytest.mark.parametrize('row', ROWS['table7_kernel_sizes'])
def test_table7(row):
    cfg, plain = load(row['configs'][0]), load('configs/imagenet/pelk-tiny_32xb128-120e_in1k.py')
    assert [grid.kernel_size for grid in grids(cfg)] == row['kernels']
    assert {grid.center for grid in grids(cfg)} == {5 if row['model'] == 'PeLK' else 7}
    assert cfg.train_dataloader.dataset.pipeline[1].scale == row['size']
    for part in ('custom_hooks', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'auto_scale_lr'):
        assert cfg[part] == plain[part]


def test_kernels_of_fig2():
    """Classifiers and segmentors have the same five kernels in both forms, without sparsity, at ConvNeXt's width."""
    kernels = {(scope, form): [] for scope in ('mmpretrain', 'mmseg') for form in ('dense', 'stripe')}
    for entry in ENTRIES['fig2_kernel_size']:
        cfg = load(entry['Config'])
        backbone = build_model(cfg).backbone
        sizes = [grid.kernel_size for grid in backbone.grids] if hasattr(backbone, 'grids') else backbone.kernel_sizes
        assert all(grid.is_dense for grid in getattr(backbone, 'grids', ()))
        assert backbone.channels[0] == 96
        assert not sparsity_hooks(cfg)
        kernels[cfg.default_scope, entry['Metadata']['Ablation']['Form']].append(tuple(sizes))
        assert entry['Metadata']['Ablation']['Kernel'].startswith(f'{sizes[0]}x')
    assert [sizes[0] for sizes in kernels['mmseg', 'dense']] == [7, 13, 25, 31, 51]
    assert len(set(map(tuple, kernels.values()))) == 1


@pytest.mark.parametrize('table, option, values', [
    ('position_embedding', 'position_embedding', [True, False]),
    ('small_kernel', 'small_kernel', [5, None]),
    ('conv_ratio', 'conv_ratio', [1 / 4, 3 / 8, 1 / 2, 1]),
])
def test_switches(table, option, values):
    """One option differs, and is there as it is in PeLK-T."""
    defaults = dict(position_embedding=True, small_kernel=5, conv_ratio=3 / 8)
    plain = load('configs/imagenet/pelk-tiny_32xb128-120e_in1k.py').to_dict()
    found = []
    for entry in ENTRIES[table]:
        cfg = load(entry['Config']).to_dict()
        found.append(cfg['model']['backbone'].pop(option, defaults[option]))
        assert cfg == plain
    assert found == values


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: Path(path).stem)
def test_rows_scaled_to_digits(path):
    cfg, row = scaled(path), load(path)
    assert 'digit_scenes' in cfg.train_dataloader.dataset.data_root
    unit, length = DIGITS[cfg.default_scope][1:]
    assert cfg.train_cfg[unit] == length == cfg.param_scheduler[-1].end
    assert cfg.val_cfg is cfg.val_dataloader is cfg.val_evaluator is None
    for key in ('type', 'width_factor', 'conv_ratio', 'small_kernel', 'position_embedding'):
        assert cfg.model.backbone.get(key) == row.model.backbone.get(key)
    assert [hook.type for hook in cfg.custom_hooks] == [hook.type for hook in sparsity_hooks(row)]
    model = build_model(cfg)
    side = 128 if cfg.default_scope == 'mmseg' else 112 if '384px' in path else 64
    with torch.no_grad():
        features = model.backbone(torch.empty(1, 3, side, side, device='meta'))
    widths = [feature.shape[1] for feature in features]
    if cfg.default_scope == 'mmseg':
        assert model.decode_head.in_channels == widths
        assert model.auxiliary_head.in_channels == widths[2]
    else:
        assert model.head.in_channels == widths[-1]
        resized = [step.scale for step in cfg.train_dataloader.dataset.pipeline if step.type == 'Resize']
        assert resized == [112] * ('384px' in path)


def test_kernels_on_digits():
    """By hand: 2 * map - 1 with maps of 16, 8, 4 and 2 pixels, at least 7."""

    def kernels(stem):
        path = next(path for path in CONFIGS if Path(path).stem == f'{stem}_32xb128-120e_in1k')
        return scaled(path).model.backbone.kernel_sizes

    assert kernels('slak-51-tiny') == [31, 15, 7, 7]
    assert kernels('stripe-13-tiny') == [13, 13, 7, 7]
    assert kernels('replk-51-tiny') == [[1] * 16, [1] * 8, [1] * 4, [1] * 4]
    assert kernels('pelk-33-tiny_8-4-2-1-1-1') == [[7, 4, 2, 1, 1, 1], [3, 2, 1, 1, 1], [1] * 4, [1] * 4]
    assert kernels('pelk-33-tiny_1-1-2-4-8-1') == [[1, 2, 4, 8, 1], [7, 1], [3, 1], [3, 1]]
    assert kernels('pelk-tiny_center-1') == [[1, 8, 4, 2, 1], [1, 4, 2, 1], [1, 2, 1], [1, 2, 1]]


@pytest.mark.parametrize('row', ROWS['table5_sharing_grid'][1:])
def test_cut_kernels_do_the_same_on_maps_of_digits(row):
    """Cells that were cut off met only padding."""
    cfg, cut = load(row['configs'][0]), scaled(row['configs'][0]).model.backbone.kernel_sizes
    generator = torch.Generator().manual_seed(0)
    for whole, half, side in zip(grids(cfg), cut, (16, 8, 4, 2)):
        part = SharingGrid.from_half(half)
        theta = torch.randn(3, whole.num_cells, whole.num_cells, generator=generator, dtype=torch.float64)
        x = torch.randn(2, 3, side, side, generator=generator, dtype=torch.float64)
        outer = (whole.num_cells - part.num_cells) // 2
        inner = theta[:, outer:whole.num_cells - outer, outer:whole.num_cells - outer]
        torch.testing.assert_close(
            peripheral_conv2d(x, inner, part), peripheral_conv2d(x, theta, whole), rtol=1e-12, atol=1e-12)


def test_as_many_updates_of_the_masks_on_digits():
    path = 'configs/ablations/table1_dense_vs_stripe/slak-51-tiny_32xb128-120e_in1k.py'
    cfg, row = scaled(path), load(path)
    long, short = 120 * 1281167 // 4096, cfg.train_cfg.max_epochs * 79
    (long_hook, ), (short_hook, ) = sparsity_hooks(row), sparsity_hooks(cfg)
    assert long // long_hook.update_interval == 18
    assert abs(short // short_hook.update_interval - 18) <= 1
    assert (short_hook.sparsity, short_hook.prune_rate) == (0.4, 0.5)


def test_only_classifiers_and_segmentors_can_be_scaled():
    path = 'configs/coco/cascade-mask-rcnn_pelk-tiny_fpn_4conv1fc-giou_8xb2-ms-crop-3x_coco.py'
    with pytest.raises(ValueError, match='mmpretrain or mmseg.*got mmdet'):
        scale_config_to_digits(load(path))


def test_the_row_is_left_as_it_is():
    path = 'configs/ablations/table7_kernel_sizes/pelk-51-tiny_32xb128-120e_in1k-384px.py'
    before = load(path).to_dict()
    scale_config_to_digits(load(path))
    assert load(path).to_dict() == before
    assert isinstance(build_model(load(path)).backbone, PeLK)
