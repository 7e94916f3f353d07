"""A small training in this process."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from torch import nn

from .small_runs import small_runner


class Line(BaseModel):
    """A linear layer with dropout, so that a step is random."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x, y, mode='tensor'):
        prediction = self.layer(nn.functional.dropout(x, 0.2, self.training))[:, 0]
        return dict(loss=(prediction - y).square().mean()) if mode == 'loss' else list(prediction)


class Points(torch.utils.data.Dataset):
    """Forty noisy points."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return dict(x=torch.full((4, ), index / 40) + 0.1 * torch.randn(4), y=torch.tensor(index / 20))


class Scores(BaseMetric):
    """The given values, one a validation."""

    def __init__(self, **values):
        super().__init__()
        self.values = {name: iter(scores) for name, scores in values.items()}

    def process(self, data_batch, data_samples):
        self.results.append(len(data_samples))

    def compute_metrics(self, results):
        return {name: next(scores) for name, scores in self.values.items()}


@pytest.fixture
def make_runner():
    """Build a runner of 30 steps, 10 an epoch; keyword arguments are its own."""

    def make(work_dir, loop='pelk_mm.ResumableEpochBasedTrainLoop', checkpoint=None, hooks=(), scores=None, **kwargs):
        length = dict(max_epochs=3) if 'Epoch' in loop else dict(max_iters=30)
        data = dict(collate_fn=dict(type='default_collate'), dataset=dict(type=Points))
        val = {}
        if scores is not None:
            val = dict(
                val_dataloader=ConfigDict(
                    data, batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False)),
                val_evaluator=dict(type=Scores, **scores),
                val_cfg=dict())
            length['val_interval'] = 1 if 'Epoch' in loop else 10
        return small_runner(
            work_dir,
            dict(type=Line),
            dict(data, sampler=dict(type='DefaultSampler', shuffle=True)),
            train_cfg=dict(type=loop, **length),
            default_hooks=dict(checkpoint=checkpoint),
            custom_hooks=list(hooks),
            randomness=dict(seed=1),
            **val,
            **kwargs)

    return make
