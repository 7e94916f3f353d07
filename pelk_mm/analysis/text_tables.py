"""Tables of text: to read in a terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prettytable import PrettyTable, TableStyle


def to_columns(rows: Sequence[Sequence[object]], num_text: int = 1) -> str:
    """Return lines of text in columns, the first ``num_text`` left-aligned and the others right."""
    table = PrettyTable(header=False, border=False, padding_width=0, right_padding_width=2)
    table.add_rows([list(row) for row in rows])
    table.align = 'r'
    for name in table.field_names[:num_text]:
        table.align[name] = 'l'
    return '\n'.join(line.rstrip() for line in table.get_string().splitlines())


def to_markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]], text_columns: Sequence[str]) -> str:
    """Return a table in Markdown that also reads as plain text, its text columns left-aligned and the others right."""
    table = PrettyTable(header)
    table.add_rows([list(row) for row in rows])
    table.set_style(TableStyle.MARKDOWN)
    table.align = 'r'
    for column in text_columns:
        table.align[column] = 'l'
    return table.get_string()
