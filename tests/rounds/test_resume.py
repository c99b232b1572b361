"""A run that is killed or told to stop, anywhere, goes on with the same command to the same bytes."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

from imm_jax import processes
from imm_jax.formats import checkpoint
from imm_jax.rounds import loop
from imm_jax.rounds.workdir import Workdir
import pytest
from tests.conftest import ROOT
from tests.rounds.test_loop import assert_same_run, tiny
from tests.rounds.test_workdir import cut, flip
from tests.test_processes import environment

pytestmark = pytest.mark.xdist_group('resume')

NUM_KILLS = int(os.environ.get('NUM_KILLS', '12'))
FLAGS = [
  '--config.num_rounds=2', '--config.model.random.num_layers=1', '--config.model.random.embed_dim=32',
  '--config.optimizer.learning_rate=3e-3', '--config.synthesize.questions_per_chunk=20', '--config.checkpoint.every_steps=2',
  '--config.finetune.num_epochs=3', '--config.finetune.batch_size=2', '--config.sampler.num_slots=160',
]  # fmt: skip


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
  path = tmp_path_factory.mktemp('resume') / 'uninterrupted'
  [process] = start(path)
  _, errors = process.communicate()
  assert process.returncode == 0, errors
  return path


def start(path, num_processes=1, flags=()):
  """Starts the run of a workdir."""
  command = [sys.executable, '-m', 'imm_jax', 'run', f'--config={ROOT}/configs/tiny.py', f'--workdir={path}', *FLAGS, *flags]
  port = processes.free_port()
  return [
    subprocess.Popen(command, env=environment(num_processes, i, port), stderr=subprocess.PIPE, text=True)
    for i in range(num_processes)
  ]


def kill(process, signal_, path, rng):
  """Sends a signal at random, while a file is written or a while after a phase began; returns the exit code."""
  num_lines, num_writes, delay = rng.randrange(10), rng.randrange(20), rng.random()
  in_write = rng.random() < 0.5
  seen: set[str] = set()
  lines, stderr = 0, process.stderr.fileno()
  os.set_blocking(stderr, False)
  while process.poll() is None:
    time.sleep(0.001)  # looking without end would take a processor from what is looked at
    with contextlib.suppress(BlockingIOError):
      lines += os.read(stderr, 2**16).count(b'\n')
    if in_write:
      seen |= {f'{where}/{name}' for where, dirs, files in os.walk(path) for name in dirs + files if 'tmp' in name}
    if len(seen) > num_writes if in_write else lines > num_lines:
      time.sleep(0 if in_write else delay)
      process.send_signal(signal_)
      break
  os.set_blocking(stderr, True)
  process.communicate()
  return process.returncode


def go_on(path, signal_, times, seed):
  """Interrupts a run so many times, fewer when it is done before; lets it end. Returns the exit codes."""
  rng, codes = random.Random(seed), []
  while len(codes) < times and 0 not in codes:
    [process] = start(path)
    codes.append(kill(process, signal_, path, rng))
  if 0 not in codes:
    [process] = start(path)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
  return codes


@pytest.mark.slow
@pytest.mark.parametrize('part', range(-(-NUM_KILLS // 6)))
def test_many_kills(uninterrupted, part):
  kills = runs = 0
  while kills < 6:
    path = uninterrupted.with_name(f'many{part}-{runs}')
    kills += go_on(path, signal.SIGKILL, 6 - kills, f'{part} {runs}').count(-signal.SIGKILL)
    assert_same_run(uninterrupted, path)
    runs += 1
  print(f'{kills} kills in {runs} runs')


@pytest.mark.parametrize('num', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_sigterm_to_one_process_stops_all_with_42(uninterrupted, num):
  path = uninterrupted.with_name(f'stopped{num}')
  started = start(path, num)
  while not (path / 'rounds' / '0000' / 'manifest.json').exists():
    time.sleep(0.1)
  started[-1].send_signal(signal.SIGTERM)
  assert [process.wait() for process in started] == [42] * num
  assert [process.wait() for process in start(path, num)] == [0] * num
  if num == 1:
    assert_same_run(uninterrupted, path)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(2))
def test_sigterm_anywhere(uninterrupted, seed):
  path = uninterrupted.with_name(f'term{seed}')
  assert set(go_on(path, signal.SIGTERM, 3, seed)) <= {0, 42}  # 0: it was over before it looked
  assert_same_run(uninterrupted, path)


@pytest.mark.slow
@pytest.mark.parametrize('first, second', [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on(tmp_path, first, second):
  path, manifests = tmp_path / 'run', []
  for num, rounds in ((first, 1), (second, 2)):
    flags = [f'--config.num_rounds={rounds}']
    assert [process.wait() for process in start(path, num, flags)] == [0] * num
    manifests.append((path / 'rounds' / '0001' / 'manifest.json').read_bytes())
  assert manifests[0] == manifests[1] and len(Workdir(path).finished()) == 3


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_nothing_is_lost(uninterrupted, tmp_path):
  disk = tmp_path / 'disk'
  disk.mkdir()
  if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=100k', 'tmpfs', disk], check=False).returncode:
    pytest.skip('needs the right to mount')
  codes = []
  try:
    for size in range(100, 10_000, 300):
      subprocess.run(['mount', '-o', f'remount,size={size}k', disk], check=True)
      [process] = start(disk / 'run')
      _, errors = process.communicate()
      codes.append(process.returncode)
      if process.returncode == 0:
        break
      # Not a line of its own: Orbax's threads talk too, and in between.
      assert re.search(f'imm: {re.escape(str(disk))}/run.*: .*No space left on device', errors), errors
    assert set(codes[:-1]) == {1} and codes[-1] == 0 and len(codes) > 3
    assert_same_run(uninterrupted, disk / 'run')
  finally:
    subprocess.run(['umount', disk], check=True)


@pytest.fixture(scope='module')
def two_rounds(tmp_path_factory):
  """A run of two rounds, and what it becomes by a third."""
  path, good = (tmp_path_factory.mktemp('damage') / name for name in ('run', 'good'))
  loop.run(tiny(num_rounds=2), path)
  shutil.copytree(path, good)
  loop.run(tiny(num_rounds=3), good)
  return path, good


@pytest.mark.slow
@pytest.mark.parametrize('damage, num_files', [(cut, 6), (flip, 10)])
def test_damage_is_never_used(two_rounds, tmp_path, damage, num_files):
  """Whatever file of a run of two rounds is damaged: a third round is refused, or is the same."""
  path, good = two_rounds
  files = sorted(file.relative_to(path) for file in path.rglob('*') if file.is_file())
  tried, refused = random.Random(0).sample(files, num_files), []
  for file in tried:
    shutil.copytree(path, tmp_path / 'damaged')
    if (tmp_path / 'damaged' / file).stat().st_size:
      damage(tmp_path / 'damaged' / file)
    try:
      loop.run(tiny(num_rounds=3), tmp_path / 'damaged')
    except (ValueError, OSError) as error:
      refused.append(f'{file}: {error}')
    else:
      # Round 2 starts from round 1's params, and round 3 does not read them.
      is_unused = file.parts[:3] == ('rounds', '0001', 'checkpoint')
      with contextlib.suppress(*[checkpoint.Damaged] * is_unused):
        assert_same_run(good, tmp_path / 'damaged')
    shutil.rmtree(tmp_path / 'damaged')
  print('\n'.join(refused))
  assert 0 < len(refused) < len(tried)
