"""The figures of a report as SVG text, to stand in a page: the same runs give the same bytes.

A figure is as wide as a phone; a wide page sets two side by side. Text stays text, in the page's font.
"""

from collections.abc import Callable, Mapping, Sequence
import html
import io
import re
from typing import Any

from imm_jax.reports import compare
from imm_jax.reports.compare import Arm, DOMAINS
from imm_jax.rounds.records import BASE, State

COLORS = ('#0072b2', '#d55e00', '#009e73', '#b4568c', '#c98500', '#3a9fd6', '#4d4d4d')  # near Okabe and Ito's: for all eyes
_MARKERS = 'osD^vPX'  # a second arm of a color has the next marker
_INK, _FAINT = '#333333', '#8a8a8a'
_WIDTH = 3.75  # inches
_STYLE: Any = {
  'svg.fonttype': 'none',
  'svg.hashsalt': 'imm_jax',
  'font.family': 'DejaVu Sans',  # comes with matplotlib: text is measured the same everywhere, and wider than in most fonts
  'font.size': 8,
  'text.parse_math': False,  # a name is a name, whatever is in it
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
  'axes.axisbelow': True,
  'grid.color': '#e6e6e6',
  'grid.linewidth': 0.6,
  'lines.linewidth': 1.5,
  'lines.markersize': 4.5,
}


def accuracies(arms: Sequence[Arm], panels: Sequence[tuple[str, Sequence[str], str]]) -> list[str]:
  """Returns a figure for each panel (domain, tasks, title): accuracy over rounds with its intervals, a line an arm.

  A point is as high in all of them, wherever their axes begin. Of one arm the tuned params are shown too, hollow.
  """
  shown = [(arm, state) for arm in arms for state in _shown(arms, arm)]
  values = [{(arm.name, state): _spread(arm, state, *panel[:2]) for arm, state in shown} for panel in panels]
  ends = [(min(map(min, panel.values())), max(map(max, panel.values()))) for panel in values]
  span = 1.1 * max(high - low for low, high in ends)
  limits = [((low + high - span) / 2, (low + high + span) / 2) for low, high in ends]
  return [_accuracy(arms, *panel, *of_panel) for panel, *of_panel in zip(panels, values, limits, strict=True)]


def _spread(arm, state, domain, tasks) -> list[float]:
  """Returns the mean accuracy in %, the ends of its interval, and of several runs each one's."""
  found = [*arm.accuracy(state, domain, tasks)]
  if len(arm.runs) > 1:
    found += [Arm('', [run]).accuracy(state, domain, tasks).mean for run in arm.runs]
  return [100 * x for x in found]


