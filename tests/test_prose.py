"""Pages, docstrings, comments, messages and names of tests avoid words that readers stumble over."""

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
INSTEAD = {
    r'\b(?-i:is none)\b': 'not, or there is no',
    r'\bbut for\b': 'except',
    r'\balone\b': 'only, or unchanged',
    r'\bwhatever\b': 'any, everything',
    r'\b(told|tells?|telling)\b': 'report, say, distinguish',
    r'\bpictures?\b': 'image, figure',
    r'\bcures?\b': 'fix',
    r'\bwhole\b': 'complete, all',
    r'\blook(s|ed|ing)? at\b': 'check, read, use',
}
# Quotations, of values and of other software.
ALLOWED = ('| whole | whole |', )
PAGES = [
    ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', ROOT / 'CHANGELOG.md',
    *(file for folder in ('docs', 'configs', 'pelk_mm') for file in sorted((ROOT / folder).rglob('*.md'))
      if not {'_build', 'repository'} & set(file.relative_to(ROOT).parts))
]
FOLDERS = ('pelk_mm', 'tools', 'configs', 'docs', 'tests')
OTHERS = [
    ROOT / 'Makefile', ROOT / '.ci/run', ROOT / 'pyproject.toml', *sorted((ROOT / 'tools').glob('*.sh')),
    *sorted((ROOT / 'pelk_mm').rglob('csrc/*')), *sorted((ROOT / '.github').rglob('*.*'))
]


def sources(folder: str) -> list[Path]:
    files = sorted((ROOT / folder).rglob('*.py'))
    return [file for file in files if '.mim' not in file.parts and file != Path(__file__).resolve()]


def page_text(file: Path) -> str:
    """Return a page without code and targets of links; of the changelog the section of changes not released."""
    text = file.read_text(encoding='utf-8')
    if file.name == 'CHANGELOG.md':
        text = text.split('\n## [')[1]
    return re.sub(r'^ *```.*?^ *```$|`[^`\n]*`|\]\([^)]*\)', ' ', text, flags=re.DOTALL | re.MULTILINE)


def docstrings(tree: ast.AST) -> Iterator[ast.Constant]:
    """Yield the strings that open a module, a class or a function."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            yield node.body[0].value


def names_of_tests(tree: ast.AST) -> list[str]:
    return [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith('test_')]


def source_text(source: str) -> str:
    """Return comments and docstrings, names of tests as words, and all strings of more than a word."""
    tree = ast.parse(source)
    found = [name.replace('_', ' ') for name in names_of_tests(tree)]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found += [token.string for token in tokens if token.type == tokenize.COMMENT]
    opening = list(docstrings(tree))
    # Code and names of arguments are not prose.
    found += [re.sub(r'``.*?``|^\s*\*{0,2}\w+ \(', ' ', node.value, flags=re.DOTALL | re.MULTILINE) for node in opening]
    found += [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)
              and isinstance(node.value, str) and ' ' in node.value.strip() and node not in opening]
    return '\n'.join(found)


def stumbles(text: str) -> list[str]:
    """Return the words of a text to avoid, with what to write instead."""
    for quotation in ALLOWED:
        text = text.replace(quotation, '')
    # A sentence goes on in the next line of a page or a comment.
    text = re.sub(r'\n *(?:#|//)? *(?=\S)', ' ', text)
    return [f'{text[max(match.start() - 40, 0):match.end() + 20]!r}: write {instead}'
            for words, instead in INSTEAD.items() for match in re.finditer(words, text, re.IGNORECASE)]


def problems(files: list[Path], find: Callable[[Path], list[str]]) -> dict[str, list[str]]:
    found = {str(file.relative_to(ROOT)): find(file) for file in files}
    return {file: words for file, words in found.items() if words}


def test_pages():
    assert problems(PAGES, lambda file: stumbles(page_text(file))) == {}


def test_other_files():
    assert problems(OTHERS, lambda file: stumbles(file.read_text(encoding='utf-8'))) == {}


@pytest.mark.parametrize('folder', FOLDERS)
def test_sources(folder):

    def words(file: Path) -> list[str]:
        return stumbles(source_text(file.read_text(encoding='utf-8')))

    assert problems(sources(folder), words) == {}


@pytest.mark.parametrize('folder', FOLDERS)
def test_summaries_and_names_of_tests_are_sentences(folder):
    """No summary is a clause such as "What it does", and the name of a test says what it shows."""

    def clauses(file: Path) -> list[str]:
        tree = ast.parse(file.read_text(encoding='utf-8'))
        first_lines = [node.value.strip().splitlines()[0] for node in docstrings(tree)] + names_of_tests(tree)
        return [line for line in first_lines if re.match('(What|Which|Where|Why|How|When) [^?]*$|test_what_', line)]

    assert problems(sources(folder), clauses) == {}


@pytest.mark.parametrize(('text', 'found'), [
    ('A whole file.', 1), ('Wholly inside.', 0), ('x is None', 0), ('That is none.', 1),
    ('That is\n    # none.', 1), ('It is\n\nnone', 0),
    ('It tells what is left alone.', 2), ('All but four.', 0), ('All but for one.', 1)
])
def test_words_are_found(text, found):
    assert len(stumbles(text)) == found


def test_code_is_not_prose():
    source = '"""Read ``whole`` files.\n\nArgs:\n    alone (bool): Only these.\n"""\nALONE = "alone"\nmode = "whole"\n'
    assert stumbles(source_text(source)) == []
    assert len(stumbles(source_text(source + 'raise ValueError("the whole file")  # a picture\n'))) == 2
