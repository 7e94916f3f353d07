"""The benchmark of Table 8: which precisions it times, and with which switches."""

import sys

import pytest
import torch

SWITCHES = (torch.backends.cuda.matmul, torch.backends.cudnn)


@pytest.fixture
def tool(load_tool):
    return load_tool('benchmarks/throughput.py')


@pytest.mark.parametrize('options, expected', [
    ('', ['fp32', 'bf16']),
    ('--tf32', ['fp32', 'tf32', 'bf16']),
    ('--tf32 --dtypes bf16', ['tf32', 'bf16']),
    ('--tf32 --dtypes bf16 fp32', ['bf16', 'fp32', 'tf32']),
    ('--tf32 --dtypes tf32', ['tf32']),
    ('--dtypes fp32 tf32', ['fp32', 'tf32']),
    ('--device cpu', ['fp32']),
])
def test_precisions(tool, options, expected, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['throughput.py', *options.split()])
    assert tool.parse_args().dtypes == expected


@pytest.mark.parametrize('option', ['--tf32', '--dtypes tf32'])
def test_tf32_on_the_cpu(tool, option, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['throughput.py', '--device', 'cpu', *option.split()])
    with pytest.raises(SystemExit):
        tool.parse_args()
    assert 'TF32 needs a GPU: leave out --tf32' in capsys.readouterr().err


def test_tf32_is_on_where_it_is_timed(tool, monkeypatch):
    """Timed are fp32 and TF32; the switches are those of each while it runs, and as before afterwards."""
    options = ['--device', 'cuda', '--tf32', '--models', 'PeLK-T', '--dtypes', 'fp32']
    monkeypatch.setattr(sys, 'argv', ['throughput.py', *options])
    args = tool.parse_args()
    args.device = 'cpu'
    seen = {}

    def time_paired(runs, *_, **options):
        seen[dtype] = [switch.allow_tf32 for switch in SWITCHES]
        return {}

    for name, stand_in in (('deployed', lambda name: torch.nn.Identity()), ('rotating', lambda *_: ()),
                           ('time_paired', time_paired)):
        monkeypatch.setattr(tool, name, stand_in)
    before = [switch.allow_tf32 for switch in SWITCHES]
    for dtype in args.dtypes:
        assert tool.inference(args, dtype) == {}
    assert seen == dict(fp32=[False, False], tf32=[True, True])
    assert [switch.allow_tf32 for switch in SWITCHES] == before
