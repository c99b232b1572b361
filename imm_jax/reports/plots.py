"""The figures of a report as SVG text: the same runs give the same bytes."""

from collections.abc import Mapping, Sequence
import itertools
from typing import Any, NamedTuple

from imm_jax.reports import statistics
from imm_jax.reports.compare import Arm, DOMAINS
from imm_jax.reports.drawing import (
  annotate,
  bars,
  COLORS,
  FAINT,
  INK,
  Label,
  look,
  place,
  Point,
  svg,
)
from imm_jax.rounds.records import BASE, State

_BEFORE_MERGE = 0.3  # Of a round: how far left of it the tuned params are shown.
_UNITS = (('hours', 3600), ('minutes', 60), ('seconds', 1))


class _Panel(NamedTuple):
  """What a figure of accuracies shows."""

  title: str
  points: Mapping[tuple[str, State], Sequence[float]]  # By arm's name and state, of `_spread`.
  guess: float  # in %

  @property
  def ends(self) -> tuple[float, float]:
    """The lowest and the highest value."""
    return min(map(min, self.points.values())), max(map(max, self.points.values()))


def accuracies(arms: Sequence[Arm], panels: Sequence[tuple[str, Sequence[str], str]]) -> list[str]:
  """Returns a figure for each panel (domain, tasks, title): accuracy over rounds, a line an arm.

  A point is as high in all of them, wherever their axes begin. Of one arm the tuned params are
  shown too, hollow.
  """
  shown = [(arm, state) for arm in arms for state in _shown(arms, arm)]
  read = []
  for domain, tasks, title in panels:
    points = {(arm.name, state): _spread(arm, state, domain, tasks) for arm, state in shown}
    read.append(_Panel(title, points, 100 * arms[0].guess(domain, tasks)))
  span = 1.1 * max(high - low for low, high in (panel.ends for panel in read))
  return [_accuracy(arms, panel, span) for panel in read]


def _spread(arm: Arm, state: State, domain: str, tasks: Sequence[str]) -> list[float]:
  """Returns the mean accuracy in %, the ends of its interval, and of several runs each one's."""
  found = [*arm.accuracy(state, domain, tasks)]
  if len(arm.runs) > 1:
    found += [Arm('', [run]).accuracy(state, domain, tasks).mean for run in arm.runs]
  return [100 * x for x in found]


