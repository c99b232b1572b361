"""Workdirs -> one HTML page that needs nothing but itself: what was gained, what was lost, how."""

from collections.abc import Mapping, Sequence
import importlib.metadata
import itertools
import json
import os
import re
from typing import Any

import jinja2

from imm_jax import console
from imm_jax.reports import compare, plots, plots_of_analysis
from imm_jax.reports.compare import Arm, DOMAINS, Run
from imm_jax.reports.statistics import Interval
from imm_jax.rounds.records import BASE, Sample, State
from imm_jax.rounds.workdir import Workdir

_LEARNED = ('num_samples', 'right_rate', 'acceptance_rate', 'num_accepted', 'steps', 'loss_nats')
_NUM_EXAMPLES = 2  # of a kind
_MAX_CHARACTERS = 600  # of an example

# What became of completions, how many, and some of them.
Kinds = list[tuple[str, int, list[Sample]]]


class Writer:
  """Writes a run's page into its workdir after each of its rounds.

  A page that cannot be written is noted once, and never ends a run. What a page shows of a round's
  completions is kept: the files of samples are large, and each is read once.
  """

  def __init__(self):
    self._completions: dict[int, Kinds] = {}
    self._has_failed = False

  def __call__(self, path: str) -> None:
    """Writes the page of the workdir at `path`."""
    try:
      Workdir(path).write_report(page([path], self._completions))
    except Exception as error:
      if not self._has_failed:
        console.note(f'report.html is not written: {error}')
      self._has_failed = True


def write(path: str) -> None:
  """Writes the page of one workdir into it, as report.html. Raises as `page` does."""
  Workdir(path).write_report(page([path]))


def figures(paths: Sequence[str]) -> dict[str, str]:
  """Returns the page's figures by a name, as SVG text that stands by itself, on white.

  Raises as `page` does.
  """
  runs = [compare.read(path) for path in paths]
  found = _figures(compare.group(runs), compare.shared_tasks(runs))
  named = {}
  for kind, svgs in found.items():
    for name, svg in svgs.items():
      svg = svg.replace('<svg', '<svg style="background: white"', 1)
      svg = svg.replace("'DejaVu Sans'", "'DejaVu Sans', sans-serif")
      named[f'{kind}-{name}'.strip('-').replace('/', '-')] = svg
  return named


