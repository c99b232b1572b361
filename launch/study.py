"""Runs the arms of an experiment, each with several seeds, one after the other, and compares them.

python -m launch.study --config=configs/testbed.py --base=base --arms=vanilla,imm --seeds=0,1,2 --workdir=runs/testbed

An arm is what the config's get_config takes, its workdir WORKDIR/ARM/seedN. `--base` names the arm whose last round is the
model that the others start from. All arms of a seed have the same model and tasks: the first evaluates the original, and the
others copy that. In a config's synthesize.teacher {workdir} is the study's and {seed} the run's: so it may name the model of
an arm before. The same command goes on where a study stopped; when a study is told to stop, so is its run, which saves.
Overrides of the config stand behind `--`.
"""

from collections.abc import Sequence
import json
import math
import os
import pathlib
import runpy
import shutil
import signal
import statistics
import subprocess
import sys
from typing import Any

from absl import app, flags
from scipy import stats

_ROOT = str(pathlib.Path(__file__).parent.parent)

_CONFIG = flags.DEFINE_string('config', None, 'File of the experiment.', required=True)
_ARMS = flags.DEFINE_list('arms', None, 'What get_config takes, for each arm.', required=True)
_SEEDS = flags.DEFINE_list('seeds', ['0'], 'A run of each arm for each of them.')
_BASE = flags.DEFINE_string('base', '', 'The arm that makes the model the others start from; without, the config names it.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Of the study.', required=True)


def teachers() -> dict[str, str]:
  """Returns synthesize.teacher of each arm as its config has it. Raises ValueError or OSError where there is none."""
  sys.path.insert(0, str(pathlib.Path(_CONFIG.value).parent))  # A config imports what stands beside it, as a script does.
  get_config = runpy.run_path(_CONFIG.value)['get_config']
  return {arm: get_config(arm).synthesize.teacher for arm in _ARMS.value}


def run(arm: str, seed: str, overrides: Sequence[str], round_0_of: str = '') -> None:
  """Runs an arm, or what is left of it. Raises SystemExit with its exit code when it is not 0.

  round_0_of: an arm that has evaluated the original model already; its round 0 is copied.
  """
  workdir = _workdir(arm, seed)
  source = round_0_of and _workdir(round_0_of, seed)
  if source and not workdir.exists():
    copy = workdir.with_name(f'{seed}.tmp')
    shutil.rmtree(copy, ignore_errors=True)
    for name in ('model', 'rounds/0000'):
      shutil.copytree(source / name, copy / name)
    shutil.copy(source / 'config.json', copy)
    copy.rename(workdir)
  print(f'{arm}, seed {seed}: {workdir}', file=sys.stderr, flush=True)
  command = [
    sys.executable, '-m', 'imm_jax', 'run', f'--config={_CONFIG.value}:{arm}', f'--workdir={workdir}',
    f'--config.seed={seed}', f'--config.compilation_cache={_WORKDIR.value}/.xla_cache', *overrides,
  ]  # fmt: skip
  if shutil.which('setpriv'):  # Linux: a process that has lost its launcher gets SIGTERM. One that comes here is passed on.
    command = ['setpriv', '--pdeathsig=TERM', '--', *command]
  child = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {'PYTHONPATH': _ROOT})
  signal.signal(signal.SIGTERM, lambda *_: child.terminate())
  if code := child.wait():
    raise SystemExit(code)


def _workdir(arm: str, seed: str) -> pathlib.Path:
  return pathlib.Path(_WORKDIR.value, arm, f'seed{seed}')


def result(arm: str, seed: str) -> list[dict[str, Any]]:
  """Returns a row for each round of a finished run: accuracies by domain and task, and the drift."""
  rows = []
  for entry in json.loads((_workdir(arm, seed) / 'summary.json').read_text())['rounds']:
    domains = [name for name in ('tuned_id', 'tuned_ood', 'id', 'ood') if name in entry]
    row = {name: {task: values['accuracy'] for task, values in entry[name].items()} for name in domains}
    rows.append({'round': entry['round'], **row, 'drift_norm': entry.get('merge', {'drift_norm': 0.0})['drift_norm']})
  return rows


def accuracy(row: dict[str, Any], domain: str) -> float:
  """Returns a row's accuracy in %, the mean over the tasks of a domain."""
  return 100 * statistics.mean(row[domain].values())


def interval(values: Sequence[float]) -> str:
  """Returns the mean and its 95 % interval, Student's: '+3.1 [+2.5, +3.7]'; of a single value no interval."""
  mean = statistics.mean(values)
  if len(values) == 1:
    return f'{mean:+.1f}'
  half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
  return f'{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]'


def table(results: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
  """Returns a Markdown table of results[arm][seed]: the original's accuracies, and what an arm's last round changed."""
  originals = [rows[0] for rows in next(iter(results.values())).values()]
  levels = [f'{statistics.mean(accuracy(row, domain) for row in originals):.1f}' for domain in ('id', 'ood')]
  lines = ['| arm | ID | OOD | drift | seeds |', '| --- | --- | --- | --- | --- |']
  lines.append(f'| original, % | {levels[0]} | {levels[1]} | | {len(originals)} |')
  for arm, runs in results.items():
    changes = [
      interval([accuracy(rows[-1], domain) - accuracy(rows[0], domain) for rows in runs.values()])
      for domain in ('id', 'ood')
    ]
    drift = statistics.mean(rows[-1]['drift_norm'] for rows in runs.values())
    lines.append(f'| {arm}, points | {changes[0]} | {changes[1]} | {drift:.1e} | {len(runs)} |')
  return '\n'.join(lines)


def main(arguments: Sequence[str]) -> None:
  """Runs what the flags say, with the overrides behind `--`, prints the table, writes study.json and report.html."""
  try:
    teacher = teachers()
  except (ValueError, OSError) as error:
    raise SystemExit(f'study: --config: {error}') from None
  for seed in _SEEDS.value:
    overrides = list(arguments[1:])
    if _BASE.value:
      run(_BASE.value, seed, overrides)
      overrides.append(f'--config.model.path={_workdir(_BASE.value, seed)}@{result(_BASE.value, seed)[-1]["round"]}')
    first = _ARMS.value[0]
    for arm in _ARMS.value:
      named = teacher[arm].replace('{workdir}', _WORKDIR.value).replace('{seed}', seed)
      run(arm, seed, [f'--config.synthesize.teacher={named}', *overrides], round_0_of='' if arm == first else first)
  results = {arm: {seed: result(arm, seed) for seed in _SEEDS.value} for arm in _ARMS.value}
  path = pathlib.Path(_WORKDIR.value, 'study.json')
  path.write_text(json.dumps(results, indent=1) + '\n')
  print(table(results))
  print(f'study: {path}', flush=True)
  workdirs = [str(_workdir(arm, seed)) for arm in _ARMS.value for seed in _SEEDS.value]
  command = [sys.executable, '-m', 'imm_jax', 'report', *workdirs, f'--out={_WORKDIR.value}/report.html']
  raise SystemExit(subprocess.call(command, env=os.environ | {'PYTHONPATH': _ROOT}))


if __name__ == '__main__':
  app.run(main)
