"""Sphinx's settings. ``make docs`` builds the pages into ``docs/_build/html``; nothing is fetched."""

import os
import re
from importlib.util import find_spec
from pathlib import Path

from pelk_mm import __version__

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent

project = 'PeLK-MM'
author = 'The PeLK-MM authors'
release = version = __version__

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
exclude_patterns = ['_build']
myst_heading_anchors = 4

autodoc_typehints = 'none'
autodoc_member_order = 'bysource'
# pelk_mm.timm is documented where timm is not installed too.
autodoc_mock_imports = [] if find_spec('timm') else ['timm']
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Fields in the text, as an attribute may be documented by its own annotation too.
napoleon_use_ivar = True

html_theme = 'furo'
html_title = f'PeLK-MM {release}'
html_show_copyright = False

# Files of the repository that are pages here too, by the name of the page.
SHOWN = {
    'repository/operator': 'pelk_mm/ops/peripheral_conv2d/README.md',
    'repository/triton': 'pelk_mm/ops/peripheral_conv2d/TRITON.md',
    'repository/cuda': 'pelk_mm/ops/peripheral_conv2d/cuda/README.md',
    'repository/imagenet': 'configs/imagenet/README.md',
    'repository/ade20k': 'configs/ade20k/README.md',
    'repository/coco': 'configs/coco/README.md',
    'repository/digits': 'configs/digits/README.md',
    'repository/reach': 'configs/reach/README.md',
    'repository/ablations': 'configs/ablations/README.md',
    'repository/baselines': 'configs/baselines/README.md',
    'repository/grown': 'configs/grown/README.md',
    'repository/contributing': 'CONTRIBUTING.md',
    'repository/changelog': 'CHANGELOG.md',
}
for table in sorted(ROOT.glob('configs/ablations/*/README.md')):
    SHOWN[f'repository/ablation_{table.parent.name}'] = str(table.relative_to(ROOT))


def copy_shown(app) -> None:
    """Bring the pages of ``SHOWN`` into Sphinx's sight, as it reads nothing outside its folder."""
    for page, file in SHOWN.items():
        copy = DOCS / f'{page}.md'
        text = (ROOT / file).read_text(encoding='utf-8')
        if not copy.exists() or copy.read_text(encoding='utf-8') != text:
            copy.parent.mkdir(exist_ok=True)
            copy.write_text(text, encoding='utf-8')


def point_links_at_pages(app, page: str, source: list[str]) -> None:
    """Lead links from file to file of the repository to the pages that show these files."""
    folder = (ROOT / SHOWN[page]).parent if page in SHOWN else (DOCS / page).parent
    pages = {ROOT / file: DOCS / f'{name}.md' for name, file in SHOWN.items()}

    def relocate(match: re.Match) -> str:
        path, hash_sign, anchor = match['target'].partition('#')
        if not path or '://' in path:
            return match[0]
        target = Path(os.path.normpath(folder / path))
        if target.is_dir():
            return match['text']
        path = os.path.relpath(pages.get(target, target), (DOCS / page).parent)
        return f'[{match["text"]}]({path}{hash_sign}{anchor})'

    source[0] = re.sub(r'\[(?P<text>[^\[\]]*)\]\((?P<target>[^)\s]+)\)', relocate, source[0])


def setup(app) -> None:
    app.connect('builder-inited', copy_shown)
    app.connect('source-read', point_links_at_pages)
