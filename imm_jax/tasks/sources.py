"""Questions from files and the hub: .json, .jsonl and .csv, plain or gzipped, and data sets of the hub."""

from collections.abc import Callable, Sequence
import csv
import dataclasses
import functools
import gzip
import io
import json
import pathlib
import re
from typing import Any, ClassVar
import zlib

from imm_jax.tasks import base, splits

Row = dict[str, Any]

_SUFFIX = re.compile(r'\.(json|jsonl|csv)(\.gz)?$')
_HUB = re.compile(r'([\w.-]+/[\w.-]+):([^:]*):(.+)')


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromSources(base.Task):
  """What the families share whose questions are rows of a source: the fields that choose them. They add `read`."""

  name: str
  train_source: str  # see read_source
  test_source: str = ''  # '' holds out test_size rows of train
  train_size: int = 0  # at most so many questions; 0 takes all
  test_size: int = 0  # at most so many questions; 0 takes all
  num_shots: int = 0
  seed: int = 0  # chooses shots, held-out questions, and those kept under a cap
  format: base.Format = 'plain'

  read: ClassVar[Callable[[str], list[base.Example]]]  # source -> its questions, a method

  def __post_init__(self) -> None:
    """Raises ValueError naming the field that is out of range."""
    super().__post_init__()
    if not self.train_source:
      raise ValueError(f'tasks.{self.name}.train_source: is empty; give a .json, .jsonl or .csv file, or a hub id')

  @functools.cached_property
  def split(self) -> splits.Split:
    """The questions. Raises ValueError or FileNotFoundError when a source is missing, broken or in another format."""
    return splits.make_split(
      self.name,
      self.read(self.train_source),
      self.read(self.test_source) if self.test_source else None,
      seed=self.seed,
      num_shots=self.num_shots,
      train_size=self.train_size,
      test_size=self.test_size,
    )


def read_source(source: str) -> list[Row]:
  """Returns the rows of a source.

  Args:
    source: a .json file (a list, or one object a line), .jsonl or .csv, each also with .gz; or 'owner/name:config:split' of
      a data set on the hub, where config may be empty.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is empty or broken (naming the line), the hub does not give the data, or `source` is neither.
  """
  suffix = _SUFFIX.search(source)
  if suffix:
    text = _read_text(pathlib.Path(source).expanduser(), gzipped=suffix[2] is not None)
    rows = _from_csv(source, text) if suffix[1] == 'csv' else _from_json(source, text)
  elif hub := _HUB.fullmatch(source):
    rows = _from_hub(*hub.groups())
  else:
    raise ValueError(
      f"{source!r}: neither a .json, .jsonl or .csv file (or .gz of it) nor a hub id 'owner/name:config:split'"
    )
  if not rows:
    raise ValueError(f'{source}: has no rows; check that the file is complete')
  return rows


def columns(source: str, rows: Sequence[Row], fields: Sequence[str]) -> list[list[Any]]:
  """Returns the values of `fields`, row by row. Raises ValueError naming the field that a row lacks and those it has."""
  for number, row in enumerate(rows, 1):
    for field in fields:
      if row.get(field) is None:
        raise ValueError(
          f'{source}: row {number} has no field {field!r}, only {", ".join(map(str, row))}; is it this data set?'
        )
  return [[row[field] for field in fields] for row in rows]


def _read_text(path: pathlib.Path, gzipped: bool) -> str:
  if not path.is_file():
    raise FileNotFoundError(f'{path}: no such file; check the path')
  try:
    content = path.read_bytes()
    return (gzip.decompress(content) if gzipped else content).decode('utf-8-sig')
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise ValueError(f'{path}: not a complete gzip file ({error}); copy it again') from error
  except UnicodeDecodeError as error:
    raise ValueError(f'{path}: not UTF-8 text ({error.reason} at byte {error.start}); convert it') from error


def _from_json(source: str, text: str) -> list[Row]:
  if text.lstrip().startswith('['):
    try:
      rows = json.loads(text)
    except (ValueError, RecursionError) as error:
      line = getattr(error, 'lineno', 1)
      raise ValueError(f'{source}, line {line}: broken JSON ({error}); copy the file again') from error
    numbered = [(f'row {number}', row) for number, row in enumerate(rows, 1)]
  else:
    numbered = []
    for number, line in enumerate(text.split('\n'), 1):
      if line.strip():
        try:
          numbered.append((f'line {number}', json.loads(line)))
        except (ValueError, RecursionError) as error:
          raise ValueError(f'{source}, line {number}: broken JSON ({error}); each line must be one object') from error
  for where, row in numbered:
    if not isinstance(row, dict):
      raise ValueError(f'{source}, {where}: is {type(row).__name__}, not an object with named fields')
  return [row for _, row in numbered]


def _from_csv(source: str, text: str) -> list[Row]:
  reader = csv.DictReader(io.StringIO(text, newline=''), strict=True)
  rows = []
  try:
    for row in reader:
      if None in row or None in row.values():
        raise ValueError(
          f'{source}, line {reader.line_num}: has not the {len(reader.fieldnames or ())} fields of the first line'
        )
      rows.append(row)
  except csv.Error as error:
    raise ValueError(f'{source}, line {reader.line_num}: broken CSV ({error})') from error
  return rows


def _from_hub(path: str, config: str, split: str) -> list[Row]:
  import datasets  # pylint: disable=g-import-not-at-top

  try:
    rows = datasets.load_dataset(path, config or None, split=split)
  # What it raises offline, for an unknown name, config or split, and for a data set that needs its own script.
  except (OSError, ValueError, RuntimeError) as error:
    reason = str(error).strip().split('\n')[0]
    raise ValueError(
      f'{path}:{config}:{split}: the hub does not give it ({reason}); check the id, or give a local file'
    ) from error
  return [dict(row) for row in rows]