def page(paths: Sequence[str], completions: dict[int, Kinds] | None = None) -> str:
  """Returns the HTML of one run, or of several as arms side by side.

  Args:
    paths: the workdirs.
    completions: what is shown of the first run's completions by round, where it is known; the other
      rounds are added.

  Raises:
    ValueError: a path is no workdir, none of its rounds is done, a file is damaged, the runs have
      no task in common, or the `report` extra is missing.
    OSError: a file cannot be read.
  """
  runs = [compare.read(path) for path in paths]
  arms = compare.group(runs)
  tasks = compare.shared_tasks(runs)
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('imm_jax.reports', '.'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters |= {'points': _signed, 'percent': _percent, 'clip': _clip}
  return environment.get_template('report.html').render(
    paths=paths,
    arms=arms,
    base=BASE,
    facts=_facts(arms),
    domains=DOMAINS,
    tasks=tasks,
    sentences=_sentences(arms, tasks),
    columns=_columns(tasks),
    guesses=[arms[0].guess(domain, names) for domain, names, _ in _columns(tasks)],
    table=[_row(arm, state, tasks) for arm in arms for state in arm.states],
    brief=[_row(arms[0], BASE, tasks), *(_row(arm, arm.states[-1], tasks) for arm in arms)],
    texts=any(arm.text_nll(BASE) is not None for arm in arms),
    tuned_shown=len(arms) == 1 and any(state.which == 'tuned' for state in arms[0].states),
    changes=_changes(arms),
    learned=_learned(arms),
    pairs=[_pair(a, b, tasks) for a, b in itertools.combinations(arms, 2)],
    differing=_differing(arms),
    figures=_figures(arms, tasks),
    moved={domain: _moved(arms[0], names) for domain, names in tasks.items()},
    completions=_completions(arms[0].runs[0], {} if completions is None else completions),
    ran_on=ran_on(runs),
    here=importlib.metadata.version('imm_jax'),
    configs=[(run.path, json.dumps(run.config, indent=2)) for run in runs],
  )


def _facts(arms: Sequence[Arm]) -> list[str]:
  """Returns what all arms have in common, for a line above the title."""
  paths = {run.config['model']['path'] for arm in arms for run in arm.runs}
  models = {re.sub(r'[-_/]seed\d+', '', path) or 'random weights' for path in paths}
  rounds = sorted({arm.states[-1].round_ for arm in arms})
  seeds = {run.config['seed'] for arm in arms for run in arm.runs}
  facts = [os.path.basename(model) or model for model in sorted(models)]
  several = f'rounds {", ".join(map(str, rounds))}'
  facts.append(several if len(rounds) > 1 else f'{rounds[0]} rounds')
  return [*facts, f'seed{"s" if len(seeds) > 1 else ""} {", ".join(map(str, sorted(seeds)))}']


def _signed(fraction: float) -> str:
  points = round(100 * fraction, 1)
  return f'{points:+.1f}'.replace('-', '−') if points else '0.0'


def _percent(fraction: float | None) -> str:
  return '' if fraction is None else f'{100 * fraction:.1f}'


def _clip(text: str) -> str:
  if len(text) <= _MAX_CHARACTERS:
    return text
  return f'{text[:_MAX_CHARACTERS]} … ({len(text)} characters)'


def _sentences(arms: Sequence[Arm], tasks: Mapping[str, Sequence[str]]) -> list[str]:
  """Returns what came out, a sentence a domain; of one arm another says what the merge repaired."""
  sentences = []
  for domain, names in tasks.items():
    sentences.append(f'{DOMAINS[domain].capitalize()}, {_sentence(arms, domain, names)}.')
  tuned = State(arms[0].states[-1].round_, 'tuned')
  if len(arms) == 1 and tuned in arms[0].states:
    ends = (arms[0], tuned), (arms[0], BASE)
    before = [_signed(compare.difference(*ends, names).mean) for names in tasks.values()]
    sentences.append(f'Before its merge it was {" and ".join(before)}.')
  return sentences


def _sentence(arms: Sequence[Arm], domain: str, names: Sequence[str]) -> str:
  ended = [arm for arm in arms if arm.states[-1] != BASE]
  if not ended:
    return f'the original model is at {100 * arms[0].accuracy(BASE, domain, names).mean:.1f} %'
  changes = [(compare.difference((arm, arm.states[-1]), (arm, BASE), names), arm) for arm in ended]
  least, low = min(changes, key=lambda pair: pair[0].mean)
  most, high = max(changes, key=lambda pair: pair[0].mean)
  if len(ended) > 1:
    lowest = f"{low.name}'s {_in_points(least)}"
    return f"changes from base reach from {lowest} to {high.name}'s {_in_points(most)} points"
  last = high.states[-1]
  accuracy = high.accuracy(last, domain, names).mean
  verdict = '' if most.is_clear else ', no clear change'
  change = f'{_in_points(most)} points from base{verdict}'
  return f'round {last.round_} is at {100 * accuracy:.1f} % ({change})'


def _in_points(change: Interval) -> str:
  return f'{_signed(change.mean)} [{_signed(change.low)}, {_signed(change.high)}]'


def _columns(tasks: Mapping[str, Sequence[str]]) -> list[tuple[str, Sequence[str], str]]:
  """Returns the columns of accuracies: (domain, tasks, name); the mean of several comes first."""
  columns = []
  for domain, names in tasks.items():
    columns += [(domain, names, 'mean')] if len(names) > 1 else []
    columns += [(domain, [name], name) for name in names]
  return columns


def _row(arm: Arm, state: State, tasks: Mapping[str, Sequence[str]]) -> dict[str, Any]:
  """Returns a row of the table of results: accuracies, their changes from base, and drift."""
  cells = []
  for domain, names, _ in _columns(tasks):
    change = compare.difference((arm, state), (arm, BASE), names)
    cells.append((arm.accuracy(state, domain, names), change))
  return {
    'arm': arm,
    'state': state,
    'cells': cells,
    'text': arm.text_nll(state),
    'drift': f'{arm.drift(state):.1e}' if state.round_ and state.which == 'merged' else '',
  }


def _pair(a: Arm, b: Arm, tasks: Mapping[str, Sequence[str]]) -> tuple[str, list[Interval]]:
  ends = (a, a.states[-1]), (b, b.states[-1])
  return f'{a.name} − {b.name}', [compare.difference(*ends, names) for names in tasks.values()]


def _differing(arms: Sequence[Arm]) -> list[tuple[str, list[Any]]]:
  """Returns the config's keys that not all arms have alike, with the value of each arm."""
  flat = [dict(_flatten(arm.runs[0].config)) for arm in arms]
  keys = [key for key in dict.fromkeys(key for values in flat for key in values) if key != 'seed']
  rows = [(key, [str(values.get(key, '')) for values in flat]) for key in keys]
  return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flatten(config: Mapping[str, Any], prefix: str = '') -> list[tuple[str, Any]]:
  flat = []
  for key, value in config.items():
    if isinstance(value, dict) and value:
      flat += _flatten(value, f'{prefix}{key}.')
    else:
      flat.append((prefix + key, value))
  return flat


def _moved(arm: Arm, names: Sequence[str]) -> list[tuple[str, list[dict[str, str]]]]:
  """Returns some questions that an arm's first run lost or won between base and last round."""
  run = arm.runs[0]
  kinds = {'right → wrong': [], 'wrong → right': []}
  for task in names:
    before = run.by_question[BASE, task]
    for id_, now in run.by_question[arm.states[-1], task].items():
      was = before[id_]
      if now.right != was.right:
        kind = 'wrong → right' if now.right else 'right → wrong'
        kinds[kind].append(now.to_json() | {'before': was.answer})
  return [(kind, records[:_NUM_EXAMPLES]) for kind, records in kinds.items() if records]


def _completions(run: Run, known: dict[int, Kinds]) -> list[tuple[str, Kinds]]:
  """Returns what is shown of the completions of each round from 1 on.

  Reads those that are not known, and adds them.
  """
  rounds = [row.round for row in run.rows[1:]]
  for round_ in rounds:
    if round_ not in known:
      known[round_] = _kinds(run.read_samples(round_))
  return [(f'Round {round_}', known[round_]) for round_ in rounds]


def _kinds(samples: Sequence[Sample]) -> Kinds:
  """Returns what became of completions, the accepted first."""
  kinds: dict[str, list[Sample]] = {'': []}
  for sample in samples:
    kinds.setdefault(sample.reason, []).append(sample)
  shown = []
  for kind, found in kinds.items():
    every = max(1, -(-len(found) // _NUM_EXAMPLES))  # Examples come from all over the file.
    shown.append((kind or 'accepted', len(found), found[::every]))
  return shown


def _learned(arms: Sequence[Arm]) -> list[tuple[str, bool, dict[str, float | None]]]:
  """Returns a row a round of each arm: what it learned from, as means over its runs.

  A row is (name, whether it is the arm's first, means).
  A mean is None where a run has none: nothing was sampled, but real solutions only; or no step was
  taken, at max_drift.
  """
  rows = []
  for arm in arms:
    for round_ in range(1, arm.states[-1].round_ + 1):
      rows_of = [run.rows[round_] for run in arm.runs]
      found = [(row.sample or {}) | (row.finetune or {}) for row in rows_of]
      means = {key: _mean([row.get(key) for row in found]) for key in _LEARNED}
      rows.append((f'{arm.name} {round_}' if len(arms) > 1 else str(round_), round_ == 1, means))
  return rows


def _mean(values: Sequence[float | None]) -> float | None:
  """Returns the mean of values, None where one of them is None."""
  numbers = [value for value in values if value is not None]
  return sum(numbers) / len(numbers) if len(numbers) == len(values) else None


def _changes(arms: Sequence[Arm]) -> tuple[list[str], list[tuple[str, list[float | None]]]]:
  """Returns the kinds of modules, and how much each changed in an arm's newest analysed round."""
  last = [(arm.name, arm.last_analysis[1]['change']) for arm in arms if arm.last_analysis]
  kinds = list(dict.fromkeys(kind for _, change in last for kind in change))
  kinds = [kind for kind in kinds if kind != 'layers']
  return kinds, [(name, [change.get(kind) for kind in kinds]) for name, change in last]


def ran_on(runs: Sequence[Run]) -> list[str]:
  """Returns what rounds ran on, as they noted it: a line for each set of versions and devices."""
  found: dict[str, list[str]] = {}
  for run in runs:
    noted = [row for row in run.rows if row.versions]  # Rounds of older programs noted none.
    alike = itertools.groupby(noted, lambda row: (row.versions, row.devices))
    for (packages, where), rows in alike:
      rounds = [row.round for row in rows]
      text = ', '.join(f'{name} {version}' for name, version in packages.items())
      runs_of = found.setdefault(f'{text}; {where}', [])
      runs_of.append(f'{run.path} rounds {rounds[0]} to {rounds[-1]}')
  if len(found) == 1:
    return list(found)
  return [f'{", ".join(names)}: {text}' for text, names in found.items()]


def _figures(arms: Sequence[Arm], tasks: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
  """Returns the SVGs by what they are about."""
  means = {}
  each = {}
  for domain, names in tasks.items():
    means[domain] = (domain, names, DOMAINS[domain].capitalize())
    for name in names:
      each[f'{domain}-{name}'] = (domain, [name], f'{domain.upper()} {name}')
  found = {
    'means': dict(zip(means, plots.accuracies(arms, list(means.values())), strict=True)),
    'plane': {},
    'tasks': {},
    'transitions': plots.transitions(arms, tasks),
    'layers': plots_of_analysis.layers(arms),
    'collapse': plots_of_analysis.collapse(arms),
    'secs': {'': plots.secs(arms)},
  }
  if 'ood' in tasks and arms[0].states[-1] != BASE:
    found['plane'] = {'': plots.plane(arms, tasks)}
  if len(each) > len(means):
    found['tasks'] = dict(zip(each, plots.accuracies(arms, list(each.values())), strict=True))
  return found
