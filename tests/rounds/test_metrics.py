"""Metrics as they come: all lines or none, to a file and to loggers."""

import importlib
import json

from imm_jax.rounds import metrics
import pytest


def lines(path):
  return [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]


def test_it_begins_with_the_lines_of_the_rounds_that_are_done(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"round": 2, "step')
  writer = metrics.Writer(str(tmp_path), [{'round': 0, 'secs': 1.0}])
  assert lines(tmp_path) == [{'round': 0, 'secs': 1.0}]
  writer.write(1, {'finetune/loss_nats': 2.0}, 0)
  writer.write(1, {'secs': 3.0})
  writer.close()
  assert lines(tmp_path) == [{'round': 0, 'secs': 1.0}, *writer.of_round(1)]
  assert writer.of_round(1) == [{'round': 1, 'step': 0, 'finetune/loss_nats': 2.0}, {'round': 1, 'secs': 3.0}]


def test_lines_are_there_before_the_writer_closes(tmp_path, monkeypatch):
  monkeypatch.setattr(metrics, 'WRITE_EVERY_SECS', 0.0)
  metrics.Writer(str(tmp_path), []).write(1, {'eval/x/accuracy': 0.5}, 3)
  assert lines(tmp_path) == [{'round': 1, 'step': 3, 'eval/x/accuracy': 0.5}]


def test_only_one_process_writes(tmp_path):
  writer = metrics.Writer(str(tmp_path), [], logger='tensorboard', writes=False)
  writer.write(0, {'x': 1.0})
  writer.close()
  assert not list(tmp_path.iterdir())


def test_tensorboard_gets_the_same_values(tmp_path):
  from tensorboardX.proto.event_pb2 import Event

  writer = metrics.Writer(str(tmp_path), [], logger='tensorboard')
  writer.write(1, {'finetune/loss_nats': 2.5}, 4)
  writer.write(1, {'eval/x/accuracy': 0.5})
  writer.close()
  [file] = (tmp_path / 'tensorboard').iterdir()
  data, values = file.read_bytes(), []
  while data:
    length = int.from_bytes(data[:8], 'little')
    event = Event.FromString(data[12 : 12 + length])
    values += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
    data = data[12 + length + 4 :]
  assert values == [('finetune/loss_nats/round1', 4, 2.5), ('eval/x/accuracy', 1, 0.5)]


class Recorder:
  """A logger of a user's own."""

  def __init__(self, workdir):
    self.workdir, self.found = workdir, []
    Recorder.last = self

  def write(self, round_, step, values):
    self.found.append((round_, step, dict(values)))

  def close(self):
    self.found.append('closed')


def test_a_logger_of_ones_own_gets_the_same_values(tmp_path):
  writer = metrics.Writer(str(tmp_path), [], logger='tests.rounds.test_metrics:Recorder')
  writer.write(1, {'finetune/loss_nats': 2.5}, 4)
  writer.write(1, {'eval/x/accuracy': 0.5})
  writer.close()
  found = importlib.import_module('tests.rounds.test_metrics').Recorder.last
  assert found.workdir == str(tmp_path)
  assert found.found == [(1, 4, {'finetune/loss_nats': 2.5}), (1, None, {'eval/x/accuracy': 0.5}), 'closed']


@pytest.mark.parametrize(
  'name', ['tests.rounds.test_metrics', 'tests.rounds.test_metrics:Nobody', 'no_such_module:Logger', '']
)
def test_a_logger_that_is_not_there_is_named(name):
  with pytest.raises(ValueError, match=f"config.logger: '{name}' is not 'tensorboard', nor 'MODULE:CLASS'"):
    metrics.find_logger(name)


@pytest.mark.parametrize(
  ('steps', 'num_steps', 'waits'),
  [
    (range(9), 2, [2, 4]),
    (range(3, 9), 2, [3, 4]),  # an earlier process has done the first of them
    (range(3), 2, [2, 3]),  # the round ends before
    (range(9), 0, []),
    (range(2), 2, []),
    (range(4, 9), 2, []),
  ],
)
def test_steps_are_traced_whole(tmp_path, steps, num_steps, waits):
  done, waited = [], []

  def wait():
    waited.append(steps.start + len(done))

  for step in metrics.profiled(steps, steps, metrics.ProfileConfig(num_steps), str(tmp_path), wait):
    done.append(step)
  assert done == list(steps) and waited == waits
  assert len(list((tmp_path / 'profile').rglob('*.xplane.pb'))) == bool(waits)


def test_leaving_within_traced_steps_ends_the_trace(tmp_path):
  for _ in range(2):  # a trace that still runs would not let the second begin
    for step in metrics.profiled(range(9), range(9), metrics.ProfileConfig(4), str(tmp_path), lambda: None):
      if step == 4:
        break
