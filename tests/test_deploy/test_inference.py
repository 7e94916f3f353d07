"""Files that 0.1.0 exported load and predict as they did."""

from pathlib import Path

import numpy as np
import pytest

from pelk_mm.deploy import OnnxModel

pytestmark = pytest.mark.slow


def test_a_file_exported_by_0_1_0_predicts_as_it_did():
    """A segmentor with one channel of logits, a threshold of 0.446, and windows of 64 on images of 96 x 144."""
    model = OnnxModel(Path(__file__).parent / 'files/binary_segmentor_0.1.0.onnx')
    assert (model.meta['task'], model.meta['classes'], model.meta['channels']) == ('segmentation', ['ant', 'bee'], 3)
    image = np.random.default_rng(7).integers(0, 256, (70, 90, 3), np.uint8)
    sample = model.predict(image)
    np.testing.assert_allclose(
        sample.seg_logits.data.flatten()[::700],
        [0.415178, 0.434977, 0.438276, 0.429400, 0.471543, 0.461199, 0.449091, 0.445797, 0.495322], atol=2e-6)
    assert model.segment(image).sum() == pytest.approx(0.5027 * 70 * 90, abs=2)
    logits, = model.run(np.full((2, 3, 75, 85), 100, np.float32))
    np.testing.assert_allclose(
        logits.flatten()[::2000],
        [-0.472146, -0.309771, -0.106059, -0.146694, -0.462596, -0.212600, 0.005359], atol=2e-6)
