"""Reads rows of files, of the hub, and of TensorFlow Datasets.

Files are .json, .jsonl and .csv, plain or gzipped.
"""

from collections.abc import Sequence
import contextlib
import csv
import gzip
import io
import json
import pathlib
import re
from typing import Any
import zlib

Row = dict[str, Any]

_SUFFIX = re.compile(r'\.(json|jsonl|csv)(\.gz)?$')
_GAP = re.compile(r'[ \t\n\r]*')  # The space between two values of JSON.
_HUB = re.compile(r'([\w.-]+/[\w.-]+)(?:@([\w./-]+))?:([^:]*):(.+)')
_TFDS = re.compile(r'tfds:(.+):([^:]+)')


def read_source(source: str) -> list[Row]:
  """Returns the rows of a source.

  Args:
    source: a .json file (a list, one object per line, or an object whose 'examples' is the list),
      .jsonl or .csv, each also with .gz; 'owner/name:config:split' or
      'owner/name@revision:config:split' of the hub, where config may be empty; or
      'tfds:name:split', where name is as tfds.data_source takes it: 'gsm8k',
      'ai2_arc/ARC-Easy:1.0.0'.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: the file is empty or broken (naming the line), the hub does not give the data, or
      `source` is none of these.
  """
  suffix = _SUFFIX.search(source)
  if suffix:
    text = _read_text(pathlib.Path(source).expanduser(), gzipped=suffix[2] is not None)
    rows = _from_csv(source, text) if suffix[1] == 'csv' else _from_json(source, text)
  elif tfds := _TFDS.fullmatch(source):
    rows = _from_tfds(*tfds.groups())
  elif hub := _HUB.fullmatch(source):
    rows = _from_hub(*hub.groups())
  else:
    raise ValueError(
      f'{source!r}: neither a .json, .jsonl or .csv file (or .gz of it), nor a hub id'
      " 'owner/name:config:split', nor 'tfds:name:split'"
    )
  if not rows:
    raise ValueError(f'{source}: has no rows; check that the file is complete')
  return rows


def columns(
  source: str, rows: Sequence[Row], fields: Sequence[str], hint: str = ''
) -> list[list[Any]]:
  """Returns the values of `fields`, row by row.

  Raises ValueError naming the field that a row lacks and those it has.
  """
  for number, row in enumerate(rows, 1):
    for field in fields:
      if row.get(field) is None:
        raise ValueError(
          f'{source}: row {number} has no field {field!r}, only {", ".join(map(str, row))}{hint}'
        )
  return [[row[field] for field in fields] for row in rows]


def as_list(where: str, value: Any) -> list[Any]:
  """Returns a column's list, which a .csv file holds as the text of a JSON list.

  Raises ValueError when it is no list.
  """
  if isinstance(value, str):
    with contextlib.suppress(ValueError, RecursionError):
      value = json.loads(value)
  if isinstance(value, str | bytes | dict) or not hasattr(value, '__iter__'):
    raise ValueError(
      f'{where}: {value!r:.80} is no list; give one, in a .csv file as JSON: ["3", "4"]'
    )
  return list(value)


def as_text(where: str, value: Any) -> str:
  """Returns a text, a number or a truth value as text.

  Raises ValueError for anything else, such as null or a list.
  """
  if not isinstance(value, str | int | float):
    raise ValueError(f'{where}: {value!r:.80} is neither a text nor a number')
  return str(value)


def _read_text(path: pathlib.Path, gzipped: bool) -> str:
  if not path.is_file():
    raise FileNotFoundError(f'{path}: no such file; check the path')
  try:
    content = path.read_bytes()
    return (gzip.decompress(content) if gzipped else content).decode('utf-8-sig')
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise ValueError(f'{path}: not a complete gzip file ({error}); copy it again') from error
  except UnicodeDecodeError as error:
    raise ValueError(
      f'{path}: not UTF-8 text ({error.reason} at byte {error.start}); convert it'
    ) from error


