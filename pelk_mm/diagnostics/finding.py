"""One diagnostic result."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat

# Good; worth knowing; a problem.
LEVELS = ('ok', 'note', 'error')


@dataclass(frozen=True)
class Finding:
    """One diagnostic result.

    Attributes:
        level (str): ``'ok'``, ``'note'`` or ``'error'``.
        subject (str): The checked part, in a word or two.
        text (str): The result.
        fix (str): How to fix it; '' if there is nothing to do.
    """

    level: str
    subject: str
    text: str
    fix: str = ''

    @property
    def cure(self) -> str:
        """The name of ``fix`` in 0.1.0."""
        return self.fix


ok, note, error = (partial(Finding, level) for level in LEVELS)


def has_error(findings: Iterable[Finding]) -> bool:
    """Return whether any finding is an error."""
    return any(finding.level == 'error' for finding in findings)


def to_text(findings: Iterable[Finding], width: int = 110) -> str:
    """Format findings as lines of ``width``, one after the other; fixes are not broken, so that they can be copied."""
    lines = []
    for finding in findings:
        level = finding.level.upper() if finding.level == 'error' else finding.level
        head = f'{level:<6}{finding.subject:<16}'
        lines += textwrap.wrap(
            finding.text, width, initial_indent=head, subsequent_indent=' ' * len(head), break_on_hyphens=False)
        lines += [f'{mark:>11}{line}' for mark, line in zip(chain(['fix: '], repeat('')), finding.fix.splitlines())]
    return '\n'.join(lines)
