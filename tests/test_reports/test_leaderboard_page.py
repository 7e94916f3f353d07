"""The leaderboard's page in a real browser: it sorts, filters, opens details, and is read on a phone."""

import pytest

from pelk_mm.analysis.leaderboard import Problem, Row, Table, Value, to_html

ROWS = [
    Row('Swin-T', dict(top1=Value(81.3), params=Value(28), flops=Value(4.5)), 'no config'),
    Row('PeLK-T', dict(top1=Value(82.6, (82.2, 82.6)), params=Value(29, (28.7, )), flops=Value(5.6, (5.8, ))), 'run',
        '2 runs, seeds 1, 2', 'configs/imagenet/pelk-tiny.py', 'abcd1234', 'python tools/train.py configs/pelk-tiny.py',
        'PyTorch 2.11.0, GPU A100', ['work_dirs/a/scalars.json']),
    Row('PeLK-S',
        dict(top1=Value(83.9), params=Value(50), flops=Value(10.7)),
        command='python tools/train.py pelk-small'),
    Row('ConvNeXt-T',
        dict(top1=Value(82.1, (82.3, )), params=Value(29), flops=Value(4.5)),
        'run',
        command='python tools/train.py convnext',
        environment='PyTorch 2.12.0, GPU H100'),
    Row('PeLK-10', dict(top1=Value(None, (9.5, )), params=Value(), flops=Value()), 'run', command='python x'),
]
OTHER = [Row('atto <b>', dict(top1=Value(None, (97.3, ))), 'run', command='python tools/train.py atto')]
TABLES = [
    Table('imagenet', 'ImageNet', 'A note.', ['top1', 'params', 'flops'], ROWS, is_of_paper=True),
    Table('digits', 'Digits', 'Another.', ['top1'], OTHER)
]
NAMES = ['Swin-T', 'PeLK-T', 'PeLK-S', 'ConvNeXt-T', 'PeLK-10']


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    file = tmp_path_factory.mktemp('page') / 'leaderboard.html'
    file.write_text(
        to_html(TABLES, [Problem('scalars.json, line 3', 'is broken')], 'Made for a test.'), encoding='utf-8')
    return file


@pytest.fixture
def page(browser, file):
    browser.open(file)
    yield browser
    assert browser.errors == []
    # Self-contained: nothing but the file itself was asked for.
    assert browser.requests == [file.resolve().as_uri()]


def names(page, table='imagenet'):
    """Names of the rows that are seen, from top to bottom."""
    return page.run(f'''[...document.querySelectorAll("#{table} tbody th.name")]
        .filter(cell => cell.offsetParent)
        .sort((a, b) => a.getBoundingClientRect().y - b.getBoundingClientRect().y)
        .map(cell => cell.textContent.trim())''')


def cell(page, row, column):
    return page.run(f'''[...document.querySelectorAll("#imagenet tbody")]
        .find(body => body.rows[0].cells[0].textContent.trim() === "{row}")
        .querySelector("[data-column={column}]").textContent''')


def head(column):
    return f'#imagenet thead [data-column={column}] button'


def test_cells(page):
    assert names(page) == NAMES
    assert cell(page, 'PeLK-T', 'top1-paper') == '82.6'
    assert cell(page, 'PeLK-T', 'top1-ours') == '82.4 ± 0.28 (2)'
    assert cell(page, 'PeLK-T', 'top1-difference') == '-0.2'
    assert cell(page, 'ConvNeXt-T', 'top1-difference') == '+0.2'
    assert cell(page, 'PeLK-S', 'top1-ours') == 'not run'
    assert cell(page, 'Swin-T', 'top1-ours') == 'no config'
    assert cell(page, 'PeLK-T', 'flops-difference') == '+0.2'
    assert names(page, 'digits') == ['atto <b>']
    # Without a figure of the paper there is no column for it.
    assert page.run('document.querySelectorAll("#digits thead [data-column]").length') == 1
    assert page.run('document.getElementById("count").textContent') == '6 of 6 rows'
    assert 'scalars.json, line 3' in page.run('document.body.innerText')


