"""`imm doctor`: looks whether a run would start, fit and write."""

from imm_jax.cli import run
from imm_jax.cli.flags import Flags


def main(flags: Flags) -> None:
  """Runs the command: prints a line for each thing that was looked at."""
  config, workdir = run.parse(flags)
  from imm_jax import processes
  from imm_jax.planning import doctor

  processes.join()
  for name, found in doctor.examine(config, workdir):
    if processes.is_first():
      print(f'{name:>12}  {found}')
