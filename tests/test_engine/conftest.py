"""A small training in this process."""

import pytest
from mmengine.config import ConfigDict
from mmengine.evaluator import BaseMetric

from .small_runs import Images, Net, small_runner


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
        data = dict(collate_fn=dict(type='default_collate'), dataset=dict(type=Images))
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
            dict(type=Net),
            dict(data, sampler=dict(type='DefaultSampler', shuffle=True)),
            train_cfg=dict(type=loop, **length),
            default_hooks=dict(checkpoint=checkpoint),
            custom_hooks=list(hooks),
            randomness=dict(seed=1),
            **val,
            **kwargs)

    return make
