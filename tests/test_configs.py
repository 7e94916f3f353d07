"""Every config of the tree: it parses, builds its model, pipelines and optimiser, and says what the paper says."""

import ast
import copy
import re
from collections import Counter
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, HOOKS, LOOPS, DefaultScope
from PIL import Image

from pelk_mm.analysis import build_model
from pelk_mm.engine.hooks.class_count import class_counts
from pelk_mm.nets import LargeKernelNet

from .helpers.config_tree import ROOT, load, metafile_entries, optimizer_of

CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'configs').glob('[!_]*/**/*.py'))
ONLY_NORMS_UNDECAYED = ('swin', 'replknet', '8xb4-80k')
NEVER_DECAYED = ('position_embedding', 'pos_embed', 'relative_position_bias_table', 'cls_token')


def model_of(name: str) -> torch.nn.Module:
    cfg = load(name)
    parts = {key: cfg.get(key) for key in ('model', 'data_preprocessor', 'default_scope')}
    return build_once(repr(Config(parts).to_dict()))


@lru_cache(maxsize=12)
def build_once(parts: str) -> torch.nn.Module:
    """Build a model of the meta device, which many configs share."""
    return build_model(Config(ast.literal_eval(parts)))


def widths_of(name: str, known: dict[str, list] = {}) -> list[int]:  # noqa: B006
    """Return the channels of the feature maps, once for each backbone and image: a forward pass takes most time."""
    backbone = {key: value for key, value in load(name).model.backbone.items()
                if key not in ('drop_path_rate', 'init_cfg')}
    case = repr((load(name).default_scope, side_of(name), Config(backbone).to_dict()))
    if case not in known:
        network = model_of(name).backbone
        if isinstance(network, LargeKernelNet):
            network = copy.deepcopy(network)
            for stage in network.stages:
                del stage.blocks[1:]
        with torch.no_grad():
            features = network(torch.empty(1, 3, side_of(name), side_of(name), device='meta'))
        known[case] = [feature.shape[1] for feature in features]
    return known[case]


def groups_of(name: str) -> list[dict]:
    return optimizer_of(load(name), model_of(name)).param_groups


@pytest.fixture
def scope(name):
    with DefaultScope.overwrite_default_scope(load(name).default_scope):
        yield load(name).default_scope


