"""Files of the repository that services and tools read agree with the code."""

import re

import pytest
import yaml

from pelk_mm import __version__


def load(path):
    return yaml.safe_load(path.read_text(encoding='utf-8'))


def test_the_citation_is_of_this_version_and_of_the_paper(root):
    citation = load(root / 'CITATION.cff')
    assert citation['version'] == __version__
    assert citation['license'] == 'Apache-2.0'
    paper, = citation['references']
    assert [author['family-names'] for author in paper['authors']] == ['Chen', 'Chu', 'Ren', 'Zhao', 'Huang']
    assert paper['url'].endswith('2403.07589')


def test_the_changelog_has_this_version_or_what_is_to_come(root):
    text = (root / 'CHANGELOG.md').read_text(encoding='utf-8')
    assert re.findall(r'^## \[(.+?)\]', text, re.MULTILINE)[0] in ('Unreleased', __version__)


def test_pre_commit_runs_what_make_lint_runs(root):
    hooks = [hook for repo in load(root / '.pre-commit-config.yaml')['repos'] for hook in repo['hooks']]
    rule = (root / 'Makefile').read_text(encoding='utf-8').partition('\nlint:')[2].partition('\n\n')[0]
    linted = re.findall(r'-m (\w+)', rule)
    assert sorted(linted) == sorted(re.search(r'-m (\w+)', hook['entry'])[1] for hook in hooks)
    assert len(linted) == 3


@pytest.mark.parametrize('name', ['bug', 'feature', 'reproduction'])
def test_issue_templates_are_forms(root, name):
    form = load(root / f'.github/ISSUE_TEMPLATE/{name}.yml')
    assert {'name', 'description', 'body'} <= set(form)
    assert all(part['type'] in ('input', 'textarea', 'checkboxes') for part in form['body'])
    assert all(part['attributes'].get('label') for part in form['body'])


def test_the_workflow_runs_what_a_developer_runs_where_it_can(root):
    jobs = load(root / '.github/workflows/test.yml')['jobs']
    matrix = jobs['test']['strategy']['matrix']
    script = (root / 'tools/setup_env.sh').read_text(encoding='utf-8')
    accepted = re.findall(r'3\.\d+', re.search(r'if version not in \((.+)\):', script)[1])
    assert matrix == dict(stack=['onedl', 'openmmlab'], python=accepted)
    commands = [step['run'] for step in jobs['test']['steps'] if 'run' in step]
    assert 'make test STACK=${{ matrix.stack }}' in commands
    targets = re.findall(r'^(\w+):', (root / 'Makefile').read_text(encoding='utf-8'), re.MULTILINE)
    assert {command.split()[1] for command in commands} <= set(targets)
    # What the package says of itself.
    classifiers = re.findall(r'Python :: (3\.\d+)', (root / 'pyproject.toml').read_text(encoding='utf-8'))
    assert jobs['operator']['strategy']['matrix']['python'] == classifiers
