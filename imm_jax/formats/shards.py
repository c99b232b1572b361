"""Reads and writes the *.safetensors files of a model directory, tensor by tensor."""

from collections.abc import Callable, Iterable, Mapping
import concurrent.futures
import itertools
import json
import math
import mmap
import os
import pathlib
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

# safetensors' names of NumPy's dtypes.
DTYPES = {
  'F64': np.dtype(np.float64), 'F32': np.dtype(np.float32), 'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16), 'I64': np.dtype(np.int64), 'I32': np.dtype(np.int32),
  'I16': np.dtype(np.int16),
  'I8': np.dtype(np.int8), 'U8': np.dtype(np.uint8), 'BOOL': np.dtype(np.bool_),
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Spec(NamedTuple):
  """The dtype and shape of a tensor."""

  dtype: np.dtype
  shape: tuple[int, ...]


def read_json(file: pathlib.Path) -> dict[str, Any]:
  """Returns the object in a file of a model directory.

  Raises FileNotFoundError, or ValueError when it is not valid JSON.
  """
  if not file.exists():
    raise FileNotFoundError(
      f'{file.parent}: has no {file.name}: not a Hugging Face model directory'
    )
  try:
    return json.loads(file.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'{file}: not JSON ({error})') from None


def write_json(file: pathlib.Path, content: Mapping[str, Any]) -> None:
  """Writes an object, indented."""
  file.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')


class Tensor(NamedTuple):
  """A tensor in a file; its bytes are memory-mapped, and read when they are accessed."""

  file: mmap.mmap
  dtype_name: str  # safetensors' name; NumPy may lack the dtype.
  shape: tuple[int, ...]
  start: int  # The offset of its first byte in the file.
  end: int

  def spec(self) -> Spec:
    """Returns its Spec. Raises ValueError for a dtype that NumPy lacks."""
    if self.dtype_name not in DTYPES:
      raise ValueError(f'dtype {self.dtype_name} is not supported (only {", ".join(DTYPES)})')
    return Spec(DTYPES[self.dtype_name], self.shape)

  def array(self) -> np.ndarray:
    """Returns the tensor as a view of the file."""
    dtype, shape = self.spec()
    return np.frombuffer(self.file, dtype, math.prod(shape), self.start).reshape(shape)

  def release(self) -> None:
    """Frees the memory that its bytes occupy; the next access reads them again."""
    start = -(-self.start // mmap.PAGESIZE) * mmap.PAGESIZE
    if self.end - start >= mmap.PAGESIZE:
      self.file.madvise(mmap.MADV_DONTNEED, start, self.end - start)


def open_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
  """Returns the tensors of a model directory by name, in the files' order.

  Raises FileNotFoundError when files are missing, ValueError when one is damaged.
  """
  tensors = {}
  for file in _weight_files(pathlib.Path(path)):
    tensors |= open_file(file)
  # Old files carry a table of the rotary embedding, which is ignored: we compute it.
  return {
    name: tensor for name, tensor in tensors.items() if not name.endswith('.rotary_emb.inv_freq')
  }


def open_file(file: pathlib.Path) -> dict[str, Tensor]:
  """Returns the tensors of a file by name, in its order.

  Raises FileNotFoundError, or ValueError when it is damaged.
  """
  try:
    safetensors.safe_open(file, framework='numpy')  # Checks the header against the file.
  except safetensors.SafetensorError as error:
    raise ValueError(
      f'{file}: not a whole safetensors file ({error}); download or copy it again'
    ) from None
  with open(file, 'rb') as opened:
    mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
  start = 8 + int.from_bytes(mapped[:8], 'little')
  header = json.loads(mapped[8:start])
  header.pop('__metadata__', None)
  tensors = {}
  for name, entry in sorted(header.items(), key=lambda item: item[1]['data_offsets']):
    first, last = entry['data_offsets']
    tensors[name] = Tensor(
      mapped, entry['dtype'], tuple(entry['shape']), start + first, start + last
    )
  return tensors


def _weight_files(path: pathlib.Path) -> list[pathlib.Path]:
  if (path / 'model.safetensors').exists():
    return [path / 'model.safetensors']
  index = path / 'model.safetensors.index.json'
  if not index.exists():
    raise FileNotFoundError(
      f'{path}: has no model.safetensors and no {index.name}; convert the weights to safetensors'
    )
  names = sorted(set(read_json(index)['weight_map'].values()))
  missing = [name for name in names if not (path / name).exists()]
  if missing:
    raise FileNotFoundError(
      f'{path}: {index.name} names files that are not there: {", ".join(missing)}'
    )
  return [path / name for name in names]


def write_tensors(
  path: str | os.PathLike[str],
  specs: Mapping[str, Spec],
  fetch: Callable[[str], Iterable[np.ndarray]],
  *,
  max_shard_bytes: float = 5e9,
  num_threads: int = 1,
  writes: bool = True,
) -> None:
  """Writes tensors into a directory, in one file or several of at most max_shard_bytes.

  Several files come with an index.

  Args:
    path: the directory, which has to exist.
    specs: the Spec of each tensor, by name.
    fetch: returns the tensor of a name, in one array or as parts in order; called in the order of
      specs, once for each.
    max_shard_bytes: the largest size of a file; a tensor that is larger has a file of its own.
    num_threads: the number of tensors fetched and written at the same time, which are all held in
      memory.
    writes: False only fetches, as all processes but one do.
  """
  path = pathlib.Path(path)
  sizes = {name: math.prod(x.shape) * x.dtype.itemsize for name, x in specs.items()}
  files = _split(sizes, max_shard_bytes)
  with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
    for file, names in files.items():
      header, starts = _layout({name: specs[name] for name in names})
      with open(path / file if writes else os.devnull, 'wb') as out:
        out.write(header)
        out.flush()

        def one(name, fd, start):
          end = start + sizes[name]
          for part in fetch(name):
            assert part.dtype == specs[name].dtype, (name, part.dtype, specs[name])
            if writes:
              _write_at(fd, start, np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
            start += part.nbytes
          assert start == end, (name, start - end, specs[name])

        list(pool.map(one, names, itertools.repeat(out.fileno()), starts))
  if writes and len(files) > 1:
    weight_map = {name: file for file, names in files.items() for name in names}
    index = {'metadata': {'total_size': sum(sizes.values())}, 'weight_map': weight_map}
    write_json(path / 'model.safetensors.index.json', index)


def _layout(specs: Mapping[str, Spec]) -> tuple[bytes, list[int]]:
  """Returns the head of a safetensors file, and the offset in the file of each tensor."""
  entries: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  starts, end = [], 0
  for name, (dtype, shape) in specs.items():
    starts.append(end)
    end += math.prod(shape) * dtype.itemsize
    entries[name] = {
      'dtype': _NAMES[dtype],
      'shape': list(shape),
      'data_offsets': [starts[-1], end],
    }
  text = json.dumps(entries).encode()
  text += b' ' * (-len(text) % 8)
  return len(text).to_bytes(8, 'little') + text, [8 + len(text) + start for start in starts]


def _write_at(fd: int, position: int, data: memoryview) -> None:
  """Writes data at a position of a file; the system takes at most 2 GB at a time."""
  while data:
    done = os.pwrite(fd, data, position)
    data, position = data[done:], position + done


def _split(sizes: Mapping[str, int], max_bytes: float) -> dict[str, list[str]]:
  """Returns the tensors of each file, as many as fit and at least one. `sizes` are in bytes."""
  shards, used = [[]], 0
  for name, size in sizes.items():
    if shards[-1] and used + size > max_bytes:
      shards.append([])
      used = 0
    shards[-1].append(name)
    used += size
  if len(shards) == 1:
    return {'model.safetensors': shards[0]}
  return {
    f'model-{i:05}-of-{len(shards):05}.safetensors': names
    for i, names in enumerate(shards, start=1)
  }
