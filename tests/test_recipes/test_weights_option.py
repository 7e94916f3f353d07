"""``--weights`` of the tools, on a classifier of the built-in data that was trained with EMA."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.fileio import load

from pelk_mm.datasets import make_digit_scenes
from pelk_mm.engine.launch import load_config, run

DIGITS = Path(__file__).resolve().parents[2] / 'configs/digits/pelk-atto_1xb64_digits.py'


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Config and checkpoint of four steps, in a folder with nothing else."""
    folder = tmp_path_factory.mktemp('weights')
    make_digit_scenes(folder / 'data', num_cls_train=40, num_cls_val=10, num_scenes_train=1, num_scenes_val=1)
    loader = f"dict(batch_size=10, num_workers=0, persistent_workers=False, dataset=dict(data_root='{folder}/data'))"
    (folder / 'config.py').write_text(f"""_base_ = '{DIGITS}'
train_dataloader = {loader}
val_dataloader = {loader}
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=1)
custom_hooks = [dict(type='EMAHook', momentum=0.1, update_buffers=True, evaluate_on_origin=True)]
""")
    run(load_config(str(folder / 'config.py'), work_dir=str(folder / 'run')), 'train')
    return str(folder / 'config.py'), str(folder / 'run/epoch_1.pth')


@pytest.fixture(scope='module')
def sets(trained):
    content = torch.load(trained[1], weights_only=False)
    raw = {name.removeprefix('module.'): value for name, value in content['ema_state_dict'].items()}
    return dict(raw=raw, averaged=content['state_dict'])


@pytest.mark.parametrize('weights', ['raw', 'averaged'])
def test_testing_loads_what_is_named(trained, tmp_path, run_tool, weights):
    code, output = run_tool('test.py', *trained, '--weights', weights, '--work-dir', tmp_path / 'named', '--out',
                            tmp_path / 'named.pkl')
    assert code == 0
    assert f'{weights.capitalize()} weights are loaded, from ' + dict(
        raw='ema_state_dict', averaged='state_dict')[weights] + f' of {trained[1]}' in output
    # As in a file that has these weights only.
    code, _ = run_tool('model_converters/publish_model.py', trained[1], tmp_path / 'only.pth', '--weights', weights)
    assert code == 0
    only, = tmp_path.glob('only-*.pth')
    code, _ = run_tool('test.py', trained[0], only, '--work-dir', tmp_path / 'only', '--out', tmp_path / 'only.pkl')
    assert code == 0
    scores = [torch.stack([sample['pred_score'] for sample in load(tmp_path / f'{name}.pkl')])
              for name in ('named', 'only')]
    assert torch.equal(*scores)
    results, = (tmp_path / 'named').glob('*/*.json')
    assert not [name for name in json.loads(results.read_text()) if name.endswith('_origin')]


@pytest.mark.parametrize(('options', 'kind'), [((), 'raw'), (('--weights', 'averaged'), 'averaged'),
                                               (('--key', 'state_dict'), 'averaged')])
def test_backbones_are_of_what_is_named(trained, sets, tmp_path, run_tool, options, kind):
    target = tmp_path / 'backbone.pth'
    code, _ = run_tool('model_converters/classifier_to_backbone.py', trained[1], target, *options)
    assert code == 0
    backbone = torch.load(target, weights_only=True)['state_dict']
    assert len(backbone) == sum(name.startswith('backbone.') for name in sets[kind])
    for name, value in backbone.items():
        assert torch.equal(value, sets[kind][f'backbone.{name}']), name


@pytest.mark.parametrize('weights', ['raw', 'averaged'])
def test_deployed_form_is_of_what_is_named(trained, sets, tmp_path, run_tool, weights):
    code, output = run_tool('model_converters/switch_to_deploy.py', *trained, tmp_path / 'out.pth', '--num-images', 2,
                            '--weights', weights, '--tolerance', '1e-3')
    assert code == 0, output
    deployed = torch.load(tmp_path / 'out.pth', weights_only=False)
    assert deployed['meta']['weights'] == weights
    assert torch.equal(deployed['state_dict']['head.fc.weight'], sets[weights]['head.fc.weight'])
