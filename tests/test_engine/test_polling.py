"""Time at which processes ask each other: the same in each, from iterations and the slowest one's pace."""

from types import SimpleNamespace

import pytest

from pelk_mm.engine import polling
from pelk_mm.engine.polling import MAX_SECONDS, Poll, max_over_processes


@pytest.fixture
def clock(monkeypatch):
    """Time that only the test moves on."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(polling.time, 'monotonic', lambda: clock.now)
    return clock


def ask_when_due(poll, clock, seconds, iterations=range(1, 301)):
    """Run iterations of this length; those after which was asked."""
    asked = []
    for iteration in iterations:
        clock.now += seconds
        if poll.is_due(iteration):
            poll.ask(iteration)
            asked.append(iteration)
    return asked


@pytest.mark.parametrize(('seconds', 'asked'), [
    (0.001, list(range(1, 301, 50))), (0.25, list(range(1, 301, 20))), (7.0, list(range(1, 301))),
])
def test_often_enough_for_a_signal_however_long_an_iteration_takes(clock, seconds, asked):
    poll = Poll(50)
    assert ask_when_due(poll, clock, seconds) == asked
    assert max(b - a for a, b in zip(asked, asked[1:])) * seconds <= max(MAX_SECONDS, seconds)


def test_a_run_that_was_resumed_takes_its_own_pace(clock):
    poll = Poll(50)
    ask_when_due(poll, clock, 0.001)
    poll.restart()
    assert ask_when_due(poll, clock, 1.0, range(120, 140)) == [120, 125, 130, 135]


def test_processes_of_different_pace_ask_after_the_same_iterations(clock, monkeypatch):
    """Each has its own clock; the pace of the slower one counts for both."""
    polls, paces = [Poll(50), Poll(50)], (0.01, 1.0)
    monkeypatch.setattr(polling, 'max_over_processes', lambda *values: [*values[:-1], max(paces)])
    asked = []
    for poll, pace in zip(polls, paces):
        clock.now = 0.0
        poll.restart()
        asked.append(ask_when_due(poll, clock, pace, range(1, 60)))
    assert asked[0] == asked[1] == list(range(1, 60, 5))


def test_one_iteration_asks_once_and_answers_twice(clock):
    questions = []
    poll = Poll(2)
    poll.add('a', lambda: questions.append(1) or 3.0)
    assert poll.ask(4) == poll.ask(4) == dict(a=3.0)
    assert poll.is_due(4)
    assert not poll.is_due(5)
    assert questions == [1]
    poll.ask(6)
    assert questions == [1, 1]


def test_one_process_needs_no_collective(monkeypatch):
    monkeypatch.setattr(polling.dist, 'all_reduce', None)
    assert max_over_processes(1.0, -2.0) == [1.0, -2.0]
