"""From a trained model to one that runs elsewhere: merged, proven equal, exported, run."""

from ..install_hints import require

require('mmengine', 'mmcv', by='pelk_mm.deploy')

from .comparing import Difference, compare
from .export_forms import prepare_for_export
from .exporting import ImageModel, capture, describe, save_onnx, save_package, task_of
from .files import load_trained, save_deployment
from .images import TestImages, image_loader, list_images, test_pipeline
from .merging import Deployment, deploy
from .onnx_model import OnnxModel
from .predictions import Detections, Predictions
from .verifying import Agreement, stack_images, verify_onnx, verify_package, verify_predictions

__all__ = [
    'Agreement', 'Deployment', 'Detections', 'Difference', 'ImageModel', 'OnnxModel', 'Predictions', 'TestImages',
    'capture', 'compare', 'deploy', 'describe', 'image_loader', 'list_images', 'load_trained', 'prepare_for_export',
    'save_deployment', 'save_onnx', 'save_package', 'stack_images', 'task_of', 'test_pipeline', 'verify_onnx',
    'verify_package', 'verify_predictions'
]
