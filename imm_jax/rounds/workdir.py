"""What a run leaves on disk, local or gs://.

A file appears whole or not at all, and process 0 writes it.

WORKDIR/config.json                     the resolved config
WORKDIR/model/                          config and tokenizer of the model, no weights
WORKDIR/metrics.jsonl                   a line per fine-tuning step and one per round
WORKDIR/rounds/NNNN/samples.jsonl       every completion with its verdict (from round 1)
WORKDIR/rounds/NNNN/evaluations.jsonl   every answer of the evaluation
WORKDIR/rounds/NNNN/checkpoint          float32 params at its end; round 0 is the original model
WORKDIR/rounds/NNNN/metrics.json        the round's row of the summary
WORKDIR/rounds/NNNN/manifest.json       names, sizes and digests; written last: the round is done
WORKDIR/rounds/NNNN/analysis.json       the results of `imm analyze`; in no manifest
WORKDIR/rounds/NNNN/parts, steps        progress within a round; removed when the round is done
WORKDIR/summary.json                    all rounds, and their analyses
WORKDIR/report.html                     the whole run as a page; see report.py
"""

from collections.abc import Callable, Iterable, Mapping
import hashlib
import json
import os
import tempfile
from typing import Any

from etils import epath

from imm_jax import processes
from imm_jax.formats import at_round
from imm_jax.rounds.records import Answer, Sample
from imm_jax.rounds.upgrade import upgrade

_PARTS = ('parts', 'steps')  # The directories of a round that is not done.
_ANALYSIS = 'analysis.json'
# The manifest lists these files of a round; other files beside them are ignored.
_OWN = ('samples.jsonl', 'evaluations.jsonl', 'metrics.jsonl', 'metrics.json')
# These keys may change between the rounds of a run. So may num_rounds, but not below the number of
# rounds that are done.
_MAY_CHANGE = ('config.mesh.', 'config.checkpoint.', 'config.logger', 'config.profile')
# Round 0, the original model's evaluation, depends on these keys. While only round 0 is done, all
# other keys may change.
_OF_ROUND_0 = (
  'config.seed',
  'config.model.',
  'config.tasks.',
  'config.sampler.top_',
  'config.evaluate.num_samples_per_prompt',
  'config.evaluate.temperature',
  'config.evaluate.text_',
)


