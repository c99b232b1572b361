"""Runs side by side: what they measured, differences paired by question, and which of them no other one beats.

Workdirs whose configs are equal but for the seed are one arm; its accuracies are means over its runs.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import functools
import json
import os
import re
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from imm_jax.rounds.records import BASE, State
from imm_jax.rounds.workdir import Workdir

DOMAINS = {'id': 'in domain', 'ood': 'out of domain'}
# Keys in which the runs of an arm may differ.
_OF_ONE_ARM = ('seed', 'num_rounds', 'mesh', 'logger', 'profile')
_SEED = re.compile(r'[-_/](seed|s)?[-_]?(\d+)$')  # at the end of a workdir's name
_NUM_RESAMPLES = 1000  # of a bootstrap


class Interval(NamedTuple):
  """A number with its 95 % interval, as fractions."""

  mean: float
  low: float
  high: float

  @property
  def is_clear(self) -> bool:
    """Returns whether 0 is outside of it, by more than rounding errors."""
    return self.low > 1e-6 or self.high < -1e-6


@dataclasses.dataclass(frozen=True)
class Run:
  """One workdir, read."""

  path: str
  config: dict[str, Any]
  rows: list[dict[str, Any]]  # a row a round, as in summary.json
  answers: list[list[dict[str, Any]]]  # of each round, evaluations.jsonl
  analyses: list[dict[str, Any]]  # of each round what imm analyze found, {} where it has not looked

  @property
  def samples(self) -> list[list[dict[str, Any]]]:
    """Returns samples.jsonl of each round from 1 on; read when asked for, as it is large. Raises ValueError or OSError."""
    return [Workdir(self.path).read_lines(row['round'], 'samples.jsonl') for row in self.rows[1:]]

  @functools.cached_property
  def by_question(self) -> dict[tuple[State, str], dict[str, dict[str, Any]]]:
    """Returns the answers of each state and task, by the question's id."""
    found: dict[tuple[State, str], dict[str, dict[str, Any]]] = {}
    for round_, records in enumerate(self.answers):
      for record in records:
        found.setdefault((State(round_, record['params']), record['task']), {})[record['id']] = record
    return found


@dataclasses.dataclass(frozen=True)
class Arm:
  """Runs of one config, with different seeds."""

  name: str
  runs: Sequence[Run]

  @functools.cached_property
  def states(self) -> list[State]:
    """Returns the params that all its runs measured, in order."""
    return states(self.runs[0].rows[: min(len(run.rows) for run in self.runs)])

  @property
  def last_analysis(self) -> tuple[int, dict[str, Any]] | None:
    """Returns the newest round of its first run that `imm analyze` has looked at, and what it found; None without one."""
    found = [(round_, analysis) for round_, analysis in enumerate(self.runs[0].analyses) if round_ and analysis]
    return found[-1] if found else None

  def accuracy(self, state: State, domain: str, tasks: Sequence[str]) -> Interval:
    """Returns the mean accuracy over runs and tasks.

    A task's interval is the mean of its runs' Wilson intervals: they answer the same questions. Tasks have different
    ones: the interval of their mean is put together from theirs (MOVER; Zou and Donner, doi 10.1002/sim.3095).
    """
    cells = [[run.rows[state.round_][state.key(domain)][task] for run in self.runs] for task in tasks]
    mean, low, high = (
      np.mean([[cell[name] for cell in row] for row in cells], axis=1) for name in ('accuracy', 'low', 'high')
    )
    middle, down, up = float(mean.mean()), np.linalg.norm(mean - low), np.linalg.norm(high - mean)
    return Interval(middle, middle - float(down) / len(tasks), middle + float(up) / len(tasks))

  def drift(self, state: State) -> float:
    """Returns the mean over its runs of ‖params - base‖ / ‖base‖ of merged params."""
    return float(np.mean([run.rows[state.round_]['merge']['drift_norm'] if state.round_ else 0.0 for run in self.runs]))

  def text_nll(self, state: State) -> float | None:
    """Returns the mean over its runs of a text's negative log-likelihood, nats a token; None where not all measured it."""
    rows, key = [run.rows[state.round_] for run in self.runs], state.key('text')
    return float(np.mean([row[key]['nll_nats'] for row in rows])) if all(key in row for row in rows) else None

  def guess(self, domain: str, tasks: Sequence[str]) -> float:
    """Returns the mean over tasks of the accuracy of always giving the commonest answer."""
    return float(np.mean([self.runs[0].rows[0][domain][task]['guess'] for task in tasks]))

  def transitions(self, state: State, tasks: Sequence[str]) -> tuple[float, float]:
    """Returns which share of questions the base answers wrong and this state right, and the reverse; means over tasks."""
    shares = []
    for run in self.runs:
      for task in tasks:
        before, after = run.by_question[BASE, task], run.by_question[state, task]
        moves = [after[id_]['right'] - before[id_]['right'] for id_ in after]
        shares.append((moves.count(1) / len(moves), moves.count(-1) / len(moves)))
    gained, lost = np.mean(shares, axis=0)
    return float(gained), float(lost)


