"""A PeLK classifier of patterns drawn on the spot: data, model, and faults at a known place.

The environment variable ``FAULT`` says what goes wrong in this process:

- ``write:<n>:<share>``: it is killed within the n-th checkpoint that it writes, after this share of its bytes.
- ``pointer:<n>``: it is killed when the n-th checkpoint is complete, and last_checkpoint still names the one before.
- ``term:<n>``: it sends itself SIGTERM in its n-th step.
- ``raise:<n>``: its n-th step raises an error.

``FAULT_RANK`` is the rank that it happens to, 0 by default.
"""

import os
import signal
import sys

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import runner
from torch import nn

from pelk_mm.checkpoints import atomic

FAULT, *ARGUMENTS = os.environ.get('FAULT', '').split(':')
if os.environ.get('RANK', '0') != os.environ.get('FAULT_RANK', '0'):
    FAULT = ''


class FaultyFile:
    """A file in which the process is killed, if it is the n-th checkpoint or the pointer to that."""

    checkpoints = 0

    def __init__(self, path: str, mode: str) -> None:
        self.file = open(path, mode)  # noqa: SIM115
        self.is_pointer = os.path.basename(path).startswith('last_checkpoint')
        FaultyFile.checkpoints += not self.is_pointer

    def __enter__(self) -> 'FaultyFile':
        return self

    def __exit__(self, *error) -> None:
        self.file.close()

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def write(self, content: bytes) -> None:
        if FaultyFile.checkpoints == int(ARGUMENTS[0]) and self.is_pointer == (FAULT == 'pointer'):
            share = float(ARGUMENTS[1]) if FAULT == 'write' else 0
            self.file.write(content[:int(share * len(content))])
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        self.file.write(content)


# Formatting the config and describing the environment take longer than these trainings.
Config.pretty_text = property(str)
runner.collect_env = dict

if FAULT in ('write', 'pointer'):
    atomic.open = FaultyFile


@DATASETS.register_module()
class Stripes(torch.utils.data.Dataset):
    """Noisy stripes; the class is their direction."""

    def __len__(self) -> int:
        return 44

    def __getitem__(self, index: int) -> dict:
        pattern = torch.zeros(3, 16, 16)
        pattern[:, ::2] = 1
        image = pattern.transpose(1, 2) if index % 2 else pattern
        return dict(inputs=image + torch.randn(3, 16, 16), label=torch.tensor(index % 2))


@MODELS.register_module()
class Classifier(BaseModel):
    """PeLK and a linear layer; and a buffer that makes the checkpoints larger than the logs."""

    def __init__(self, backbone: dict) -> None:
        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.head = nn.Linear(8, 2)
        self.register_buffer('ballast', torch.randn(50_000))
        self.steps = 0

    def forward(self, inputs, label, mode='tensor'):
        self.steps += 1
        sys.stderr.write('step\n')
        if FAULT in ('term', 'raise') and self.steps == int(ARGUMENTS[0]):
            if FAULT == 'raise':
                raise ValueError('the fault that was asked for')
            os.kill(os.getpid(), signal.SIGTERM)
        scores = self.head(self.backbone(torch.stack(inputs))[-1])
        return dict(loss=nn.functional.cross_entropy(scores, torch.stack(label)))
