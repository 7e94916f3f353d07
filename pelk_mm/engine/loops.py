"""Training loops whose course depends only on the seed and the position, so that a stop changes nothing.

MMEngine restores weights, optimiser, schedules and the order of the samples, but not the random generators, and an
epoch that was stopped before its end starts again from its first batch. These loops seed every sample's random
transforms by (seed, epoch, position among the samples of all ranks) and every training step by (seed, rank,
iteration). Training that was stopped after any step and resumed then equals, bit for bit, training that was not,
with any number of data loading workers, as long as the operators themselves are deterministic and, with gradient
accumulation, the stop is between two optimiser steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.dist import get_dist_info, get_rank
from mmengine.registry import DATA_SAMPLERS, DATASETS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import Dataset, Sampler

from pelk_mm.registry import LOOPS

from .seeding import derive_seed, seed_all


class SeededIndex(int):
    """Index of a sample that carries the seed of the sample's random transforms to the worker that loads it."""

    seed: int

    def __new__(cls, index: int, seed: int) -> SeededIndex:
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __reduce__(self) -> tuple:
        return SeededIndex, (int(self), self.seed)


class SeededSampler(Sampler):
    """Yield the indices of another sampler, each with a seed.

    Args:
        sampler (dict): Config of the sampler.
        dataset (Dataset): What to sample from.
        seed (int, optional): Seed of the sampler itself, the same on all ranks.
        sample_seed (int): Seed of the samples.
    """

    def __init__(self, sampler: dict, dataset: Dataset, seed: int | None, sample_seed: int) -> None:
        self.sampler = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=seed))
        self.sample_seed = sample_seed
        self.epoch = 0
        self._skipped = 0
        if hasattr(self.sampler, 'skip'):
            # MMEngine asks for the method to know whether a sampler can resume without loading.
            self.skip = self._skip

    def __iter__(self) -> Iterator[SeededIndex]:
        first, self._skipped = self._skipped, 0
        rank, world_size = get_dist_info()
        for position, index in enumerate(self.sampler, first):
            # MMEngine's samplers give samples to the ranks in turn, so this is the position among those of all ranks:
            # the same sample is transformed in the same way with any number of ranks.
            position = position * world_size + rank
            yield SeededIndex(index, derive_seed('sample', self.sample_seed, self.epoch, position))

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        if name == 'sampler':
            raise AttributeError(name)
        return getattr(self.sampler, name)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the sampler and of the seeds."""
        self.epoch = epoch
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    def _skip(self, num_samples: int) -> None:
        self.sampler.skip(num_samples)
        self._skipped = num_samples


class SeededDataset(Dataset):
    """Seed Python's, NumPy's and PyTorch's generators before each sample of another dataset is loaded.

    Everything else, to read or to set, is the other dataset's: hooks that switch its pipeline find it.
    """

    def __init__(self, dataset: dict) -> None:
        self.__dict__['dataset'] = DATASETS.build(dataset)

    def __getitem__(self, index: int) -> Any:
        if isinstance(index, SeededIndex):
            seed_all(index.seed)
        return self.dataset[int(index)]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        # ``__getitems__``, too, would go past the seeds.
        if name == 'dataset' or name.startswith('__'):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.dataset, name, value)


def seeded_dataloader(runner: Runner, dataloader: dict) -> dict:
    """Return the config of a training dataloader with its dataset and sampler seeded.

    Raises:
        TypeError: If ``dataloader`` is not a config.
    """
    if not isinstance(dataloader, dict):
        raise TypeError(f'the resumable loops need the dataloader as a config dict, got {type(dataloader).__name__}')
    return dict(
        dataloader,
        dataset=dict(type=SeededDataset, dataset=dataloader['dataset']),
        sampler=dict(type=SeededSampler, sampler=dataloader['sampler'], sample_seed=runner.seed))


class _SeededLoop(BaseLoop):
    """The additions of both loops to MMEngine's."""

    def __init__(self, runner: Runner, dataloader: dict, **kwargs) -> None:
        super().__init__(runner, seeded_dataloader(runner, dataloader), **kwargs)
        self._dataloader_cfg = dataloader
        self._data_seed = runner.seed

    def run(self) -> Any:
        """Launch training."""
        if self.runner.seed != self._data_seed:
            # The config sets no seed, and that of the checkpoint came after the dataloader was built.
            self.rebuild_dataloader()
        return super().run()

    def run_iter(self, *args) -> None:
        """Run one training step."""
        seed_all(derive_seed('step', self.runner.seed, get_rank(), self.iter))
        super().run_iter(*args)  # type: ignore[misc]

    def rebuild_dataloader(self) -> None:
        """Build the dataloader with the present seed of the runner."""
        BaseLoop.__init__(self, self.runner, seeded_dataloader(self.runner, self._dataloader_cfg))
        self._data_seed = self.runner.seed


@LOOPS.register_module()
class ResumableEpochBasedTrainLoop(_SeededLoop, EpochBasedTrainLoop):
    """MMEngine's ``EpochBasedTrainLoop`` that resumes exactly, in the middle of an epoch too, with the same arguments.

    Raises:
        ValueError: If an epoch has no batch.
    """

    def __init__(self, runner: Runner, dataloader: dict, **kwargs) -> None:
        super().__init__(runner, dataloader, **kwargs)
        if not len(self.dataloader):
            raise ValueError('train_dataloader.drop_last leaves out the last, smaller batch, and there is no other: '
                             f'batch_size is {self.dataloader.batch_size}, each process has '
                             f'{len(self.dataloader.sampler)} of {len(self.dataloader.dataset)} samples. Set a smaller '
                             'batch_size, or drop_last=False')

    def run(self) -> Any:
        """Launch training."""
        # Of the first epoch only, and only if it can be: the checkpoint may be of a run with epochs of another length.
        # A checkpoint of an epoch's last iteration has all of it trained, but nothing of what follows an epoch done.
        trained = self.iter - self.epoch * len(self.dataloader)
        self._trained = trained if 0 < trained <= len(self.dataloader) else 0
        return super().run()

    def run_epoch(self) -> None:
        """Iterate one epoch, or the rest of the one that was stopped."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        trained, self._trained = self._trained, 0
        if trained:
            self.runner.logger.info(f'Epoch {self.epoch + 1} was stopped after {trained} of {len(self.dataloader)} '
                                    'iterations: loading and skipping these')
        for idx, data_batch in enumerate(self.dataloader):
            if idx >= trained:
                self.run_iter(idx, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


@LOOPS.register_module()
class ResumableIterBasedTrainLoop(_SeededLoop, IterBasedTrainLoop):
    """MMEngine's ``IterBasedTrainLoop`` that resumes exactly, with the same arguments."""

    def rebuild_dataloader(self) -> None:
        super().rebuild_dataloader()
        iterator_type = type(self.dataloader_iterator)  # type: ignore[has-type]
        self.dataloader_iterator = iterator_type(self.dataloader)
