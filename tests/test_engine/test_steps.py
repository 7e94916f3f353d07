"""Steps run commands of the repository, log them, and skip those that are done."""

import sys
import threading

import pytest

from pelk_mm.engine.steps import StepFailed, Steps, digest


@pytest.fixture
def lines():
    return []


@pytest.fixture
def steps(tmp_path, lines):
    return Steps(tmp_path, lines.append)


def test_a_command_is_shown_and_logged_with_its_progress(steps, lines, tmp_path):
    (tmp_path / 'tool.py').write_text('import os, sys\nprint("INFO - Iter(train) [20/40]  lr: 1")\n'
                                      'print(sys.executable, sys.argv[1], os.environ["PYTHON"])\n')
    assert 0 <= steps.run(tmp_path / 'logs' / 'tool.log', 'python', 'tool.py', 'a b') < 1
    assert lines == ["\n$ python tool.py 'a b'", '  Iter(train) [20/40] lr: 1']
    assert (tmp_path / 'logs' / 'tool.log').read_text().splitlines()[1] == f'{sys.executable} a b {sys.executable}'
    steps.run(tmp_path / 'logs' / 'tool.log', 'echo', 'python')
    assert (tmp_path / 'logs' / 'tool.log').read_text().splitlines()[2] == 'python'


def test_variables_are_for_those_that_the_user_has_not_set(tmp_path, lines, monkeypatch):
    monkeypatch.setenv('OF_THE_USER', 'kept')
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    steps = Steps(tmp_path, lines.append, dict(OF_THE_USER='lost', OMP_NUM_THREADS='3'))
    steps.run(tmp_path / 'tool.log', 'bash', '-c', 'echo $OF_THE_USER $OMP_NUM_THREADS')
    assert (tmp_path / 'tool.log').read_text() == 'kept 3\n'


def test_a_failure_shows_the_end_of_the_log(steps, tmp_path):
    with pytest.raises(StepFailed, match=r'(?s)last words.*exit code 3.*tool\.log'):
        steps.run(tmp_path / 'tool.log', 'bash', '-c', 'echo last words; exit 3')


def test_nothing_is_done_twice(steps, lines, tmp_path):
    results = iter([dict(value=1), dict(value=2)])
    assert steps.run_once(tmp_path, 'training', lambda: next(results)) == dict(value=1)
    assert steps.run_once(tmp_path, 'training', lambda: next(results)) == dict(value=1)
    assert lines == [f'\n# training was finished before: {tmp_path}']
    assert steps.run_once(tmp_path, 'test', lambda: next(results)) == dict(value=2)


def test_some_at_a_time_share_the_cores(steps, tmp_path, monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr('torch.get_num_threads', lambda: 7)
    # Passes only two at a time; a third that ran beside them would find the folder of the first.
    both = threading.Barrier(2, timeout=60)

    def step(steps, item):
        (tmp_path / 'running' / str(item % 2)).mkdir(parents=True)
        both.wait()
        steps.run(tmp_path / f'{item}.log', 'bash', '-c', 'echo $OMP_NUM_THREADS')
        both.wait()
        (tmp_path / 'running' / str(item % 2)).rmdir()
        both.wait()
        return item, (tmp_path / f'{item}.log').read_text()

    assert steps.run_side_by_side(step, range(4), 2) == [(item, '3\n') for item in range(4)]
    assert steps.run_side_by_side(lambda steps, item: (item, steps.variables), 'ab') == [
        (item, dict(OMP_NUM_THREADS='3')) for item in 'ab']


def test_digests_separate_code_and_data(steps, tmp_path):
    source, data = tmp_path / 'pelk_mm' / 'layers' / 'a.py', tmp_path / 'data'
    for folder in (source.parent, data):
        folder.mkdir(parents=True)
    seen = set()
    for file, content in ((source, 'x = 1'), (data / 'meta.json', '{}'), (source, 'x = 2'), (data / 'meta.json', '[]')):
        file.write_text(content)
        if (data / 'meta.json').exists():
            seen.add(steps.digest_environment(data))
            (tmp_path / 'pelk_mm' / 'README.md').write_text(content)
            seen.add(steps.digest_environment(data))
    assert len(seen) == 3
    assert digest(1, dict(b=2, a=3)) == digest(1, dict(a=3, b=2)) != digest(1, dict(a=3, b=4))