# One config after the other, so that each model is built once.
@pytest.mark.parametrize('name', CONFIGS, scope='class')
class TestEveryConfig:

    def test_is_thin(self, name):
        """A leaf says in a few lines of plain values what differs from what it inherits."""
        text = (ROOT / name).read_text()
        assert len(text.splitlines()) <= 25
        for node in ast.parse(text).body:
            assert isinstance(node, ast.Assign), ast.unparse(node)

    def test_widths_agree(self, name):
        """Every head takes what the backbone gives."""
        model, widths = model_of(name), widths_of(name)
        if hasattr(model, 'neck') and model.neck is not None and hasattr(model.neck, 'in_channels'):
            assert list(model.neck.in_channels) == widths
        elif hasattr(model, 'decode_head'):
            taken = model.decode_head.in_channels
            assert ([taken] if isinstance(taken, int) else list(taken)) == widths
            if model.with_auxiliary_head:
                assert model.auxiliary_head.in_channels == widths[model.auxiliary_head.in_index]
        else:
            assert [model.head.in_channels] == widths

    def test_pipelines_run(self, name, scope, tmp_path):
        """Training and test pipelines turn an image and its annotation into the input that the name promises."""
        cfg = load(name)
        if 'data_root' not in cfg.train_dataloader.dataset:
            # It draws its samples; test_datasets/test_reach.py has their numbers.
            packed = DATASETS.build(cfg.train_dataloader.dataset)[0]
            assert packed['inputs'].shape[1:] == packed['data_samples'].gt_sem_seg.shape == (side_of(name), ) * 2
            return
        sample = make_sample(cfg, tmp_path)
        for part in ('train', 'test'):
            dataset = cfg[f'{part}_dataloader'].dataset
            np.random.seed(0)
            packed = Compose(dataset.pipeline)(copy.deepcopy(sample))
            size = tuple(packed['inputs'].shape[1:])
            if cfg.default_scope == 'mmpretrain':
                assert size == (side_of(name), ) * 2
                assert packed['data_samples'].gt_label.tolist() == [3]
            elif cfg.default_scope == 'mmseg':
                labels = packed['data_samples'].gt_sem_seg.data
                # The value 1 of the label map is class 0, and 0 is ignored.
                assert set(labels.unique().tolist()) <= {0, 255}
                assert labels.shape[1:] == size or part == 'test'
                # What is smaller is padded by the data preprocessor.
                assert part == 'test' or max(size) == side_of(name) == cfg.model.data_preprocessor.size[0]
            else:
                assert len(packed['data_samples'].gt_instances.masks) == 1

    def test_optimizer(self, name, scope):
        """Every parameter is in one group; nothing of one dimension decays, nor do embeddings of positions."""
        cfg, model = load(name), model_of(name)
        names = {id(param): key for key, param in model.named_parameters()}
        seen = Counter()
        for group in groups_of(name):
            for param in group['params']:
                key = names[id(param)]
                seen[key] += 1
                if param.ndim == 1 and any(part in name for part in ONLY_NORMS_UNDECAYED) and scope != 'mmpretrain':
                    # In their authors' recipes for segmentation and detection only norms do not decay.
                    continue
                if param.ndim == 1 and scope == 'mmpretrain' and cfg.optim_wrapper.optimizer.weight_decay == 0.3:
                    # In mmpretrain's recipe of ViT at 384 px they do.
                    continue
                decays = param.ndim > 1 and not any(part in key for part in NEVER_DECAYED)
                assert group['weight_decay'] == (cfg.optim_wrapper.optimizer.weight_decay if decays else 0.0), key
        assert seen == Counter(names.values())

    def test_loops_and_hooks_are_known(self, name, scope):
        cfg = load(name)
        with LOOPS.switch_scope_and_registry(None) as loops, HOOKS.switch_scope_and_registry(None) as hooks:
            for part in ('train_cfg', 'val_cfg', 'test_cfg'):
                assert 'type' not in cfg[part] or loops.get(cfg[part].type)
            for hook in [*cfg.default_hooks.values(), *cfg.get('custom_hooks', [])]:
                assert hooks.get(hook.type), hook.type
        # Upstream's own recipes need nothing of ours.
        assert cfg.get('runner_type', '').startswith('pelk_mm.') == ('pelk_mm.engine' in str(cfg.get('custom_imports')))

    def test_schedules_follow_one_another(self, name):
        """The fall begins where the warm-up ends, if both count epochs or both iterations."""
        for first, second in pairwise(load(name).param_scheduler):
            assert first.get('by_epoch', True) != second.get('by_epoch', True) or first.end == second.begin

    def test_heads_have_the_classes_of_the_data(self, name, scope):
        dataset = load(name).train_dataloader.dataset
        with DATASETS.switch_scope_and_registry(None) as datasets:
            metainfo = dataset.get('metainfo') or datasets.get(dataset.type).METAINFO
        # Those of CustomDataset are its folders.
        if 'classes' in metainfo:
            counts = dict(class_counts(load(name).model))
            assert counts
            assert set(counts.values()) == {len(metainfo['classes'])}, counts

    def test_is_in_a_metafile(self, name):
        assert [entry['Name'] for entry in metafile_entries() if entry['Config'] == name] == [Path(name).stem]


@pytest.mark.parametrize('name', {Path(name).parent: name for name in CONFIGS}.values())
def test_inherited_from_elsewhere(name, tmp_path):
    """``_base_ = 'pelk_mm::...'`` gives the same config as the file itself."""
    child = tmp_path / 'child.py'
    child.write_text(f"_base_ = 'pelk_mm::{name.removeprefix('configs/')}'\n")
    assert Config.fromfile(child).to_dict() == load(name).to_dict()


def side_of(name: str) -> int:
    """Side of the training crop that the file name gives."""
    if '-64x64' in name:
        return 64
    if 'digits' in name:
        return 128 if 'upernet' in name else 96 if '96px' in name else 64
    return 384 if '384px' in name else 512 if '512x512' in name else 224


