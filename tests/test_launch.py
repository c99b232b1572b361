"""What the launchers print, the same for the same arguments: a JobSet, an xpk line, a TPU VM script. What studies run."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys

from launch import tpu
import pytest
from tests.conftest import ROOT
import yaml

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


def xm_launch(home, *arguments):
  """Runs the XManager launcher in a home of its own, where it keeps its records."""
  pytest.importorskip('xmanager')
  command = [pathlib.Path(sys.executable).parent / 'xmanager', 'launch', 'launch/xm_launch.py', '--', *arguments]
  environment = os.environ | {'HOME': str(home), 'JAX_NUM_CPU_DEVICES': '1', 'JAX_COMPILATION_CACHE_DIR': f'{home}/xla'}
  return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def rounds(workdir):
  return len(json.loads((workdir / 'summary.json').read_text())['rounds'])


@pytest.mark.slow
def test_xmanager_runs_two_processes_here(tmp_path):
  run = [f'--workdir={tmp_path}/run', '--config=configs/tiny.py', '--num_processes=2', '--']
  for num_rounds in (1, 2):  # The second start finds what the first one has compiled.
    done = xm_launch(tmp_path, *run, f'--config.num_rounds={num_rounds}')
    assert done.returncode == 0, done.stderr
    assert rounds(tmp_path / 'run') == num_rounds + 1


@pytest.mark.slow
def test_xmanager_runs_a_sweep(tmp_path):
  run = [
    f'--workdir={tmp_path}/sweep',
    '--config=configs/tiny.py',
    '--sweep=merge.alpha=0.3,0.5',
    '--',
    '--config.num_rounds=0',
  ]
  done = xm_launch(tmp_path, *run)
  assert done.returncode == 0, done.stderr
  for value in ('0.3', '0.5'):
    assert rounds(tmp_path / 'sweep' / f'merge.alpha={value}') == 1
  wrong = xm_launch(tmp_path, '--workdir=w', '--config=configs/tiny.py', '--sweep=merge.alpha')
  assert wrong.returncode != 0 and "xm_launch: --sweep: 'merge.alpha' is not KEY=VALUE,VALUE,..." in wrong.stderr


ARMS = f"""
import sys

sys.path.insert(0, {str(ROOT / 'configs')!r})
import tiny


def get_config(arm):
  c = tiny.get_config()
  c.num_rounds, c.model.random.num_layers, c.model.random.embed_dim = 1, 1, 32
  c.merge.alpha = {{'base': 1.0, 'vanilla': 1.0, 'imm': 0.5, 'distill': 0.5, 'wrong': 2.0}}[arm]
  c.synthesize.teacher = '{{workdir}}/vanilla/seed{{seed}}@1' if arm == 'distill' else ''
  return c
