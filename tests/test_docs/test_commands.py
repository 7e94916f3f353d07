"""Commands in every page of the repository name files, options and make targets that exist, and links lead somewhere.

Nothing is run: options are read from the sources of the tools.
"""

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from ..helpers.pages import commands_of

ROOT = Path(__file__).resolve().parents[2]
# What the documentation's own build makes.
MADE = (ROOT / 'docs' / '_build', ROOT / 'docs' / 'repository')
PAGES = [
    page for pattern in ('*.md', 'docs/**/*.md', 'configs/**/*.md', 'pelk_mm/**/*.md', '.github/**/*.md')
    for page in sorted(ROOT.glob(pattern)) if not any(page.is_relative_to(folder) for folder in MADE)
]
ADD_OPTIONS = {
    'parse_common_args(parser)': 'pelk_mm/engine/launch.py',
    'convert_main(': 'pelk_mm/checkpoints/convert.py',
    'step_parser(': 'pelk_mm/testing/measurements.py',
}
# A shell script hands its further arguments to a tool.
HANDS_ON = dict(dist_train='train', slurm_train='train', dist_test='test', slurm_test='test')


@cache
def options_of(tool: Path) -> frozenset:
    """The options that a tool's parser knows, with those that functions of the library add."""
    sources = [tool.read_text(encoding='utf-8')]
    for call, file in ADD_OPTIONS.items():
        if call in sources[0]:
            sources.append((ROOT / file).read_text(encoding='utf-8'))
    return frozenset(
        argument.value for source in sources for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'add_argument'
        for argument in node.args if isinstance(argument, ast.Constant) and argument.value.startswith('-'))


def problems_of(words: list) -> list:
    """Return the problems of a command."""
    problems = []
    files = [word for word in words if re.match(r'(tools|configs|docs|tests|pelk_mm|requirements)/', word)]
    problems += [f'no such file: {file}' for file in files if not any(ROOT.glob(file))]
    words = [word for word in words if not re.match(r'[A-Z_]+=', word)]
    if words[0] == 'make':
        targets = re.findall(r'^(\w+):', (ROOT / 'Makefile').read_text(encoding='utf-8'), re.MULTILINE)
        problems += [f'no such target: {word}' for word in words[1:] if '=' not in word and word not in targets]
    scripts = [ROOT / word for word in words[:2] if re.match(r'tools/.*\.(py|sh)$', word)]
    if scripts and not problems:
        tool = scripts[0]
        if tool.suffix == '.sh':
            tool = ROOT / 'tools' / f'{HANDS_ON.get(tool.stem, "missing")}.py'
        known = options_of(tool) if tool.exists() else frozenset()
        options = [word.partition('=')[0] for word in words if word.startswith('--')]
        problems += [f'{tool.name} has no option {option}' for option in options if option not in known]
    return problems


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page):
    wrong = {shlex.join(words): problems for words in commands_of(page) if (problems := problems_of(words))}
    assert wrong == {}


def test_commands_are_found():
    assert sum(len(commands_of(page)) for page in PAGES) >= 40


@pytest.mark.parametrize(('command', 'problem'), [
    ('python tools/trane.py configs/a.py', 'no such file: tools/trane.py'),
    ('python tools/train.py --resumed', 'train.py has no option --resumed'),
    ('NNODES=2 bash tools/dist_test.sh c.py w.pth 8 --amp', 'test.py has no option --amp'),
    ('make everything STACK=onedl', 'no such target: everything'),
])
def test_wrong_commands_are_found(command, problem):
    assert problem in problems_of(shlex.split(command))


@pytest.mark.parametrize('command', [
    'python tools/train.py c.py --work-dir w --cfg-options a.b=1',
    'python tools/model_converters/slak_to_pelk_mm.py a.pth b.pth --key model_ema',
    'GPUS=16 bash tools/slurm_train.sh part job c.py --amp',
    'make test STACK=openmmlab',
])
def test_right_commands_pass(command):
    assert problems_of(shlex.split(command)) == []


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    targets = re.findall(r'\]\(([^)\s]+)\)', page.read_text(encoding='utf-8'))
    files = [target.partition('#')[0] for target in targets if '://' not in target]
    # Pages that the build copies from elsewhere in the repository are known to docs/conf.py.
    made = re.findall(r"'(repository/\w+)':", (ROOT / 'docs/conf.py').read_text(encoding='utf-8'))
    made = {ROOT / 'docs' / f'{name}.md' for name in made}
    paths = [(page.parent / file).resolve() for file in files if file]
    assert [path for path in paths if not path.exists() and path not in made] == []
