"""Prints a script that runs `imm run` on Cloud TPU VMs without GKE; `--execute` runs it.

  python -m launch.tpu_vm --project=P --zone=Z --tpu=v5e-16 \\
    --source=https://github.com/ME/imm_jax --workdir=gs://BUCKET/run --config=configs/FILE.py

It asks for a queued resource, waits for it, installs and runs on all workers. When the slice is
preempted or the run stops with 42, it deletes the resource and asks again, until the run is
complete (0) or has a user's error (1).
"""

from collections.abc import Sequence
import shlex
import subprocess

from absl import app, flags

from launch import tpu

tpu.define_flags()
flags.DEFINE_string('project', None, 'Of Google Cloud.', required=True)
flags.DEFINE_string('zone', None, 'Where the slice is.', required=True)

_SCRIPT = """#!/bin/bash
set -u
state() {{ gcloud compute tpus queued-resources describe {name} {where} --format='value(state.state)' 2>/dev/null; }}
remove() {{ gcloud compute tpus queued-resources delete {name} {where} --force --quiet 2>/dev/null; }}
trap remove EXIT  # a slice that nothing runs on costs as much as one that works
while true; do
  remove
  {create} || exit 1
  until [ "$(state)" = ACTIVE ]; do
    case "$(state)" in FAILED|SUSPENDED) echo "{name}: $(state)" >&2; remove; sleep 60; {create} || exit 1;; esac
    sleep 20
  done
  gcloud compute tpus tpu-vm ssh {name} {where} --worker=all --command={command}
  code=$?
  if [ $code = 0 ] || {{ [ $code = 1 ] && [ "$(state)" = ACTIVE ]; }}; then exit $code; fi
  echo "{name}: exit code $code, $(state); again" >&2
done
"""


def script(values: flags.FlagValues, overrides: Sequence[str]) -> str:
  """Returns the script. Raises ValueError for several slices or an image, which tpu_vm has not."""
  slice_ = tpu.find(values.tpu)
  if values.num_slices != 1:
    raise ValueError(
      '--num_slices: a TPU VM is one slice; for several take launch.jobset or launch.xpk'
    )
  if values.image:
    raise ValueError('--image: TPU VMs run no container; give --source')
  where = shlex.join([f'--project={values.project}', f'--zone={values.zone}'])
  create = [
    'gcloud', 'compute', 'tpus', 'queued-resources', 'create', values.name,
    f'--node-id={values.name}',
    f'--accelerator-type={slice_.accelerator_type}',
    f'--runtime-version={slice_.generation.runtime_version}',
    f'--project={values.project}', f'--zone={values.zone}', *(['--spot'] if values.spot else []),
  ]  # fmt: skip
  name, run = shlex.quote(values.name), f'rm -rf imm && {tpu.command(values, overrides)}'
  return _SCRIPT.format(name=name, where=where, create=shlex.join(create), command=shlex.quote(run))


def main(arguments: Sequence[str]) -> None:
  """Prints the script, or runs it."""
  try:
    text = script(flags.FLAGS, arguments[1:])
  except ValueError as error:
    raise SystemExit(f'tpu_vm: {error}') from None
  if flags.FLAGS.execute:
    raise SystemExit(subprocess.run(['bash', '-c', text]).returncode)
  print(text, end='')


if __name__ == '__main__':
  app.run(main)
