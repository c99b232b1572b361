"""Finished or running workdirs -> one HTML page that needs nothing but itself: what was gained, what was lost, and how."""

from collections.abc import Mapping, Sequence
import importlib.metadata
import itertools
import json
import os
import platform
from typing import Any

import jax
import jinja2

from imm_jax import compare, plots
from imm_jax.compare import Arm, BASE, DOMAINS, Interval, Run, State
from imm_jax.workdir import Workdir

_PACKAGES = ('imm_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'transformers')
_NUM_EXAMPLES = 2  # of a kind
_MAX_CHARACTERS = 600  # of an example


def versions() -> dict[str, str]:
  """Returns the versions of Python and of the packages that results depend on."""
  return {name: importlib.metadata.version(name) for name in _PACKAGES} | {'python': platform.python_version()}


def devices() -> str:
  """Returns what this process and those of its run compute on."""
  found = jax.devices()
  return f'{len(found)} x {found[0].device_kind} in {jax.process_count()} processes'


def write(path: str) -> None:
  """Writes the page of one workdir into it, as report.html."""
  Workdir(path).write_report(page([path]))


def page(paths: Sequence[str]) -> str:
  """Returns the HTML of one run, or of several as arms side by side.

  Raises:
    ValueError: a path is no workdir, none of its rounds is done, a file is damaged, or the runs have no task in common.
    OSError: a file cannot be read.
  """
  runs = [compare.read(path) for path in paths]
  arms, tasks = compare.group(runs), compare.shared_tasks(runs)
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('imm_jax', '.'), autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
  )  # fmt: skip
  environment.filters |= {'percent': _percent, 'points': _points, 'clip': _clip}
  return environment.get_template('report.html').render(
    paths=paths,
    arms=arms,
    base=BASE,
    facts=_facts(arms),
    domains=DOMAINS,
    tasks=tasks,
    sentences=_sentences(arms, tasks),
    columns=_columns(tasks),
    guesses=[_guess(arms[0], domain, names) for domain, names, _ in _columns(tasks)],
    table=[_row(arm, state, tasks) for arm in arms for state in arm.states],
    pairs=[_pair(a, b, tasks) for a, b in itertools.combinations(arms, 2)],
    differing=_differing(arms),
    figures=_figures(arms, tasks),
    moved={domain: _moved(arms[0], names) for domain, names in tasks.items()},
    completions=[(f'Round {i}', _completions(records)) for i, records in enumerate(arms[0].runs[0].samples, 1)],
    ran_on=[(run.path, _ran_on(run)) for run in runs],
    here=importlib.metadata.version('imm_jax'),
    configs=[(run.path, json.dumps(run.config, indent=2)) for run in runs],
  )


def _facts(arms: Sequence[Arm]) -> list[str]:
  """Returns what all arms have in common, for a line above the title."""
  models = {arm.runs[0].config['model']['path'] or 'random weights' for arm in arms}
  num = {arm.states[-1].round_ for arm in arms}
  seeds = {run.config['seed'] for arm in arms for run in arm.runs}
  facts = [os.path.basename(model) or model for model in sorted(models)]
  facts.append(f'rounds {", ".join(map(str, sorted(num)))}' if len(num) > 1 else f'{max(num)} rounds')
  return [*facts, f'seed{"s" if len(seeds) > 1 else ""} {", ".join(map(str, sorted(seeds)))}']


def _percent(interval: Interval) -> str:
  return f'{100 * interval.mean:.1f} [{100 * interval.low:.0f}, {100 * interval.high:.0f}]'


def _points(interval: Interval) -> str:
  return f'{_signed(interval.mean)} [{_signed(interval.low)}, {_signed(interval.high)}]'


def _signed(fraction: float) -> str:
  return f'{round(100 * fraction, 1) + 0.0:+.1f}'.replace('-', '−')


def _clip(text: str) -> str:
  return text if len(text) <= _MAX_CHARACTERS else f'{text[:_MAX_CHARACTERS]} … ({len(text)} characters)'


def _sentences(arms: Sequence[Arm], tasks: Mapping[str, Sequence[str]]) -> list[str]:
  """Returns what came out, a sentence a domain."""
  ends = [(arm, arm.states[-1]) for arm in arms]
  sentences = []
  for domain, names in tasks.items():
    values = [arm.accuracy(state, domain, names).mean for arm, state in ends]
    arm, state = ends[values.index(max(values))]
    base, change = arm.accuracy(BASE, domain, names).mean, compare.difference((arm, state), (arm, BASE), names)
    where = DOMAINS[domain].capitalize()
    if state == BASE:
      sentences.append(f'{where} the original model is at {100 * base:.1f} %.')
      continue
    verb = 'gains' if change.low > 0 else 'loses' if change.high < 0 else 'has no clear change:'
    who = f'{arm.name} is best and ' if len(arms) > 1 else f'round {state.round_} '
    size = _signed(change.mean) if 'change' in verb else _signed(abs(change.mean)).lstrip('+')
    sentences.append(f'{where} {who}{verb} {size} points, {100 * base:.1f} to {100 * max(values):.1f} %.')
  return sentences


