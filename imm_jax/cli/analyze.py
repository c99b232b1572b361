"""`imm analyze`: looks at a run's finished rounds: layers, samples, what is forgotten."""

import sys

from imm_jax import console
from imm_jax.cli import run, tables
from imm_jax.cli.flags import Flags


def main(flags: Flags) -> None:
  """Runs the command. Exits with run.RESTART after a notice to stop."""
  workdir = flags.string('workdir', None, 'Directory of a run that has a round done.')
  num_completions = flags.integer(
    'num_completions',
    64,
    'To measure the importance of layers on.',
    at_least=1,
  )
  flags.parse()
  if not workdir.value:
    raise ValueError('--workdir: is missing; give the directory of the run')
  from imm_jax import processes
  from imm_jax.reports import analysis, report

  processes.join()
  try:
    analyses = analysis.analyze(workdir.value, num_completions.value)
  except processes.Stopped:
    console.note('imm: stopped as asked to; the same command begins again')
    sys.exit(run.RESTART)
  if processes.is_first():
    tables.analyses(analyses)
    report.Writer()(workdir.value)
    run.print_files(workdir.value)
