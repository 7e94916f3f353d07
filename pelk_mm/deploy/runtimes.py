"""The runtimes that execute exported files on the CPU: onnxruntime and OpenVINO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..install_hints import require

# A loaded file: the function from images (N, C, H, W), float32, to the outputs; the names of these; the metadata of
# this package, JSON, or None if the file has no such.
Session = tuple[Callable[[np.ndarray], list[np.ndarray]], list[str], str | None]


def open_session(path: str | Path, threads: int | None, precision: str | None, shape: Sequence[int] | None) -> Session:
    """Load an ONNX file in onnxruntime, or an OpenVINO file, ``.xml``, in OpenVINO.

    Arguments are those of :class:`pelk_mm.deploy.ExportedModel`.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If the runtime is missing.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'no such exported file: {path}')
    return _open_openvino(path, threads, precision, shape) if Path(path).suffix == '.xml' else _open_onnx(path, threads)


def _open_onnx(path: str | Path, threads: int | None) -> Session:
    require('onnxruntime', by='running ONNX files')
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    return (lambda images: session.run(None, {'image': images}), [each.name for each in session.get_outputs()],
            session.get_modelmeta().custom_metadata_map.get('pelk_mm'))


def _open_openvino(path: str | Path, threads: int | None, precision: str | None,
                   shape: Sequence[int] | None) -> Session:
    require('openvino', by='running OpenVINO files')
    import openvino
    core = openvino.Core()
    model = core.read_model(str(path))
    if shape is not None:
        model.reshape(list(shape))
    options: dict[str, Any] = dict(PERFORMANCE_HINT='LATENCY')
    if threads is not None:
        options['INFERENCE_NUM_THREADS'] = threads
    if precision is not None:
        options['INFERENCE_PRECISION_HINT'] = precision
    compiled = core.compile_model(model, 'CPU', options)
    meta = model.get_rt_info('pelk_mm').astype(str) if model.has_rt_info('pelk_mm') else None
    return (lambda images: list(compiled({'image': images}).values()),
            [output.get_any_name() for output in compiled.outputs], meta)
