"""Fig. 2: multiples of parameters by hand, and the mIoU of runs that lie in work directories."""

import csv
from pathlib import Path

import pytest
from mmengine.config import Config

from pelk_mm.reports import find_runs
from pelk_mm.reports.kernel_gain import Point, draw_gain, find_points, gains, parameter_multiples

from .run_writer import write_start

TOOL = 'analysis_tools/kernel_scaling.py'
FIG2, TABLE1 = 'configs/ablations/fig2_kernel_size', 'configs/ablations/table1_dense_vs_stripe'
ENDING = '-tiny_upernet_8xb4-80k_ade20k-512x512'
MIOUS = {
    f'{FIG2}/dense-7{ENDING}': 45.0,
    f'{FIG2}/dense-31{ENDING}': 46.25,
    # The row of 51, trained for Table 1.
    f'{TABLE1}/replk-51-tiny_no-sparsity{ENDING.removeprefix("-tiny")}': 46.6,
    f'{FIG2}/stripe-7{ENDING}': 44.8,
    f'{FIG2}/stripe-51{ENDING}': 46.1,
}


def write_run(root, folder, config, miou, done=80000, **options):
    """Write the files of a training and its last validation."""
    cfg = Config.fromfile(root / f'{config}.py')
    cfg.merge_from_dict(options)
    write_start(folder, Path(config).name, cfg.to_dict(), [dict(mIoU=miou, step=done)])


@pytest.fixture
def runs(root, tmp_path):
    folder = tmp_path / 'work_dirs'
    for index, (config, miou) in enumerate(MIOUS.items()):
        write_run(root, folder / str(index), config, miou)
    return folder


def test_multiples_of_the_paper():
    multiples = parameter_multiples([7, 31, 51])
    assert [round(multiple, 1) for multiple in multiples['dense']] == [1.0, 19.6, 53.1]
    assert [round(multiple, 1) for multiple in multiples['stripe']] == [1.0, 4.4, 7.3]
    for width in (1, 3, 7):
        assert parameter_multiples([7, 51], width)['stripe'] == [1, 51 / 7]
    with pytest.raises(ValueError, match='stripe_width must be odd and at most kernel_size, 3, got 5'):
        parameter_multiples([3, 7])


def test_points_of_runs(root, runs):
    points, remarks = find_points(find_runs([runs])[0], root)
    assert points == [
        Point('dense', 7, (45.0, )),
        Point('dense', 31, (46.25, )),
        Point('dense', 51, (46.6, )),
        Point('stripe', 7, (44.8, )),
        Point('stripe', 51, (46.1, ))
    ]
    assert remarks == []
    stripe = {7: 0.0, 51: pytest.approx(1.3)}
    assert gains(points, 7) == dict(dense={7: 0.0, 31: 1.25, 51: pytest.approx(1.6)}, stripe=stripe)
    # Without a run to compare with there is no gain.
    assert gains(points[1:], 7) == dict(stripe=stripe)


def test_repeated_unfinished_and_other_runs(root, runs):
    """Repeated ones are averaged, a changed one is named; half done, of digits or of a sparse row they are no point."""
    write_run(root, runs / 'again', f'{FIG2}/dense-7{ENDING}', 45.5)
    write_run(root, runs / 'half', f'{FIG2}/dense-13{ENDING}', 45.2, done=40000)
    write_run(root, runs / 'sparse', f'{TABLE1}/replk-51{ENDING}', 46.9)
    write_run(root, runs / 'digits', 'configs/digits/pelk-atto_upernet_1xb8-1600it_digits-128x128', 70.0, done=1600)
    changed = {'train_dataloader.batch_size': 2, 'optim_wrapper.optimizer.lr': 1e-4}
    write_run(root, runs / 'changed', f'{FIG2}/dense-25{ENDING}', 46.0, **changed)
    points, remarks = find_points(find_runs([runs])[0], root)
    assert (points[0].mious, points[0].miou) == ((45.0, 45.5), 45.25)
    assert [point.kernel_size for point in points if point.form == 'dense'] == [7, 25, 31, 51]
    assert sorted(remarks) == [
        f'{runs / "changed"} differs from its config: optim_wrapper.optimizer.lr=0.0001, train_dataloader.batch_size=2',
        f'{runs / "half"} is not finished and left out',
    ]


def test_figure():
    (cost, ) = draw_gain([7, 29, 51]).axes
    assert [text.get_text() for text in cost.texts] == ['53.1x', '7.3x']
    gain, cost = draw_gain([7, 29, 51], dict(dense={7: 0.0, 51: 1.6}, stripe={7: 0.0, 29: 0.5})).axes
    curves = [line.get_xydata().tolist() for line in gain.lines[:2]]
    assert curves == [[[7, 0], [51, 1.6]], [[7, 0], [29, 0.5]]]
    assert list(cost.lines[0].get_ydata()) == [1, 29**2 / 49, 51**2 / 49]
    assert gain.get_xlim() == cost.get_xlim()


def test_tool(runs, tmp_path, run_tool):
    out = tmp_path / 'out'
    code, printed = run_tool(TOOL, '--figure', 2, '--runs', runs, '--out', out)
    assert code == 0, printed
    with (out / 'kernel_gain.csv').open() as file:
        rows = {int(row['kernel_size']): row for row in csv.DictReader(file)}
    assert list(rows) == list(range(7, 52, 4))
    assert float(rows[51]['dense_multiple']) == pytest.approx(53.1, abs=0.05)
    assert float(rows[51]['stripe_multiple']) == pytest.approx(7.3, abs=0.05)
    assert [rows[size]['dense_gain'] for size in (7, 11, 31)] == ['0.0', '', '1.25']
    assert (out / 'kernel_gain.png').stat().st_size > 10_000
    line = next(line.split() for line in printed.splitlines() if line.strip().startswith('51 '))
    assert line == ['51', '53.1', '46.60', '+1.60', '1', '7.3', '46.10', '+1.30', '1']


def test_tool_without_runs_and_with_other_sizes(runs, tmp_path, run_tool):
    code, printed = run_tool(TOOL, '--figure', 2, '--out', tmp_path / 'a')
    assert (code, (tmp_path / 'a/kernel_gain.png').exists()) == (0, True), printed
    code, printed = run_tool(TOOL, '--figure', 2, '--kernels', 25, 31, 6, '--runs', runs, '--out', tmp_path / 'b')
    assert code == 0
    assert 'no finished run of dense kernels of 25, so the gain of the others is not known' in printed


@pytest.mark.parametrize(('arguments', 'message'), [
    (['--figure', 2, '--center', 3], '--center are of --figure 6'),
    (['mmpretrain::convnext/convnext-tiny_32xb128_in1k.py', '--figure', 2], 'config and --center are of --figure 6'),
    (['--runs', '.'], '--runs is of --figure 2'),
    (['--kernels', 8, 16, 2], '--kernels needs an odd first size'),
    (['--figure', 2, '--runs', 'nothing/here'], '--runs must be folders, got nothing/here'),
])
def test_tool_rejects_wrong_arguments(tmp_path, run_tool, arguments, message):
    code, printed = run_tool(TOOL, *arguments, '--out', tmp_path / 'out')
    assert code == 2
    assert message in printed
    assert not (tmp_path / 'out').exists()
