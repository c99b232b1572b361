"""The figures of `imm analyze`'s findings in a report, as SVG text."""

from collections.abc import Mapping, Sequence

from imm_jax.reports.compare import Arm
from imm_jax.reports.drawing import annotate, COLORS, Label, look, place, svg


def layers(arms: Sequence[Arm]) -> dict[str, str]:
  """Returns a figure by arm: how much layers changed, over their importance.

  It is of the newest round of the arm's first run that was analysed; an arm without one has none.
  """
  figures = {}
  for arm in arms:
    if arm.last_analysis:
      round_, found = arm.last_analysis
      title = f'seed {arm.runs[0].config["seed"]}, round {round_}'
      if len(arms) > 1:
        title = f'{arm.name}, {title}'
      importance = arm.runs[0].analyses[0]['importance']['nll_rise']
      correlation = found['spearman']['nll_rise']
      figures[arm.name] = _layers(title, importance, found['change']['layers'], correlation)
  return figures


def _layers(name, importance, change, spearman) -> str:
  rho = 'no rank correlation'
  if spearman:
    rho = f'ρ = {spearman["rho"]:+.2f} (p = {spearman["p"]:.2g})'.replace('-', '−')

  def draw(ax):
    ax.set(title=f'{name}: {rho}')
    ax.set(xlabel='importance, nats a token', ylabel='change, % of the norm')
    ax.grid(axis='y')
    for layer, (x, y) in enumerate(zip(importance, change, strict=True)):
      ax.plot(x, 100 * y, 'o', color=COLORS[0])
      annotate(ax, str(layer), (x, 100 * y), (5, 4), COLORS[0])
    ax.margins(0.08)

  return svg(draw, 2.6, f'{name}, change of each layer over its importance, {rho}')


def collapse(arms: Sequence[Arm]) -> dict[str, str]:
  """Returns a figure by measure of diversity: means over tasks and runs by round, a line an arm.

  Of a round in which not all runs of an arm have measured there is none, as where nothing was
  sampled.
  """
  lines: dict[str, dict[str, dict[int, float]]] = {}
  for arm in arms:
    for round_ in range(1, arm.states[-1].round_ + 1):
      by_task = []
      for run in arm.runs:
        by_task += (run.analyses[round_].get('collapse') or {'': {}}).values()
      for measure in by_task[0]:
        values = [of_task[measure] for of_task in by_task if of_task.get(measure) is not None]
        if len(values) == len(by_task):
          lines.setdefault(measure, {}).setdefault(arm.name, {})[round_] = sum(values) / len(values)
  names = [arm.name for arm in arms]
  return {measure: _collapse(measure, of_arms, names) for measure, of_arms in lines.items()}


def _collapse(measure: str, lines: Mapping[str, Mapping[int, float]], names: Sequence[str]) -> str:
  def draw(ax):
    ax.set(title=measure.replace('_', ' '), xlabel='round')
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(axis='y')
    labels = []
    for name, line in lines.items():
      color, marker = look(names.index(name))
      rounds = list(line)
      ax.plot(rounds, list(line.values()), marker=marker, color=color)
      labels.append(Label(rounds[-1], line[rounds[-1]], name if len(names) > 1 else '', color))
    place(ax, labels)

  told = '; '.join(f'{name} {list(line.values())[-1]:.3g}' for name, line in lines.items())
  return svg(draw, 2.2, f'{measure} of completions in the last round: {told}')