def _columns(tasks: Mapping[str, Sequence[str]]) -> list[tuple[str, Sequence[str], str]]:
  """Returns the columns of accuracies: (domain, tasks, name), where there are several tasks their mean first."""
  columns = []
  for domain, names in tasks.items():
    columns += [(domain, names, 'mean')] if len(names) > 1 else []
    columns += [(domain, [name], name) for name in names]
  return columns


def _guess(arm: Arm, domain: str, names: Sequence[str]) -> float:
  row = arm.runs[0].rows[0][domain]
  return 100 * sum(row[name]['guess'] for name in names) / len(names)


def _row(arm: Arm, state: State, tasks: Mapping[str, Sequence[str]]) -> dict[str, Any]:
  """Returns a row of the table of results: accuracies, changes from base, and what the round did."""
  changes = [compare.difference((arm, state), (arm, BASE), names) for _, names, _ in _columns(tasks)]
  rows = [run.rows[state.round_] for run in arm.runs]
  drift = [row['merge']['drift_norm'] for row in rows if 'merge' in row and state.which == 'merged']
  return {
    'arm': arm,
    'state': state,
    'name': 'base' if state == BASE else f'round {state.round_} {state.which}',
    'cells': [
      (arm.accuracy(state, domain, names), change, change.low > 0 or change.high < 0)
      for (domain, names, _), change in zip(_columns(tasks), changes, strict=True)
    ],
    'drift': f'{sum(drift) / len(drift):.1e}' if drift else '',
  }


def _pair(a: Arm, b: Arm, tasks: Mapping[str, Sequence[str]]) -> tuple[str, list[Interval]]:
  ends = (a, a.states[-1]), (b, b.states[-1])
  return f'{a.name} − {b.name}', [compare.difference(*ends, names) for names in tasks.values()]


def _differing(arms: Sequence[Arm]) -> list[tuple[str, list[Any]]]:
  """Returns the config's keys that not all arms have alike, with the value of each arm."""
  flat = [dict(_flatten(arm.runs[0].config)) for arm in arms]
  keys = [key for key in dict.fromkeys(key for values in flat for key in values) if key != 'seed']
  rows = [(key, [json.dumps(values.get(key)) for values in flat]) for key in keys]
  return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flatten(config: Mapping[str, Any], prefix: str = '') -> list[tuple[str, Any]]:
  flat = []
  for key, value in config.items():
    flat += _flatten(value, f'{prefix}{key}.') if isinstance(value, dict) and value else [(prefix + key, value)]
  return flat


def _moved(arm: Arm, names: Sequence[str]) -> list[tuple[str, list[dict[str, str]]]]:
  """Returns some questions that the last round of an arm's first run answers otherwise than the base: lost, gained."""
  run, kinds = arm.runs[0], {'right → wrong': [], 'wrong → right': []}
  for task in names:
    before, after = run.by_question[BASE, task], run.by_question[arm.states[-1], task]
    for id_, now in after.items():
      was = before[id_]
      if now['right'] != was['right']:
        kinds['wrong → right' if now['right'] else 'right → wrong'].append(now | {'before': was['answer']})
  return [(kind, records[:_NUM_EXAMPLES]) for kind, records in kinds.items() if records]


