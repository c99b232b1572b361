"""The README.md of a model that is written: what it was made from, how, what it scored.

With front matter for the hub.
"""

from collections.abc import Iterable, Mapping
import importlib.metadata
import json
import os
import pathlib
from typing import Any

from imm_jax import formats
from imm_jax.formats import at_round
from imm_jax.reports import compare
from imm_jax.rounds.records import RoundSummary
from imm_jax.rounds.workdir import Workdir

_LEARNED = (
  'round',
  'samples',
  'acceptance rate',
  'learned from',
  'steps',
  'merge',
  'alpha',
  'drift',
)


def render(source: str) -> str:
  """Returns the card of a model that was loaded from `source`, '' being none.

  A round of a run has what the run says of it, a Hugging Face directory keeps its own card, others
  have a short one.

  Raises:
    ValueError: a file of the run is damaged.
  """
  if named := at_round.parse(source):
    return _of_round(Workdir(named[0]), named[1])
  own = pathlib.Path(source, 'README.md')
  if source and own.is_file():
    return own.read_text(encoding='utf-8')
  name = _name(source)
  came_from = f' from {name}' if name else ''
  title = name or 'A model'
  return f'{_front_matter(source)}\n# {title}\n\nWritten by imm_jax {_version()}{came_from}.\n'


def _of_round(workdir: Workdir, round_: int) -> str:
  config = workdir.read_config()
  rows = [RoundSummary.from_json(row) for row in workdir.finished()[: round_ + 1]]
  base = config['model']['path']
  row = rows[-1]
  name = _name(base) or 'random weights'
  # Rounds of older programs noted no versions.
  versions = ', '.join(f'{package} {version}' for package, version in row.versions.items())
  columns, results = compare.results(rows)
  cells = [[state.name, *of_state] for state, of_state in results.items()]
  lines = [
    _front_matter(base, 'merge', 'self-improvement', 'iterative-model-merging'),
    f'# {name}, round {round_} of Iterative Model Merging',
    '',
    'In each round the model answers questions, learns from its answers that a verifier accepts,'
    ' and is merged with the original ([arXiv 2503.02103](https://arxiv.org/abs/2503.02103));'
    ' by imm_jax.',
    '',
    f'- Original model: {name}',
    f'- Rounds: {round_}; seed: {config["seed"]}',
    *_domains(config, rows[0]),
    *([f'- Versions: {versions}; {row.devices}'] if versions else []),
    '',
    'Accuracy in %, [95 % interval], change from the original, *base*, in points; ID is what it'
    ' practised, OOD is not; *tuned* is before the merge.',
    '',
    *compare.markdown(['params', *columns], cells),
  ]  # fmt: skip
  if round_:
    lines += ['', *compare.markdown(_LEARNED, [_learned(row) for row in rows[1:]])]
  lines += [
    '',
    'To run it again, put this into `config.py`:',
    '',
    '```python',
    *_config_file(config),
    '```',
    '',
  ]
  run = 'imm run --config=config.py --workdir=runs/again'
  command = f'{run} && imm convert runs/again@{round_} model/'
  return '\n'.join([*lines, '```', command, '```', ''])


def _front_matter(base: str, *tags: str) -> str:
  """Returns the YAML on top: the license where the base says one."""
  license_ = _license(base)
  lines = ['---', 'library_name: transformers', *([f'license: {license_}'] if license_ else [])]
  lines += [f'base_model: {json.dumps(_name(base))}'] if base else []
  return '\n'.join([*lines, 'tags:', *(f'- {tag}' for tag in ('imm_jax', *tags)), '---', ''])


def _name(path: str) -> str:
  """Returns what a model is called, without the place where it lay."""
  return os.path.basename(os.path.normpath(path)) if path else ''


def _license(path: str) -> str:
  if named := at_round.parse(path):
    return _license(Workdir(named[0]).read_config()['model']['path'])
  return formats.read_license(path) if os.path.exists(path) else ''


def _version() -> str:
  return importlib.metadata.version('imm_jax')


def _domains(config: Mapping[str, Any], first: RoundSummary) -> list[str]:
  """Returns a line a domain that has tasks; first is the summary of round 0."""
  lines = []
  for domain in compare.DOMAINS:
    if results := first.results(domain):
      lines.append(f'- {domain.upper()} tasks: {_tasks(results, config, first)}')
  return lines


def _tasks(names: Iterable[str], config: Mapping[str, Any], first: RoundSummary) -> str:
  texts = []
  for name in names:
    task = next(tasks[name] for tasks in config['tasks'].values() if name in tasks)
    counts = (first.tasks or {})[name]
    data = task.get('dataset') or task.get('operation')
    kind = f'{task["family"]} {data}' if data else task['family']
    sizes = f'{counts["num_train"]} train and {counts["num_test"]} test questions'
    texts.append(f'{name} ({kind}; {sizes})')
  return ', '.join(texts)


def _learned(row: RoundSummary) -> list[str]:
  sample = row.sample or {}
  merge = row.merge or {}
  finetune = row.finetune or {}
  # None where all are real.
  rate = f'{100 * sample["acceptance_rate"]:.1f} %' if 'acceptance_rate' in sample else ''
  counts = sample['num_samples'], rate, sample['num_accepted'], finetune['steps']
  alpha = merge.get('alpha_by_layer', merge['alpha'])
  return [
    *map(str, (row.round, *counts, merge['method'], json.dumps(alpha))),
    f'{merge["drift_norm"]:.1e}',
  ]


def _config_file(config: Mapping[str, Any]) -> list[str]:
  """Returns the lines of a config file with these values."""
  return [
    'import json',
    '',
    'import ml_collections',
    '',
    f"CONFIG = r'''{json.dumps(config, indent=1)}'''",
    '',
    '',
    "def get_config(arg=''):",
    '  return ml_collections.ConfigDict(json.loads(CONFIG))',
  ]
