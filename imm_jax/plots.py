"""The figures of a report as SVG text, to stand in a page: the same data give the same bytes.

A figure is as wide as a phone; a wide page sets two side by side. Text stays text, in the page's font.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import html
import io
import re
from typing import Any

COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#4d4d4d')  # Okabe and Ito's, for all eyes
_MARKERS = 'osD^vPX'
_INK, _FAINT = '#333333', '#8a8a8a'
_WIDTH = 3.75  # inches: 270 units of the SVG
_STYLE = {
  'svg.fonttype': 'none',
  'svg.hashsalt': 'imm_jax',
  'font.family': 'DejaVu Sans',  # comes with matplotlib: what is measured is the same everywhere, and wider than most
  'font.size': 8,
  'axes.titlesize': 8.5,
  'axes.titleweight': 'bold',
  'axes.titlelocation': 'left',
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.edgecolor': _FAINT,
  'axes.labelcolor': _INK,
  'text.color': _INK,
  'xtick.color': _INK,
  'ytick.color': _INK,
  'axes.grid.axis': 'y',
  'axes.axisbelow': True,
  'grid.color': '#e6e6e6',
  'grid.linewidth': 0.6,
  'lines.linewidth': 1.5,
  'lines.markersize': 4.5,
}


@dataclasses.dataclass(frozen=True)
class Series:
  """What one arm shows over its rounds; accuracies in %."""

  name: str
  merged: Sequence[tuple[int, float, float, float]]  # round, accuracy and its interval
  tuned: Sequence[tuple[int, float, float, float]] = ()  # before the merge
  seeds: Sequence[tuple[int, float]] = ()  # round and accuracy of each run, where the arm has several


@dataclasses.dataclass(frozen=True)
class Path:
  """Where one arm goes in the plane, in points: (change out of domain, change in domain) a round, from (0, 0) on."""

  name: str
  merged: Sequence[tuple[float, float]]
  tuned: Sequence[tuple[float, float]] = ()


def accuracies(title: str, series: Sequence[Series], limits: tuple[float, float], guess: float, alt: str) -> str:
  """Returns accuracy in % over rounds, a line an arm with its name at its end; tuned params are hollow."""

  def draw(ax):
    last = max(x for line in series for x, *_ in line.merged)
    ax.set(title=title, xlabel='round', xticks=_few(range(last + 1)), xlim=(-0.3, last + 0.3), ylim=limits)
    ax.yaxis.set_major_formatter('{x:g} %')
    ax.grid(True)
    if limits[0] <= guess <= limits[1]:
      ax.axhline(guess, color=_FAINT, lw=0.8, ls=':')
      ax.annotate('guess', (-0.25, guess), (0, 2), textcoords='offset points', fontsize=7, color=_FAINT)
    labels = []
    for i, line in enumerate(series):
      color, dodge = COLORS[i % len(COLORS)], 0.05 * (i - (len(series) - 1) / 2)
      for x, y in line.seeds:
        ax.plot(x + dodge, y, '.', color=color, ms=3, alpha=0.5)
      for points, shift, style in (
        (line.tuned, dodge - 0.14, {'mfc': 'white', 'ls': ''}),
        (line.merged, dodge, {'ls': '-'}),
      ):
        for x, _, low, high in points:
          ax.plot([x + shift] * 2, [low, high], '-', color=color, lw=0.9, alpha=0.55)
        xs, ys = [x + shift for x, *_ in points], [y for _, y, *_ in points]
        ax.plot(xs, ys, marker=_MARKERS[i % len(_MARKERS)], color=color, **style)
      labels.append((line.merged[-1][0] + dodge, line.merged[-1][1], line.name, color))
    _label(ax, labels, 0.075 * (limits[1] - limits[0]))
    if len(series) == 1 and series[0].tuned:
      x, y, *_ = series[0].tuned[-1]
      ax.annotate('tuned', (x - 0.14, y), (-4, 3), textcoords='offset points', ha='right', color=COLORS[0], fontsize=7)

  return _svg(draw, 2.5, alt)


def plane(paths: Sequence[Path], front: Sequence[tuple[float, float]], alt: str) -> str:
  """Returns change in domain over change out of domain, in points, with the front that no point lies beyond."""

  def draw(ax):
    ax.set(xlabel='out of domain, points from base', ylabel='in domain, points from base')
    ax.axhline(0, color=_FAINT, lw=0.7)
    ax.axvline(0, color=_FAINT, lw=0.7)
    xs, ys = zip(*sorted(front), strict=True)
    ax.step(xs, ys, where='post', color='#bbbbbb', lw=4, solid_capstyle='round', zorder=1)
    labels = []
    for i, path in enumerate(paths):
      color, marker = COLORS[i % len(COLORS)], _MARKERS[i % len(_MARKERS)]
      ax.plot(*zip(*path.merged, strict=True), marker + '-', color=color)
      for x, y in path.tuned:
        ax.plot(x, y, marker, color=color, mfc='white')
      for round_, (x, y) in enumerate(path.merged[1:], 1):
        ax.annotate(str(round_), (x, y), (4, 4), textcoords='offset points', fontsize=7, color=color)
      labels.append((*path.merged[-1], path.name, color))
    ax.annotate('base', (0, 0), (-4, -9), textcoords='offset points', ha='right', color=_INK)
    ax.margins(0.12)
    low, high = ax.get_ylim()
    _label(ax, labels, 0.07 * (high - low), shift=12)

  return _svg(draw, 2.9, alt)


def transitions(title: str, bars: Sequence[tuple[str, float, float, bool]], limit: float, alt: str) -> str:
  """Returns bars up for the % of questions gained and down for those lost: (name, gained, lost, whether pale)."""

  def draw(ax):
    ax.set(title=title, ylim=(-1.3 * limit, 1.3 * limit))
    ax.set_xticks(range(len(bars)), [name for name, *_ in bars], fontsize=7)
    ax.yaxis.set_major_formatter(lambda y, _: f'{abs(y):g} %')
    ax.grid(True)
    for i, (_, gained, lost, pale) in enumerate(bars):
      for height, color in ((gained, COLORS[0]), (-lost, COLORS[1])):
        ax.bar(i, height, 0.62, color=color, alpha=0.45 if pale else 1)
        text, up = f'{abs(height):.1f}', height is gained
        ax.annotate(text, (i, height), (0, 2 if up else -2), textcoords='offset points', fontsize=7, ha='center',
                    va='bottom' if up else 'top')  # fmt: skip
    ax.axhline(0, color=_INK, lw=0.8)
    for y, text, color in ((0.98, 'wrong → right', COLORS[0]), (0.02, 'right → wrong', COLORS[1])):
      ax.text(0.01, y, text, transform=ax.transAxes, color=color, va='top' if y > 0.5 else 'bottom', fontsize=7)

  return _svg(draw, 2.4, alt)


def stacked(rows: Sequence[tuple[str, Mapping[str, float]]], unit: str, alt: str) -> str:
  """Returns a bar a row, of parts one after the other in the order they first come in; the widest ones hold their value."""
  names = list(dict.fromkeys(name for _, parts in rows for name in parts))
  longest = max(sum(parts.values()) for _, parts in rows)

  def draw(ax):
    ax.set(xlabel=unit)
    ax.set_yticks(range(len(rows)), [name for name, _ in rows])
    ax.invert_yaxis()
    ax.spines['left'].set_visible(False)
    ax.tick_params(axis='y', length=0)
    for i, (_, parts) in enumerate(rows):
      left = 0.0
      for name, width in parts.items():
        ax.barh(i, width, 0.66, left, color=COLORS[names.index(name) % len(COLORS)], edgecolor='white', linewidth=0.6)
        if width > 0.1 * longest:
          ax.text(left + width / 2, i, f'{width:.3g}', ha='center', va='center', color='white', fontsize=7)
        left += width
    for i, name in enumerate(names):
      above = 3 + 11 * ((len(names) - 1) // 3 - i // 3)  # lines of three names, from the top
      ax.annotate('■ ' + name, (i % 3 / 3, 1), (0, above), xycoords='axes fraction', textcoords='offset points',
                  color=COLORS[i % len(COLORS)])  # fmt: skip

  return _svg(draw, 0.9 + 0.24 * len(rows), alt)


def scatter(points: Sequence[tuple[float, float, str]], xlabel: str, ylabel: str, alt: str) -> str:
  """Returns points with their names, such as a layer's change over its importance."""

  def draw(ax):
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(True)
    for x, y, name in points:
      ax.plot(x, y, 'o', color=COLORS[0])
      ax.annotate(name, (x, y), (4, 3), textcoords='offset points', fontsize=7)
    ax.margins(0.1)

  return _svg(draw, 2.6, alt)


