"""The parts of packaging that pyproject.toml cannot say: extras from requirements/, and the configs in the wheel."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithConfigs(build_py):
    """Put into the wheel what ``pelk_mm/.mim`` links to in the sources: the configs of ``_base_ = 'pelk_mm::...'``."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / 'pelk_mm' / '.mim'
        shutil.rmtree(target, ignore_errors=True)
        for folder in ('configs', 'tools'):
            shutil.copytree(ROOT / folder, target / folder, ignore=shutil.ignore_patterns('__pycache__', '*.pyc'))
        shutil.copy(ROOT / 'model-index.yml', target)


def read_requirements(name: str) -> list:
    """Read the requirements of a file and of the files it names, without comments."""
    requirements = []
    for line in (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines():
        line = line.partition('#')[0].strip()
        if line.startswith('-r '):
            requirements += read_requirements(line[3:].strip()[:-len('.txt')])
        elif line:
            requirements.append(line)
    return requirements


setup(
    cmdclass={'build_py': BuildWithConfigs},
    extras_require={
        name: read_requirements(name)
        for name in ('onedl', 'openmmlab', 'deploy', 'openvino', 'digits', 'timm', 'tests', 'dev')
    })
