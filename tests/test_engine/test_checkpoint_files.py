"""Which checkpoint --resume takes, and what it says about the others."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from pelk_mm.compat import setup
from pelk_mm.engine import checkpoint_files
from pelk_mm.engine.checkpoint_files import check_whole, find_damage, find_last_whole_checkpoint


@pytest.fixture
def log(monkeypatch):
    messages = []
    monkeypatch.setattr(checkpoint_files, 'print_log', lambda message, **_: messages.append(message))
    return messages


@pytest.fixture
def save(tmp_path):
    """Writes a checkpoint of an iteration; each is a second younger than the one before, unless said otherwise."""
    setup()
    seconds = iter(range(1000))

    def save(name, iteration, time=None, folder=tmp_path, **changes):
        content = dict(
            meta=dict(iter=iteration, epoch=0, time=time or f'20240101_{iteration:06}'),
            state_dict=dict(weight=torch.arange(1000.)),
            message_hub={},
            optimizer={})
        content.update(changes)
        folder.mkdir(exist_ok=True)
        torch.save({key: value for key, value in content.items() if value is not None}, folder / name)
        age(folder / name)
        return str(folder / name)

    def age(path):
        second = 1_700_000_000 + next(seconds)
        os.utime(path, (second, second))

    def point(path, folder=tmp_path):
        (folder / 'last_checkpoint').write_text(path)
        age(folder / 'last_checkpoint')

    save.point = point
    return save


def halve(path):
    """As a process leaves it that is ended while it writes."""
    with open(path, 'r+b') as file:
        file.truncate(os.path.getsize(path) // 2)


def flip(path):
    """One bit that a disk or a copy got wrong, in the data of a tensor."""
    with open(path, 'r+b') as file:
        content = file.read()
        place = content.index(torch.arange(1000.).numpy().tobytes()) + 1001
        file.seek(place)
        file.write(bytes([content[place] ^ 1]))


def test_damage_is_found_and_described(tmp_path, save):
    path = save('a.pth', 1)
    assert find_damage(path) is None
    flip(path)
    assert find_damage(path, checksums=False) is None
    assert find_damage(path) == 'a/data/0 in it has a wrong checksum'
    # PyTorch would not have noticed.
    assert not torch.equal(torch.load(path)['state_dict']['weight'], torch.arange(1000.))
    halve(path)
    assert find_damage(path, checksums=False).startswith('its end is missing')
    (tmp_path / 'b.pth').touch()
    assert find_damage(tmp_path / 'b.pth') == 'it is empty'
    (tmp_path / 'b.pth').write_text('version https://git-lfs.github.com/spec/v1')
    assert 'or it is no file of torch.save' in find_damage(tmp_path / 'b.pth')


def test_every_cut_is_found(tmp_path, save):
    content = Path(save('a.pth', 1)).read_bytes()
    for length in range(0, len(content), 97):
        (tmp_path / 'b.pth').write_bytes(content[:length])
        assert find_damage(tmp_path / 'b.pth', checksums=False), length


def test_a_wrong_bit_anywhere_is_found_or_does_no_harm(tmp_path, save):
    content = Path(save('a.pth', 1)).read_bytes()
    whole = torch.load(tmp_path / 'a.pth')
    found = 0
    for place in range(len(content)):
        wrong = bytearray(content)
        wrong[place] ^= 1 << place % 8
        (tmp_path / 'a.pth').write_bytes(wrong)
        if find_damage(tmp_path / 'a.pth'):
            found += 1
            continue
        # Times, attributes and the like, which PyTorch does not read, or refuses; before 2.7 as no UTF-8.
        with suppress(RuntimeError, UnicodeDecodeError):
            loaded = torch.load(tmp_path / 'a.pth')
            assert loaded.keys() == whole.keys()
            assert loaded['meta'] == whole['meta']
            assert torch.equal(loaded['state_dict']['weight'], whole['state_dict']['weight'])
    assert found > 0.8 * len(content)


def test_the_pointer_counts_more_than_iterations(tmp_path, save, log):
    """Someone went back from iteration 30 to 10, and has come to 20 again."""
    save('iter_10.pth', 10)
    save('iter_30.pth', 30)
    save.point(save('iter_20.pth', 20, '20240102_000000'))
    assert find_last_whole_checkpoint(tmp_path) == f'{tmp_path}/iter_20.pth'
    assert log == [f'{tmp_path}/iter_20.pth is the last whole checkpoint of {tmp_path}']


def test_what_was_saved_after_the_pointer_counts_more(tmp_path, save, log):
    save.point(save('iter_20.pth', 20))
    save('iter_10.pth', 10)
    assert find_last_whole_checkpoint(tmp_path) == f'{tmp_path}/iter_20.pth'
    save('iter_30.pth', 30)
    assert find_last_whole_checkpoint(tmp_path) == f'{tmp_path}/iter_30.pth'
    flip(save('iter_40.pth', 40))
    save.point(f'{tmp_path}/iter_40.pth')
    halve(save('iter_50.pth', 50))
    log.clear()
    assert find_last_whole_checkpoint(tmp_path) == f'{tmp_path}/iter_30.pth'
    assert log[0].startswith(f'{tmp_path}/iter_50.pth is damaged, its end is missing')
    assert log[1].startswith(f'{tmp_path}/iter_40.pth is damaged, iter_40/data/0 in it has a wrong checksum')
    assert all('left as it is' in message for message in log[:2])


@pytest.mark.parametrize('pointer', [None, '', 'work_dirs/gone/iter_99.pth', 'half.pth'])
def test_without_a_pointer_the_last_that_was_saved_is_taken(tmp_path, save, log, pointer):
    save('iter_30.pth', 30)
    save('iter_20.pth', 20, '20240102_000000')
    save('iter_15.pth', 15, '20240102_000000')
    halve(save('half.pth', 40))
    if pointer is not None:
        save.point(str(tmp_path / pointer) if pointer == 'half.pth' else pointer)
    assert find_last_whole_checkpoint(tmp_path) == f'{tmp_path}/iter_20.pth'
    assert any('half.pth is damaged' in message for message in log)
    assert any('iter_99.pth, which does not exist' in message for message in log) == (pointer or '').endswith('99.pth')


def test_a_folder_that_was_moved_is_its_own(tmp_path, save, log):
    folder = tmp_path / 'moved'
    save('iter_10.pth', 10, folder=folder)
    save('iter_20.pth', 20, folder=folder)
    save.point('work_dirs/old/iter_10.pth', folder)
    assert find_last_whole_checkpoint(folder) == f'{folder}/iter_10.pth'


def test_checkpoints_in_another_folder_are_found_by_the_pointer(tmp_path, save, log):
    save('iter_10.pth', 10, folder=tmp_path / 'out')
    halve(save('iter_20.pth', 20, folder=tmp_path / 'out'))
    save.point(f'{tmp_path}/out/iter_20.pth')
    assert find_last_whole_checkpoint(tmp_path) == f'{tmp_path}/out/iter_10.pth'


@pytest.mark.parametrize('changes', [
    dict(optimizer=None),
    dict(message_hub=None),
    dict(meta=None),
    dict(state_dict=None),
    dict(meta=dict(time='20250101_000000')),
    dict(meta='of another tool'),
])
def test_what_training_cannot_go_on_from_is_taken_only_if_it_is_named(tmp_path, save, log, changes):
    save('iter_10.pth', 10)
    best = save('best.pth', 20, **changes)
    assert find_last_whole_checkpoint(tmp_path) == f'{tmp_path}/iter_10.pth'
    save.point(best)
    assert find_last_whole_checkpoint(tmp_path) == best


def test_a_file_with_code_in_it_is_not_taken(tmp_path, save, log):
    save('iter_10.pth', 10)
    save('iter_20.pth', 20, code=os.system)
    assert find_last_whole_checkpoint(tmp_path) == f'{tmp_path}/iter_10.pth'
    assert log[0].startswith(f'{tmp_path}/iter_20.pth is not used: ')
    assert 'system' in log[0]


def test_nothing_whole_starts_at_the_beginning(tmp_path, log):
    assert find_last_whole_checkpoint(tmp_path) is None
    assert log == [f'{tmp_path} holds no whole checkpoint to go on from: training starts at its beginning']


def test_left_parts_are_named(tmp_path, save, log):
    save.point(save('iter_10.pth', 10))
    (tmp_path / 'iter_20.pth.partial_1').write_text('half')
    assert find_last_whole_checkpoint(tmp_path) == f'{tmp_path}/iter_10.pth'
    assert log[0].startswith(f'{tmp_path}/iter_20.pth.partial_1 is what a process has left that was ended')
    assert (tmp_path / 'iter_20.pth.partial_1').exists()


def test_what_is_not_a_local_file_is_left_to_mmengine(tmp_path, save, log):
    save.point('s3://bucket/iter_10.pth')
    assert find_last_whole_checkpoint(tmp_path) == 's3://bucket/iter_10.pth'
    (tmp_path / 'iter_20.pth').mkdir()
    save.point(f'{tmp_path}/iter_20.pth')
    assert find_last_whole_checkpoint(tmp_path) == f'{tmp_path}/iter_20.pth'


def test_a_damaged_file_that_is_asked_for_is_refused(tmp_path, save):
    check_whole(save('iter_10.pth', 10))
    check_whole(save('iter_20.pth', 20))
    path = save('iter_30.pth', 30)
    halve(path)
    with pytest.raises(ValueError, match=f'--resume: {path} is damaged, its end is missing.* the newest first: '
                       f'{tmp_path}/iter_20.pth, {tmp_path}/iter_10.pth. Name another one, or none'):
        check_whole(path)
