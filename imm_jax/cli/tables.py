"""What the commands print as tables."""

from collections.abc import Mapping, Sequence
import itertools
import sys
from typing import Any, TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:  # At run time jax would come with it.
  from imm_jax.planning.plan import Report

_WIDTH = 160  # Characters, where there is no terminal that has a width.
_PLAN = (
  'program',
  'peak GiB',
  'of it temporary',
  'TFLOP',
  'needed',
  'compute ms',
  'links ms',
  'MFU',
  'tokens/s',
)
_LAYERS = (
  'layers: what skipping one does to right completions of the original model, given to it (NLL:'
  ' nats a token; accuracy: the share that greedy decoding would write; Taylor: an estimate of the'
  ' rise), and how far the merged params are from the original, ‖params - base‖ / ‖base‖; rho (p):'
  ' rank correlation of both'
)


def terminal() -> Console:
  """Returns the console that tables are printed on."""
  return Console(width=None if sys.stdout.isatty() else _WIDTH)


def results(rows: Sequence[Mapping[str, Any]], first: str = 'base') -> None:
  """Prints a row for each set of params: accuracy [95 % interval] and its change, in points.

  Args:
    rows: of a run's summary, from round 0 on.
    first: what the params of round 0 are called.
  """
  from imm_jax.reports import compare
  from imm_jax.rounds import records

  summaries = [records.RoundSummary.from_json(row) for row in rows]
  base, newest = summaries[0], summaries[-1]
  columns, cells_of = compare.results(summaries)
  tasks = [(domain, task) for domain in compare.DOMAINS for task in base.results(domain)]
  title = 'accuracy in % [95 % interval]'
  if len(rows) > 1:
    title += ', change from base in points'
  table = Table('params', title=title)
  # The drift of params is their distance from the original ones, over these' norm.
  for name in (*columns, 'drift'):
    table.add_column(name, justify='right')
  guesses = [f'{100 * base.results(domain)[task]["guess"]:.1f}' for domain, task in tasks]
  table.add_row('guess', *guesses, '')
  for state, cells in cells_of.items():
    drift = ''
    if state.round_ and state.which == 'merged':
      drift = f'{(summaries[state.round_].merge or {})["drift_norm"]:.1e}'
    table.add_row(first if state == records.BASE else state.name, *cells, drift)
  console = terminal()
  console.print(table)
  for domain, task in tasks:
    result = newest.results(domain)[task]
    others = [key for key in result if '@' in key or key == 'accuracy_flexible']
    sampled = [f'{key} {100 * result[key]:.1f} %' for key in others]
    if sampled:
      console.print(f'{task}: {", ".join(sampled)}', highlight=False)


def plan(
  reports: Mapping[str, 'Report'],
  config: Mapping[str, Any],
  topology: str,
  num_slices: int,
) -> None:
  """Prints what programs take on a device, a row each, and what would make fit those that do not.

  Args:
    reports: of plan.plan, by program.
    config: of the experiment.
    topology: of a slice, as 'v5e:4x4'.
    num_slices: of that topology.
  """
  from imm_jax.planning import plan as planning

  chip = planning.chip_of(topology)
  title = f'{num_slices} x {topology}: a device, by estimates that no hardware has confirmed'
  table = Table(title=title)
  for name in _PLAN:
    table.add_column(name, justify='left' if name == 'program' else 'right')
  for name, report in reports.items():
    table.add_row(
      name,
      f'{report.peak_gib:.2f}' + ('' if report.fits else f' of {report.limit_gib}!'),
      f'{report.temporaries_gib:.2f}',
      f'{report.flops / 1e12:.2f}',
      f'{report.model_flops / 1e12:.2f}',
      f'{1e3 * report.compute_secs:.1f}',
      f'{1e3 * report.collective_secs:.1f}',
      f'{report.mfu(chip):.0%}',
      f'{report.tokens / report.secs:,.0f}',
    )
  console = terminal()
  console.print(table)
  for name, report in reports.items():
    sizes = report.collective_bytes.items()
    moved = ', '.join(f'{kind} {size / 1e9:.2f} GB' for kind, size in sizes)
    remat = f' (remat {report.remat})' if name == 'train' else ''
    console.print(f'{name}{remat}: {moved or "no collective"}', highlight=False)
    if not report.fits:
      console.print(f'{name} does not fit: try {planning.advice(report, config)}', highlight=False)


def analyses(found: Sequence[Mapping[str, Any]]) -> None:
  """Prints what analysis.analyze found: layers, samples, answers."""
  importance = found[0]['importance']
  later = found[1:]
  console = terminal()
  for table in (_layers(importance, later), _samples(later), _answers(later)):
    console.print(table)


def _layers(importance: Mapping[str, Sequence[float]], later: Sequence[Mapping[str, Any]]) -> Table:
  """Returns a row a layer, a row a kind of module, and a row a rank correlation of both."""
  rounds = [f'round {i}' for i in range(1, len(later) + 1)]
  table = _table(_LAYERS, ['layer', 'NLL rise', 'accuracy drop', 'Taylor', *rounds])
  for layer, values in enumerate(zip(*importance.values(), strict=True)):
    changes = [f'{analysis["change"]["layers"][layer]:.2e}' for analysis in later]
    table.add_row(str(layer), *(f'{value:.3g}' for value in values), *changes)
  table.add_section()
  blank = [''] * len(importance)
  for kind in [key for key in later[0]['change'] if key != 'layers']:
    table.add_row(kind, *blank, *(f'{analysis["change"][kind]:.2e}' for analysis in later))
  table.add_section()
  for place, name in enumerate(importance):
    marks = [*blank[:place], 'rho (p)', *blank[place + 1 :]]
    table.add_row('', *marks, *(_correlation(analysis['spearman'][name]) for analysis in later))
  return table


def _correlation(found: Mapping[str, float] | None) -> str:
  return f'{found["rho"]:+.2f} ({found["p"]:.2g})' if found else '-'


def _samples(later: Sequence[Mapping[str, Any]]) -> Table:
  """Returns a row a round and task: how diverse its samples were."""
  rows = []
  for i, found in enumerate(later, 1):
    rows += [(i, task, row) for task, row in found['collapse'].items()]
  names = list(dict.fromkeys(itertools.chain.from_iterable(row for _, _, row in rows)))
  title = 'samples of a round, before its model is trained (docs/runs.md has what the columns are)'
  table = _table(title, ['round', 'task', *names])
  for i, task, row in rows:
    values = [row.get(name) for name in names]
    table.add_row(str(i), task, *('-' if value is None else f'{value:.3f}' for value in values))
  return table


def _answers(later: Sequence[Mapping[str, Any]]) -> Table:
  """Returns a row a round, domain and task: how many answers became right or wrong."""
  title = 'answers right (1) or wrong (0) in round 0 -> in this round'
  table = _table(title, ['round', 'domain', 'task', '1->0', '0->1', '1->1', '0->0'])
  for i, found in enumerate(later, 1):
    for domain, tasks in found['transitions'].items():
      for task, counts in tasks.items():
        table.add_row(str(i), domain, task, *map(str, counts.values()))
  return table


def _table(title: str, columns: Sequence[str]) -> Table:
  table = Table(title=title)
  for name in columns:
    table.add_column(name, justify='left' if name in ('domain', 'task') else 'right')
  return table
