"""The runtimes that execute exported files on the CPU: onnxruntime and OpenVINO."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..install_hints import require


class Session(NamedTuple):
    """A file that is loaded.

    Attributes:
        run (Callable): Images (N, C, H, W), float32, to the outputs.
        outputs (list[str]): Their names.
        meta (str | None): The metadata of this package, JSON; None if the file has no such.
    """

    run: Callable[[np.ndarray], list[np.ndarray]]
    outputs: list[str]
    meta: str | None


def open_session(path: str | Path,
                 threads: int | None = None,
                 precision: str | None = 'f32',
                 shape: Sequence[int] | None = None) -> Session:
    """Load an ONNX file in onnxruntime, or an OpenVINO file, ``.xml``, in OpenVINO.

    Args:
        path (str | Path): The file.
        threads (int, optional): Threads of one operation. By default the runtime's choice, one per core.
        precision (str, optional): Of OpenVINO's arithmetic where the file has no int8: ``'f32'`` or ``'bf16'``; None
            leaves it to OpenVINO, which takes bf16 on CPUs that have it. Defaults to ``'f32'``.
        shape (Sequence[int], optional): Of the images, (N, C, H, W), which makes OpenVINO faster. By default any.

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
    return Session(lambda images: session.run(None, {'image': images}), [each.name for each in session.get_outputs()],
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
    return Session(lambda images: list(compiled({'image': images}).values()),
                   [output.get_any_name() for output in compiled.outputs], meta)