def make_sample(cfg: Config, folder: Path) -> dict:
    """An image with a class, a label map of the value 1, or one instance, as the toolbox's data sets give it."""
    height, width = 120, 160
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (height, width, 3), np.uint8)).save(folder / 'image.png')
    sample = dict(img_path=str(folder / 'image.png'), img_id=1, height=height, width=width)
    if cfg.default_scope == 'mmpretrain':
        if 'digits' in cfg.filename:
            Image.open(folder / 'image.png').resize((64, 64)).save(folder / 'image.png')
        return dict(sample, gt_label=3)
    if cfg.default_scope == 'mmseg':
        Image.fromarray(np.ones((height, width), np.uint8)).save(folder / 'label.png')
        return dict(
            sample,
            seg_map_path=str(folder / 'label.png'),
            seg_fields=[],
            reduce_zero_label=True,
            label_map=None)
    polygon = [20., 20., 100., 20., 100., 90., 20., 90.]
    return dict(
        sample,
        instances=[dict(bbox=[20., 20., 100., 90.], bbox_label=2, mask=[polygon], ignore_flag=0)])


def test_metafiles_point_to_what_exists():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    assert sorted(index['Import']) == sorted(
        str(path.relative_to(ROOT)) for path in (ROOT / 'configs').glob('**/metafile.yml'))
    collections = {
        entry['Name'] for path in index['Import']
        for entry in yaml.safe_load((ROOT / path).read_text()).get('Collections', [])
    }
    for entry in metafile_entries():
        assert entry['Config'] in CONFIGS
        assert entry['In Collection'] in collections


IMAGENET, ADE20K = 'configs/imagenet/pelk-{}_in1k{}.py', 'configs/ade20k/pelk-{}_upernet_8xb2-{}_ade20k-512x512.py'
COCO = 'configs/coco/cascade-mask-rcnn_pelk-{}_fpn_4conv1fc-giou_8xb2-ms-crop-3x_coco.py'
PELK = [name for name in CONFIGS if re.search(r'/(cascade-mask-rcnn_)?pelk-(tiny|small|base)', name)]


@pytest.mark.parametrize('name', PELK)
def test_name_says_arch_batch_and_length(name):
    """The values of every recipe are compared with their sources in tests/test_recipes."""
    cfg = load(name)
    arch, processes, batch, rest = re.search(r'pelk-((?:tiny|small|base)(?:-101)?)_.*?(\d+)xb(\d+)(.*)', name).groups()
    assert (cfg.model.backbone.type, cfg.model.backbone.arch) == ('pelk_mm.PeLK', arch)
    assert cfg.train_cfg.type.startswith('pelk_mm.Resumable')
    assert cfg.train_dataloader.batch_size == int(batch)
    assert cfg.auto_scale_lr.base_batch_size == int(processes) * int(batch)
    length = cfg.train_cfg.get('max_epochs', cfg.train_cfg.get('max_iters'))
    named = re.search(r'-(\d+)([ekx])[-_]', rest)
    assert not named or length == int(named[1]) * dict(e=1, k=1000, x=12)[named[2]]
    for scheduler in cfg.param_scheduler:
        assert scheduler.get('end', length) <= length or not scheduler.by_epoch
    # The means of ImageNet's colours.
    mean = (cfg.get('data_preprocessor') or cfg.model.data_preprocessor).mean
    assert mean == pytest.approx([255 * value for value in (0.485, 0.456, 0.406)])


DENSE = [name for name in CONFIGS if 'pelk-' in name and '_dense_' in name]


@pytest.mark.parametrize('name', [name for name in DENSE if '-fsdp_' not in name])
def test_dense_variant(name):
    """It differs in nothing but width and sparsity."""
    dense, sparse = load(name), load(name.replace('_dense', ''))
    assert 'sparsity' in str([hook.type for hook in sparse.custom_hooks]).lower()
    assert dense.custom_hooks == sparse.custom_hooks[:-1]
    assert dense.model.backbone == dict(sparse.model.backbone, width_factor=1.0)
    for key in ('optim_wrapper', 'param_scheduler', 'train_cfg', 'auto_scale_lr'):
        assert dense[key] == sparse[key], key


