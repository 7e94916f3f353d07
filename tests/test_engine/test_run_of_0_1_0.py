"""A sparse training of version 0.1.0 goes on with today's code, from its own config and checkpoint."""

import shutil

import torch

from .save_sparse_run import FILES, WORK_DIR, load, numbers, outputs, write_images

EXPECTED = torch.load(FILES / 'expected.pth')


def test_training_resumes_where_0_1_0_went_on(run_tool, tmp_path, monkeypatch):
    """Weights, their average, optimiser, rates, losses and masks are those of the run that was not stopped."""
    monkeypatch.chdir(tmp_path)
    write_images()
    WORK_DIR.mkdir(parents=True)
    shutil.copy(FILES / 'sparse.py', WORK_DIR)
    shutil.copy(FILES / 'iter_2.pth', WORK_DIR)
    code, printed = run_tool('train.py', WORK_DIR / 'sparse.py', '--resume')
    assert code == 0, printed
    resumed = numbers(load(WORK_DIR / 'iter_4.pth'))
    torch.testing.assert_close(resumed, EXPECTED['numbers'], rtol=1e-5, atol=1e-7)
    # Nothing else is equal because it stood still.
    before = numbers(load(FILES / 'iter_2.pth'))
    assert [name for name, values in before.items() if values.equal(resumed[name])] == ['weight_decay']


def test_model_of_0_1_0_has_the_same_outputs():
    got = outputs(str(FILES / 'sparse.py'), str(FILES / 'iter_2.pth'))
    torch.testing.assert_close(got, EXPECTED['outputs'], rtol=1e-5, atol=1e-6)
