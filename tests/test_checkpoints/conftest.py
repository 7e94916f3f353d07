"""Checkpoints of a training, sound and damaged."""

import os

import pytest
import torch

WEIGHT = torch.arange(1000.)


@pytest.fixture
def save(tmp_path):
    """Writes a checkpoint of an iteration; each is a second younger than the one before.

    ``save.point`` writes ``last_checkpoint``, ``save.halve`` cuts a file off as a killed process leaves it, and
    ``save.flip`` flips one bit in the data of a tensor.
    """
    seconds = iter(range(1_700_000_000, 1_700_001_000))

    def save(name, iteration, time=None, folder=tmp_path, **changes):
        content = dict(
            meta=dict(iter=iteration, epoch=0, time=time or f'20240101_{iteration:06}'),
            state_dict=dict(weight=WEIGHT),
            message_hub={},
            optimizer={})
        content.update(changes)
        folder.mkdir(exist_ok=True)
        torch.save({key: value for key, value in content.items() if value is not None}, folder / name)
        os.utime(folder / name, (next(seconds), ) * 2)
        return str(folder / name)

    def point(path, folder=tmp_path):
        (folder / 'last_checkpoint').write_text(path)
        os.utime(folder / 'last_checkpoint', (next(seconds), ) * 2)

    def halve(path):
        os.truncate(path, os.path.getsize(path) // 2)

    def flip(path):
        with open(path, 'r+b') as file:
            content = file.read()
            place = content.index(WEIGHT.numpy().tobytes()) + 1001
            file.seek(place)
            file.write(bytes([content[place] ^ 1]))

    save.point, save.halve, save.flip = point, halve, flip
    return save
