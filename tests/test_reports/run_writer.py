"""Work directories as MMEngine leaves them."""

import json

from mmengine.config import Config

LOG = """2026/11/22 01:10:15 - mmengine - INFO -
------------------------------------------------------------
System environment:
    sys.platform: linux
    Python: 3.11.7 (main, May  9 2026, 07:35:25) [GCC 12.2.0]
    CUDA available: True
    GPU 0,1: NVIDIA A100
    PyTorch: 2.11.0+cu130
    PyTorch compiling details: PyTorch built with:
  - GCC 13.3

    MMEngine: 0.10.12

Runtime environment:
    seed: {seed}
    Distributed launcher: {launcher}
    GPU number: {processes}
"""


def write_start(folder, name, config, records=(), time='20261122_011013', test=None, **log):
    """Write what one start of a training, or of a test with some metrics, leaves; return its folder."""
    start = folder / time
    (start / 'vis_data').mkdir(parents=True)
    (start / f'{time}.log').write_text(LOG.format(**dict(seed=7, launcher='none', processes=1) | log))
    text = Config(config).pretty_text
    for file in (start / 'vis_data' / 'config.py', folder / f'{name}.py'):
        file.write_text(text)
    if test is not None:
        (start / f'{time}.json').write_text(json.dumps(test))
    else:
        lines = ''.join(json.dumps(record) + '\n' for record in records)
        for file in ('scalars.json', f'{time}.json'):
            (start / 'vis_data' / file).write_text(lines)
    return start


def epochs(*accuracies, start=1):
    """Return logs of training and validation."""
    return [
        record for epoch, accuracy in enumerate(accuracies, start)
        for record in (dict(lr=0.001, loss=1.5, epoch=epoch, iter=79 * epoch, step=79 * epoch),
                       {'accuracy/top1': accuracy, 'accuracy/top5': 100.0, 'time': 0.1, 'step': epoch})
    ]
