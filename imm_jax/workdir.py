"""What a run leaves on disk. A file appears whole or not at all.

WORKDIR/config.json                     the resolved config
WORKDIR/model/                          config and tokenizer of the model, no weights
WORKDIR/metrics.jsonl                   a line a fine-tuning step and one a round
WORKDIR/rounds/NNNN/samples.jsonl       every completion with its verdict (from round 1)
WORKDIR/rounds/NNNN/evaluations.jsonl   every answer of the evaluation
WORKDIR/rounds/NNNN/checkpoint          float32 params at the end of the round; round 0 is the original model
WORKDIR/rounds/NNNN/metrics.json        the round's row of the summary; written last: the round is done
WORKDIR/summary.json                    all rounds
"""

from collections.abc import Iterable, Mapping
import json
import os
import re
from typing import Any

AT_ROUND = re.compile(r'(?P<workdir>.+)@(?P<round>\d+)')  # WORKDIR@ROUND names the model of a round
_MAY_CHANGE = 'num_rounds'  # the one key that may differ when a run goes on, down to the rounds that are done


class Workdir:
  """The directory of one run."""

  def __init__(self, path: str):
    self.path = os.path.abspath(os.path.expanduser(path))

  def open(self, config: Mapping[str, Any]) -> int:
    """Writes the config, or compares it with the one rounds were done with; returns the first round that is not done.

    Raises:
      ValueError: rounds were done under another config (each difference is named), or other files are in the directory.
      OSError: the directory cannot be written.
    """
    saved, rounds = (os.path.join(self.path, name) for name in ('config.json', 'rounds'))
    if os.path.exists(self.path) and (not os.path.isdir(self.path) or (os.listdir(self.path) and not os.path.isdir(rounds))):
      raise ValueError(f'{self.path}: is not the directory of a run; choose one that is new or empty')
    os.makedirs(rounds, exist_ok=True)
    config = json.loads(json.dumps(config))
    rows = self.finished()
    if rows:
      differences = _differences(_read(saved), config, done=len(rows) - 1)
      if differences:
        raise ValueError(f'{self.path}: holds a run of another config: {"; ".join(differences)}; choose another workdir')
      self._write_summary(rows)  # a run that was cut off may have left an old one
    _write(saved, json.dumps(config, indent=2) + '\n')
    return len(rows)

  def round(self, round_: int) -> str:
    """Returns the directory of a round."""
    return os.path.join(self.path, 'rounds', f'{round_:04d}')

  def checkpoint(self, round_: int) -> str:
    """Returns the path of a round's checkpoint."""
    return os.path.join(self.round(round_), 'checkpoint')

  @property
  def model(self) -> str:
    """Returns the directory of the model's config and tokenizer."""
    return os.path.join(self.path, 'model')

  def write_lines(self, round_: int, name: str, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes records as JSON lines to a file of a round."""
    os.makedirs(self.round(round_), exist_ok=True)
    _write(os.path.join(self.round(round_), name), ''.join(json.dumps(record) + '\n' for record in records))

  def read_lines(self, round_: int, name: str) -> list[dict[str, Any]] | None:
    """Returns the records of a file of a round, None when it was not written."""
    path = os.path.join(self.round(round_), name)
    if not os.path.exists(path):
      return None
    with open(path, encoding='utf-8') as file:
      return [json.loads(line) for line in file]

  def finish(self, entry: Mapping[str, Any]) -> None:
    """Writes a round's row, which makes the round done, and the summary."""
    _write(os.path.join(self.round(entry['round']), 'metrics.json'), json.dumps(entry, indent=2) + '\n')
    self._write_summary(self.finished())

  def finished(self) -> list[dict[str, Any]]:
    """Returns the rows of the rounds that are done, from round 0 on without a gap."""
    rows: list[dict[str, Any]] = []
    while os.path.exists(path := os.path.join(self.round(len(rows)), 'metrics.json')):
      rows.append(_read(path))
    return rows

  def _write_summary(self, rows: list[dict[str, Any]]) -> None:
    _write(os.path.join(self.path, 'summary.json'), json.dumps({'rounds': rows}, indent=2) + '\n')


def _read(path: str) -> Any:
  with open(path, encoding='utf-8') as file:
    try:
      return json.load(file)
    except ValueError as error:
      raise ValueError(f'{path}: is damaged ({error}); restore it, or choose another workdir') from error


def _write(path: str, text: str) -> None:
  with open(path + '.tmp', 'w', encoding='utf-8') as file:
    file.write(text)
  os.replace(path + '.tmp', path)


def _differences(old: Any, new: Any, done: int, name: str = 'config') -> list[str]:
  if isinstance(old, dict) and isinstance(new, dict):
    keys = sorted(old.keys() | new.keys())
    return [line for key in keys for line in _differences(old.get(key), new.get(key), done, f'{name}.{key}')]
  still_fits = name == f'config.{_MAY_CHANGE}' and new >= done
  return [] if old == new or still_fits else [f'{name} was {old!r} and is {new!r}']
