"""`imm run`: runs the rounds of an experiment, or goes on with them."""

import os
import sys
from typing import Any

from imm_jax import console
from imm_jax.cli import tables
from imm_jax.cli.flags import Flags

# The exit code of a run that stopped on notice: the same command resumes it. xpk restarts on it.
RESTART = 42


def main(flags: Flags) -> None:
  """Runs the command. Exits with RESTART after a notice to stop."""
  config, workdir = parse(flags)
  from imm_jax import processes
  from imm_jax.reports import report
  from imm_jax.rounds import loop

  processes.join()
  if not processes.is_first():
    console.mute()
  try:
    rows = loop.run(config, workdir, after_round=report.Writer())
  except processes.Stopped:
    console.note('imm: stopped as asked to, and saved; the same command goes on')
    sys.exit(RESTART)
  if processes.is_first():
    tables.results(rows)
    print_files(workdir)


def parse(flags: Flags) -> tuple[dict[str, Any], str]:
  """Parses --config and --workdir, which must be given; returns the config and the directory."""
  workdir = flags.string('workdir', None, 'Directory of the run; the same command goes on with it.')
  config = flags.parse_config()
  if not workdir.value:
    raise ValueError('--workdir: is missing; give the directory of the run')
  return config, workdir.value


def print_files(workdir: str) -> None:
  """Prints where a run's summary is, and its report where there is one."""
  from etils import epath

  for name in ('summary.json', 'report.html'):
    path = os.path.join(workdir, name)
    if epath.Path(path).exists():
      print(f'{name.partition(".")[0]}: {path}')