@pytest.mark.parametrize('name', [name for name in DENSE if '-fsdp_' in name])
def test_sharded_variant(name):
    """It differs in nothing but the runner, averaged weights, and how it says what does not decay."""
    sharded, whole = load(name), load(name.replace('-fsdp', ''))
    assert (sharded.runner_type, sharded.strategy.type) == ('pelk_mm.CheckedFlexibleRunner', 'FSDPStrategy')
    assert [hook.type for hook in whole.custom_hooks] == ['EMAHook']
    own = {'runner_type', 'strategy', 'custom_hooks', 'optim_wrapper'}
    assert {key: value for key, value in sharded.to_dict().items() if key not in own
            } == {key: value for key, value in whole.to_dict().items() if key not in own}


@pytest.mark.parametrize('name, groups', [(ADE20K.format('tiny', '160k'), 6), (ADE20K.format('base', '160k'), 6),
                                          (COCO.format('tiny'), 8), (COCO.format('small'), 14)])
def test_number_of_learning_rates(name, groups):
    """Stage-wise: downsampling, four stages, the rest. Layer-wise: the stem, 6 groups of T and 12 of S, the rest."""
    assert len({group['lr'] for group in groups_of(name)}) == groups


BASELINES = [name for name in CONFIGS if '/baselines/' in name]


def pelk_beside(name: str) -> str:
    """PeLK's config of the benchmark and size of a baseline: the sparse one for SLaK, else the dense one."""
    size = next((size for size in ('tiny', 'small') if size in name), 'base')
    kind = size if 'slak' in name else f'{size}_dense'
    if '/coco/' in name:
        return COCO.format(kind)
    if '/ade20k/' in name:
        return ADE20K.format(kind, '160k')
    if '-finetune_' in name:
        return IMAGENET.format(f'{kind}_16xb32-finetune', '-384px')
    return IMAGENET.format(f'{kind}_32xb128', '-384px-scratch' if '384px' in name else '')


@pytest.mark.parametrize('name', [name for name in BASELINES if '/imagenet/' not in name or 'slak' in name])
def test_baseline_in_the_place_of_pelk(name):
    """Data, heads and schedules are PeLK's."""
    cfg, pelk = load(name), load(pelk_beside(name))
    own = {'backbone', 'test_cfg'}
    assert {key: value for key, value in cfg.model.items() if key not in own
            } == {key: value for key, value in pelk.model.items() if key not in own}
    # RepLKNet's batch on ADE20K is its authors': tests/test_recipes.
    batch = () if '8xb4' in name else ('train_dataloader', 'param_scheduler', 'auto_scale_lr')
    for key in (*batch, 'val_dataloader', 'val_evaluator', 'train_cfg', 'custom_hooks'):
        assert cfg[key] == pelk[key], key
    assert cfg.model.backbone.drop_path_rate == pelk.model.backbone.drop_path_rate or 'swin' in name or 'repl' in name


@pytest.mark.parametrize('name', [name for name in BASELINES if '-384px-scratch' in name])
def test_baseline_from_scratch_at_384_px(name):
    """Its recipe is that for 224 px, which docs/recipes.md lists or a test above compares with PeLK's."""
    cfg, plain = load(name), load(name.replace('-384px-scratch', ''))
    for key in ('optim_wrapper', 'param_scheduler', 'train_cfg', 'auto_scale_lr'):
        assert cfg[key] == plain[key], key
    assert cfg.model.backbone.drop_path_rate == plain.model.backbone.drop_path_rate


@pytest.mark.parametrize('name', [name for name in BASELINES if 'convnext' in name and '/imagenet/' not in name])
def test_learning_rates_of_convnext(name):
    """They are PeLK's, whoever builds the groups."""
    rates = [sorted({group['lr'] for group in groups_of(config)})
             for config in (name, pelk_beside(name))]
    assert rates[0] == pytest.approx(rates[1])
