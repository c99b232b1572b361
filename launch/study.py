"""Runs the arms of an experiment, each with several seeds, one after the other, and compares them.

  python -m launch.study --config=configs/testbed.py --base=base --arms=vanilla,imm \\
    --seeds=0,1,2 --workdir=runs/testbed

An arm is an argument of the config's get_config, and its workdir is WORKDIR/ARM/seedN. `--base`
names the arm whose last round is the model that the others start from. All arms of a seed have the
same model and tasks: the first evaluates the original, and the others copy that.

In a config's synthesize.teacher {workdir} is the study's and {seed} the run's, so it may name the
model of an earlier arm. Overrides of the config come after `--`; they do not apply to the base. All
runs are analysed at the end, for the report.

Repeat the command to resume a study. When a study is stopped, so is its run, which saves.
"""

from collections.abc import Sequence
import functools
import itertools
import json
import os
import pathlib
import runpy
import shutil
import signal
import subprocess
import sys
from typing import Any

from absl import app, flags

from imm_jax.reports import compare
from imm_jax.reports.compare import Arm, DOMAINS, Run
from imm_jax.rounds.records import State

_ROOT = str(pathlib.Path(__file__).parent.parent)
# A run imports this checkout, and what else its launcher could.
_PATH = os.pathsep.join(filter(None, [_ROOT, os.environ.get('PYTHONPATH')]))

