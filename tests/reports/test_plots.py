"""Figures: the same bytes again, well formed, told in words too; names that would overlap are set apart."""

import re
import xml.etree.ElementTree as ET

from imm_jax.reports import compare, drawing, plots
from imm_jax.reports.compare import Arm
from imm_jax.reports.drawing import Label
from matplotlib.figure import Figure
import pytest
from tests.reports.test_compare import make_run, TASKS

TASK_NAMES = {domain: list(sizes) for domain, sizes in TASKS.items()}


def figures(arms):
  panels = [(domain, names, domain) for domain, names in TASK_NAMES.items()]
  won_and_lost = plots.transitions(arms, TASK_NAMES).values()
  return [*plots.accuracies(arms, panels), plots.plane(arms, TASK_NAMES), *won_and_lost, plots.secs(arms)]


@pytest.fixture(params=[1, 9])
def arms(request, tmp_path):
  """One arm, or more than there are colors; of the first there are two runs."""
  runs = [compare.read(make_run(tmp_path / str(seed), seed)) for seed in range(request.param + 1)]
  first = Arm('a <b> & "$\\c$', runs[:2]) if request.param > 1 else Arm('a', runs[:1])
  return [first, *(Arm(f'arm {i}', [run]) for i, run in enumerate(runs[2:]))]


def test_figures_are_well_formed_named_and_the_same_again(arms):
  found = figures(arms)
  assert found == figures(arms)
  for svg in found:
    root = ET.fromstring(svg)
    assert root.get('role') == 'img' and arms[0].name in root.get('aria-label')  # unless it is a figure of rounds alone
    texts = {text.text for text in root.findall('.//{*}text')}
    assert texts >= {arm.name for arm in arms} or len(arms) == 1
    ids = re.findall(r' id="([^"]+)"', svg)
    assert len(ids) == len(set(ids)) and set(re.findall(r'(?:url\(|href=")#(\w+)', svg)) == set(ids)


def test_names_stand_apart():
  ax = Figure().subplots()
  ax.set_ylim(0, 100)
  drawing.place(ax, [Label(0, y, str(y), 'k') for y in (50, 50.5, 90, 10, 51)])
  heights = {text.get_text(): text.xy[1] for text in ax.texts}
  ordered = sorted(heights.values())
  assert min(b - a for a, b in zip(ordered, ordered[1:], strict=False)) >= 7.4
  assert heights['10'] == 10 and heights['90'] == 90 and heights['50'] < heights['50.5'] < heights['51']


def test_many_names_stay_within_the_axes():
  ax = Figure().subplots()
  ax.set_ylim(0, 100)
  drawing.place(ax, [Label(0, y, str(y), 'k') for y in range(90, 100)])
  heights = [text.xy[1] for text in ax.texts]
  assert max(heights) <= 100 and min(b - a for a, b in zip(heights, heights[1:], strict=False)) >= 7.4


def test_no_two_arms_look_alike():
  assert len({drawing.look(i) for i in range(40)}) == 40
