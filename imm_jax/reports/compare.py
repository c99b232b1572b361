"""Runs side by side: what they measured, differences paired by question, and what changed.

Workdirs whose configs are equal but for the seed are one arm; its accuracies are means over its
runs.
"""

from collections.abc import Iterable, Mapping, Sequence
import copy
import dataclasses
import functools
import json
import os
import re
from typing import Any

import numpy as np

from imm_jax.reports.statistics import Interval, paired_bootstrap
from imm_jax.rounds.records import Answer, BASE, RoundSummary, Sample, State
from imm_jax.rounds.workdir import Workdir

DOMAINS = {'id': 'in domain', 'ood': 'out of domain'}
Answers = dict[str, Answer]  # Of one task by the question's id.

# Keys in which the runs of an arm may differ.
_OF_ONE_ARM = ('seed', 'num_rounds', 'mesh', 'logger', 'profile')
_SEED = re.compile(r'[-_/](seed|s)?[-_]?(\d+)$')  # at the end of a workdir's name


@dataclasses.dataclass(frozen=True)
class Run:
  """One workdir, read."""

  path: str
  config: dict[str, Any]
  rows: list[RoundSummary]
  answers: list[list[Answer]]  # of each round
  analyses: list[dict[str, Any]]  # of each round what imm analyze found, {} where it has not looked

  def read_samples(self, round_: int) -> list[Sample]:
    """Returns samples.jsonl of a round from 1 on, which may be large.

    Raises ValueError or OSError.
    """
    return Workdir(self.path).read_samples(round_)

  @functools.cached_property
  def by_question(self) -> dict[tuple[State, str], Answers]:
    """The answers of each state and task, by the question's id."""
    found: dict[tuple[State, str], Answers] = {}
    for round_, answers in enumerate(self.answers):
      for answer in answers:
        state = State(round_, answer.params)
        found.setdefault((state, answer.task), {})[answer.id] = answer
    return found


@dataclasses.dataclass(frozen=True)
class Arm:
  """Runs of one config, with different seeds."""

  name: str
  runs: Sequence[Run]

  @functools.cached_property
  def states(self) -> list[State]:
    """The params that all its runs measured, in order."""
    num_rows = min(len(run.rows) for run in self.runs)
    return states(self.runs[0].rows[:num_rows])

  @property
  def last_analysis(self) -> tuple[int, dict[str, Any]] | None:
    """The newest round of its first run that `imm analyze` has looked at, and what it found.

    None without one.
    """
    for round_, analysis in reversed(list(enumerate(self.runs[0].analyses))[1:]):
      if analysis:
        return round_, analysis
    return None

  def accuracy(self, state: State, domain: str, tasks: Sequence[str]) -> Interval:
    """Returns the mean accuracy over runs and tasks.

    A task's interval is the mean of its runs' Wilson intervals: they answer the same questions.
    Tasks have different ones: the interval of their mean is put together from theirs (MOVER; Zou
    and Donner, doi 10.1002/sim.3095).
    """
    measured = [run.rows[state.round_].results(domain, state.which) for run in self.runs]

    def by_task(name: str) -> np.ndarray:
      return np.mean([[of_run[task][name] for of_run in measured] for task in tasks], axis=1)

    means = by_task('accuracy')
    mean = float(means.mean())
    below = float(np.linalg.norm(means - by_task('low'))) / len(tasks)
    above = float(np.linalg.norm(by_task('high') - means)) / len(tasks)
    return Interval(mean, mean - below, mean + above)

  def drift(self, state: State) -> float:
    """Returns the mean over its runs of ‖params - base‖ / ‖base‖ of merged params."""
    if state == BASE:
      return 0.0
    drifts = [(run.rows[state.round_].merge or {})['drift_norm'] for run in self.runs]
    return float(np.mean(drifts))

  def text_nll(self, state: State) -> float | None:
    """Returns the mean over its runs of a text's negative log-likelihood, nats a token.

    None where not all measured it.
    """
    texts = [getattr(run.rows[state.round_], state.key('text')) for run in self.runs]
    if not all(texts):
      return None
    return float(np.mean([text['nll_nats'] for text in texts]))

  def guess(self, domain: str, tasks: Sequence[str]) -> float:
    """Returns the mean over tasks of the accuracy of always giving the commonest answer."""
    results = self.runs[0].rows[0].results(domain)
    return float(np.mean([results[task]['guess'] for task in tasks]))

  def transitions(self, state: State, tasks: Sequence[str]) -> tuple[float, float]:
    """Returns which share of questions became right since the base, and which wrong.

    They are means over tasks and runs.
    """
    shares = []
    for run in self.runs:
      for task in tasks:
        before = run.by_question[BASE, task]
        after = run.by_question[state, task]
        moves = [after[id_].right - before[id_].right for id_ in after]
        shares.append((moves.count(1) / len(moves), moves.count(-1) / len(moves)))
    gained, lost = np.mean(shares, axis=0)
    return float(gained), float(lost)