def states(rows: Sequence[Mapping[str, Any]]) -> list[State]:
  """Returns the params that a run's rows tell of, in order."""
  return [State(i, which) for i, row in enumerate(rows) for which in ('tuned', 'merged') if State(i, which).key('id') in row]


def results(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], dict[State, list[str]]]:
  """Returns the columns of the table of what a run measured, and each state's cells.

  A cell is '27.5 [22, 34] +1.5': accuracy in %, its 95 % interval, and the change from the original in points.
  """
  columns = [(domain, task) for domain in DOMAINS for task in rows[0][domain]]
  cells = {state: [_cell(rows, state, *column) for column in columns] for state in states(rows)}
  return [f'{domain.upper()} {task}' for domain, task in columns], cells


def _cell(rows: Sequence[Mapping[str, Any]], state: State, domain: str, task: str) -> str:
  result, before = rows[state.round_][state.key(domain)][task], rows[0][domain][task]
  text = f'{100 * result["accuracy"]:.1f} [{100 * result["low"]:.0f}, {100 * result["high"]:.0f}]'
  return text if state == BASE else f'{text} {100 * (result["accuracy"] - before["accuracy"]):+.1f}'


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
  """Returns the lines of a Markdown table."""
  return [f'| {" | ".join(cells)} |' for cells in (header, ['---'] * len(header), *rows)]


def table(arms: Sequence[Arm]) -> str:
  """Returns a Markdown table: the original's accuracies, and what each arm's last round changed, with its interval.

  Where all measured a text there is a column of its negative log-likelihood too, in nats a token.
  """
  tasks = shared_tasks([run for arm in arms for run in arm.runs])
  levels = [f'{100 * arms[0].accuracy(BASE, *item).mean:.1f}' for item in tasks.items()]
  nlls = [[nll for state in (BASE, arm.states[-1]) if (nll := arm.text_nll(state)) is not None] for arm in arms]
  measured = all(len(pair) == 2 for pair in nlls)
  levels += [f'{nlls[0][0]:.3f} nats'] if measured else []
  lines = [['original, %', *levels, '', str(len(arms[0].runs))]]
  for arm, pair in zip(arms, nlls, strict=True):
    changes = [_points(difference((arm, arm.states[-1]), (arm, BASE), names)) for names in tasks.values()]
    changes += [f'{pair[1] - pair[0]:+.3f}'] if measured else []
    lines.append([f'{arm.name}, points', *changes, f'{arm.drift(arm.states[-1]):.1e}', str(len(arm.runs))])
  return '\n'.join(markdown(['arm', *map(str.upper, tasks), *(['text'] if measured else []), 'drift', 'seeds'], lines))


def _points(change: Interval) -> str:
  mean, low, high = (f'{100 * value:+.1f}' for value in change)
  return f'{mean} [{low}, {high}]'


def read(path: str) -> Run:
  """Returns the run of a workdir, as far as its rounds are done.

  Raises:
    ValueError: path is no workdir, none of its rounds is done, or a file is damaged.
    OSError: a file cannot be read.
  """
  workdir = Workdir(path)
  rows = workdir.finished()
  if not rows:
    raise ValueError(f'{path}: holds no round that is done; give the --workdir of an imm run')
  answers = [workdir.read_lines(row['round'], 'evaluations.jsonl') for row in rows]
  analyses = [workdir.read_analysis(row['round']) for row in rows]
  return Run(path, workdir.read_config(), rows, answers, analyses)


def group(runs: Sequence[Run]) -> list[Arm]:
  """Returns the arms, in the order of their first runs; within one the runs are in the order of their seeds.

  An arm is called as its workdirs are but for the seed at their end: runs/dare/seed0 and runs/dare/seed1 are `dare` beside
  others in runs, and so are runs/dare-0 and runs/dare-1. Where that does not tell arms apart, it is called as its first run.

  Raises ValueError where two runs are of one config and seed.
  """
  found: dict[str, list[Run]] = {}
  for run in runs:
    members = found.setdefault(_without_seeds(run.config), [])
    for other in members:
      if other.config['seed'] == run.config['seed']:
        raise ValueError(f'{other.path}, {run.path}: are runs of one config and seed; report them one by one')
    members.append(run)
  paths = [[os.path.abspath(run.path) for run in members] for members in found.values()]
  names = [{_without_seed(run) for run in members} for members in found.values()]
  stems = [name.pop() if len(name) == 1 else of_arm[0] for name, of_arm in zip(names, paths, strict=True)]
  stems = stems if len(set(stems)) == len(stems) else [of_arm[0] for of_arm in paths]
  above = os.path.commonpath([os.path.dirname(stem) for stem in stems])
  return [
    Arm(os.path.relpath(stem, above), sorted(members, key=lambda run: run.config['seed']))
    for stem, members in zip(stems, found.values(), strict=True)
  ]