_CONFIG = flags.DEFINE_string('config', None, 'File of the experiment.', required=True)
_ARMS = flags.DEFINE_list('arms', None, 'What get_config takes, for each arm.', required=True)
_SEEDS = flags.DEFINE_list('seeds', ['0'], 'A run of each arm for each of them.')
_BASE = flags.DEFINE_string(
  'base', '', 'The arm that makes the model the others start from; without, the config names it.'
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Of the study.', required=True)
_ANALYZE = flags.DEFINE_bool(
  'analyze', True, 'Analyse the runs, for the report; it takes minutes a run of a large model.'
)


def teachers(overrides: Sequence[str]) -> dict[str, str]:
  """Returns synthesize.teacher of each arm, from its config.

  Raises the errors of an arm's or the base's config, and ValueError when an arm's config lacks the
  key of an override.
  """
  # A config may import modules from its own directory, as a script does.
  sys.path.insert(0, str(pathlib.Path(_CONFIG.value).parent))
  get_config = runpy.run_path(_CONFIG.value)['get_config']
  configs = {arm: get_config(arm) for arm in filter(None, [_BASE.value, *_ARMS.value])}
  for arm, override in itertools.product(_ARMS.value, overrides):
    key = override.removeprefix('--config.').partition('=')[0]
    try:
      functools.reduce(getattr, key.split('.'), configs[arm])
    except AttributeError:
      raise ValueError(f'{override}: {arm} has no key {key}') from None
  return {arm: configs[arm].synthesize.teacher for arm in _ARMS.value}


def run(arm: str, seed: str, overrides: Sequence[str], round_0_of: str = '') -> None:
  """Runs the rest of an arm. Raises SystemExit with its exit code when it is not 0.

  round_0_of: an arm that has evaluated the original model already; its round 0 is copied.
  """
  workdir = _workdir(arm, seed)
  source = round_0_of and _workdir(round_0_of, seed)
  if source and not workdir.exists():
    copy = workdir.with_name(f'{seed}.tmp')
    shutil.rmtree(copy, ignore_errors=True)
    for name in ('model', 'rounds/0000'):  # Not the importance of layers from its own round 1.
      shutil.copytree(source / name, copy / name, ignore=shutil.ignore_patterns('analysis.json'))
    shutil.copy(source / 'config.json', copy)
    copy.rename(workdir)
  print(f'{arm}, seed {seed}: {workdir}', file=sys.stderr, flush=True)
  _imm(
    'run',
    f'--config={_CONFIG.value}:{arm}',
    f'--workdir={workdir}',
    f'--config.seed={seed}',
    *overrides,
  )


def analyze(arm: str, seed: str) -> None:
  """Analyses the rounds of a run that have not been analysed. Raises SystemExit as `run` does."""
  analyses = _read(arm, seed).analyses
  if len(analyses) > 1 and not all(analyses):
    print(f'{arm}, seed {seed}: analyze', file=sys.stderr, flush=True)
    _imm('analyze', f'--workdir={_workdir(arm, seed)}')


def _imm(*arguments: str, stdout: int | None = subprocess.DEVNULL) -> None:
  """Runs `imm ARGUMENTS`. Raises SystemExit with its exit code when it is not 0."""
  command = [sys.executable, '-m', 'imm_jax', *arguments]
  # Linux: a process that has lost its launcher gets SIGTERM. One that comes here is passed on.
  if shutil.which('setpriv'):
    command = ['setpriv', '--pdeathsig=TERM', '--', *command]
  cache = {'JAX_COMPILATION_CACHE_DIR': f'{_WORKDIR.value}/.xla_cache'}
  child = subprocess.Popen(command, stdout=stdout, env=cache | os.environ | {'PYTHONPATH': _PATH})
  # A terminal sends its SIGINT to the child too, so it is ignored here.
  handlers = {signal.SIGTERM: lambda *_: child.terminate(), signal.SIGINT: lambda *_: None}
  before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
  code = child.wait()
  for number, handler in before.items():
    signal.signal(number, handler)
  if code:
    raise SystemExit(code)


def _workdir(arm: str, seed: str) -> pathlib.Path:
  return pathlib.Path(_WORKDIR.value, arm, f'seed{seed}')


def _read(arm: str, seed: str) -> Run:
  try:
    return compare.read(str(_workdir(arm, seed)))
  except ValueError as error:
    raise SystemExit(f'study: {error}') from None


def rounds(run: Run) -> list[dict[str, Any]]:
  """Returns the summary of each round of a run, with accuracies and verdicts alone.

  The verdicts are a text of 0 and 1 for each task, in the order of the questions' ids.
  """
  rows = []
  for entry in run.rows:
    said = entry.to_json()
    domains = [name for name in ('tuned_id', 'tuned_ood', 'id', 'ood') if name in said]
    row = {
      name: {task: values['accuracy'] for task, values in said[name].items()} for name in domains
    }
    row |= {'text_nll_nats': entry.text['nll_nats']} if entry.text else {}
    row |= {key: said[key] for key in ('sample', 'merge', 'secs') if key in said}
    answers = {
      task: run.by_question[State(entry.round, 'merged'), task]
      for name in DOMAINS
      for task in entry.results(name)
    }
    right = {
      task: ''.join(str(int(of_task[id_].right)) for id_ in sorted(of_task))
      for task, of_task in answers.items()
    }
    rows.append({'round': entry.round, **row, 'right': right})
  return rows


def main(arguments: Sequence[str]) -> None:
  """Runs the study of the flags, prints the table, and writes study.json and report.html.

  Overrides come after `--`.
  """
  given = list(arguments[1:])
  for name, values in (('arms', _ARMS.value), ('seeds', _SEEDS.value)):
    if not values or not all(values) or len(set(values)) < len(values):
      raise SystemExit(
        f'study: --{name}: {",".join(values)!r} has no entry, an empty one or one twice'
      )
  try:  # A config is the user's program, so any exception is a mistake in it.
    teacher = teachers(given)
  except Exception as error:
    raise SystemExit(f'study: --config: {error}') from None
  for seed in _SEEDS.value:
    overrides = given
    if _BASE.value:
      run(_BASE.value, seed, [])
      last = _read(_BASE.value, seed).rows[-1].round
      overrides = [*overrides, f'--config.model.path={_workdir(_BASE.value, seed)}@{last}']
    first = _ARMS.value[0]
    for arm in _ARMS.value:
      named = teacher[arm].replace('{workdir}', _WORKDIR.value).replace('{seed}', seed)
      run(
        arm,
        seed,
        [f'--config.synthesize.teacher={named}', *overrides],
        round_0_of='' if arm == first else first,
      )
  for arm, seed in itertools.product(_ARMS.value, _SEEDS.value if _ANALYZE.value else ()):
    analyze(arm, seed)
  arms = [Arm(arm, [_read(arm, seed) for seed in _SEEDS.value]) for arm in _ARMS.value]
  results = {arm.name: dict(zip(_SEEDS.value, map(rounds, arm.runs), strict=True)) for arm in arms}
  path = pathlib.Path(_WORKDIR.value, 'study.json')
  path.write_text(json.dumps(results, indent=1) + '\n')
  print(compare.table(arms))
  print(f'study: {path}', flush=True)
  workdirs = [str(_workdir(arm, seed)) for arm in _ARMS.value for seed in _SEEDS.value]
  _imm('report', *workdirs, f'--out={_WORKDIR.value}/report.html', stdout=None)


if __name__ == '__main__':
  app.run(main)
