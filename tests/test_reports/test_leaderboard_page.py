"""The leaderboard's page in a real browser: it sorts, filters, opens details, and is read on a phone."""

import re

import pytest

from pelk_mm.reports import Problem, Row, Table, Value, to_html

ROWS = [
    Row('Swin-T', dict(top1=Value(81.3), params=Value(28), flops=Value(4.5)), 'no config'),
    Row('PeLK-T', dict(top1=Value(82.6, (82.2, 82.6)), params=Value(29, (28.7, )), flops=Value(5.6, (5.8, ))), 'run',
        '2 runs, seeds 1, 2', 'configs/imagenet/pelk-tiny.py', 'abcd1234', 'python tools/train.py configs/pelk-tiny.py',
        'PyTorch 2.11.0, GPU A100', ['work_dirs/a/scalars.json']),
    Row('PeLK-S', dict(top1=Value(83.9), params=Value(50), flops=Value(10.7)), command='python tools/train.py small'),
    Row('ConvNeXt-T', dict(top1=Value(82.1, (82.3, )), params=Value(29), flops=Value(4.5)), 'run', command='python x',
        environment='PyTorch 2.12.0, GPU H100'),
    Row('PeLK-10', dict(top1=Value(None, (9.5, )), params=Value(), flops=Value()), 'run', command='python x'),
]
TABLES = [
    Table('imagenet', 'ImageNet', 'A note.', ['top1', 'params', 'flops'], ROWS, is_of_paper=True),
    Table('digits', 'Digits', 'Another.', ['top1'], [Row('atto <b>', dict(top1=Value(None, (97.3, ))), 'run')]),
]
NAMES = [row.name for row in ROWS]


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    return write_page(tmp_path_factory.mktemp('page'), TABLES)


def write_page(folder, tables):
    text = to_html(tables, [Problem('scalars.json, line 3', 'is broken')], 'Made for a test.')
    (folder / 'leaderboard.html').write_text(text, encoding='utf-8')
    return folder / 'leaderboard.html'


@pytest.fixture
def page(open_page, file):
    return open_page(file)


def names(page, table='imagenet'):
    """Names of the rows that are seen, from top to bottom."""
    cells = page.locator(f'#{table} tbody th.name:visible').all()
    return [cell.inner_text() for cell in sorted(cells, key=lambda cell: cell.bounding_box()['y'])]


def cell(page, row, column):
    return page.locator('#imagenet tbody', has=page.get_by_text(row, exact=True)).locator(f'[data-column={column}]')


def head(page, column):
    return page.locator(f'#imagenet thead [data-column={column}] button')


def test_cells(page):
    assert names(page) == NAMES
    for row, column, text in (('PeLK-T', 'top1-paper', '82.6'), ('PeLK-T', 'top1-ours', '82.4 ± 0.28 (2)'),
                              ('PeLK-T', 'top1-difference', '-0.2'), ('ConvNeXt-T', 'top1-difference', '+0.2'),
                              ('PeLK-S', 'top1-ours', 'not run'), ('Swin-T', 'top1-ours', 'no config'),
                              ('PeLK-T', 'flops-difference', '+0.2')):
        assert cell(page, row, column).inner_text() == text
    assert names(page, 'digits') == ['atto <b>']
    # Without a figure of the paper there is no column for it.
    assert page.locator('#digits thead [data-column]').count() == 1
    assert page.locator('#count').inner_text() == '6 of 6 rows'
    assert 'scalars.json, line 3' in page.inner_text('body')


def test_sorting(page):
    head(page, 'top1-ours').click()
    assert names(page) == ['PeLK-T', 'ConvNeXt-T', 'PeLK-10', 'Swin-T', 'PeLK-S']
    assert page.locator('#imagenet th[data-column=top1-ours]').get_attribute('aria-sort') == 'descending'
    head(page, 'top1-ours').click()
    # By value, not as text; rows without a number stay last.
    assert names(page) == ['PeLK-10', 'ConvNeXt-T', 'PeLK-T', 'Swin-T', 'PeLK-S']
    head(page, 'flops-paper').press('Enter')
    assert names(page)[0] == 'PeLK-S'
    assert page.locator('#imagenet th[aria-sort]:not([aria-sort=none])').count() == 1
    model = page.locator('#imagenet thead th.name button')
    model.click()
    assert names(page) == ['ConvNeXt-T', 'PeLK-10', 'PeLK-S', 'PeLK-T', 'Swin-T']
    model.click()
    model.click()
    assert names(page) == NAMES


def test_filtering(page):
    page.fill('#filter', 'pelk')
    assert names(page) == ['PeLK-T', 'PeLK-S', 'PeLK-10']
    assert not page.is_visible('#digits')
    assert page.locator('#count').inner_text() == '3 of 6 rows'
    head(page, 'top1-ours').click()
    assert names(page) == ['PeLK-T', 'PeLK-10', 'PeLK-S']
    # All words count, also in the details.
    page.fill('#filter', 'a100 pytorch')
    assert names(page) == ['PeLK-T']
    page.fill('#filter', 'nothing of this')
    assert page.locator('#count').inner_text() == 'No row fits.'
    page.fill('#filter', '')
    assert len(names(page)) == 5
    page.select_option('#status', 'not run')
    assert names(page) == ['PeLK-S']


