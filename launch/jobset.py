"""Prints a JobSet that runs `imm run` on TPU slices of a GKE cluster.

  python -m launch.jobset --tpu=v5p-128 --image=IMAGE --workdir=gs://BUCKET/run \\
    --config=configs/FILE.py -- --config.seed=1

`--execute` applies it with kubectl. A run that is preempted or stopped (exit code 42) is restarted,
up to --max_restarts times, and resumes; a user's error (1) ends the job.
"""

from collections.abc import Sequence
import subprocess
from typing import Any

from absl import app, flags
import yaml

from launch import tpu

tpu.define_flags()
flags.DEFINE_integer(
  'max_restarts', 1000, 'How many times the slices may be preempted.', lower_bound=0
)
flags.DEFINE_integer(
  'grace_secs', 120, 'Between SIGTERM and SIGKILL; spot nodes may give 15 only.', lower_bound=1
)


def manifest(values: flags.FlagValues, overrides: Sequence[str]) -> dict[str, Any]:
  """Returns the JobSet (https://jobset.sigs.k8s.io, v1alpha2): a job per slice, a pod per host."""
  slice_ = tpu.find(values.tpu)
  selector = {
    'cloud.google.com/gke-tpu-accelerator': slice_.generation.gke_accelerator,
    'cloud.google.com/gke-tpu-topology': slice_.topology,
  }
  container = {
    'name': 'imm',
    'image': values.image or 'python:3.12',
    'command': ['bash', '-c', tpu.command(values, overrides)],
    # Of the TPU runtime, and of the coordinator
    'ports': [{'containerPort': port} for port in (8471, 8080)],
    'resources': {'limits': {'google.com/tpu': slice_.num_chips // slice_.num_hosts}},
  }
  pod = {
    'restartPolicy': 'Never',
    'terminationGracePeriodSeconds': values.grace_secs,
    'hostNetwork': True,
    'dnsPolicy': 'ClusterFirstWithHostNet',
    'nodeSelector': selector | ({'cloud.google.com/gke-spot': 'true'} if values.spot else {}),
    'containers': [container],
  }
  if values.spot:
    pod['tolerations'] = [
      {
        'key': 'cloud.google.com/gke-spot',
        'operator': 'Equal',
        'value': 'true',
        'effect': 'NoSchedule',
      }
    ]
  job = {
    'parallelism': slice_.num_hosts,
    'completions': slice_.num_hosts,
    'completionMode': 'Indexed',
    'backoffLimit': 0,
    'podFailurePolicy': {
      'rules': [
        {
          'action': 'FailJob',
          'onExitCodes': {'containerName': 'imm', 'operator': 'In', 'values': [1]},
        }
      ]
    },
    'template': {'spec': pod},
  }
  return {
    'apiVersion': 'jobset.x-k8s.io/v1alpha2',
    'kind': 'JobSet',
    'metadata': {
      'name': values.name,
      'annotations': {
        'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'
      },
    },
    'spec': {
      'failurePolicy': {
        'maxRestarts': values.max_restarts,
        'rules': [{'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}],
      },
      'replicatedJobs': [
        {'name': 'slice', 'replicas': values.num_slices, 'template': {'spec': job}}
      ],
    },
  }


def main(arguments: Sequence[str]) -> None:
  """Prints the manifest, or applies it."""
  try:
    text = yaml.safe_dump(manifest(flags.FLAGS, arguments[1:]), sort_keys=False, width=1000)
  except ValueError as error:
    raise SystemExit(f'jobset: {error}') from None
  if flags.FLAGS.execute:
    subprocess.run(['kubectl', 'apply', '-f', '-'], input=text, text=True, check=True)
  else:
    print(text, end='')


if __name__ == '__main__':
  app.run(main)