def states(rows: Sequence[RoundSummary]) -> list[State]:
  """Returns the params that a run's rows tell of, in order."""
  return [state for row in rows for state in row.states()]


def results(rows: Sequence[RoundSummary]) -> tuple[list[str], dict[State, list[str]]]:
  """Returns the columns of the table of what a run measured, and each state's cells.

  A cell is '27.5 [22, 34] +1.5': accuracy in %, its 95 % interval, and the change from the original
  in points.
  """
  columns = [(domain, task) for domain in DOMAINS for task in rows[0].results(domain)]
  cells = {state: [_cell(rows, state, *column) for column in columns] for state in states(rows)}
  return [f'{domain.upper()} {task}' for domain, task in columns], cells


def _cell(rows: Sequence[RoundSummary], state: State, domain: str, task: str) -> str:
  result = rows[state.round_].results(domain, state.which)[task]
  text = f'{100 * result["accuracy"]:.1f} [{100 * result["low"]:.0f}, {100 * result["high"]:.0f}]'
  if state == BASE:
    return text
  change = result['accuracy'] - rows[0].results(domain)[task]['accuracy']
  return f'{text} {100 * change:+.1f}'


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
  """Returns the lines of a Markdown table."""
  return [f'| {" | ".join(cells)} |' for cells in (header, ['---'] * len(header), *rows)]


def table(arms: Sequence[Arm]) -> str:
  """Returns a Markdown table: the original's accuracies, and what each arm's last round changed.

  Where all measured a text there is a column of its negative log-likelihood too, in nats a token.
  """
  tasks = shared_tasks([run for arm in arms for run in arm.runs])
  accuracies = [arms[0].accuracy(BASE, domain, names) for domain, names in tasks.items()]
  original = [f'{100 * accuracy.mean:.1f}' for accuracy in accuracies]
  lines = []
  for arm in arms:
    last = arm.states[-1]
    changes = [_in_points(difference((arm, last), (arm, BASE), names)) for names in tasks.values()]
    lines.append([f'{arm.name}, points', *changes, f'{arm.drift(last):.1e}', str(len(arm.runs))])
  lines.insert(0, ['original, %', *original, '', str(len(arms[0].runs))])
  header = ['arm', *map(str.upper, tasks), 'drift', 'seeds']
  texts = _text_column(arms)
  if texts:
    for line, cell in zip([header, *lines], texts, strict=True):
      line.insert(1 + len(tasks), cell)
  return '\n'.join(markdown(header, lines))


def _text_column(arms: Sequence[Arm]) -> list[str]:
  """Returns the table's column of a text's negative log-likelihood.

  Nothing where not all arms measured it.
  """
  cells = ['text']
  for arm in arms:
    before = arm.text_nll(BASE)
    after = arm.text_nll(arm.states[-1])
    if before is None or after is None:
      return []
    if arm is arms[0]:
      cells.append(f'{before:.3f} nats')
    cells.append(f'{after - before:+.3f}')
  return cells


def _in_points(change: Interval) -> str:
  mean, low, high = (f'{100 * value:+.1f}' for value in change)
  return f'{mean} [{low}, {high}]'


def read(path: str) -> Run:
  """Returns the run of a workdir, as far as its rounds are done.

  Raises:
    ValueError: path is no workdir, none of its rounds is done, or a file is damaged.
    OSError: a file cannot be read.
  """
  workdir = Workdir(path)
  rows = [RoundSummary.from_json(row) for row in workdir.finished()]
  if not rows:
    raise ValueError(f'{path}: holds no round that is done; give the --workdir of an imm run')
  answers = [workdir.read_answers(row.round) for row in rows]
  analyses = [workdir.read_analysis(row.round) for row in rows]
  return Run(path, workdir.read_config(), rows, answers, analyses)