def _completions(records: Sequence[dict[str, Any]]) -> list[tuple[str, int, list[dict[str, Any]]]]:
  """Returns (what became of them, how many, some) for the completions of a round; the accepted first."""
  kinds: dict[str, list[dict[str, Any]]] = {'': []}
  for record in records:
    kinds.setdefault(record['reason'], []).append(record)
  return [(kind or 'accepted', len(found), found[:: -(-len(found) // _NUM_EXAMPLES)]) for kind, found in kinds.items()]


def _ran_on(run: Run) -> list[str]:
  """Returns what the rounds of a run ran on, a line for each change of it."""
  lines = []
  for (found, where), rows in itertools.groupby(run.rows, lambda row: (row['versions'], row['devices'])):
    rounds = [row['round'] for row in rows]
    text = ', '.join(f'{name} {version}' for name, version in found.items())
    lines.append(f'rounds {rounds[0]} to {rounds[-1]}: {text}; {where}')
  return lines


def _figures(arms: Sequence[Arm], tasks: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
  """Returns the SVGs by what they are about."""
  means = [(domain, names, DOMAINS[domain].capitalize()) for domain, names in tasks.items()]
  single = [(domain, [name], f'{domain.upper()} {name}') for domain, names in tasks.items() for name in names]
  return {
    'means': _accuracies(arms, means),
    'plane': [_plane(arms, tasks)] if len(tasks) > 1 else [],
    'tasks': _accuracies(arms, single) if len(single) > len(means) else [],
    'transitions': _transitions(arms, tasks),
    'secs': [_secs(arms)],
  }


def _accuracies(arms: Sequence[Arm], panels: Sequence[tuple[str, Sequence[str], str]]) -> list[str]:
  """Returns a figure a panel (domain, tasks, title), all on one scale."""
  drawn = []
  for domain, names, _ in panels:
    drawn.append([_series(arm, domain, names) for arm in arms])
  bounds = [x for lines in drawn for line in lines for _, _, *ends in (*line.merged, *line.tuned) for x in ends]
  room = 0.05 * (max(bounds) - min(bounds))
  limits = (min(bounds) - room, max(bounds) + room)
  figures = []
  for (domain, names, title), lines in zip(panels, drawn, strict=True):
    ends = '; '.join(f'{line.name} from {line.merged[0][1]:.1f} to {line.merged[-1][1]:.1f} %' for line in lines)
    guess = _guess(arms[0], domain, names)
    figures.append(plots.accuracies(title, lines, limits, guess, f'{title}: accuracy over rounds: {ends}'))
  return figures


def _series(arm: Arm, domain: str, names: Sequence[str]) -> plots.Series:
  points = {'merged': [], 'tuned': []}
  for state in arm.states:
    points[state.which].append((state.round_, *(100 * x for x in arm.accuracy(state, domain, names))))
  merged = [state for state in arm.states if state.which == 'merged']
  of_runs = [Arm('', [run]) for run in arm.runs] if len(arm.runs) > 1 else []
  seeds = [(state.round_, 100 * one.accuracy(state, domain, names).mean) for one in of_runs for state in merged]
  return plots.Series(arm.name if len(arm.states) > 1 else 'base', points['merged'], points['tuned'], seeds)


def _plane(arms: Sequence[Arm], tasks: Mapping[str, Sequence[str]]) -> str:
  paths, points = [], []
  for arm in arms:
    where = {}
    for state in arm.states:
      now, base = ([arm.accuracy(x, domain, names).mean for domain, names in tasks.items()] for x in (state, BASE))
      where[state] = (100 * (now[1] - base[1]), 100 * (now[0] - base[0]))
    points += where.values()
    merged, tuned = ([point for state, point in where.items() if state.which == which] for which in ('merged', 'tuned'))
    paths.append(plots.Path(arm.name, merged, tuned))
  ends = '; '.join(f'{path.name} {path.merged[-1][1]:+.1f} in, {path.merged[-1][0]:+.1f} out' for path in paths)
  return plots.plane(paths, compare.pareto(points), f'Change in domain over change out of domain, in points: {ends}')


def _transitions(arms: Sequence[Arm], tasks: Mapping[str, Sequence[str]]) -> list[str]:
  """Returns a figure a domain: of one arm all states, of several the last ones."""
  drawn = {}
  for domain, names in tasks.items():
    if len(arms) == 1:
      bars = [(f'{state.round_}\n{state.which}', arms[0], state) for state in arms[0].states[1:]]
    else:
      bars = [(arm.name, arm, arm.states[-1]) for arm in arms]
    drawn[domain] = [
      (name, *(100 * share for share in arm.transitions(state, names)), state.which == 'tuned') for name, arm, state in bars
    ]
  limit = max((share for bars in drawn.values() for _, *shares, _ in bars for share in shares), default=0) or 1
  return [
    plots.transitions(
      DOMAINS[domain].capitalize(), bars, limit, f'Questions gained and lost against base, {DOMAINS[domain]}'
    )
    for domain, bars in drawn.items()
    if bars
  ]


def _secs(arms: Sequence[Arm]) -> str:
  """Returns the time by phase: of one run a bar a round, else one an arm, the mean of its runs' sums."""
  if len(arms) == 1 and len(arms[0].runs) == 1:
    rows = [(f'round {row["round"]}', row['secs']) for row in arms[0].runs[0].rows]
  else:
    rows = []
    for arm in arms:
      sums: dict[str, float] = {}
      for row in (row for run in arm.runs for row in run.rows):
        for phase, secs in row['secs'].items():
          sums[phase] = sums.get(phase, 0.0) + secs / len(arm.runs)
      rows.append((arm.name, sums))
  longest = max(sum(parts.values()) for _, parts in rows)
  name, size = ('hours', 3600) if longest > 2 * 3600 else ('minutes', 60) if longest > 2 * 60 else ('seconds', 1)
  scaled = [(label, {phase.replace('_', ' '): secs / size for phase, secs in parts.items()}) for label, parts in rows]
  return plots.stacked(scaled, name, f'Time by phase; the longest bar is {longest / size:.1f} {name}')