class Workdir:
  """The directory of one run."""

  def __init__(self, path: str | os.PathLike[str]):
    where = epath.Path(path).expanduser()
    self._path = where if '://' in os.fspath(path) else where.absolute()

  @property
  def path(self) -> str:
    """The path of the directory, as text."""
    return str(self._path)

  def open(self, config: Mapping[str, Any]) -> list[str]:
    """Writes the config, or checks that it agrees with the config of the rounds that are done.

    Keys that finished rounds depend on may not change. Damaged rounds at the end are set aside, to
    be done again; returns a line about each.

    Raises:
      ValueError: rounds were done under another config (five differences are named), other files
        are in the directory, or a damaged round has later ones that build on it.
      OSError: the directory cannot be written.
    """
    return processes.on_first(lambda: self._open(json.loads(json.dumps(config))))

  def _open(self, config: Mapping[str, Any]) -> list[str]:
    saved, rounds = self._path / 'config.json', self._path / 'rounds'
    if self._path.exists() and (
      not self._path.is_dir() or (any(self._path.iterdir()) and not rounds.is_dir())
    ):
      raise ValueError(
        f'{self._path}: is not the directory of a run; choose one that is new or empty'
      )
    rounds.mkdir(parents=True, exist_ok=True)
    lines = []
    done = self.num_done
    differences = _differences(upgrade(_read(saved)), config, done - 1) if saved.exists() else []
    if lost := [
      line for line in differences if done > 1 or (done == 1 and line.startswith(_OF_ROUND_0))
    ]:
      more = f'; and {len(lost) - 5} more' if len(lost) > 5 else ''
      raise ValueError(
        f'{self._path}: holds a run of another config: {"; ".join(lost[:5])}{more}; choose another'
        ' workdir'
      )
    if differences and self._remove_parts(done):
      lines.append(f'{differences[0]}: what round {done} had done is discarded')
    if done:
      for round_ in range(done):
        self._remove_parts(round_)  # A run that was cut off may have left those of a done round.
      damages = [self._damage(round_) for round_ in range(done)]
      while damages and damages[-1]:
        lines.append(f'{damages.pop()}; its round is done again')
        self.set_aside(len(damages))
      if bad := [damage for damage in damages if damage]:
        raise ValueError(
          f'{bad[0]}, and later rounds build on it; restore it, or choose another workdir'
        )
      self._write_summary()  # A run that was cut off may have left an old one.
    processes.write_text(saved, json.dumps(config, indent=2) + '\n')
    return lines

  def check(self) -> None:
    """Checks that the directory holds a run without damage.

    Raises FileNotFoundError when the directory does not exist, ValueError when it holds no run or a
    round is damaged.
    """
    if not self._path.exists():
      raise FileNotFoundError(f'{self._path}: no such directory')
    if not (self._path / 'config.json').exists() or not (self._path / 'rounds').is_dir():
      raise ValueError(f'{self._path}: is not the directory of a run')
    for round_ in range(self.num_done):
      if damage := self._damage(round_):
        raise ValueError(f'{damage}; restore it, or see whether imm run does its round again')

  def set_aside(self, round_: int) -> None:
    """Renames the directory of a damaged round to NNNN.damaged."""
    target = self._round(round_).with_name(f'{round_:04d}.damaged')
    if target.exists():
      target.rmtree()
    self._round(round_).rename(target)

  def checkpoint(self, round_: int) -> str:
    """Returns the path of a round's checkpoint."""
    return at_round.checkpoint(self.path, round_)

  def steps(self, round_: int) -> str:
    """Returns the path of the checkpoints within a round's fine-tuning."""
    return str(self._round(round_) / 'steps')

  def write_model(self, write: Callable[[str], None]) -> None:
    """Keeps the files of the model's config and tokenizer.

    write(directory) makes them in a local temporary directory, from which they are copied.
    """
    with tempfile.TemporaryDirectory() as local:
      write(local)
      for file in _files(epath.Path(local)):
        processes.write_text(self._path / 'model' / file.name, file.read_text())

  def part(
    self, round_: int, name: str, compute: Callable[[], Any], report: Callable[[str], None]
  ) -> Any:
    """Returns compute(), a JSON value, or the value that an earlier process got from it.

    So each part of a round is done once.
    """
    file = self._round(round_) / 'parts' / f'{name}.json'
    if file.exists():
      digest, _, text = file.read_text().partition('\n')
      if digest == _sha256(text.encode()):
        return json.loads(text)
      report(f'{file}: is damaged; it is done again')
    value = compute()
    text = json.dumps(value)
    processes.write_text(file, f'{_sha256(text.encode())}\n{text}')
    return value

  def write_lines(self, round_: int, name: str, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes records as JSON lines to a file of a round."""
    processes.write_text(
      self._round(round_) / name, ''.join(json.dumps(record) + '\n' for record in records)
    )

  def read_lines(self, round_: int, name: str) -> list[dict[str, Any]]:
    """Returns the records of a file of a round."""
    return _read(
      self._round(round_) / name, lambda text: [json.loads(line) for line in text.splitlines()]
    )

  def read_samples(self, round_: int) -> list[Sample]:
    """Returns the samples of a round from 1 on."""
    return [Sample.from_json(line) for line in self.read_lines(round_, 'samples.jsonl')]

  def read_answers(self, round_: int) -> list[Answer]:
    """Returns the answers to the test questions of a round."""
    return [Answer.from_json(line) for line in self.read_lines(round_, 'evaluations.jsonl')]

  def read_config(self) -> dict[str, Any]:
    """Returns the config that the run was started with, in today's keys."""
    return upgrade(_read(self._path / 'config.json'))

  def read_analysis(self, round_: int) -> dict[str, Any]:
    """Returns the findings of `imm analyze` about a round, {} where it has not been run."""
    file = self._round(round_) / _ANALYSIS
    return _read(file) if file.exists() else {}

  def write_report(self, text: str) -> None:
    """Writes report.html, which is made from the other files and belongs to no round."""
    processes.write_text(self._path / 'report.html', text)

  def finish(self, entry: Mapping[str, Any]) -> None:
    """Writes a round's row, its manifest, which makes the round done, and the summary.

    The checkpoint has to be written before.
    """
    round_ = self._round(entry['round'])

    def write():
      processes.write_text(round_ / 'metrics.json', json.dumps(entry, indent=2) + '\n')
      processes.write_text(
        round_ / 'manifest.json', json.dumps(self._facts(entry['round']), indent=2) + '\n'
      )
      self._write_summary()
      self._remove_parts(entry['round'])

    processes.on_first(write)

  def write_analyses(self, analyses: Iterable[Mapping[str, Any]]) -> None:
    """Writes the findings about each round, from round 0 on, to its directory and the summary."""

    def write():
      for round_, analysis in enumerate(analyses):
        processes.write_text(self._round(round_) / _ANALYSIS, json.dumps(analysis, indent=2) + '\n')
      self._write_summary()

    processes.on_first(write)

  @property
  def num_done(self) -> int:
    """The number of rounds that are done, from round 0 on without a gap."""
    num = 0
    while (self._round(num) / 'manifest.json').exists():
      num += 1
    return num

  def finished(self) -> list[dict[str, Any]]:
    """Returns the rows of the rounds that are done, from round 0 on without a gap."""
    return [_read(self._round(round_) / 'metrics.json') for round_ in range(self.num_done)]

  def _remove_parts(self, round_: int) -> bool:
    """Removes what a round has done so far; returns whether there was anything."""
    found = [self._round(round_) / name for name in _PARTS]
    found = [path for path in found if path.exists()]
    for path in found:
      path.rmtree()
    return bool(found)

  def _round(self, round_: int) -> epath.Path:
    return self._path / 'rounds' / f'{round_:04d}'

  def _facts(self, round_: int) -> dict[str, list[Any]]:
    """Returns [size, digest] of each file of a round, by name.

    Files of the checkpoint have None as their digest: the checkpoint holds digests of its arrays.
    """
    files = [self._round(round_) / name for name in _OWN if (self._round(round_) / name).exists()]
    files += _files(self._round(round_) / 'checkpoint')
    files += _files(self._path / 'model') if round_ == 0 else []
    facts = {}
    for file in files:
      name = str(file.relative_to(self._path))
      facts[name] = [
        file.stat().length,
        None if '/checkpoint/' in name else _sha256(file.read_bytes()),
      ]
    return facts

  def _damage(self, round_: int) -> str:
    """Returns a description of the damage to a round's files, '' when there is none."""
    manifest = self._round(round_) / 'manifest.json'
    try:
      wanted, found = _read(manifest), self._facts(round_)
    except ValueError as error:
      return str(error)
    for name, facts in wanted.items():
      if name not in found:
        return f'{self._path / name}: is missing'
      if facts != found[name]:
        return f'{self._path / name}: is not what was written'
    return ''

  def _write_summary(self) -> None:
    rows = self.finished()
    for round_, row in enumerate(rows):
      if analysis := self.read_analysis(round_):
        row['analysis'] = analysis
    processes.write_text(self._path / 'summary.json', json.dumps({'rounds': rows}, indent=2) + '\n')


def _files(path: epath.Path) -> list[epath.Path]:
  """Returns all files below a directory, in order."""
  entries = sorted(path.iterdir()) if path.exists() else []
  return [file for entry in entries for file in (_files(entry) if entry.is_dir() else [entry])]


def _sha256(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()


def _read(path: epath.Path, parse: Callable[[str], Any] = json.loads) -> Any:
  try:
    return parse(path.read_text())
  except ValueError as error:
    raise ValueError(f'{path}: is damaged ({error})') from error


def _differences(old: Any, new: Any, done: int, name: str = 'config') -> list[str]:
  if isinstance(old, dict) and isinstance(new, dict):
    keys = sorted(old.keys() | new.keys())
    return [
      line
      for key in keys
      for line in _differences(old.get(key), new.get(key), done, f'{name}.{key}')
    ]
  still_fits = name.startswith(_MAY_CHANGE) or (name == 'config.num_rounds' and new >= done)
  return [] if old == new or still_fits else [f'{name} was {old!r} and is {new!r}']
