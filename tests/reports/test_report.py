"""The page: it needs nothing but itself, shows what models wrote as text, and is the same for the same workdirs."""

import html
from html.parser import HTMLParser
import json
import re
import shutil
import subprocess

from imm_jax.reports import drawing, report
import pytest
from tests.reports.test_compare import CONFIG, make_run

EVIL = '</pre><script>alert("x")</script>{{ 7 * 7 }}<img src=https://example.com/x.png>'


class Page(HTMLParser):
  """Collects elements and text; raises where a tag is not closed as it was opened."""

  VOID = ('meta', 'link', 'br')

  def __init__(self, text):
    super().__init__()
    self.open, self.elements, self.texts = [], [], []
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.texts.append(data)


@pytest.fixture
def several(tmp_path):
  paths = [make_run(tmp_path / f'imm/seed{seed}', seed) for seed in range(2)]
  return [*paths, make_run(tmp_path / 'vanilla/seed0', merge=CONFIG['merge'] | {'alpha': 1.0})]


def test_it_loads_nothing_and_is_closed_in_itself(several):
  for paths in (several[:1], several):
    text = report.page(paths)
    page = Page(text)
    assert not {'script', 'img', 'iframe', 'object'} & {tag for tag, _ in page.elements}
    links = [attrs[name] for _, attrs in page.elements for name in ('src', 'href', 'xlink:href') if name in attrs]
    assert all(link.startswith(('#', 'data:')) for link in links)
    assert set(re.findall(r'https?://[^"\s<]+', text)) <= {'http://www.w3.org/2000/svg', 'http://www.w3.org/1999/xlink'}
    assert '@import' not in text and set(re.findall(r'url\((.)', text)) <= {'#'}


def test_what_a_model_wrote_is_text(tmp_path):
  text = report.page([make_run(tmp_path / '<i>run', text=EVIL, model={'path': EVIL})])
  page = Page(text)
  assert EVIL in page.texts and not {'script', 'img', 'i'} & {tag for tag, _ in page.elements}


def test_the_same_workdirs_give_the_same_bytes(several):
  assert report.page(several) == report.page(several)


def test_it_tells_what_was_measured(several):
  page = ' '.join(' '.join(Page(report.page(several[:1])).texts).split())
  row = report.compare.read(several[0]).rows[2]
  for domain, task in (('id', 'sum'), ('ood', 'max'), ('tuned_ood', 'min')):
    result = getattr(row, domain)[task]
    assert f'{100 * result["accuracy"]:.1f} [{100 * result["low"]:.0f}, {100 * result["high"]:.0f}]' in page
  assert 'In domain, round 2 is at' in page and 'Before its merge it was' in page
  assert '1 accepted, 3 wrong, 1 truncated' in page and 'Ran on jax 1; 1 x cpu' in page
  page = ' '.join(' '.join(Page(report.page(several)).texts).split())
  assert 'imm − vanilla' in page and 'merge.alpha 0.5 1.0' in page and 'In domain, changes from base reach from' in page


def test_rounds_on_other_machines_are_told_apart(several):
  runs = [report.compare.read(path) for path in several[:1]]
  runs[0].rows[2].versions = {'jax': '2'}
  runs[0].rows[0].versions = {}  # as in a run that an older program began
  assert report.ran_on(runs) == [
    f'{several[0]} rounds 1 to 1: jax 1; 1 x cpu',
    f'{several[0]} rounds 2 to 2: jax 2; 1 x cpu',
  ]


def test_samples_are_read_once_and_the_page_is_the_same(tmp_path, monkeypatch):
  reads, read_samples = [], report.Run.read_samples

  def counting(run, round_):
    reads.append(round_)
    return read_samples(run, round_)

  monkeypatch.setattr(report.Run, 'read_samples', counting)
  path, write = make_run(tmp_path / 'run'), report.Writer()
  for _ in range(3):
    write(path)
  assert reads == [1, 2]
  assert (tmp_path / 'run' / 'report.html').read_text() == report.page([path])


def test_a_page_that_cannot_be_written_ends_nothing_and_is_noted_once(tmp_path, capsys):
  path, write = make_run(tmp_path / 'run'), report.Writer()
  (tmp_path / 'run' / 'rounds' / '0001' / 'samples.jsonl').write_text('{')
  for _ in range(2):
    write(path)
  assert capsys.readouterr().err.count('report.html is not written') == 1
  with pytest.raises(ValueError, match='samples.jsonl: is damaged'):
    report.write(path)


def test_a_round_that_accepted_nothing_is_shown(tmp_path):
  path = make_run(tmp_path / 'run', num_rounds=1)
  file = tmp_path / 'run' / 'rounds' / '0001' / 'samples.jsonl'
  file.write_text(''.join(line for line in file.read_text().splitlines(True) if '"reason": ""' not in line))
  assert '0 accepted, 3 wrong, 1 truncated' in ' '.join(' '.join(Page(report.page([path])).texts).split())


