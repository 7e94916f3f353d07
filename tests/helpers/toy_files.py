"""Files that tests hand to tools and loaders: a module with a toy data set and model, and an ONNX file of nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MODULE = '''"""A toy data set and model."""

import torch
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS


@DATASETS.register_module(name='{name}_dataset')
class ToyDataset(torch.utils.data.Dataset):

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return dict(inputs=torch.ones(1))


@MODELS.register_module(name='{name}_model')
class ToyModel(BaseModel):

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)

    def forward(self, inputs, mode='tensor'):
        y = self.linear(torch.stack(inputs))
        return dict(loss=y.sum()) if mode == 'loss' else list(y)
'''


def write_toy_module(folder: Path, name: str) -> dict[str, Any]:
    """Write ``<name>.py``, a module that registers a data set of two images and a model with two parameters.

    Both are registered by the name of the module, so that one process can import several.

    Args:
        folder (Path): Where to; it must be in ``sys.path`` when the config is loaded.
        name (str): Of the module.

    Returns:
        dict[str, Any]: What a config needs to train it, apart from ``train_cfg``: one iteration is an epoch.
    """
    (folder / f'{name}.py').write_text(_MODULE.format(name=name), encoding='utf-8')
    return dict(
        custom_imports=dict(imports=[name], allow_failed_imports=False),
        model=dict(type=f'{name}_model'),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            dataset=dict(type=f'{name}_dataset'),
            sampler=dict(type='DefaultSampler', shuffle=False)),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)))


def write_onnx_stub(path: str | Path, meta: Mapping[str, str]) -> Path:
    """Write an ONNX file with some metadata, whose ``logits`` are its ``image``, one number; return its path."""
    import onnx
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ('image', 'logits')]
    node = onnx.helper.make_node('Identity', ['image'], ['logits'])
    graph = onnx.helper.make_graph([node], 'graph', values[:1], values[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 17)], ir_version=8)
    onnx.helper.set_model_props(model, dict(meta))
    onnx.save(model, str(path))
    return Path(path)
