"""The configs of the rows of the paper's Tables 1 to 7: their metafiles say what the rows say.

The configs of Tables 2 to 4 are counted: parameters at most 1.5 % off, multiply-adds 1.5 %, PeLK's 1 %.
"""

from functools import cache
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

from pelk_mm.analysis import build_model, count_complexity, default_shape, load_paper_tables

ROOT = Path(__file__).parents[2]
TABLES = {number: rows['rows'] for table, rows in load_paper_tables().items() for number in '1234567'
          if table.startswith(f'table{number}_')}
METRICS = dict(top1='Top 1 Accuracy', miou='mIoU', ap_box='box AP', ap_mask='mask AP')

# What the metafile of a row's config has under Metadata, by table.
LABELS = {
    '1': lambda row: dict(
        Method=row['method'],
        Kernel=row['kernel'].replace('+', ' + '),
        Sparsity='yes' if row['sparsity'] else 'no'),
    '5': lambda row: {'Half grid': words(row['grid'])},
    '6': lambda row: {'Half grid': words(row['grid'])},
    '7': lambda row: dict(Model=row['model'], Size=row['size'], Kernels=words(row['kernels'])),
}

# How far multiply-adds may be off, by table, method and size. T and S at 224 are above what the paper prints with 60 %
# of every layer: SNIP's densities differ from layer to layer, which closes the gap of T (5.50 G), see
# configs/imagenet/README.md.
TOLERANCES = {
    ('4', 'PeLK-T', 224): 0.045,
    ('4', 'PeLK-S', 224): 0.025,
    ('2', 'PeLK-T', None): 0.005,
    ('2', 'PeLK-B', None): 0.005,
}
# The same of parameters: its authors print 21.5, which is 22 here.
PARAMETER_TOLERANCES = {('4', 'T2T-ViTt-14', 224): 0.025}

# The authors' parameters (M) and multiply-adds (G), which count the 5x5 branch too, how far the latter may be off, and
# what is counted here in training form.
SLAK = [('tiny', 30, 5.0, 0.06, 5.22), ('small', 55, 9.8, 0.03, 9.95), ('base', 95, 17.1, 0.02, 17.1)]


def words(values) -> str:
    return values if isinstance(values, str) else ' '.join(map(str, values))


@cache
def metafile_entries() -> list:
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    return [entry for path in index['Import'] for entry in yaml.safe_load((ROOT / path).read_text())['Models']]


def entries_of(row: dict) -> list:
    """The entries of the metafiles for the configs of a row: Table 1 has a classifier and a segmentor each."""
    return [entry for entry in metafile_entries() if entry['Config'] in row['configs']]


def cases(tables: str) -> list:
    return [
        pytest.param(table, row, id=f'table{table}-{index}-' + str(row.get('method', row.get('model', 'grid'))))
        for table in tables for index, row in enumerate(TABLES[table]) if 'configs' in row
    ]


@pytest.mark.parametrize(('table', 'row'), cases('1234567'))
def test_row_has_a_config(table, row):
    entries = entries_of(row)
    assert len(entries) == (2 if table == '1' else 1), [entry['Name'] for entry in entries]
    stated = {}
    for entry in entries:
        assert (ROOT / entry['Config']).is_file()
        for part in entry.get('Results', []):
            assert part['Source'] == f'the paper, Table {table}'
            stated.update(part['Metrics'])
        if table in LABELS:
            labels = LABELS[table](row)
            assert labels.items() <= entry['Metadata']['Ablation'].items()
        else:
            assert entry['Metadata']['Row'] == row['method']
            assert entry['Metadata']['Parameters'] == row['params'] * 10**6
            assert entry['Metadata']['FLOPs'] == round(row['flops'] * 10**9)
    assert stated == {METRICS[key]: value for key, value in row.items() if key in METRICS}


@cache
def model_of(config: str):
    cfg = Config.fromfile(ROOT / config)
    return build_model(cfg), default_shape(cfg)


@pytest.mark.parametrize(('table', 'row'), cases('234'))
def test_counts_of_the_paper(table, row):
    config = entries_of(row)[0]['Config']
    density = 0.6 if row['method'].startswith(('PeLK', 'SLaK')) else 1.0
    total = count_complexity(*model_of(config), density=density).total
    default = 0.01 if row['method'].startswith('PeLK') else 0.015
    tolerance = TOLERANCES.get((table, row['method'], row.get('size')), default)
    assert total.macs / 1e9 == pytest.approx(row['flops'], rel=tolerance)
    tolerance = PARAMETER_TOLERANCES.get((table, row['method'], row.get('size')), 0.015)
    assert total.params_counted / 1e6 == pytest.approx(row['params'], rel=tolerance)


@pytest.mark.parametrize('size, mparams, gmacs, tolerance, training_form', SLAK, ids=[case[0] for case in SLAK])
@pytest.mark.parametrize('deploy', [True, False], ids=['deployed', 'training-form'])
def test_slak_as_its_authors_count(size, mparams, gmacs, tolerance, training_form, deploy):
    model, shape = model_of(f'configs/baselines/imagenet/slak-{size}_32xb128_in1k.py')
    total = count_complexity(model, shape, density=0.6, deploy=deploy).total
    assert total.params_counted / 1e6 == pytest.approx(mparams, rel=0.03)
    assert total.macs / 1e9 == pytest.approx(gmacs, rel=tolerance)
    if not deploy:
        assert total.macs / 1e9 == pytest.approx(training_form, abs=0.015)
    if size == 'tiny':
        assert total.params_stored / 1e6 == pytest.approx(50.7, rel=0.005)


def test_attention_of_swin_by_hand():
    """Two products of 49 tokens with 49 of their window, for every token, channel and block."""
    model, shape = model_of('configs/baselines/imagenet/swin-tiny_16xb64_in1k.py')
    expected = sum(
        2 * 49 * side**2 * channels * depth for side, channels, depth in zip((56, 28, 14, 7), (96, 192, 384, 768),
                                                                             (2, 2, 6, 2)))
    assert count_complexity(model, shape).costs['backbone']['attention'].macs == expected
