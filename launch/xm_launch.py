"""Runs `imm run` on this machine through XManager, in one process or several.

  xmanager launch launch/xm_launch.py -- --config=configs/tiny.py --workdir=runs/two \\
    --num_processes=2
  xmanager launch launch/xm_launch.py -- --config=configs/tiny.py --workdir=runs/alpha \\
    --sweep=merge.alpha=0.3,0.5,1.0

The runs of a sweep follow each other. It needs neither containers nor a cloud. A sweep's runs have
their own workdirs below the given one, and resume where they stopped. When the launcher ends, its
processes get notice to stop; they save their progress.
"""

import asyncio
from collections.abc import Sequence
import os
import pathlib
import sys

from absl import app, flags
from xmanager import xm, xm_local

from imm_jax import processes

_CONFIG = flags.DEFINE_string('config', None, "The run's config file.", required=True)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Of the run, or of the runs of a sweep.', required=True
)
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', 1, 'Processes of a run.', lower_bound=1)
_SWEEP = flags.DEFINE_string(
  'sweep', '', 'KEY=VALUE,VALUE,...: a run for each value of a key of the config.'
)


def arms(sweep: str, workdir: str) -> list[tuple[str, list[str]]]:
  """Returns the workdir and the overrides of each run.

  Raises ValueError when `sweep` is not KEY=VALUE,VALUE,...
  """
  if not sweep:
    return [(workdir, [])]
  key, sign, values = sweep.partition('=')
  if not (key and sign and all(values.split(','))):
    raise ValueError(f'--sweep: {sweep!r} is not KEY=VALUE,VALUE,...')
  return [
    (os.path.join(workdir, f'{key}={value}'), [f'--config.{key}={value}'])
    for value in values.split(',')
  ]


def group(packaged: Sequence[xm.Executable], port: int) -> xm.JobGroup:
  """Returns the job of each process, with the environment that processes.join expects."""
  jobs = {}
  for i, executable in enumerate(packaged):
    env = {'PYTHONPATH': str(pathlib.Path(__file__).parent.parent)}
    if len(packaged) > 1:
      env |= {
        'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
        'JAX_NUM_PROCESSES': str(len(packaged)),
        'JAX_PROCESS_ID': str(i),
      }
    jobs[f'process_{i}'] = xm.Job(executable, xm_local.Local(), env_vars=env)
  return xm.JobGroup(**jobs)


async def run(overrides: Sequence[str]) -> None:
  """Runs the arms one after the other."""
  for workdir, own in arms(_SWEEP.value, _WORKDIR.value):
    command = [
      sys.executable,
      '-m',
      'imm_jax',
      'run',
      f'--config={_CONFIG.value}',
      f'--workdir={workdir}',
      *own,
      *overrides,
    ]
    async with xm_local.create_experiment('imm') as experiment:
      # setpriv: a process that has lost its launcher gets SIGTERM.
      spec = xm.binary(
        xm_local.Local.Spec(), '/usr/bin/setpriv', args=['--pdeathsig=TERM', '--', *command]
      )
      packaged = experiment.package([spec] * _NUM_PROCESSES.value)
      unit = await experiment.add(group(packaged, processes.free_port()))
      await unit.wait_until_complete()


def main(argv: Sequence[str]) -> None:
  """Runs the experiment of the flags, with the overrides after `--`."""
  try:
    asyncio.run(run(argv[1:]))
  except ValueError as error:
    raise SystemExit(f'xm_launch: {error}') from None


if __name__ == '__main__':
  app.run(main)
