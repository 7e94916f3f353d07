"""Counts of the configs of the paper's Tables 2 to 4: parameters at most 1.5 % off, multiply-adds 1.5 %, PeLK's 1 %."""

from functools import cache

import pytest

from pelk_mm.analysis import build_model, count_complexity, default_shape, load_paper_tables

from ..helpers.config_tree import load

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
SLAK = dict(tiny=(30, 5.0, 0.06, 5.22), small=(55, 9.8, 0.03, 9.95), base=(95, 17.1, 0.02, 17.1))
# Without the deployed form of base, a row of Table 4.
SLAK_FORMS = [('tiny', 'deployed'), ('tiny', 'training'), ('small', 'deployed'), ('small', 'training'),
              ('base', 'training')]
CASES = [
    pytest.param(table[5], row, id=f'{table[:6]}-{index}-{row["method"]}')
    for table, content in load_paper_tables().items() if table.startswith(('table2', 'table3', 'table4'))
    for index, row in enumerate(content['rows']) if 'configs' in row
]


@cache
def model_of(config: str):
    cfg = load(config)
    return build_model(cfg), default_shape(cfg)


@pytest.mark.parametrize(('table', 'row'), CASES)
def test_counts_of_the_paper(table, row):
    config, = row['configs']
    density = 0.6 if row['method'].startswith(('PeLK', 'SLaK')) else 1.0
    total = count_complexity(*model_of(config), density=density).total
    default = 0.01 if row['method'].startswith('PeLK') else 0.015
    tolerance = TOLERANCES.get((table, row['method'], row.get('size')), default)
    assert total.macs / 1e9 == pytest.approx(row['flops'], rel=tolerance)
    tolerance = PARAMETER_TOLERANCES.get((table, row['method'], row.get('size')), 0.015)
    assert total.params_counted / 1e6 == pytest.approx(row['params'], rel=tolerance)


@pytest.mark.parametrize(('size', 'form'), SLAK_FORMS)
def test_slak_as_its_authors_count(size, form):
    mparams, gmacs, tolerance, training_form = SLAK[size]
    model, shape = model_of(f'configs/baselines/imagenet/slak-{size}_32xb128_in1k.py')
    total = count_complexity(model, shape, density=0.6, deploy=form == 'deployed').total
    assert total.params_counted / 1e6 == pytest.approx(mparams, rel=0.03)
    assert total.macs / 1e9 == pytest.approx(gmacs, rel=tolerance)
    if form == 'training':
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