def curves(title: str, lines: Sequence[tuple[str, Sequence[tuple[int, float]]]], alt: str) -> str:
  """Returns lines over rounds, each with its name at its end: (name, [(round, value)])."""

  def draw(ax):
    rounds = sorted({x for _, points in lines for x, _ in points})
    ax.set(title=title, xlabel='round', xticks=_few(rounds))
    ax.grid(True)
    labels = []
    for i, (name, points) in enumerate(lines):
      color = COLORS[i % len(COLORS)]
      ax.plot(*zip(*points, strict=True), _MARKERS[i % len(_MARKERS)] + '-', color=color)
      labels.append((*points[-1], name, color))
    low, high = ax.get_ylim()
    _label(ax, labels, 0.085 * (high - low))

  return _svg(draw, 2.2, alt)


def _few(rounds: Sequence[int]) -> list[int]:
  return list(rounds)[:: 1 + len(rounds) // 11]


def _label(ax: Any, labels: Sequence[tuple[float, float, str, str]], gap: float, shift: float = 6) -> None:
  """Writes names right of their points (x, y, name, color), moved up where they would overlap."""
  least = -float('inf')
  for x, y, name, color in sorted(labels, key=lambda label: label[1]):
    least = max(y, least + gap)
    ax.annotate(name, (x, least), (shift, 0), textcoords='offset points', va='center', color=color, annotation_clip=False)


def _svg(draw: Callable[[Any], None], height: float, alt: str) -> str:
  """Returns what draw(axes) draws, `height` inches high, without ids that nothing refers to: a page has many figures."""
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(_WIDTH, height), layout='constrained')
    draw(figure.subplots())
    file = io.StringIO()
    figure.savefig(file, format='svg', transparent=True, metadata=dict.fromkeys(('Creator', 'Date', 'Format', 'Type')))
  text = file.getvalue()
  text = re.sub(r' id="\w+_\d+"', '', text[text.index('<svg') + len('<svg') :])
  return f'<svg role="img" aria-label="{html.escape(alt)}"{text}'
