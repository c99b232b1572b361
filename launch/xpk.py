"""Prints the `xpk workload create` line that runs `imm run` on TPU slices of an xpk cluster.

  python -m launch.xpk --cluster=CLUSTER --tpu=v5e-16 --image=IMAGE --workdir=gs://BUCKET/run \\
    --config=configs/FILE.py

`--execute` runs it. xpk restarts a workload when it exits with 42, as `imm run` does when it is
stopped, or is killed.
"""

from collections.abc import Sequence
import shlex
import subprocess

from absl import app, flags

from launch import tpu

tpu.define_flags()
flags.DEFINE_string('cluster', None, 'Of xpk.', required=True)
flags.DEFINE_integer(
  'max_restarts', 1000, 'How many times the slices may be preempted.', lower_bound=0
)


def create(values: flags.FlagValues, overrides: Sequence[str]) -> list[str]:
  """Returns the command line."""
  image = (
    [f'--docker-image={values.image}'] if values.image else ['--base-docker-image=python:3.12']
  )
  return [
    'xpk', 'workload', 'create', f'--workload={values.name}', f'--cluster={values.cluster}',
    f'--tpu-type={tpu.find(values.tpu).accelerator_type}', f'--num-slices={values.num_slices}',
    *image,
    f'--max-restarts={values.max_restarts}', *(['--spot'] if values.spot else []),
    f'--command={tpu.command(values, overrides)}',
  ]  # fmt: skip


def main(arguments: Sequence[str]) -> None:
  """Prints the line, or runs it."""
  try:
    line = create(flags.FLAGS, arguments[1:])
  except ValueError as error:
    raise SystemExit(f'xpk: {error}') from None
  if flags.FLAGS.execute:
    subprocess.run(line, check=True)
  else:
    print(shlex.join(line))


if __name__ == '__main__':
  app.run(main)