def test_sorting(page):
    page.click(head('top1-ours'))
    assert names(page) == ['PeLK-T', 'ConvNeXt-T', 'PeLK-10', 'Swin-T', 'PeLK-S']
    assert page.run('document.querySelector("#imagenet [data-column=top1-ours]").ariaSort') == 'descending'
    page.click(head('top1-ours'))
    # By value, not as text; what was not run stays last.
    assert names(page) == ['PeLK-10', 'ConvNeXt-T', 'PeLK-T', 'Swin-T', 'PeLK-S']
    page.click(head('flops-paper'))
    assert names(page)[0] == 'PeLK-S'
    assert page.run('document.querySelectorAll("#imagenet th:not([aria-sort=none])[aria-sort]").length') == 1
    page.click('#imagenet thead th.name button')
    assert names(page) == ['ConvNeXt-T', 'PeLK-10', 'PeLK-S', 'PeLK-T', 'Swin-T']
    page.click('#imagenet thead th.name button')
    page.click('#imagenet thead th.name button')
    assert names(page) == NAMES


def test_sorting_by_keys(page):
    page.run(f'document.querySelector({head("flops-paper")!r}).focus()')
    page.press('Enter', 13)
    assert names(page)[0] == 'PeLK-S'


def test_filtering(page):
    page.type('#filter', 'pelk')
    assert names(page) == ['PeLK-T', 'PeLK-S', 'PeLK-10']
    assert names(page, 'digits') == []
    assert not page.run('document.getElementById("digits").offsetParent')
    assert page.run('document.getElementById("count").textContent') == '3 of 6 rows'
    page.click(head('top1-ours'))
    assert names(page) == ['PeLK-T', 'PeLK-10', 'PeLK-S']
    # Of what the details say too, and all the words.
    page.type('#filter', 'a100 pytorch')
    assert names(page) == ['PeLK-T']
    page.type('#filter', 'nothing of this')
    assert page.run('document.getElementById("count").textContent') == 'No row fits.'
    page.type('#filter', '')
    assert len(names(page)) == 5


def test_filtering_by_status(page):
    page.run('''(() => { const select = document.getElementById("status"); select.value = "not run";
        select.dispatchEvent(new Event("change")); })()''')
    assert names(page) == ['PeLK-S']


def test_details(page):
    seen = 'document.querySelector("#imagenet-row-2").offsetParent !== null'
    assert not page.run(seen)
    page.click('[aria-controls=imagenet-row-2]')
    assert page.run(seen)
    assert page.run('document.querySelector("[aria-controls=imagenet-row-2]").ariaExpanded') == 'true'
    text = page.run('document.querySelector("#imagenet-row-2").innerText')
    for part in ('python tools/train.py configs/pelk-tiny.py', 'abcd1234', 'PyTorch 2.11.0, GPU A100', 'seeds 1, 2',
                 'work_dirs/a/scalars.json'):
        assert part in text
    page.click('[aria-controls=imagenet-row-2]')
    assert not page.run(seen)


def test_plot(page):
    # Four of the paper, two of ours; PeLK-10 has no FLOPs. One line, that of PeLK.
    assert page.run('document.querySelectorAll("#imagenet svg circle.paper").length') == 4
    assert page.run('document.querySelectorAll("#imagenet svg circle.ours").length') == 2
    assert page.run('document.querySelectorAll("#imagenet svg polyline").length') == 1
    titles = page.run('[...document.querySelectorAll("#imagenet svg title")].map(title => title.textContent)')
    assert 'PeLK-T, ours: 82.4 % at 5.8 G' in titles
    assert page.run('getComputedStyle(document.querySelector("#imagenet svg polyline")).fill') == 'none'
    # Higher is further up, costlier is further right.
    place = '''(name => { const mark = [...document.querySelectorAll("#imagenet circle.paper")].find(
        mark => mark.textContent.startsWith(name)).getBoundingClientRect(); return [mark.x, mark.y]; })'''
    (small_x, small_y), (tiny_x, tiny_y) = page.run(f'[{place}("PeLK-S"), {place}("PeLK-T")]')
    assert small_x > tiny_x
    assert small_y < tiny_y
    assert page.run('document.querySelector("#digits svg") === null')


