"""Ask all processes at intervals, in one collective; every process decides identically when to ask."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from mmengine import dist

# Processes ask each other this often, even if iterations are slow. Clusters give 30 seconds or more after SIGTERM.
MAX_SECONDS = 5.0


def max_over_processes(*values: float) -> list[float]:
    """Return the largest value of any process at each place; with one process the values themselves."""
    if dist.get_world_size() == 1:
        return list(values)
    largest = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(largest, 'max')
    return largest.tolist()


def positive(name: str, value: int) -> int:
    """Return an argument of a hook, or raise a ValueError if it is no positive int."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f'{name} must be a positive int, got {value!r}')
    return value


class Poll:
    """Questions that hooks ask all processes, every ``interval`` iterations, or earlier if these are slow.

    The processes decide without a collective when they ask next: ``interval`` iterations later, or as many as fit into
    ``MAX_SECONDS`` at the slowest process's pace since the last time, whichever comes first.

    Args:
        interval (int): Iterations between two polls, at most.

    Raises:
        ValueError: If ``interval`` is not positive.
    """

    def __init__(self, interval: int) -> None:
        self.interval = positive('interval', interval)
        self._questions: dict[str, Callable[[], float]] = {}
        self.restart()

    def restart(self) -> None:
        """Forget answers and pace: a training begins, whose first iteration asks."""
        self._answers: dict[str, float] = {}
        self._asked: int | None = None
        self._next = 0
        self._time = time.monotonic()

    def add(self, name: str, question: Callable[[], float]) -> None:
        """Add a question; the largest of the processes' answers counts."""
        self._questions[name] = question

    def is_due(self, iteration: int) -> bool:
        """Return whether to ask after this number of finished iterations, the same in every process."""
        return iteration >= self._next or iteration == self._asked

    def ask(self, iteration: int) -> dict[str, float]:
        """Ask all questions after a number of finished iterations; asked again for the same one, answer the same.

        Returns:
            dict[str, float]: Name of the question -> the largest answer of all processes.
        """
        if iteration != self._asked:
            now = time.monotonic()
            done = 1 if self._asked is None else max(iteration - self._asked, 1)
            pace = (now - self._time) / done
            *answers, pace = max_over_processes(*[question() for question in self._questions.values()], pace)
            self._answers = dict(zip(self._questions, answers))
            self._asked, self._time = iteration, now
            self._next = iteration + min(max(int(MAX_SECONDS / max(pace, 1e-9)), 1), self.interval)
        return self._answers
