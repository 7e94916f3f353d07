"""The blocks of a guide, pasted behind one another as a reader would, give a config that trains as the page says."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from pelk_mm.analysis import build_model

from ..helpers.pages import blocks_of

ROOT = Path(__file__).resolve().parents[2]
GUIDE, PAGE = ([block.text for block in blocks_of(ROOT / page) if block.language == 'python']
               for page in ('docs/guides/your_project.md', 'README.md'))
CONFIGS = [block for block in GUIDE if block.startswith('_base_')]
OPTIMIZER, = [block for block in GUIDE if block.startswith('optim_wrapper')]
README, = [block for block in PAGE if block.startswith('_base_')]


def optimizer_of(source, tmp_path):
    (tmp_path / 'my_config.py').write_text(source)
    cfg = Config.fromfile(tmp_path / 'my_config.py')
    return build_optim_wrapper(build_model(cfg), cfg.optim_wrapper).optimizer


def test_there_is_a_config_for_every_toolbox():
    assert [block.count(f'{toolbox}::_base_') > 0 for block, toolbox in zip(CONFIGS, ('mmseg', 'pelk_mm', 'mmdet'))
            ] == [True, False, True]
    assert len(CONFIGS) == 4


@pytest.mark.parametrize('source', [*CONFIGS, None], ids=['mmseg', 'recipe', 'mmdet', 'mmpretrain', 'README'])
def test_learning_rates_fall_with_depth(source, tmp_path):
    optimizer = optimizer_of(README if source is None else f'{source}\n{OPTIMIZER}', tmp_path)
    assert type(optimizer).__name__ == 'AdamW'
    # Stage-wise, from the stem on: the last power is 7 in tiny and pico, 13 in small. The head has the full rate.
    deepest = 13 if source and 'mmdet::' in source else 7
    expected = {1.0} | {0.9**power for power in range(deepest - 4, deepest + 1)}
    assert {round(group['lr'] / 1e-4, 6) for group in optimizer.param_groups} == {round(rate, 6) for rate in expected}


def test_without_it_upstreams_sgd_trains(tmp_path):
    """As the page says."""
    assert type(optimizer_of(CONFIGS[0], tmp_path)).__name__ == 'SGD'


def test_the_data_set_of_ones_own_has_its_classes_everywhere(tmp_path):
    source = next(block for block in CONFIGS if 'data/walls' in block)
    (tmp_path / 'my_config.py').write_text(source)
    cfg = Config.fromfile(tmp_path / 'my_config.py')
    for name, folder in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        dataset = cfg[f'{name}_dataloader'].dataset
        assert (dataset.type, dataset.data_root, dataset.reduce_zero_label) == ('BaseSegDataset', 'data/walls', False)
        assert dataset.data_prefix.img_path == folder
        assert len(dataset.metainfo.classes) == cfg.model.decode_head.num_classes == 3
    assert cfg.model.auxiliary_head.num_classes == 3