ANALYSIS = {
  'change': {'layers': [0.01, 0.02], 'attn/q': 0.0375},
  'spearman': {'nll_rise': {'rho': -1.0, 'p': 1.0}},
  'collapse': {'sum': {'distinct_2': 0.75, 'self_bleu': None}, 'diff': {'distinct_2': 0.25, 'self_bleu': 0.5}},
}


def test_what_was_analysed_is_shown(tmp_path):
  paths = [make_run(tmp_path / f'seed{seed}', seed, analysis=ANALYSIS if seed else None) for seed in range(2)]
  assert 'distinct_2' not in report.page(paths)  # the mean is of all runs or of none
  text = report.page(paths[1:])
  assert {'Which layers matter, which changed', 'Are completions still diverse?'} <= set(Page(text).texts)
  assert {'attn/q', '3.8'} <= set(Page(text).texts)
  nothing = ANALYSIS | {'collapse': {}}  # as where it learned from real solutions only
  assert 'Are completions still diverse?' not in report.page([make_run(tmp_path / 'real', analysis=nothing)])
  assert 'seed 1, round 2: ρ = −1.00 (p = 1)' in text and 'self_bleu' not in text
  assert re.search('distinct_2 of completions in the last round: .* 0.5"', text)


def test_a_text_that_was_measured_is_a_column(tmp_path):
  measured = make_run(tmp_path / 'a', nll_nats=3.25)
  assert {'3.250', '3.252', 'nats a token'} <= set(Page(report.page([measured])).texts)
  assert 'nats a token' not in Page(report.page([make_run(tmp_path / 'b')])).texts[:100]


@pytest.mark.parametrize('changes', [{'num_rounds': 0}, {'tasks': {'id': {'sum': 5}, 'ood': {}}}, {'tuned': False}], ids=str)
def test_a_run_with_little_in_it(tmp_path, changes):
  path = make_run(tmp_path / 'run', **changes)
  report.write(path)
  with open(f'{path}/report.html', encoding='utf-8') as file:
    Page(file.read())


# What a browser drew: how wide the page is, and of each figure whether it is within the page and how many marks in an arm's
# color are seen.
MEASURE = (
  f"""<script>const colors = {list(drawing.COLORS)};"""
  + """
const colored = (e) => colors.some((color) => (e.getAttribute('style') || '').includes(color));
const seen = (e) => { const box = e.getBoundingClientRect(); return box.width > 0 || box.height > 0; };
const figures = [...document.querySelectorAll('svg[role=img]')].map((svg) => {
  const box = svg.getBoundingClientRect();
  const marks = [...svg.querySelectorAll('path, use')].filter((e) => colored(e) && seen(e) && !e.closest('defs'));
  return {inside: box.width > 100 && box.height > 50 && box.right <= innerWidth, marks: marks.length};
});
const found = {page: document.documentElement.scrollWidth, window: innerWidth, figures};
document.querySelectorAll('title').forEach((title) => title.remove());
document.body.append(Object.assign(document.createElement('title'), {textContent: JSON.stringify(found)}));
</script>"""
)


@pytest.mark.slow
def test_a_browser_shows_it_without_complaint(tmp_path):
  browser = shutil.which('chromium') or shutil.which('google-chrome')
  if browser is None:
    pytest.skip('needs chromium')
  file = tmp_path / 'page.html'
  arms = ({'merge': CONFIG['merge'] | {'alpha': alpha}} for alpha in (0.5, 1.0))
  paths = [make_run(tmp_path / str(i), text=EVIL, analysis=ANALYSIS, **arm) for i, arm in enumerate(arms)]
  file.write_text(report.page(paths))
  command = [browser, '--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={tmp_path}/profile']
  shown = subprocess.run(
    [*command, '--enable-logging=stderr', '--dump-dom', f'file://{file}'], capture_output=True, text=True, check=True
  )
  assert 'CONSOLE' not in shown.stderr, shown.stderr
  assert shown.stdout.count('<svg') == file.read_text().count('<svg') > 5
  assert '<script' not in shown.stdout and '&lt;script&gt;alert("x")&lt;/script&gt;' in shown.stdout
  measured = tmp_path / 'measured.html'
  measured.write_text(file.read_text() + MEASURE)
  for width in (500, 1280):
    size = f'--window-size={width},2000'
    shown = subprocess.run([*command, size, '--dump-dom', f'file://{measured}'], capture_output=True, text=True, check=True)
    found = json.loads(html.unescape(shown.stdout.rpartition('<title>')[2].partition('</title>')[0]))
    assert found['page'] <= found['window'] == width and len(found['figures']) == file.read_text().count('<svg')
    assert all(figure['inside'] and figure['marks'] >= 2 for figure in found['figures']), found
