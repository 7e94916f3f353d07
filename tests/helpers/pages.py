"""The code in pages of Markdown."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

SHELL = ('bash', 'shell', 'console')


class Block(NamedTuple):
    """A fenced block: its first line, the one behind it, its language and its text."""

    start: int
    end: int
    language: str
    text: str


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    tokens = MarkdownIt('commonmark').parse(page.read_text(encoding='utf-8'))
    return [Block(*token.map, token.info.strip(), token.content) for token in tokens if token.type == 'fence']


def commands_of(page: Path) -> list[list[str]]:
    """Return the words of each command of a page, with the variables that the page sets put in."""
    commands, variables = [], {}
    for block in blocks_of(page):
        for line in block.text.replace('\\\n', ' ').splitlines() if block.language in SHELL else ():
            line = re.sub(r'\$\(basename \$CONFIG \.py\)', 'NAME', line)
            for part in re.split(r'&&|;', re.sub(r'\$(\w+)', lambda match: variables.get(match[1], match[0]), line)):
                words = shlex.split(part, comments=True)
                assigned = [word.partition('=') for word in words if re.match(r'\w+=', word)]
                if words and len(assigned) == len(words):
                    variables.update({name: value for name, _, value in assigned})
                elif words:
                    commands.append(words)
    return commands