@pytest.mark.parametrize('dark', [False, True])
def test_on_a_phone(browser, file, dark):
    browser.open(file, width=390, height=800, dark=dark)
    # The page itself does not scroll sideways, tables do, with the names always in sight.
    assert browser.run('document.documentElement.scrollWidth') <= 390
    assert browser.run('document.querySelector("#imagenet .scroll").scrollWidth') > 390
    browser.run('document.querySelector("#imagenet .scroll").scrollLeft = 200')
    assert browser.run('document.querySelector("#imagenet tbody th.name").getBoundingClientRect().x') < 30
    assert browser.run('parseFloat(getComputedStyle(document.querySelector("#imagenet td")).fontSize)') >= 14
    background = browser.run('getComputedStyle(document.body).backgroundColor')
    assert background == ('rgb(20, 23, 26)' if dark else 'rgb(255, 255, 255)')
    assert browser.errors == []


def test_names_of_configs_on_a_phone(browser, tmp_path):
    """They leave room for figures; markers that differ little have numbers that do not touch."""
    rows = [
        Row(f'cascade-mask-rcnn_pelk-atto_fpn_1xb4-{name}_digits',
            dict(top1=Value(None, (value, )), flops=Value(None, (flops, ))), 'run')
        for name, value, flops in (('4e', 97.1, 0.01486), ('8e', 94.0, 0.01512))
    ]
    file = tmp_path / 'page.html'
    file.write_text(to_html([Table('digits', 'Digits', '', ['top1', 'flops'], rows)], [], ''), encoding='utf-8')
    browser.open(file, width=390, height=800)
    place = '(selector => { const box = document.querySelector(selector).getBoundingClientRect(); ' \
            'return [box.left, box.right, box.height]; })'
    _, right, height = browser.run(f'{place}("#digits tbody th.name")')
    assert right < 180
    assert height > 60
    assert browser.run(f'{place}("#digits tbody [data-column=top1-ours]")')[1] < 390
    labels = browser.run('''[...document.querySelectorAll("#digits svg text[text-anchor=middle]")]
        .filter(text => !isNaN(text.textContent)).map(text => text.getBoundingClientRect())
        .map(box => [box.left, box.right])''')
    assert len(labels) >= 3
    assert labels[-1][1] < 390 == browser.run('document.documentElement.scrollWidth')
    assert all(end + 3 < start for (_, end), (start, _) in zip(labels, labels[1:]))


def test_no_plot_of_equal_costs():
    for flops, is_drawn in ((5.03, False), (5.3, True)):
        rows = [Row(name, dict(top1=Value(80.0), flops=Value(cost))) for name, cost in (('a', 5.0), ('b', flops))]
        assert ('<svg' in to_html([Table('a', 'A', '', ['top1', 'flops'], rows)], [], '')) is is_drawn


def test_names_for_those_who_listen(page):
    """Every control and every table has a name, by what the browser tells assistive software."""
    page.command('Accessibility.enable')
    nodes = page.command('Accessibility.getFullAXTree')['nodes']
    named = {}
    for node in nodes:
        role = node.get('role', {}).get('value')
        if role in ('button', 'searchbox', 'combobox', 'region', 'link'):
            named.setdefault(role, []).append(node.get('name', {}).get('value', ''))
    assert set(named) == {'button', 'searchbox', 'combobox', 'region', 'link'}
    assert all(name.strip() for names_ in named.values() for name in names_)
    assert 'Top-1, paper' in named['button']
