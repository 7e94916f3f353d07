"""Run steps as logged, resumable commands."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import mmengine
import torch

Item = TypeVar('Item')
Result = TypeVar('Result')


class StepFailed(RuntimeError):
    """A command ended with an error; the message holds the last lines that it printed."""


@dataclass(frozen=True)
class Steps:
    """Run steps as logged, resumable commands of this repository.

    Attributes:
        root (Path): The repository, where the commands run.
        report (Callable[[str], object]): Takes each line for the user, for instance ``print``.
        variables (Mapping[str, str]): Environment variables of the commands, where the user has not set them.
    """

    root: Path
    report: Callable[[str], object]
    variables: Mapping[str, str] = field(default_factory=dict)

    def run(self, log: Path, *command: str | Path) -> float:
        """Run a command, its complete output into ``log`` and its progress to the user.

        Args:
            log (Path): Added to.
            *command (str | Path): The program and its arguments; ``'python'`` is the Python that runs now.

        Returns:
            float: Minutes.

        Raises:
            StepFailed: If it fails.
        """
        words = list(map(str, command))
        self.report(f'\n$ {shlex.join(words)}')
        log.parent.mkdir(parents=True, exist_ok=True)
        start, last = time.monotonic(), deque[str](maxlen=25)
        with open(log, 'a', encoding='utf-8') as file:
            process = subprocess.Popen([sys.executable if words[0] == 'python' else words[0], *words[1:]],
                                       stdout=subprocess.PIPE,
                                       stderr=subprocess.STDOUT,
                                       cwd=self.root,
                                       env={**self.variables, **os.environ, 'PYTHON': sys.executable},
                                       text=True,
                                       errors='replace')
            for line in process.stdout or ():
                file.write(line)
                last.append(line)
                progress = re.search(r'(Epoch|Iter)\((train|val|test)\).*|Made .*', line)
                if progress:
                    self.report('  ' + re.sub(r'\s+', ' ', progress.group())[:118])
        if process.wait() != 0:
            raise StepFailed(f'{"".join(last)}\nThis step failed with exit code {process.returncode}. Its '
                             f'complete output: {log}')
        return (time.monotonic() - start) / 60

    def run_once(self, folder: Path, name: str, step: Callable[[], dict]) -> dict:
        """Return the result of a step from ``folder``, where it is kept as JSON; run the step if it is not there."""
        file = folder / f'{name}.json'
        if file.exists():
            self.report(f'\n# {name} was finished before: {folder}')
            return json.loads(file.read_text(encoding='utf-8'))
        result = step()
        file.write_text(json.dumps(result, indent=2), encoding='utf-8')
        return result

    # The documented name of 0.1.0.
    once = run_once

    def run_side_by_side(self, step: Callable[[Steps, Item], Result], items: Sequence[Item],
                         at_once: int | None = None) -> list[Result]:
        """Run a step for several items at a time, which takes less time than one after the other with all cores.

        Args:
            step (Callable): ``step(steps, item)``, where commands of ``steps`` have a share of the cores.
            items (Sequence): What ``step`` is called with.
            at_once (int, optional): Items at a time. All by default.

        Returns:
            list: What ``step`` returns, in the order of ``items``.
        """
        at_once = at_once or len(items)
        threads = str(max(1, torch.get_num_threads() // at_once))
        steps = replace(self, variables={**self.variables, 'OMP_NUM_THREADS': threads})
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(partial(step, steps), items))

    def digest_environment(self, data: Path) -> str:
        """Return a digest of everything except the config that a training depends on: code, versions, data.

        Args:
            data (Path): Folder of a data set made by ``tools/dataset_converters/digit_scenes.py``.
        """
        sources = sorted(path for folder in ('pelk_mm', 'tools') for path in (self.root / folder).rglob('*')
                         if path.suffix in ('.py', '.cpp') and '.mim' not in path.parts)
        return digest(torch.__version__, mmengine.__version__, (data / 'meta.json').read_text(encoding='utf-8'),
                      [path.read_text(encoding='utf-8') for path in sources])


def digest(*parts) -> str:
    """Return ten hexadecimal digits that differ when a part does."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:10]
