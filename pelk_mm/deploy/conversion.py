"""ONNX files of this package as OpenVINO files, and both in int8: static, one scale for each channel of a weight.

Box sums stay in fp32. A sum over a wide cell has a larger range than its parts, and each of them would be rounded
again, in dozens of operations that do no multiplication.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from mmengine.config import Config

from ..analysis.model_building import quiet
from ..checkpoints.atomic import atomic_write, refuse_existing
from ..install_hints import require
from .export import get_test_pipeline
from .inference import EvalImages
from .onnx_ops import BOX_SUMS


def calibration_images(cfg: Config, count: int, folder: str | None = None) -> EvalImages:
    """Return at most ``count`` images of the training data, or of a folder, as the test pipeline prepares them.

    Raises:
        ValueError: If the config has no training data and there is no folder.
    """
    if folder is None:
        dataset = (cfg.get('train_dataloader') or {}).get('dataset') or {}
        # Inside of wrappers, such as RepeatDataset and ConcatDataset.
        while inner := dataset.get('dataset') or dataset.get('datasets'):
            dataset = inner[0] if isinstance(inner, (list, tuple)) else inner
        if not dataset:
            raise ValueError('cfg must have train_dataloader.dataset, to calibrate on its images; or give a folder of '
                             'images (--calibration)')
        cfg = Config(dict(cfg.to_dict(), test_dataloader=dict(
            dataset=dict(dataset, pipeline=get_test_pipeline(cfg)))))
    return EvalImages(cfg, count, folder)


def save_openvino(source: str | Path, path: str | Path, calibration: EvalImages | None = None) -> None:
    """Convert an ONNX file of :func:`save_onnx` to OpenVINO: ``path``, which ends with ``.xml``, and ``.bin`` beside.

    Args:
        source (str | Path): The ONNX file.
        path (str | Path): The file to write.
        calibration (EvalImages, optional): Images on which NNCF measures the ranges of activations; the result
            computes in int8. By default it is in fp32.

    Raises:
        FileExistsError: If one of both files exists.
        ImportError: If openvino, or for int8 nncf, is missing.
    """
    path = Path(path)
    weights = path.with_suffix('.bin')
    refuse_existing(path, weights)
    require('openvino', 'onnx', by='export to OpenVINO')
    import onnx
    import openvino
    model = openvino.convert_model(str(source))
    if calibration is not None:
        model = _quantize_openvino(model, calibration)
    props = onnx.load(str(source), load_external_data=False).metadata_props
    for prop in props:
        model.set_rt_info(prop.value, prop.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent) as folder:
        openvino.save_model(model, f'{folder}/model.xml', compress_to_fp16=False)
        os.replace(f'{folder}/model.bin', weights)
        os.replace(f'{folder}/model.xml', path)


def _quantize_openvino(model, calibration: EvalImages):
    require('nncf', by='int8 in OpenVINO')
    import nncf
    with quiet(logging.getLogger('nncf'), level=logging.ERROR):
        return nncf.quantize(
            model,
            nncf.Dataset(range(len(calibration)), calibration.network_input),
            # GELU is not symmetric.
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(calibration),
            ignored_scope=nncf.IgnoredScope(patterns=[f'{re.escape(BOX_SUMS)}.*'], validate=False))


def save_int8_onnx(source: str | Path, path: str | Path, calibration: EvalImages) -> None:
    """Write an ONNX file of :func:`save_onnx` in int8, by onnxruntime's static quantisation.

    Convolutions and linear layers compute in int8, activations are unsigned. The operations are of ONNX's standard.

    Args:
        source (str | Path): The file in fp32.
        path (str | Path): The file to write.
        calibration (EvalImages): Images on which the ranges of activations are measured.

    Raises:
        FileExistsError: If the file exists.
        ImportError: If onnx or onnxruntime is missing.
    """
    refuse_existing(path)
    require('onnx', 'onnxruntime', by='int8 in ONNX files')
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    inputs = (dict(image=calibration.network_input(index)) for index in range(len(calibration)))

    class Reader(CalibrationDataReader):

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(inputs, None)

    with TemporaryDirectory() as folder, quiet(logging.getLogger(), level=logging.ERROR):
        prepared, quantized = f'{folder}/prepared.onnx', f'{folder}/quantized.onnx'
        quant_pre_process(str(source), prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared, load_external_data=False).graph
        constants = {each.name for each in graph.initializer}
        quantize_static(
            prepared,
            quantized,
            Reader(),
            op_types_to_quantize=['Conv', 'Gemm', 'MatMul'],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # Of box sums, of pooling by products, and of attention.
            nodes_to_exclude=[
                node.name for node in graph.node if node.op_type == 'MatMul' and node.input[1] not in constants
            ],
            # What follows is in fp32: bias and GELU, or the result.
            extra_options=dict(OpTypesToExcludeOutputQuantization=['Gemm', 'MatMul']))
        model = onnx.load(quantized)
    del model.metadata_props[:]
    model.metadata_props.extend(onnx.load(str(source), load_external_data=False).metadata_props)
    atomic_write(model.SerializeToString(), path)
