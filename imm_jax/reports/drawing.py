"""How the figures of a report look, and what they share: colors, names beside points, SVG text.

The same drawing gives the same bytes. A figure is as wide as a phone; a wide page sets two side by
side. Text stays text, in the page's font.
"""

from collections.abc import Callable, Sequence
import html
import io
import re
from typing import Any, NamedTuple

from imm_jax import extras

Point = tuple[float, float]

# Near those of Okabe and Ito, which most color-blind people tell apart.
COLORS = ('#0072b2', '#d55e00', '#009e73', '#b4568c', '#c98500', '#3a9fd6', '#4d4d4d')
_MARKERS = 'osD^vPX'  # A second arm of a color has the next marker.
INK = '#333333'
FAINT = '#8a8a8a'
_WIDTH = 3.75  # inches
_STYLE: Any = {
  'svg.fonttype': 'none',
  'svg.hashsalt': 'imm_jax',
  # It comes with matplotlib: text is measured the same everywhere, and wider than in most fonts.
  'font.family': 'DejaVu Sans',
  'font.size': 8,
  'text.parse_math': False,  # a name is a name, whatever is in it
  'axes.titlesize': 8.5,
  'axes.titleweight': 'bold',
  'axes.titlelocation': 'left',
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.edgecolor': FAINT,
  'axes.labelcolor': INK,
  'text.color': INK,
  'xtick.color': INK,
  'ytick.color': INK,
  'axes.axisbelow': True,
  'grid.color': '#e6e6e6',
  'grid.linewidth': 0.6,
  'lines.linewidth': 1.5,
  'lines.markersize': 4.5,
}


def bars(ax: Any, names: Sequence[str]) -> None:
  """Makes room for a bar a name, the first at the top."""
  ax.set_yticks(range(len(names)), names)
  ax.invert_yaxis()
  ax.spines['left'].set_visible(False)
  ax.tick_params(axis='y', length=0)


def annotate(
  ax: Any,
  text: str,
  where: Point,
  shift: Point,
  color: str,
  **style: Any,
) -> None:
  """Writes text at a point, shifted by some 1/72 inches."""
  ax.annotate(
    text,
    where,
    shift,
    textcoords='offset points',
    color=color,
    va='center',
    **{'fontsize': 7, **style},
  )


def look(i: int) -> tuple[str, str]:
  """Returns the color and the marker of arm i."""
  return COLORS[i % len(COLORS)], _MARKERS[(i + i // len(COLORS)) % len(_MARKERS)]


class Label(NamedTuple):
  """A name to be written right of a point."""

  x: float
  y: float
  text: str
  color: str


def place(ax: Any, labels: Sequence[Label]) -> None:
  """Writes labels right of their points; moves those that would overlap up, or down at the top."""
  labels = sorted(labels, key=lambda label: label.y)
  left, right = ax.get_xlim()
  bottom, top = ax.get_ylim()
  apart = 0.075 * (top - bottom)

  def overlap(a: Label, b: Label) -> bool:
    return abs(a.x - b.x) < 0.25 * (right - left)

  heights: list[float] = []
  for i, label in enumerate(labels):
    below = [heights[j] + apart for j in range(i) if overlap(labels[j], label)]
    heights.append(max([label.y, *below]))
  for i in reversed(range(len(labels))):
    above = [heights[j] - apart for j in range(i + 1, len(labels)) if overlap(labels[j], labels[i])]
    heights[i] = min([heights[i], max(top, labels[i].y), *above])
  for label, height in zip(labels, heights, strict=True):
    where = (label.x, height)
    annotate(ax, label.text, where, (6, 0), label.color, fontsize=8, annotation_clip=False)


def svg(draw: Callable[[Any], None], height: float, alt: str) -> str:
  """Returns what draw(axes) draws, `height` inches high, as SVG text.

  It has no ids that nothing refers to: a page has many figures.

  Raises ValueError when matplotlib is missing.
  """
  extras.require('report', 'report', 'matplotlib')
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(_WIDTH, height), layout='constrained')
    draw(figure.subplots())
    file = io.StringIO()
    figure.savefig(
      file,
      format='svg',
      transparent=True,
      metadata=dict.fromkeys(('Creator', 'Date', 'Format', 'Type')),
    )
  text = file.getvalue()
  text = re.sub(r' id="[\w.]+_\d+"', '', text[text.index('<svg') + len('<svg') :])
  return f'<svg role="img" aria-label="{html.escape(alt)}"{text}'
