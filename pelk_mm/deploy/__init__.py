"""From a trained model to one that runs elsewhere: merged, proven equal, exported, run."""

from ..install_hints import require

require('mmengine', 'mmcv', by='pelk_mm.deploy')

from .conversion import calibration_images, save_int8_onnx, save_openvino
from .export import (
    ImageModel,
    capture,
    describe,
    get_test_pipeline,
    prepare_for_export,
    save_onnx,
    save_package,
    task_of,
)
from .inference import EvalImages, ExportedModel, ImagePipeline, OnnxModel, image_loader, list_images
from .merge import Deployment, deploy, load_trained, save_deployment
from .verify import (
    Agreement,
    Detections,
    Difference,
    ExportedFile,
    Predictions,
    compare,
    open_exported,
    stack_images,
    verify_outputs,
    verify_predictions,
)

# Names of 0.1.0.
TestImages, test_pipeline, verify_onnx, verify_package = EvalImages, get_test_pipeline, verify_outputs, verify_outputs

__all__ = [
    'Agreement', 'Deployment', 'Detections', 'Difference', 'EvalImages', 'ExportedFile', 'ExportedModel', 'ImageModel',
    'ImagePipeline', 'OnnxModel', 'Predictions', 'calibration_images', 'capture', 'compare', 'deploy', 'describe',
    'get_test_pipeline', 'image_loader', 'list_images', 'load_trained', 'open_exported', 'prepare_for_export',
    'save_deployment', 'save_int8_onnx', 'save_onnx', 'save_openvino', 'save_package', 'stack_images', 'task_of',
    'verify_outputs', 'verify_predictions'
]