def group(runs: Sequence[Run]) -> list[Arm]:
  """Returns the arms, in the order of their first runs, and their runs in the order of seeds.

  An arm is called as its workdirs are but for the seed at their end: runs/dare/seed0 and
  runs/dare/seed1 are `dare` beside others in runs, and so are runs/dare-0 and runs/dare-1. Where
  that does not tell arms apart, it is called as its first run.

  Raises ValueError where two runs are of one config and seed.
  """
  found: dict[str, list[Run]] = {}
  for run in runs:
    members = found.setdefault(_without_seeds(run.config), [])
    for other in members:
      if other.config['seed'] == run.config['seed']:
        paths = f'{other.path}, {run.path}'
        raise ValueError(f'{paths}: are runs of one config and seed; report them one by one')
    members.append(run)
  arms = list(found.values())
  stems = [_stem(members) for members in arms]
  if len(set(stems)) < len(stems):
    stems = [os.path.abspath(members[0].path) for members in arms]
  above = os.path.commonpath([os.path.dirname(stem) for stem in stems])
  return [
    Arm(os.path.relpath(stem, above), sorted(members, key=lambda run: run.config['seed']))
    for stem, members in zip(stems, arms, strict=True)
  ]


def _stem(runs: Sequence[Run]) -> str:
  """Returns what the paths of an arm's runs share but for the seed at their end.

  The first one's path if they do not.
  """
  stems = {_without_seed(run) for run in runs}
  return stems.pop() if len(stems) == 1 else os.path.abspath(runs[0].path)


def _without_seed(run: Run) -> str:
  """Returns the run's path without its seed at the end; runs/imm_70 keeps its number."""
  path = os.path.abspath(run.path)
  match = _SEED.search(path)
  return path[: match.start()] if match and int(match[2]) == run.config['seed'] else path


def _without_seeds(config: Mapping[str, Any]) -> str:
  """Returns the config as text, without what may differ in an arm and without its models' seeds."""
  alike = copy.deepcopy({key: value for key, value in config.items() if key not in _OF_ONE_ARM})
  for section, key in (('model', 'path'), ('synthesize', 'teacher')):
    alike[section][key] = re.sub(r'seed\d+', 'seed', alike[section][key])
  if alike['model'].get('random'):
    alike['model']['random'].pop('seed', None)
  return json.dumps(alike, sort_keys=True)


def shared_tasks(runs: Sequence[Run]) -> dict[str, list[str]]:
  """Returns {domain: the tasks that all runs measured in it}.

  Raises ValueError where there is none in domain.
  """
  first, *others = (run.rows[0] for run in runs)
  tasks = {}
  for domain in DOMAINS:
    tasks[domain] = [
      task for task in first.results(domain) if all(task in row.results(domain) for row in others)
    ]
  if not tasks['id']:
    paths = ', '.join(run.path for run in runs)
    raise ValueError(f'{paths}: have no task in domain in common; report them one by one')
  return {domain: names for domain, names in tasks.items() if names}


def difference(a: tuple[Arm, State], b: tuple[Arm, State], tasks: Sequence[str]) -> Interval:
  """Returns how much more accurate a is than b on the questions of both, the mean over tasks.

  Runs are paired by their seeds; a run of a seed that the other arm has not is left out. Where no
  seed is in both arms, means over each one's runs are compared, and the interval is of the
  questions alone.

  Raises ValueError where they have no question of a task in common.
  """
  seeds_a, seeds_b = ({run.config['seed'] for run in arm.runs} for arm, _ in (a, b))
  seeds = sorted(seeds_a & seeds_b)
  differences = []
  for task in tasks:
    answers_a = _answers(*a, task, seeds)
    answers_b = _answers(*b, task, seeds)
    ids = sorted(set.intersection(*(set(answers) for answers in [*answers_a, *answers_b])))
    if not ids:
      names = f'{a[0].name}, {b[0].name}'
      raise ValueError(f'{names}: have no question of {task} in common; report them one by one')
    right_a = _right(answers_a, ids)
    right_b = _right(answers_b, ids)
    if not seeds:
      right_a = right_a.mean(axis=0, keepdims=True)
      right_b = right_b.mean(axis=0, keepdims=True)
    differences.append(right_a - right_b)
  return paired_bootstrap(differences)


def _answers(arm: Arm, state: State, task: str, seeds: Sequence[int]) -> list[Answers]:
  """Returns the answers by question of the arm's runs that have these seeds, in their order.

  Without seeds of all.
  """
  runs = {run.config['seed']: run for run in arm.runs}
  return [runs[seed].by_question[state, task] for seed in seeds or sorted(runs)]


def _right(answers: Sequence[Answers], ids: Sequence[str]) -> np.ndarray:
  """Returns 1 for each right and 0 for each wrong answer, [runs, questions] f64."""
  return np.array([[of_run[id_].right for id_ in ids] for of_run in answers], np.float64)