def _without_seed(run: Run) -> str:
  """Returns the run's path without its seed at the end; runs/imm_70 keeps its number."""
  path = os.path.abspath(run.path)
  match = _SEED.search(path)
  return path[: match.start()] if match and int(match[2]) == run.config['seed'] else path


def _without_seeds(config: Mapping[str, Any]) -> str:
  """Returns the config as text, without the keys in which the runs of an arm may differ, and the seed of their models."""
  alike = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items() if key not in _OF_ONE_ARM}
  for section, key in (('model', 'path'), ('synthesize', 'teacher')):
    alike[section][key] = re.sub(r'seed\d+', 'seed', alike[section][key])
  if random := alike['model'].get('random'):
    alike['model']['random'] = {key: value for key, value in random.items() if key != 'seed'}
  return json.dumps(alike, sort_keys=True)


def shared_tasks(runs: Sequence[Run]) -> dict[str, list[str]]:
  """Returns {domain: the tasks that all runs measured in it}. Raises ValueError where there is none in domain."""
  first, *others = (run.rows[0] for run in runs)
  tasks = {domain: [task for task in first[domain] if all(task in row[domain] for row in others)] for domain in DOMAINS}
  if not tasks['id']:
    raise ValueError(f'{", ".join(run.path for run in runs)}: have no task in domain in common; report them one by one')
  return {domain: names for domain, names in tasks.items() if names}


def difference(a: tuple[Arm, State], b: tuple[Arm, State], tasks: Sequence[str]) -> Interval:
  """Returns how much more accurate a is than b on the questions that both answered: the mean over tasks.

  Runs are paired by their seeds; a run of a seed that the other arm has not is left out. Where no seed is in both arms,
  means over each one's runs are compared, and the interval is of the questions alone.

  Raises ValueError where they have no question of a task in common.
  """
  sides = [({run.config['seed']: run for run in arm.runs}, state) for arm, state in (a, b)]
  seeds = set.intersection(*(set(runs) for runs, _ in sides))
  differences = []
  for task in tasks:
    tables = [[runs[seed].by_question[state, task] for seed in sorted(seeds or runs)] for runs, state in sides]
    ids = sorted(set.intersection(*(set(table) for side in tables for table in side)))
    if not ids:
      raise ValueError(f'{a[0].name}, {b[0].name}: have no question of {task} in common; report them one by one')
    x, y = (np.array([[table[id_]['right'] for id_ in ids] for table in side], np.float64) for side in tables)
    differences.append(x - y if seeds else x.mean(axis=0, keepdims=True) - y.mean(axis=0, keepdims=True))
  return paired_bootstrap(differences)


def paired_bootstrap(differences: Sequence[np.ndarray]) -> Interval:
  """Returns the mean over tasks of the differences, between the 2.5 and 97.5 percentiles of 1000 resamples of it.

  Questions are resampled within each task, and seeds where there are several. A few seeds' resamples vary less than their
  mean does: what a seed deviates from it is widened first, so that seeds alone would give about Student's interval.
  The result is a function of the arguments alone.

  Args:
    differences: for each task [S, n], of each seed and question: 1 where only one side is right, -1 where only the other.
  """
  S = len(differences[0])
  widening = np.sqrt(S / (S - 1)) * special.stdtrit(S - 1, 0.975) / special.ndtri(0.975) if S > 1 else 1.0
  seeds, drawn = _weights(S, 0), np.zeros(_NUM_RESAMPLES)
  for stream, x in enumerate(differences, start=1):
    of_seeds = x.mean(axis=1, keepdims=True)
    widened = x + (widening - 1) * (of_seeds - of_seeds.mean())
    drawn += np.sum((seeds @ widened) * _weights(x.shape[1], stream), axis=1) / len(differences)
  low, high = np.quantile(drawn, (0.025, 0.975))
  return Interval(float(np.mean([x.mean() for x in differences])), float(low), float(high))


@functools.lru_cache(maxsize=32)
def _weights(n: int, stream: int) -> np.ndarray:
  """Returns the share of each of n items in each resample, [_NUM_RESAMPLES, n] f64."""
  return np.random.default_rng([n, stream]).multinomial(n, np.full(n, 1 / n), size=_NUM_RESAMPLES) / n


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
  """Returns the points that no other one reaches in both coordinates and passes in one, in the order of the first."""
  front: list[tuple[float, float]] = []
  for point in sorted(set(points), reverse=True):
    if not front or point[1] > front[-1][1]:
      front.append(point)
  return front[::-1]
