"""Metrics as they come: nothing of a round that is done again is left, and progress is told where there is no terminal."""

import json

from imm_jax import metrics


def rounds(path):
  with open(path / 'metrics.jsonl') as file:
    return [json.loads(line)['round'] for line in file]


def test_a_run_that_goes_on_drops_what_it_does_again(tmp_path):
  writer = metrics.Writer(str(tmp_path), 0, tensorboard=False)
  for round_ in (0, 1, 1, 2):
    writer.write(round_, {'finetune/loss_nats': 1.0}, 0)
  writer.close()
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"round": 2, "step')
  metrics.Writer(str(tmp_path), 2, tensorboard=False).close()
  assert rounds(tmp_path) == [0, 1, 1]


def test_lines_are_there_before_the_writer_closes(tmp_path):
  metrics.Writer(str(tmp_path), 0, tensorboard=False).write(1, {'eval/x/accuracy': 0.5}, 3)
  with open(tmp_path / 'metrics.jsonl') as file:
    assert json.load(file) == {'round': 1, 'step': 3, 'eval/x/accuracy': 0.5}


def test_tensorboard_gets_the_same_values(tmp_path):
  from tensorboardX.proto.event_pb2 import Event

  writer = metrics.Writer(str(tmp_path), 0, tensorboard=True)
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


def test_progress_without_a_terminal_is_plain_lines(capsys, monkeypatch):
  monkeypatch.setattr(metrics, 'PLAIN_EVERY_SECS', 0.0)
  with metrics.progress('sample', 4, 'rows') as advance:
    advance(1)
    advance(3)
  lines = capsys.readouterr().err.splitlines()
  assert lines[0].startswith('sample: 1/4 rows, ') and lines[0].endswith(' s left')
  assert lines[1].startswith('sample: 4 rows in ')
