"""Progress is shown where there is no terminal, too."""

import itertools

from imm_jax import console


def test_progress_without_a_terminal_is_plain_lines(capsys, monkeypatch):
  monkeypatch.setattr(console, 'PLAIN_EVERY_SECS', 0.0)
  with console.progress('sample', 4, 'rows') as advance:
    advance(1)
    advance(3)
  lines = capsys.readouterr().err.splitlines()
  assert lines[0].startswith('sample: 1/4 rows, ') and lines[0].endswith(' s left')
  assert lines[1].startswith('sample: 4 rows in ')


def test_a_slow_rate_is_not_nought(capsys, monkeypatch):
  monkeypatch.setattr(console.time, 'monotonic', itertools.count(0, 50).__next__)
  with console.progress('sample', 4, 'rows') as advance:
    advance(1)
  assert capsys.readouterr().err.startswith('sample: 1/4 rows, 0.02/s, 150 s left')
