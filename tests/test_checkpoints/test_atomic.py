"""A file is complete, or the previous one stays."""

import errno
import os

import pytest

from pelk_mm.checkpoints.atomic import atomic_write, refuse_existing, set_aside


def test_only_the_new_file_is_left(tmp_path):
    path = tmp_path / 'new folder' / 'file'
    for content in (b'old', b'new'):
        atomic_write(content, str(path))
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ['file']
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize('function', ['fsync', 'replace'])
def test_after_an_error_only_the_old_file_is_left(tmp_path, monkeypatch, function):
    def fail(*args):
        raise OSError(errno.ENOSPC, 'No space left on device')

    path = tmp_path / 'file'
    path.write_bytes(b'old')
    monkeypatch.setattr(os, function, fail)
    with pytest.raises(OSError, match='No space left on device') as error:
        atomic_write(b'new', str(path))
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == b'old'
    assert os.listdir(tmp_path) == ['file']


def test_incomplete_files_of_other_processes_stay(tmp_path):
    (tmp_path / 'file.partial_1').write_bytes(b'half')
    atomic_write(b'new', str(tmp_path / 'file'))
    assert (tmp_path / 'file.partial_1').read_bytes() == b'half'
    assert (tmp_path / 'file').read_bytes() == b'new'


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / 'link').symlink_to('file')
    atomic_write(b'new', str(tmp_path / 'link'))
    assert (tmp_path / 'link').is_symlink()
    assert (tmp_path / 'file').read_bytes() == b'new'


def test_existing_files_are_refused(tmp_path):
    refuse_existing()
    refuse_existing(tmp_path / 'a', str(tmp_path / 'b'))
    (tmp_path / 'b').touch()
    with pytest.raises(FileExistsError, match=r'/b exists and is not overwritten: choose another name$'):
        refuse_existing(tmp_path / 'a', str(tmp_path / 'b'))
    with pytest.raises(FileExistsError, match=r'/b exists and is not overwritten: choose another --out$'):
        refuse_existing(tmp_path / 'b', instead='--out')


def test_set_aside_overwrites_nothing(tmp_path):
    for number in (1, 2):
        (tmp_path / 'file').write_text(f'{number}')
        assert set_aside(str(tmp_path / 'file'), '.damaged_') == f'{tmp_path}/file.damaged_{number}'
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {'file.damaged_1': '1', 'file.damaged_2': '2'}
