"""Reach tasks for mmseg: data sets that are drawn as they are loaded, and accuracy by distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmseg.datasets import BaseSegDataset

from pelk_mm.registry import DATASETS, METRICS

from .reach_maps import COLORS, IGNORED, ReachMap, draw_nearest_seed, draw_offset_pairs


class ReachDataset(BaseSegDataset):
    """Maps that are drawn from a seed and their index, without files; subclasses define :meth:`draw`.

    Samples have ``img``, ``gt_seg_map`` and ``distance``, (H, W), which flips and crops treat as a label map.
    ``PackSegInputs`` needs ``'distance'`` among its ``meta_keys`` for :class:`AccuracyByDistance`.

    Args:
        length (int): Number of maps.
        seed (int): Maps of different seeds are independent. Defaults to 0.
        map_size (int): Side of the maps. Defaults to 64.
        **kwargs: As for ``BaseSegDataset``, such as ``pipeline``.
    """

    def __init__(self, length: int, seed: int = 0, map_size: int = 64, **kwargs: Any) -> None:
        for name, value, least in (('length', length, 1), ('seed', seed, 0), ('map_size', map_size, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f'{name} must be an int of at least {least}, got {value!r}')
        self.length, self.seed, self.map_size = length, seed, map_size
        super().__init__(**kwargs)

    def draw(self, rng: np.random.Generator) -> ReachMap:
        """Draw a map."""
        raise NotImplementedError(f'{type(self).__name__} must define draw')

    def load_data_list(self) -> list[dict]:
        """Return the names of the maps, which predictions are saved under."""
        return [dict(img_path=f'{index:05d}.png', label_map=None, reduce_zero_label=False)
                for index in range(self.length)]

    def get_data_info(self, idx: int) -> dict:
        """Return the sample of an index, with its map."""
        info = super().get_data_info(idx)
        drawn = self.draw(np.random.default_rng((self.seed, info['sample_idx'])))
        shape = drawn.labels.shape
        return dict(info, img=drawn.image, gt_seg_map=drawn.labels, distance=drawn.distance, img_shape=shape,
                    ori_shape=shape, seg_fields=['gt_seg_map', 'distance'])


@DATASETS.register_module()
class NearestSeedDataset(ReachDataset):
    """Each pixel has the class of the nearest seed, see :func:`~pelk_mm.datasets.reach_maps.draw_nearest_seed`.

    Args:
        num_seeds (int): Seeds of a map. Defaults to 6.
        **kwargs: As for :class:`ReachDataset`.
    """

    METAINFO = dict(classes=('white', 'red', 'green', 'blue'), palette=COLORS.tolist())

    def __init__(self, num_seeds: int = 6, **kwargs: Any) -> None:
        self.num_seeds = num_seeds
        super().__init__(**kwargs)

    def draw(self, rng: np.random.Generator) -> ReachMap:
        return draw_nearest_seed(rng, self.map_size, self.num_seeds)


@DATASETS.register_module()
class OffsetPairsDataset(ReachDataset):
    """Pixels with and without a B at a diagonal offset, see :func:`~pelk_mm.datasets.reach_maps.draw_offset_pairs`.

    Args:
        exact (bool): Whether the offset must be diagonal to the pixel; otherwise the tolerance is a quarter of the
            distance. Defaults to False.
        num_targets (int): B of a map. Defaults to 5.
        **kwargs: As for :class:`ReachDataset`.
    """

    METAINFO = dict(classes=('negative', 'positive'), palette=COLORS[:2].tolist())

    def __init__(self, exact: bool = False, num_targets: int = 5, **kwargs: Any) -> None:
        self.exact, self.num_targets = exact, num_targets
        super().__init__(**kwargs)

    def draw(self, rng: np.random.Generator) -> ReachMap:
        return draw_offset_pairs(rng, self.map_size, self.exact, self.num_targets)


@METRICS.register_module()
class AccuracyByDistance(BaseMetric):
    """Share of the right pixels in per cent, of all that have a class, and for each range of the distance.

    The metrics are ``reach/acc`` and ``reach/acc_A_B`` for distances from A up to, not including, B. Ranges without
    pixels are left out.

    Args:
        edges (Sequence[float]): Ends of the ranges, increasing.
        ignore_index (int): Label of pixels that do not count. Defaults to 255.
        **kwargs: As for ``BaseMetric``.
    """

    default_prefix = 'reach'

    def __init__(self, edges: Sequence[float], ignore_index: int = IGNORED, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if len(edges) < 2 or any(high <= low for low, high in zip(edges, edges[1:])):
            raise ValueError(f'edges must be at least two increasing distances, got {edges!r}')
        self.edges, self.ignore_index = list(edges), ignore_index

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Count pixels and right ones, below the first edge, in each range and above the last edge."""
        for sample in data_samples:
            predicted, labels = (sample[key]['data'].squeeze(0).cpu().numpy() for key in ('pred_sem_seg', 'gt_sem_seg'))
            counts = labels != self.ignore_index
            bins = np.digitize(sample['distance'][counts], self.edges)
            right = (predicted == labels)[counts]
            length = len(self.edges) + 1
            self.results.append((np.bincount(bins, minlength=length), np.bincount(bins, right, minlength=length)))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return the shares in per cent, by name."""
        pixels, right = (np.sum(counts, 0) for counts in zip(*results))
        metrics = dict(acc=float(100 * right.sum() / pixels.sum()))
        for index, (low, high) in enumerate(zip(self.edges, self.edges[1:]), 1):
            if pixels[index]:
                metrics[f'acc_{low:g}_{high:g}'] = float(100 * right[index] / pixels[index])
        return metrics
