"""A config as runs hold it, and a headless Chromium for tests of pages, driven by Playwright."""

import os
import shutil
from importlib.util import find_spec

import pytest

from pelk_mm.engine.launch import load_config

PROGRAMS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
FIXES = {'playwright': 'pip install -r requirements/dev.txt', 'Chromium': 'apt-get install chromium'}


@pytest.fixture(scope='session')
def digits(root):
    """The config of the classifier of digits, which tests copy before they change it."""
    return load_config(str(root / 'configs/digits/pelk-atto_1xb64_digits.py')).to_dict()


@pytest.fixture(scope='module')
def browser():
    """Chromium. Without it or Playwright tests are skipped, or with PELK_MM_NEEDS_BROWSER=1 they fail."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    missing = '' if find_spec('playwright') and program else 'Chromium' if find_spec('playwright') else 'playwright'
    if missing:
        stop = pytest.fail if os.environ.get('PELK_MM_NEEDS_BROWSER') else pytest.skip
        stop(f'{missing} is not installed, the page is NOT TESTED; to test it: {FIXES[missing]}')
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        # The installed browser: Playwright downloads nothing.
        yield playwright.chromium.launch(executable_path=program)


@pytest.fixture
def open_page(browser):
    """Open files as a user does; afterwards, no script failed and nothing except the files was loaded."""
    files, errors, requests = [], [], []

    def open_file(file, width=1280, **options):
        page = browser.new_page(viewport=dict(width=width, height=800), is_mobile=width < 600, **options)
        page.set_default_timeout(60_000)
        page.on('pageerror', lambda error: errors.append(error))
        page.on('request', lambda request: requests.append(request.url))
        files.append(file.resolve().as_uri())
        page.goto(files[-1])
        return page

    yield open_file
    assert errors == []
    assert requests == files
