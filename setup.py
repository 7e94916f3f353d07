"""Packaging. Imports nothing beyond setuptools; PyTorch and OpenMMLab are whatever the environment already has."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
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


def read_version() -> str:
    scope: dict = {}
    exec((ROOT / 'pelk_mm' / 'version.py').read_text(encoding='utf-8'), scope)
    return scope['__version__']


def read_requirements(name: str) -> list:
    """The requirements of a file, of the files it names, without comments."""
    requirements = []
    for line in (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines():
        line = line.partition('#')[0].strip()
        if line.startswith('-r '):
            requirements += read_requirements(line[3:].strip()[:-len('.txt')])
        elif line:
            requirements.append(line)
    return requirements


setup(
    name='pelk-mm',
    version=read_version(),
    description='PeLK large-kernel vision backbones (peripheral convolution) for OpenMMLab and plain PyTorch',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    keywords='computer vision, large-kernel convolution, image classification, semantic segmentation, object detection',
    classifiers=[
        'License :: OSI Approved :: Apache Software License',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_packages(include=['pelk_mm', 'pelk_mm.*']),
    package_data={'pelk_mm': ['**/*.md', '**/*.json', '**/*.cpp', '**/*.html']},
    cmdclass={'build_py': BuildWithConfigs},
    python_requires='>=3.10',
    # torch.library.custom_op and the device-generic autocast queries came with PyTorch 2.4.
    install_requires=['torch>=2.4', 'numpy'],
    extras_require={
        name: read_requirements(name)
        for name in ('onedl', 'openmmlab', 'deploy', 'digits', 'tests', 'dev')
    },
    zip_safe=False,
)
