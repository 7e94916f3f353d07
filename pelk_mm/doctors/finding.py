"""What a doctor says."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

# How bad it is: as it should be, worth knowing, or in the way.
LEVELS = ('ok', 'note', 'fault')


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level (str): ``'ok'``, ``'note'`` or ``'fault'``.
        subject (str): What was looked at, in a word or two.
        text (str): What was found.
        cure (str): What to do about it; '' if there is nothing to do.
    """

    level: str
    subject: str
    text: str
    cure: str = ''


def has_fault(findings: Iterable[Finding]) -> bool:
    """Whether something is in the way."""
    return any(finding.level == 'fault' for finding in findings)


def to_text(findings: Iterable[Finding], width: int = 110) -> str:
    """Lines to read, one finding after the other; cures are not broken, so that commands can be copied.

    Args:
        findings (Iterable[Finding]): In the order in which they are told.
        width (int): Where findings are broken. Defaults to 110.
    """
    lines = []
    for finding in findings:
        head = f'{finding.level if finding.level != "fault" else "FAULT":<6}{finding.subject:<16}'
        lines += textwrap.wrap(
            finding.text, width, initial_indent=head, subsequent_indent=' ' * len(head), break_on_hyphens=False)
        lines += [
            ' ' * 6 + ('cure: ' if not index else ' ' * 6) + line
            for index, line in enumerate(finding.cure.splitlines())
        ]
    return '\n'.join(lines)