"""


@pytest.fixture
def arms(tmp_path):
  (tmp_path / 'arms.py').write_text(ARMS)
  return [f'--config={tmp_path}/arms.py', f'--workdir={tmp_path}/study']


def rows(tmp_path, arm, seed=0):
  found = json.loads((tmp_path / 'study' / arm / f'seed{seed}' / 'summary.json').read_text())['rounds']
  assert all(('analysis' in row) == (arm != 'base') for row in found)
  return [{key: value for key, value in row.items() if key != 'analysis'} for row in found]


def accuracies(row):
  return [result['accuracy'] for domain in ('id', 'ood') for result in row[domain].values()]


@pytest.mark.slow
def test_a_study_compares_arms_that_share_their_base(tmp_path, arms):
  command = ['study', *arms, '--base=base', '--arms=vanilla,distill,imm', '--', '--config.synthesize.num_questions=40']
  done = launch(*command)
  assert done.returncode == 0, done.stderr
  base, vanilla, distill, imm = (rows(tmp_path, arm) for arm in ('base', 'vanilla', 'distill', 'imm'))
  assert accuracies(vanilla[0]) == accuracies(base[1])
  assert imm[0] == vanilla[0]  # its seconds too: it was not measured again
  assert imm[1]['sample'] == vanilla[1]['sample'] and imm[1]['sample']['num_samples'] == 40 * 16
  assert base[1]['sample']['num_samples'] == 80 * 16  # what the config says
  assert imm[1]['merge']['drift_norm'] == pytest.approx(vanilla[1]['merge']['drift_norm'] / 2, rel=1e-4)
  config = json.loads((tmp_path / 'study' / 'distill' / 'seed0' / 'config.json').read_text())
  assert config['synthesize']['teacher'] == f'{tmp_path}/study/vanilla/seed0@1'
  assert distill[0] == vanilla[0] and distill[1]['sample'] != vanilla[1]['sample']
  result = json.loads((tmp_path / 'study' / 'study.json').read_text())
  assert result['imm']['0'][1]['merge']['drift_norm'] == imm[1]['merge']['drift_norm']
  assert result['vanilla']['0'][1]['tuned_ood']['max'] == vanilla[1]['tuned_ood']['max']['accuracy']
  right = result['vanilla']['0'][1]['right']['max']
  assert len(right) == vanilla[1]['ood']['max']['n'] and set(right) <= {'0', '1'}
  assert right.count('1') / len(right) == vanilla[1]['ood']['max']['accuracy']
  assert '\n| imm, points | ' in done.stdout and done.stdout.endswith('/report.html\n')

  again = launch(*command)
  assert again.returncode == 0 and again.stdout == done.stdout and 'evaluate' not in again.stderr


def test_a_study_ends_with_the_arm_that_fails(tmp_path, arms):
  done = launch('study', *arms, '--arms=wrong,imm')
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1].startswith('imm: merge.alpha: 2.0 is not in [0, 1]')
  assert not (tmp_path / 'study' / 'imm').exists()


def test_the_run_of_a_study_imports_what_its_launcher_could(tmp_path, arms, monkeypatch):
  (tmp_path / 'beside').mkdir()
  (tmp_path / 'beside' / 'mine.py').touch()
  (tmp_path / 'arms.py').write_text(f'import mine\n{ARMS}')
  monkeypatch.setenv('PYTHONPATH', f'{tmp_path}/beside')
  done = launch('study', *arms, '--arms=wrong')
  assert done.stderr.splitlines()[-1].startswith('imm: merge.alpha: 2.0 is not in [0, 1]'), done.stderr


@pytest.mark.parametrize(
  'flags, says',
  [
    (['--arms=imm,imm'], "--arms: 'imm,imm' has no entry, an empty one or one twice"),
    (['--arms='], "--arms: '' has no entry, an empty one or one twice"),
    (['--arms=imm', '--seeds=0,'], "--seeds: '0,' has no entry, an empty one or one twice"),
    (['--arms=imm', '--base=bas'], "--config: 'bas'"),
    (['--arms=imm', '--base=base', '--', '--config.optimizer.lr=1'],
     '--config: --config.optimizer.lr=1: imm has no key optimizer.lr'),
  ],
)  # fmt: skip
def test_a_study_refuses_a_mistake_before_it_runs(tmp_path, arms, flags, says):
  done = launch('study', *arms, *flags)
  assert done.returncode == 1 and done.stderr == f'study: {says}\n' and not (tmp_path / 'study').exists()


def test_a_study_knows_its_arms_before_it_runs_one(tmp_path, arms):
  done = launch('study', f'--config={ROOT}/configs/testbed.py', *arms[1:], '--arms=vanilla,im')
  assert done.returncode == 1 and done.stderr.startswith("study: --config: 'im' is no arm; the arms are base, ")
  assert not (tmp_path / 'study').exists()
  (tmp_path / 'arms.py').write_text('import nothing_of_that_name')
  done = launch('study', *arms, '--arms=vanilla')
  assert done.returncode == 1 and done.stderr == "study: --config: No module named 'nothing_of_that_name'\n"


@pytest.mark.parametrize('signal_', [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL])
def test_the_run_of_a_study_ends_with_it(tmp_path, arms, signal_):
  command = [sys.executable, '-m', 'launch.study', *arms, '--arms=vanilla', '--', '--config.num_rounds=1000']
  process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
  assert process.stderr is not None
  while 'round 1 of 1000' not in process.stderr.readline():
    assert process.poll() is None
  process.send_signal(signal_)
  rest = process.stderr.read()  # until the run too has closed it
  assert 'imm: stopped as asked to, and saved' in rest
  assert process.wait() == (42 if signal_ == signal.SIGTERM else -signal.SIGKILL)