def _from_json(source: str, text: str) -> list[Row]:
  """Reads a list, an object whose 'examples' is a list, or objects one after the other.

  Such an object is on one line or on many.
  """
  decoder, numbered = json.JSONDecoder(), []
  at, line = 0, 1
  while True:
    gap = _GAP.match(text, at)
    assert gap is not None
    if gap.end() == len(text):
      break
    line += gap[0].count('\n')
    if numbered and '\n' not in gap[0]:
      raise ValueError(
        f'{source}, line {line}: broken JSON (it goes on behind a value); write an object a line'
      )
    try:
      value, at = decoder.raw_decode(text, gap.end())
    except (ValueError, RecursionError) as error:
      line = getattr(error, 'lineno', line)
      raise ValueError(
        f'{source}, line {line}: broken JSON ({error}); copy the file again, or write an object a'
        ' line'
      ) from error
    numbered.append((f'line {line}', value))
    line += text.count('\n', gap.end(), at)
  if len(numbered) == 1:
    [(_, value)] = numbered
    rows = value.get('examples') if isinstance(value, dict) else value
    if isinstance(rows, list):
      numbered = [(f'row {number}', row) for number, row in enumerate(rows, 1)]
  for where, row in numbered:
    if not isinstance(row, dict):
      raise ValueError(
        f'{source}, {where}: is {type(row).__name__}, not an object with named fields'
      )
  return [row for _, row in numbered]


def _from_csv(source: str, text: str) -> list[Row]:
  # A field may be as long as the file.
  csv.field_size_limit(max(len(text), csv.field_size_limit()))
  reader = csv.DictReader(io.StringIO(text, newline=''), strict=True)
  rows = []
  try:
    names = reader.fieldnames or ()
    if len(set(names)) < len(names):
      raise ValueError(
        f'{source}, line 1: two columns have one name, of {", ".join(names)}; rename one'
      )
    for row in reader:
      if None in row or None in row.values():
        raise ValueError(
          f'{source}, line {reader.line_num}: has not the {len(names)} fields of the first line'
        )
      rows.append(row)
  except csv.Error as error:
    raise ValueError(f'{source}, line {reader.line_num}: broken CSV ({error})') from error
  return rows


def _from_hub(path: str, revision: str | None, config: str, split: str) -> list[Row]:
  import datasets  # pylint: disable=g-import-not-at-top

  try:
    rows = datasets.load_dataset(path, config or None, split=split, revision=revision)
  # It raises these offline, for an unknown name, config or split, and for a data set that needs its
  # own script.
  except (OSError, ValueError, RuntimeError) as error:
    reason = str(error).strip().split('\n')[0]
    raise ValueError(
      f'{path}:{config}:{split}: the hub does not give it ({reason}); check the id, or give a local'
      ' file'
    ) from error
  return [dict(row) for row in rows]


def _from_tfds(name: str, split: str) -> list[Row]:
  """Returns the rows of a data source: random access to its files, without TensorFlow."""
  try:
    import tensorflow_datasets  # pyright: ignore[reportMissingImports] # pylint: disable=g-import-not-at-top
  except ImportError as error:
    raise ValueError(
      f"tfds:{name}: tensorflow_datasets is not installed; pip install 'imm_jax[tfds]'"
    ) from error
  try:
    rows = tensorflow_datasets.data_source(name, split=split)
  # It raises these for an unknown name, config or split, for a data set that can be made only with
  # TensorFlow, and offline.
  except (OSError, ValueError, ImportError, NotImplementedError) as error:
    reason = str(error).strip().split('\n')[0]
    raise ValueError(
      f'tfds:{name}:{split}: is not given ({reason}); check the name, or give a local file'
    ) from error
  return [_plain(row) for row in rows]


def _plain(value: Any) -> Any:
  """Returns a value of a data source in the form of JSON.

  Bytes become text, arrays become lists and numbers.
  """
  if isinstance(value, dict):
    return {key: _plain(item) for key, item in value.items()}
  value = value.tolist() if hasattr(value, 'tolist') else value
  if isinstance(value, list):
    return [_plain(item) for item in value]
  return value.decode() if isinstance(value, bytes) else value
