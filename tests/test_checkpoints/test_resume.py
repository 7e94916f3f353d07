"""--resume takes the newest undamaged checkpoint and reports the damaged ones."""

import os

import pytest

from pelk_mm.checkpoints import resume
from pelk_mm.checkpoints.resume import check_undamaged, find_last_checkpoint


@pytest.fixture
def log(monkeypatch):
    messages = []
    monkeypatch.setattr(resume, 'print_log', lambda message, **_: messages.append(message))
    return messages


def test_the_pointer_is_preferred_to_later_iterations(tmp_path, save, log):
    """Someone went back from iteration 30 to 10, and has come to 20 again."""
    save('iter_10.pth', 10)
    save('iter_30.pth', 30)
    save.point(save('iter_20.pth', 20, '20240102_000000'))
    assert find_last_checkpoint(tmp_path) == f'{tmp_path}/iter_20.pth'
    assert log == [f'{tmp_path}/iter_20.pth is the last undamaged checkpoint of {tmp_path}']


def test_a_checkpoint_saved_after_the_pointer_is_preferred(tmp_path, save, log):
    save.point(save('iter_20.pth', 20))
    save('iter_10.pth', 10)
    assert find_last_checkpoint(tmp_path) == f'{tmp_path}/iter_20.pth'
    save('iter_30.pth', 30)
    assert find_last_checkpoint(tmp_path) == f'{tmp_path}/iter_30.pth'
    save.flip(save('iter_40.pth', 40))
    save.point(f'{tmp_path}/iter_40.pth')
    save.halve(save('iter_50.pth', 50))
    log.clear()
    assert find_last_checkpoint(tmp_path) == f'{tmp_path}/iter_30.pth'
    assert log[0].startswith(f'{tmp_path}/iter_50.pth is damaged, its end is missing')
    assert log[1].startswith(f'{tmp_path}/iter_40.pth is damaged, iter_40/data/0 in it has a wrong checksum')
    assert all('left as it is' in message for message in log[:2])


@pytest.mark.parametrize('pointer', [None, '', 'work_dirs/gone/iter_99.pth', 'half.pth'])
def test_without_a_pointer_the_last_saved_is_taken(tmp_path, save, log, pointer):
    save('iter_30.pth', 30)
    save('iter_20.pth', 20, '20240102_000000')
    save('iter_15.pth', 15, '20240102_000000')
    save.halve(save('half.pth', 40))
    if pointer is not None:
        save.point(str(tmp_path / pointer) if pointer == 'half.pth' else pointer)
    assert find_last_checkpoint(tmp_path) == f'{tmp_path}/iter_20.pth'
    assert any('half.pth is damaged' in message for message in log)
    assert any('iter_99.pth, which does not exist' in message for message in log) == (pointer or '').endswith('99.pth')


def test_the_pointer_of_a_moved_folder_is_followed_inside_it(tmp_path, save, log):
    folder = tmp_path / 'moved'
    save('iter_10.pth', 10, folder=folder)
    save('iter_20.pth', 20, folder=folder)
    save.point('work_dirs/old/iter_10.pth', folder)
    assert find_last_checkpoint(folder) == f'{folder}/iter_10.pth'


def test_checkpoints_in_another_folder_are_found_by_the_pointer(tmp_path, save, log):
    save('iter_10.pth', 10, folder=tmp_path / 'out')
    save.halve(save('iter_20.pth', 20, folder=tmp_path / 'out'))
    save.point(f'{tmp_path}/out/iter_20.pth')
    assert find_last_checkpoint(tmp_path) == f'{tmp_path}/out/iter_10.pth'


@pytest.mark.parametrize('changes', [
    dict(optimizer=None),
    dict(message_hub=None),
    dict(meta=None),
    dict(state_dict=None),
    dict(meta=dict(time='20250101_000000')),
    dict(meta='of another tool'),
])
def test_an_incomplete_training_state_is_taken_only_if_the_pointer_names_it(tmp_path, save, log, changes):
    save('iter_10.pth', 10)
    best = save('best.pth', 20, **changes)
    assert find_last_checkpoint(tmp_path) == f'{tmp_path}/iter_10.pth'
    save.point(best)
    assert find_last_checkpoint(tmp_path) == best


def test_a_file_with_code_is_not_taken(tmp_path, save, log):
    save('iter_10.pth', 10)
    save('iter_20.pth', 20, code=os.system)
    assert find_last_checkpoint(tmp_path) == f'{tmp_path}/iter_10.pth'
    assert log[0].startswith(f'{tmp_path}/iter_20.pth is not used: ')
    assert 'system' in log[0]


def test_without_an_undamaged_checkpoint_training_starts_at_the_beginning(tmp_path, log):
    assert find_last_checkpoint(tmp_path) is None
    assert log == [f'{tmp_path} holds no undamaged checkpoint to resume from: training starts at its beginning']


def test_incomplete_files_are_reported(tmp_path, save, log):
    save.point(save('iter_10.pth', 10))
    (tmp_path / 'iter_20.pth.partial_1').write_text('half')
    assert find_last_checkpoint(tmp_path) == f'{tmp_path}/iter_10.pth'
    assert log[0].startswith(f'{tmp_path}/iter_20.pth.partial_1 is an incomplete file of a process that was killed')
    assert (tmp_path / 'iter_20.pth.partial_1').exists()


def test_remote_files_and_folders_are_left_to_mmengine(tmp_path, save, log):
    save.point('s3://bucket/iter_10.pth')
    assert find_last_checkpoint(tmp_path) == 's3://bucket/iter_10.pth'
    (tmp_path / 'iter_20.pth').mkdir()
    save.point(f'{tmp_path}/iter_20.pth')
    assert find_last_checkpoint(tmp_path) == f'{tmp_path}/iter_20.pth'


def test_a_damaged_file_is_refused_by_name(tmp_path, save):
    check_undamaged(save('iter_10.pth', 10))
    check_undamaged(save('iter_20.pth', 20))
    path = save('iter_30.pth', 30)
    save.halve(path)
    with pytest.raises(ValueError, match=f'--resume: {path} is damaged, its end is missing.* the newest first: '
                       f'{tmp_path}/iter_20.pth, {tmp_path}/iter_10.pth. Name another one, or none'):
        check_undamaged(path)
