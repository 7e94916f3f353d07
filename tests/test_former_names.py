"""Names that the pages of 0.1.0 document import from their former places, and are today's objects."""

from importlib import import_module

import pytest
import torch

from pelk_mm.deploy import ImageModel, prepare_for_export
from pelk_mm.diagnostics.finding import Finding
from pelk_mm.doctors.checkpoint import find_weights
from pelk_mm.testing.tiny_models import build_tiny_model, tiny_config

FORMER = {
    'doctors.environment': ('diagnostics.environment', 'examine_environment installed_versions run_probes judge'),
    'doctors.checkpoint': ('diagnostics.checkpoint', 'examine_checkpoint examine_file match_config Match'),
    'doctors.finding': ('diagnostics.finding', 'Finding to_text has_fault=has_error'),
    'engine': ('engine', 'WholeCheckpointHook=AtomicCheckpointHook wrap_types=class_name_wrap_policy'),
    'engine.launch': ('engine.launch', 'parse_args=parse_common_args'),
    'compat': ('checkpoints.loading', 'trust_checkpoint load_safely=safe_load'),
    'layers': ('layers', 'DepthwiseBranches=ReparamDepthwiseConv'),
    'deploy': ('deploy', 'TestImages=EvalImages test_pipeline=get_test_pipeline verify_onnx=verify_outputs'),
    'analysis.leaderboard': ('reports', 'Leaderboard Row Table Value CostCounter Entry read_catalogue Run find_runs '
                             'Problem to_csv to_html to_markdown'),
    'engine.checkpoints': ('checkpoints.convert', 'convert_file convert_main rename'),
}


@pytest.mark.parametrize('place', FORMER)
def test_former_names_are_todays_objects(place):
    today, names = FORMER[place]
    for former, _, name in (pair.partition('=') for pair in names.split()):
        assert getattr(import_module(f'pelk_mm.{place}'), former) is getattr(
            import_module(f'pelk_mm.{today}'), name or former)


def test_former_forms_of_calls():
    model = build_tiny_model(tiny_config('classification'))
    dense = str(prepare_for_export(model, kernel_form='dense'))
    assert str(prepare_for_export(model, form='dense')) == dense != str(prepare_for_export(model))
    assert str(ImageModel(model, 'classification', form='dense').model) == dense
    with pytest.raises(TypeError, match='kernel_form'):
        prepare_for_export(model, form='dense', kernel_form='fast')
    assert Finding('error', 'file', 'is empty', 'Copy it again').cure == 'Copy it again'
    weight = torch.ones(1)
    assert find_weights(dict(meta={}, model=dict(weight=weight))) == ('model', dict(weight=weight))
    assert find_weights(dict(weight=weight, step=1)) == (None, dict(weight=weight))