def _accuracy(arms, domain, tasks, title, values, limits) -> str:
  last = max(state.round_ for _, state in values)
  guess = 100 * arms[0].guess(domain, tasks)

  def draw(ax):
    ax.set(title=title, xlabel='round', xticks=range(0, last + 1, 1 + last // 11), xlim=(-0.3, last + 0.3), ylim=limits)
    ax.yaxis.set_major_formatter('{x:g} %')
    ax.grid(axis='y')
    labels = []
    if limits[0] <= guess <= limits[1]:
      ax.axhline(guess, color=_FAINT, lw=0.8, ls=':')
      labels.append((last + 0.3, guess, 'guess', _FAINT))
    for i, arm in enumerate(arms):
      color, marker = _look(i)
      for which, style in (('tuned', {'mfc': 'white', 'ls': ''}), ('merged', {'ls': '-'})):
        states = [state for name, state in values if name == arm.name and state.which == which]
        dodge = 0.07 * (i - (len(arms) - 1) / 2) - (0.3 if which == 'tuned' else 0)
        xs, points = [state.round_ + dodge for state in states], [values[arm.name, state] for state in states]
        for x, (_, low, high, *seeds) in zip(xs, points, strict=True):
          ax.plot([x, x], [low, high], color=color, lw=0.9, alpha=0.55)
          ax.plot([x] * len(seeds), seeds, '.', color=color, ms=3)
        ax.plot(xs, [y for y, *_ in points], marker=marker, color=color, **style)
      labels.append((last + 0.3, values[arm.name, states[-1]][0], arm.name if len(arms) > 1 else 'merged', color))
    _label(ax, labels)
    tuned = [(state.round_ - 0.3, value[0]) for (_, state), value in values.items() if state.which == 'tuned']
    if tuned:
      above = tuned[-1][1] >= values[arms[0].name, arms[0].states[-1]][0]
      _annotate(ax, 'tuned', tuned[-1], (-5, 5 if above else -5), COLORS[0], ha='right')

  told = '; '.join(
    f'{arm.name} {values[arm.name, BASE][0]:.1f} to {values[arm.name, arm.states[-1]][0]:.1f} %' for arm in arms
  )
  return _svg(draw, 2.5, f'{title}, accuracy over rounds: {told}')


def plane(arms: Sequence[Arm], tasks: Mapping[str, Sequence[str]]) -> str:
  """Returns the change in domain over that out of domain, in points, and the front that nothing shown lies beyond."""
  where = {}
  for arm in arms:
    for state in _shown(arms, arm):
      change = {
        domain: 100 * (arm.accuracy(state, domain, names).mean - arm.accuracy(BASE, domain, names).mean)
        for domain, names in tasks.items()
      }
      where[arm.name, state] = change['ood'], change['id']

  def draw(ax):
    ax.set(xlabel='out of domain, points from base', ylabel='in domain, points from base')
    ax.axhline(0, color=_FAINT, lw=0.7)
    ax.axvline(0, color=_FAINT, lw=0.7)
    front = compare.pareto(list(where.values()))
    ax.step(*zip(*front, strict=True), where='pre', color='#d0d0d0', lw=5, solid_capstyle='round', zorder=1)
    labels = []
    for i, arm in enumerate(arms):
      color, marker = _look(i)
      for which, style in (('tuned', {'mfc': 'white', 'ls': ':', 'lw': 0.8}), ('merged', {})):
        path = {state.round_: point for (name, state), point in where.items() if name == arm.name and state.which == which}
        if not path:
          continue
        ax.plot(*zip(*path.values(), strict=True), marker=marker, color=color, **style)
        *others, last = path
        labels.append((*path[last], arm.name if len(arms) > 1 else f'{last} {which}', color))
        for point in dict.fromkeys(path[round_] for round_ in others if round_ > 0):
          rounds = ', '.join(str(round_) for round_ in others if path[round_] == point)
          _annotate(ax, rounds, point, (-4, -5), color, ha='right')
    _annotate(ax, 'base', (0, 0), (-5, -7), _INK, ha='right')
    ax.margins(0.1)
    _label(ax, labels)

  ends = [(arm.name, *where[arm.name, arm.states[-1]]) for arm in arms]
  told = '; '.join(f'{name} {gain:+.1f} in, {loss:+.1f} out of domain' for name, loss, gain in ends)
  return _svg(draw, 2.9, f'Changes from base in points: {told}')


def transitions(arms: Sequence[Arm], tasks: Mapping[str, Sequence[str]]) -> dict[str, str]:
  """Returns a figure by domain: the % of questions won and lost against base, of one arm in all rounds, else in the last."""
  if len(arms) == 1:
    rows = [(f'{state.round_} {state.which}', arms[0], state) for state in arms[0].states[1:]]
  else:
    rows = [(arm.name, arm, arm.states[-1]) for arm in arms]
  shares = {
    domain: [[100 * share for share in arm.transitions(state, names)] for _, arm, state in rows]
    for domain, names in tasks.items()
  }
  limit = max((share for pairs in shares.values() for pair in pairs for share in pair), default=0) or 1

  def figure(domain, pairs):
    def draw(ax):
      ax.set_title(DOMAINS[domain].capitalize(), pad=16)
      ax.set_xlim(-1.25 * limit, 1.25 * limit)
      ax.xaxis.set_major_formatter(lambda x, _: f'{abs(x):g} %')
      _rows(ax, [name for name, *_ in rows])
      for i, ((*_, state), (won, lost)) in enumerate(zip(rows, pairs, strict=True)):
        for width, side, color in ((-lost, -1, COLORS[1]), (won, 1, COLORS[0])):
          ax.barh(i, width, 0.66, color=color, alpha=0.4 if state.which == 'tuned' else 1)
          _annotate(ax, f'{abs(width):.1f}', (width, i), (3 * side, 0), _INK, ha='right' if side < 0 else 'left')
      ax.axvline(0, color=_INK, lw=0.8)
      for x, text, color in ((0.25, 'right → wrong', COLORS[1]), (0.75, 'wrong → right', COLORS[0])):
        _annotate(ax, text, (x, 1), (0, 6), color, ha='center', xycoords='axes fraction')

    told = '; '.join(f'{name} {won:.1f} won, {lost:.1f} lost' for (name, *_), (won, lost) in zip(rows, pairs, strict=True))
    return _svg(draw, 0.85 + 0.2 * len(rows), f'{DOMAINS[domain].capitalize()}, % of questions against base: {told}')

  return {domain: figure(domain, pairs) for domain, pairs in shares.items() if pairs}


def layers(arms: Sequence[Arm]) -> dict[str, str]:
  """Returns a figure by arm whose first run was analysed: layers' change in its newest such round over their importance."""
  figures = {}
  for arm in arms:
    if arm.last_analysis:
      round_, found = arm.last_analysis
      title = f'{arm.name if len(arms) > 1 else ""}, seed {arm.runs[0].config["seed"]}, round {round_}'.removeprefix(', ')
      importance = arm.runs[0].analyses[0]['importance']['nll_rise']
      figures[arm.name] = _layers(title, importance, found['change']['layers'], found['spearman']['nll_rise'])
  return figures


def _layers(name, importance, change, spearman) -> str:
  rho = f'ρ = {spearman["rho"]:+.2f} (p = {spearman["p"]:.2g})'.replace('-', '−') if spearman else 'no rank correlation'

  def draw(ax):
    ax.set(title=f'{name}: {rho}', xlabel='importance, nats a token', ylabel='change, % of the norm')
    ax.grid(axis='y')
    for layer, (x, y) in enumerate(zip(importance, change, strict=True)):
      ax.plot(x, 100 * y, 'o', color=COLORS[0])
      _annotate(ax, str(layer), (x, 100 * y), (5, 4), COLORS[0])
    ax.margins(0.08)

  return _svg(draw, 2.6, f'{name}, change of each layer over its importance, {rho}')


def collapse(arms: Sequence[Arm]) -> dict[str, str]:
  """Returns a figure by measure of diversity, over rounds, a line an arm: means over tasks and runs.

  Of a round in which not all runs of an arm have measured there is none, as where nothing was sampled.
  """
  lines: dict[str, dict[str, dict[int, float]]] = {}
  for arm in arms:
    for round_ in range(1, arm.states[-1].round_ + 1):
      by_task = [task for run in arm.runs for task in (run.analyses[round_].get('collapse') or {'': {}}).values()]
      for measure in by_task[0]:
        values = [of_task[measure] for of_task in by_task if of_task.get(measure) is not None]
        if len(values) == len(by_task):
          lines.setdefault(measure, {}).setdefault(arm.name, {})[round_] = sum(values) / len(values)
  return {measure: _collapse(measure, of_arms, [arm.name for arm in arms]) for measure, of_arms in lines.items()}


def _collapse(measure: str, lines: Mapping[str, Mapping[int, float]], names: Sequence[str]) -> str:
  def draw(ax):
    ax.set(title=measure.replace('_', ' '), xlabel='round')
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(axis='y')
    labels = []
    for name, line in lines.items():
      color, marker = _look(names.index(name))
      ax.plot(*zip(*line.items(), strict=True), marker=marker, color=color)
      labels.append((*list(line.items())[-1], name if len(names) > 1 else '', color))
    _label(ax, labels)

  told = '; '.join(f'{name} {list(line.values())[-1]:.3g}' for name, line in lines.items())
  return _svg(draw, 2.2, f'{measure} of completions in the last round: {told}')


def secs(arms: Sequence[Arm]) -> str:
  """Returns the time by phase: of one arm a bar a round, of several one an arm for rounds from 1 on; means over its runs."""
  rows: dict[str, dict[str, float]] = {}
  for arm in arms:
    for run in arm.runs:
      for row in run.rows[len(arms) > 1 : arm.states[-1].round_ + 1]:  # round 0 may be another arm's, copied
        parts = rows.setdefault(arm.name if len(arms) > 1 else f'round {row["round"]}', {})
        for phase, value in row['secs'].items():
          parts[phase] = parts.get(phase, 0.0) + value / len(arm.runs)
  phases = list(dict.fromkeys(phase for parts in rows.values() for phase in parts))
  totals = {name: sum(parts.values()) for name, parts in rows.items()}
  longest = max(totals.values(), default=0)
  unit, size = ('hours', 3600) if longest > 2 * 3600 else ('minutes', 60) if longest > 2 * 60 else ('seconds', 1)

  def draw(ax):
    ax.set(xlabel=unit)
    _rows(ax, list(rows))
    for i, parts in enumerate(rows.values()):
      left = 0.0
      for phase, value in parts.items():
        color = COLORS[phases.index(phase) % len(COLORS)]
        ax.barh(i, value / size, 0.66, left / size, color=color, edgecolor='white', linewidth=0.6)
        if value > 0.1 * longest:
          _annotate(ax, f'{value / size:.1f}', ((left + value / 2) / size, i), (0, 0), 'white', ha='center')
        left += value
    for i, phase in enumerate(phases):
      above = 8 + 11 * ((len(phases) - 1) // 3 - i // 3)  # lines of three names, from the top
      place, color = (i % 3 / 3, 1), COLORS[i % len(COLORS)]
      _annotate(ax, f'■ {phase.replace("_", " ")}', place, (0, above), color, xycoords='axes fraction', fontsize=8)

  told = '; '.join(f'{name} {total / size:.1f} {unit}' for name, total in totals.items())
  return _svg(draw, 0.9 + 0.24 * len(rows), f'Time by phase: {told}')


def _shown(arms: Sequence[Arm], arm: Arm) -> list[State]:
  """Returns an arm's states; beside other arms those after the merge only."""
  return [state for state in arm.states if len(arms) == 1 or state.which == 'merged']


def _rows(ax: Any, names: Sequence[str]) -> None:
  """Makes room for a bar a name, the first at the top."""
  ax.set_yticks(range(len(names)), names)
  ax.invert_yaxis()
  ax.spines['left'].set_visible(False)
  ax.tick_params(axis='y', length=0)


def _annotate(ax: Any, text: str, where: tuple[float, float], shift: tuple[float, float], color: str, **style: Any) -> None:
  """Writes text at a point, shifted by some 1/72 inches."""
  ax.annotate(text, where, shift, textcoords='offset points', color=color, va='center', **{'fontsize': 7, **style})


def _look(i: int) -> tuple[str, str]:
  """Returns the color and the marker of arm i."""
  return COLORS[i % len(COLORS)], _MARKERS[(i + i // len(COLORS)) % len(_MARKERS)]


def _label(ax: Any, labels: Sequence[tuple[float, float, str, str]]) -> None:
  """Writes names right of their points (x, y, name, color), moved where they would overlap: up, and down from the top."""
  width, top = ax.get_xlim()[1] - ax.get_xlim()[0], ax.get_ylim()[1]
  apart = 0.075 * (top - ax.get_ylim()[0])
  labels, heights = sorted(labels, key=lambda label: label[1]), []
  beside = [[j for j, other in enumerate(labels) if j != i and abs(other[0] - label[0]) < 0.25 * width]
            for i, label in enumerate(labels)]  # fmt: skip
  for i, (_, y, *_) in enumerate(labels):
    heights.append(max([y, *(heights[j] + apart for j in beside[i] if j < i)]))
  for i in reversed(range(len(labels))):
    heights[i] = min([heights[i], max(top, labels[i][1]), *(heights[j] - apart for j in beside[i] if j > i)])
  for (x, _, name, color), y in zip(labels, heights, strict=True):
    _annotate(ax, name, (x, y), (6, 0), color, fontsize=8, annotation_clip=False)


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
  text = re.sub(r' id="[\w.]+_\d+"', '', text[text.index('<svg') + len('<svg') :])
  return f'<svg role="img" aria-label="{html.escape(alt)}"{text}'
