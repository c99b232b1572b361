"""One program in many processes: what the first one says, verdicts too, holds for all; arrays are whole everywhere."""

import os
import subprocess
import sys

from etils import epath
from imm_jax import processes
import jax.numpy as jnp
import numpy as np
import pytest
from tests.conftest import ROOT

PROGRAM = """
import jax, numpy as np
from imm_jax import evaluate, processes, sharding
from imm_jax.rounds.experiment import make_task
from imm_jax.tasks import base, catalog
from imm_jax.verifying import worker
processes.join()
index = jax.process_index()
assert processes.on_first(lambda: {'from': index}) == {'from': 0}
def refuse():
  raise ValueError(f'é of {index}')
try:
  processes.on_first(refuse)
except ValueError as error:
  assert str(error) == 'é of 0', error
def fail():
  raise KeyError('gone')
try:
  processes.on_first(fail)
except Exception as error:
  assert 'gone' in str(error), error
x = np.arange(8.0).reshape(4, 2)
for spec in (jax.P('fsdp'), jax.P()):
  y = jax.device_put(x, jax.NamedSharding(sharding.make_mesh(), spec))
  np.testing.assert_array_equal(processes.fetch({'x': y})['x'], x)
assert not processes.should_stop()
task = make_task('t', catalog.spec('math', train_source='unused.jsonl', test_source=''))
example = base.make_example('t', 'Half of one?', r'\\frac{1}{2}')
worker.SECS = 1e-9 if index else 60.0  # the second process has no time for any formula
assert evaluate.judge(task, [example], [[r'\\boxed{1 - \\frac{1}{2}}', '3']]) == [[True, False]]
print('alike', jax.process_count(), processes.is_first())
"""


def environment(num=1, index=0, port=0):
  """Returns that of a process of its own, with two devices; of a group when there are more."""
  given = {'PYTHONPATH': str(ROOT), 'JAX_NUM_CPU_DEVICES': '2'}
  if num > 1:
    address = f'localhost:{port}'
    given |= {'JAX_COORDINATOR_ADDRESS': address, 'JAX_NUM_PROCESSES': str(num), 'JAX_PROCESS_ID': str(index)}
  return os.environ | given


@pytest.mark.parametrize('num', [1, 2])
def test_all_processes_get_the_same(num):
  port, command = processes.free_port(), [sys.executable, '-c', PROGRAM]
  started = [subprocess.Popen(command, env=environment(num, i, port), stdout=subprocess.PIPE, text=True) for i in range(num)]
  out = [process.communicate()[0] for process in started]
  assert [process.returncode for process in started] == [0] * num
  for i, text in enumerate(out):
    assert f'alike {num} {i == 0}' in text


def test_the_file_that_cannot_be_written_is_named(tmp_path):
  file = epath.Path(tmp_path / 'a.json')
  processes.write_text(file, 'old')
  (tmp_path / 'a.json.tmp').mkdir()  # the error that comes of this names it
  with pytest.raises(OSError) as error:
    processes.write_text(file, 'new')
  assert error.value.filename == str(file) and file.read_text() == 'old'


def test_half_a_group_is_an_error():
  half = environment() | {'JAX_NUM_PROCESSES': '2'}
  done = subprocess.run([sys.executable, '-c', PROGRAM], env=half, stderr=subprocess.PIPE, text=True, check=False)
  assert 'JAX_PROCESS_ID: are set together or not at all' in done.stderr


def test_a_process_alone_needs_nothing():
  assert processes.on_first(lambda: (1, 2)) == (1, 2) and processes.is_first() and not processes.should_stop()
  np.testing.assert_array_equal(processes.fetch([jnp.ones(2)])[0], [1.0, 1.0])
