"""The metrics that runs are compared by, and every other quantity of the tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Quantity:
    """A group of columns of a table.

    Attributes:
        name (str): Heading of the columns.
        unit (str): Its unit.
        digits (int): Decimals shown.
        is_cost (bool): Whether it is a cost of the model, not a result of a run.
        has_difference (bool): Whether ours - paper is meaningful.
        log_key (str): Name of a metric in MMEngine's logs, without the prefix of its class; '' for other quantities.
        metafile_key (str): Name of a metric in metafiles.
        scope (str): The toolbox whose configs are compared by it.
        data (str): The data set whose configs are compared by it, as metafiles name it.
        factor (int): From logged values to the unit.
    """

    name: str
    unit: str
    digits: int = 1
    is_cost: bool = False
    has_difference: bool = True
    log_key: str = ''
    metafile_key: str = ''
    scope: str = ''
    data: str = ''
    factor: int = 1


METRICS = dict(
    top1=Quantity('top-1', '%', log_key='accuracy/top1', metafile_key='Top 1 Accuracy', scope='mmpretrain',
                  data='ImageNet-1k'),
    miou=Quantity('mIoU', '%', log_key='mIoU', metafile_key='mIoU', scope='mmseg', data='ADE20K'),
    ap_box=Quantity('box AP', '%', log_key='bbox_mAP', metafile_key='box AP', scope='mmdet', data='COCO', factor=100),
    ap_mask=Quantity('mask AP', '%', log_key='segm_mAP', metafile_key='mask AP', scope='mmdet', data='COCO',
                     factor=100))
QUANTITIES = dict(
    METRICS,
    throughput=Quantity('Throughput', 'images/s', digits=0, has_difference=False),
    relative=Quantity('to SLaK-T', 'times', digits=2),
    params=Quantity('Params', 'M', is_cost=True),
    flops=Quantity('FLOPs', 'G', is_cost=True))


def read_metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a record of a log in per cent, by keys of ``METRICS``, without NaN and infinity."""
    return {
        name: value * metric.factor
        for name, metric in METRICS.items() for key, value in record.items()
        if f'/{key}'.endswith(f'/{metric.log_key}') and is_number(value) and is_number(value * metric.factor)
    }


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number. Booleans and integers too large for float do not count."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False
