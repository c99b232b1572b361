"""What the launchers print: a JobSet, an xpk line and a TPU VM script; the same for the same arguments."""

import pathlib
import shlex
import subprocess
import sys

import pytest
import yaml

from launch import tpu
from tests.conftest import ROOT

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'launch'
RUN = ['--workdir=gs://bucket/run', '--config=configs/gsm8k_qwen25_0p5b.py']
CASES = {
  'jobset.yaml': ['jobset', '--tpu=v5p-128', '--num_slices=2', '--image=IMAGE', '--spot', *RUN, '--', '--config.seed=3'],
  'xpk.sh': ['xpk', '--cluster=CLUSTER', '--tpu=v5e-16', '--image=IMAGE', *RUN, '--', '--config.seed=3'],
  'tpu_vm.sh': ['tpu_vm', '--project=P', '--zone=Z', '--tpu=v6e-8', '--spot', '--source=https://example.com/imm_jax', *RUN],
}


def launch(program, *arguments):
  return subprocess.run(
    [sys.executable, '-m', f'launch.{program}', *arguments], cwd=ROOT, capture_output=True, text=True, check=False
  )


@pytest.mark.parametrize('name', CASES)
def test_what_is_printed(name):
  done = launch(*CASES[name])
  assert done.returncode == 0, done.stderr
  assert done.stdout == (GOLDEN / name).read_text()


def test_the_jobset_has_what_its_schema_requires():
  jobset = yaml.safe_load((GOLDEN / 'jobset.yaml').read_text())
  assert (jobset['apiVersion'], jobset['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
  (job,) = jobset['spec']['replicatedJobs']
  assert job['name'] and job['replicas'] == 2
  spec = job['template']['spec']
  assert spec['parallelism'] == spec['completions'] == 16  # 64 chips, 4 a host
  assert spec['completionMode'] == 'Indexed' and spec['backoffLimit'] == 0
  pod = spec['template']['spec']
  assert pod['restartPolicy'] == 'Never' and pod['terminationGracePeriodSeconds'] > 15
  (container,) = pod['containers']
  assert container['name'] and container['image'] == 'IMAGE'
  assert container['resources']['limits'] == {'google.com/tpu': 4}
  (rule,) = spec['podFailurePolicy']['rules']  # a user's error is not tried again, all else is
  assert rule['onExitCodes'] == {'containerName': container['name'], 'operator': 'In', 'values': [1]}
  assert jobset['spec']['failurePolicy']['maxRestarts'] > 0


def test_the_scripts_are_shell():
  assert subprocess.run(['bash', '-n', GOLDEN / 'tpu_vm.sh'], check=False).returncode == 0
  line = shlex.split((GOLDEN / 'xpk.sh').read_text())
  assert line[-1] == '--command=exec imm run --config=configs/gsm8k_qwen25_0p5b.py --workdir=gs://bucket/run --config.seed=3'


@pytest.mark.parametrize(
  'name, topology, num_chips, num_hosts',
  [('v5e-1', '1x1', 1, 1), ('v5e-16', '4x4', 16, 4), ('v5p-8', '2x2x1', 4, 1), ('v5p-128', '4x4x4', 64, 16)]
  + [('v6e-8', '2x4', 8, 1), ('v6e-256', '16x16', 256, 64)],
)
def test_slices(name, topology, num_chips, num_hosts):
  found = tpu.find(name)
  assert (found.topology, found.num_chips, found.num_hosts) == (topology, num_chips, num_hosts)


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['xpk', '--cluster=C', '--tpu=v5e-17', '--image=I', *RUN], "xpk: --tpu: 'v5e-17' is no slice; there are v5e-1, "),
    (['jobset', '--tpu=v5e-16', *RUN], 'jobset: --image: give it, or --source, and not both'),
    (['tpu_vm', '--project=P', '--zone=Z', '--tpu=v5e-16', '--num_slices=2', '--source=S', *RUN], 'tpu_vm: --num_slices: '),
  ],
)
def test_mistakes_are_one_line(arguments, message):
  done = launch(*arguments)
  assert done.returncode == 1 and done.stderr.startswith(message) and done.stderr.count('\n') == 1