def _accuracy(arms: Sequence[Arm], panel: _Panel, span: float) -> str:
  last = max(state.round_ for _, state in panel.points)
  low, high = panel.ends
  limits = ((low + high - span) / 2, (low + high + span) / 2)
  right = last + 0.3  # Where the axis ends and names begin.

  def draw(ax):
    ax.set(
      title=panel.title,
      xlabel='round',
      xticks=range(0, last + 1, 1 + last // 11),
      xlim=(-0.3, right),
      ylim=limits,
    )
    ax.yaxis.set_major_formatter('{x:g} %')
    ax.grid(axis='y')
    labels = []
    if limits[0] <= panel.guess <= limits[1]:
      ax.axhline(panel.guess, color=FAINT, lw=0.8, ls=':')
      labels.append(Label(right, panel.guess, 'guess', FAINT))
    for i, arm in enumerate(arms):
      dodge = 0.07 * (i - (len(arms) - 1) / 2)  # Arms stand beside each other.
      _line(ax, i, panel, arm, 'tuned', dodge - _BEFORE_MERGE)
      _line(ax, i, panel, arm, 'merged', dodge)
      name = arm.name if len(arms) > 1 else 'merged'
      labels.append(Label(right, panel.points[arm.name, arm.states[-1]][0], name, look(i)[0]))
    place(ax, labels)
    _name_tuned(ax, panel, arms[0])

  told = []
  for arm in arms:
    first = panel.points[arm.name, BASE][0]
    end = panel.points[arm.name, arm.states[-1]][0]
    told.append(f'{arm.name} {first:.1f} to {end:.1f} %')
  return svg(draw, 2.5, f'{panel.title}, accuracy over rounds: {"; ".join(told)}')


def _line(ax: Any, i: int, panel: _Panel, arm: Arm, which: str, dodge: float) -> None:
  """Draws the accuracies of arm i after the merge, as a line, or before it, as hollow marks.

  Moved right by `dodge`.
  """
  color, marker = look(i)
  states = [state for name, state in panel.points if name == arm.name and state.which == which]
  xs = [state.round_ + dodge for state in states]
  means = []
  for x, state in zip(xs, states, strict=True):
    mean, low, high, *seeds = panel.points[arm.name, state]
    means.append(mean)
    ax.plot([x, x], [low, high], color=color, lw=0.9, alpha=0.55)
    ax.plot([x] * len(seeds), seeds, '.', color=color, ms=3)
  style = {'ls': '-'} if which == 'merged' else {'mfc': 'white', 'ls': ''}
  ax.plot(xs, means, marker=marker, color=color, **style)


def _name_tuned(ax: Any, panel: _Panel, arm: Arm) -> None:
  """Writes 'tuned' beside the last hollow mark, where there is one."""
  tuned = [state for _, state in panel.points if state.which == 'tuned']
  if tuned:
    state = tuned[-1]
    mean = panel.points[arm.name, state][0]
    above = mean >= panel.points[arm.name, arm.states[-1]][0]
    annotate(
      ax,
      'tuned',
      (state.round_ - _BEFORE_MERGE, mean),
      (-5, 5 if above else -5),
      COLORS[0],
      ha='right',
    )


def plane(arms: Sequence[Arm], tasks: Mapping[str, Sequence[str]]) -> str:
  """Returns a figure of the change in domain over that out of domain, in points, and the front."""

  def gain(arm: Arm, state: State, domain: str) -> float:
    before = arm.accuracy(BASE, domain, tasks[domain]).mean
    return 100 * (arm.accuracy(state, domain, tasks[domain]).mean - before)

  where = {}
  for arm in arms:
    for state in _shown(arms, arm):
      where[arm.name, state] = (gain(arm, state, 'ood'), gain(arm, state, 'id'))

  def draw(ax):
    ax.set(xlabel='out of domain, points from base', ylabel='in domain, points from base')
    ax.axhline(0, color=FAINT, lw=0.7)
    ax.axvline(0, color=FAINT, lw=0.7)
    front = statistics.pareto(list(where.values()))
    ax.step(
      *zip(*front, strict=True),
      where='pre',
      color='#d0d0d0',
      lw=5,
      solid_capstyle='round',
      zorder=1,
    )
    labels = []
    for i, arm in enumerate(arms):
      for which in ('tuned', 'merged'):
        states = [state for name, state in where if (name, state.which) == (arm.name, which)]
        path = {state.round_: where[arm.name, state] for state in states}
        if path:
          last = max(path)
          x, y = path[last]
          labels.append(Label(x, y, arm.name if len(arms) > 1 else f'{last} {which}', look(i)[0]))
          _path(ax, i, path, {} if which == 'merged' else {'mfc': 'white', 'ls': ':', 'lw': 0.8})
    annotate(ax, 'base', (0, 0), (-5, -7), INK, ha='right')
    ax.margins(0.1)
    place(ax, labels)

  ends = [(arm.name, *where[arm.name, arm.states[-1]]) for arm in arms]
  told = '; '.join(f'{name} {gain:+.1f} in, {loss:+.1f} out of domain' for name, loss, gain in ends)
  return svg(draw, 2.9, f'Changes from base in points: {told}')


def _path(ax: Any, i: int, points: Mapping[int, Point], style: Mapping[str, Any]) -> None:
  """Draws where arm i was after each round, with the round beside each point but the last."""
  color, marker = look(i)
  ax.plot(*zip(*points.values(), strict=True), marker=marker, color=color, **style)
  *others, _ = points
  for point in dict.fromkeys(points[round_] for round_ in others if round_ > 0):
    rounds = ', '.join(str(round_) for round_ in others if points[round_] == point)
    annotate(ax, rounds, point, (-4, -5), color, ha='right')


def transitions(arms: Sequence[Arm], tasks: Mapping[str, Sequence[str]]) -> dict[str, str]:
  """Returns a figure by domain: the % of questions won and lost against base.

  Of one arm it has all rounds, of several the last one of each.
  """
  if len(arms) == 1:
    rows = [(f'{state.round_} {state.which}', arms[0], state) for state in arms[0].states[1:]]
  else:
    rows = [(arm.name, arm, arm.states[-1]) for arm in arms]
  shares = {
    domain: [[100 * share for share in arm.transitions(state, names)] for _, arm, state in rows]
    for domain, names in tasks.items()
  }
  limit = max(itertools.chain(*itertools.chain(*shares.values())), default=0) or 1

  def figure(domain, pairs):
    def draw(ax):
      ax.set_title(DOMAINS[domain].capitalize(), pad=16)
      ax.set_xlim(-1.25 * limit, 1.25 * limit)
      ax.xaxis.set_major_formatter(lambda x, _: f'{abs(x):g} %')
      bars(ax, [name for name, *_ in rows])
      for i, ((*_, state), (won, lost)) in enumerate(zip(rows, pairs, strict=True)):
        for width, side, color in ((-lost, -1, COLORS[1]), (won, 1, COLORS[0])):
          ax.barh(i, width, 0.66, color=color, alpha=0.4 if state.which == 'tuned' else 1)
          annotate(
            ax,
            f'{abs(width):.1f}',
            (width, i),
            (3 * side, 0),
            INK,
            ha='right' if side < 0 else 'left',
          )
      ax.axvline(0, color=INK, lw=0.8)
      for x, text, color in (
        (0.25, 'right → wrong', COLORS[1]),
        (0.75, 'wrong → right', COLORS[0]),
      ):
        annotate(ax, text, (x, 1), (0, 6), color, ha='center', xycoords='axes fraction')

    names = [name for name, *_ in rows]
    named = zip(names, pairs, strict=True)
    told = '; '.join(f'{name} {won:.1f} won, {lost:.1f} lost' for name, (won, lost) in named)
    return svg(
      draw,
      0.85 + 0.2 * len(rows),
      f'{DOMAINS[domain].capitalize()}, % of questions against base: {told}',
    )

  return {domain: figure(domain, pairs) for domain, pairs in shares.items() if pairs}


def secs(arms: Sequence[Arm]) -> str:
  """Returns the time by phase, means over runs.

  Of one arm it has a bar a round, of several a bar an arm for its rounds from 1 on.
  """
  rows: dict[str, dict[str, float]] = {}
  for arm in arms:
    for run in arm.runs:
      # Round 0 may be another arm's, copied.
      for row in run.rows[len(arms) > 1 : arm.states[-1].round_ + 1]:
        parts = rows.setdefault(arm.name if len(arms) > 1 else f'round {row.round}', {})
        for phase, value in row.secs.items():
          parts[phase] = parts.get(phase, 0.0) + value / len(arm.runs)
  phases = list(dict.fromkeys(phase for parts in rows.values() for phase in parts))
  totals = {name: sum(parts.values()) for name, parts in rows.items()}
  longest = max(totals.values(), default=0)
  unit, size = next(((unit, size) for unit, size in _UNITS if longest > 2 * size), _UNITS[-1])

  def draw(ax):
    ax.set(xlabel=unit)
    bars(ax, list(rows))
    for i, parts in enumerate(rows.values()):
      left = 0.0
      for phase, value in parts.items():
        color = COLORS[phases.index(phase) % len(COLORS)]
        ax.barh(i, value / size, 0.66, left / size, color=color, edgecolor='white', linewidth=0.6)
        if value > 0.1 * longest:
          middle = ((left + value / 2) / size, i)
          annotate(ax, f'{value / size:.1f}', middle, (0, 0), 'white', ha='center')
        left += value
    for i, phase in enumerate(phases):
      above = 8 + 11 * ((len(phases) - 1) // 3 - i // 3)  # lines of three names, from the top
      place, color = (i % 3 / 3, 1), COLORS[i % len(COLORS)]
      annotate(
        ax,
        f'■ {phase.replace("_", " ")}',
        place,
        (0, above),
        color,
        xycoords='axes fraction',
        fontsize=8,
      )

  told = '; '.join(f'{name} {total / size:.1f} {unit}' for name, total in totals.items())
  return svg(draw, 0.9 + 0.24 * len(rows), f'Time by phase: {told}')


def _shown(arms: Sequence[Arm], arm: Arm) -> list[State]:
  """Returns an arm's states; beside other arms those after the merge only."""
  return [state for state in arm.states if len(arms) == 1 or state.which == 'merged']