def test_details(page):
    toggle, details = page.locator('[aria-controls=imagenet-row-2]'), page.locator('#imagenet-row-2')
    assert not details.is_visible()
    toggle.click()
    assert toggle.get_attribute('aria-expanded') == 'true'
    for part in ('python tools/train.py configs/pelk-tiny.py', 'abcd1234', 'PyTorch 2.11.0, GPU A100', 'seeds 1, 2',
                 'work_dirs/a/scalars.json'):
        assert part in details.inner_text()
    toggle.click()
    assert not details.is_visible()


def test_plot(page):
    plot = page.locator('#imagenet svg')
    # Four of the paper, two of ours; PeLK-10 has no FLOPs. One line, that of PeLK.
    assert [plot.locator(f'g.{kind}').count() for kind in ('paper', 'ours', 'line')] == [4, 2, 1]
    assert 'PeLK-T, ours: 82.4 % at 5.8 G' in plot.locator('title').all_text_contents()
    assert plot.get_attribute('aria-label') == 'top-1 (%) against FLOPs: ImageNet'
    # Higher is further up, costlier is further right.
    small, tiny = (plot.locator('g.paper', has_text=f'PeLK-{size},').locator('use').bounding_box() for size in 'ST')
    assert small['x'] > tiny['x']
    assert small['y'] < tiny['y']
    assert page.locator('#digits svg').count() == 0


@pytest.mark.parametrize(('scheme', 'background', 'blue'), [
    ('light', 'rgb(255, 255, 255)', 'rgb(37, 99, 201)'), ('dark', 'rgb(20, 23, 26)', 'rgb(125, 180, 255)')])
def test_on_a_phone(open_page, file, scheme, background, blue):
    page = open_page(file, width=390, color_scheme=scheme)
    # The page itself does not scroll sideways, tables do, with the names always in sight.
    assert page.evaluate('document.documentElement.scrollWidth') <= 390
    assert page.locator('#imagenet .scroll').evaluate('area => area.scrollWidth') > 390
    page.locator('#imagenet .scroll').evaluate('area => { area.scrollLeft = 200; }')
    assert page.locator('#imagenet tbody th.name').first.bounding_box()['x'] < 30
    style = 'element => parseFloat(getComputedStyle(element).fontSize)'
    assert page.locator('#imagenet td').first.evaluate(style) >= 14
    assert page.evaluate('getComputedStyle(document.body).backgroundColor') == background
    swin = page.locator('#imagenet svg g.paper use').first
    assert swin.evaluate('mark => getComputedStyle(mark).stroke') == blue
    assert swin.evaluate('mark => getComputedStyle(mark).fill') == background


def test_long_names_on_a_phone(open_page, tmp_path):
    """They leave room for figures; markers that differ little have numbers that do not touch."""
    rows = [
        Row(f'cascade-mask-rcnn_pelk-atto_fpn_1xb4-{name}_digits',
            dict(top1=Value(None, (value, )), flops=Value(None, (flops, ))), 'run')
        for name, value, flops in (('4e', 97.1, 0.01486), ('8e', 94.0, 0.01512))
    ]
    page = open_page(write_page(tmp_path, [Table('digits', 'Digits', '', ['top1', 'flops'], rows)]), width=390)
    name = page.locator('#digits tbody th.name').first.bounding_box()
    assert name['x'] + name['width'] < 180
    assert name['height'] > 60
    ours = page.locator('#digits tbody [data-column=top1-ours]').first.bounding_box()
    assert ours['x'] + ours['width'] < 390
    texts = page.locator('#digits svg text').all()
    boxes = [text.bounding_box() for text in texts if re.fullmatch(r'0\.01\d+', text.text_content())]
    assert len(boxes) >= 3
    assert all(left['x'] + left['width'] + 3 < right['x'] for left, right in zip(boxes, boxes[1:]))
    assert boxes[-1]['x'] + boxes[-1]['width'] < 390 == page.evaluate('document.documentElement.scrollWidth')


def test_equal_costs_have_no_plot():
    for flops, is_drawn in ((5.03, False), (5.3, True)):
        rows = [Row(name, dict(top1=Value(80.0), flops=Value(cost))) for name, cost in (('a', 5.0), ('b', flops))]
        assert ('<svg' in to_html([Table('a', 'A', '', ['top1', 'flops'], rows)], [], '')) is is_drawn


def test_every_control_and_table_has_a_name_for_screen_readers(page):
    tree = page.locator('body').aria_snapshot()
    found = re.findall(r'- (button|searchbox|combobox|region|link)\b(?: "(.+?)")?', tree)
    assert {role for role, _ in found} == {'button', 'searchbox', 'combobox', 'region', 'link'}
    assert all(name for _, name in found)
    assert ('button', 'top-1, paper') in found
