"""Hugging Face directories (config.json and *.safetensors) of Llama, Mistral, Qwen2 and Qwen3 models, both ways."""

import functools
import json
import math
import os
import pathlib
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from imm_jax import model, sharding
from imm_jax.formats import hf_config, table
from imm_jax.tokenizer import Tokenizer

TABLE = table.rows(lambda names: names.hf)


def read_config(path: str | os.PathLike[str]) -> model.ModelConfig:
  """Returns the architecture that the directory's config.json describes."""
  file = pathlib.Path(path) / 'config.json'
  return hf_config.config_from_hf(_read_json(file), file)


def _read_json(file: pathlib.Path) -> dict[str, Any]:
  if not file.exists():
    raise FileNotFoundError(f'{file.parent}: has no {file.name}: not a Hugging Face model directory')
  try:
    return json.loads(file.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'{file}: not JSON ({error})') from None


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
  """Returns the directory's tokenizer."""
  return Tokenizer.load(path)


def load_params(
  path: str | os.PathLike[str], config: model.ModelConfig, mesh: jax.sharding.Mesh, rules: sharding.Rules
) -> model.Params:
  """Returns the directory's weights, float32 (bfloat16 and float16 are widened), on the devices of `mesh`."""
  slices = {}
  for file in _weight_files(pathlib.Path(path)):
    try:
      handle = safetensors.safe_open(file, framework='numpy')
    except safetensors.SafetensorError as error:
      raise ValueError(f'{file}: not a whole safetensors file ({error}); download or copy it again') from None
    names = [name for name in handle.keys() if not name.endswith('.rotary_emb.inv_freq')]  # noqa: SIM118
    slices |= {name: handle.get_slice(name) for name in names}

  def read(name: str, index: table.Index) -> np.ndarray:
    return slices[name][index].astype(np.float32, copy=False)

  wanted, found = table.file_shapes(TABLE, config), {name: tuple(x.get_shape()) for name, x in slices.items()}
  embedding, head = 'model.embed_tokens.weight', 'lm_head.weight'
  if config.tie_embeddings and embedding in found and found.get(head) == found[embedding]:
    for start in range(0, config.vocab_size, 4096):
      rows = (slice(start, min(start + 4096, config.vocab_size)), slice(None))
      if not np.array_equal(read(head, rows), read(embedding, rows), equal_nan=True):
        raise ValueError(f'{path}: tie_word_embeddings is true, and {head} differs from {embedding}; set it to false')
    del found[head]
  table.check(path, wanted, found)
  dtypes = {name: slices[name].get_dtype() for name in wanted}
  narrow = [f'{name} is {dtype}' for name, dtype in dtypes.items() if dtype not in ('F32', 'BF16', 'F16')]
  if narrow:
    raise ValueError(f'{path}: only F32, BF16 and F16 tensors are supported: {", ".join(narrow)}')
  return table.load(TABLE, config, mesh, rules, read)


def _weight_files(path: pathlib.Path) -> list[pathlib.Path]:
  if (path / 'model.safetensors').exists():
    return [path / 'model.safetensors']
  index = path / 'model.safetensors.index.json'
  if not index.exists():
    raise FileNotFoundError(f'{path}: has no model.safetensors and no {index.name}; convert the weights to safetensors')
  names = sorted(set(_read_json(index)['weight_map'].values()))
  missing = [name for name in names if not (path / name).exists()]
  if missing:
    raise FileNotFoundError(f'{path}: {index.name} names files that are not there: {", ".join(missing)}')
  return [path / name for name in names]


def save(
  path: str | os.PathLike[str],
  config: model.ModelConfig,
  params: model.Params,
  dtype: str = 'float32',
  max_shard_bytes: float = 5e9,
) -> None:
  """Writes config.json and the weights into `path`, in one file or, with an index, in several of at most max_shard_bytes.

  Every process calls it; process 0 writes. The host holds one file's tensors at a time.
  """
  if dtype not in ('float32', 'bfloat16'):
    raise ValueError(f"dtype: '{dtype}' is not one of float32, bfloat16")
  path, leaves, tensors = pathlib.Path(path), table.by_path(params), {}
  for row, shape in table.used_rows(TABLE, config):
    assert leaves[row.path].shape == shape, (row.path, leaves[row.path].shape, shape)
    for layer in range(config.num_layers) if row.path.startswith(table.LAYERS) else (None,):
      tensors[row.name.format(layer=layer)] = (leaves[row.path], row, layer)
  itemsize = jnp.dtype(dtype).itemsize
  sizes = {name: math.prod(shape) * itemsize for name, shape in table.file_shapes(TABLE, config).items()}
  files = _split(sizes, max_shard_bytes)
  writes = jax.process_index() == 0
  if writes:
    path.mkdir(parents=True, exist_ok=True)
  for file, names in files.items():
    arrays = {}
    for name in names:
      array = _fetch(*tensors[name], dtype=dtype)
      if writes:
        arrays[name] = array
    if writes:
      safetensors.numpy.save_file(arrays, path / file, metadata={'format': 'pt'})
  if writes and len(files) > 1:
    weight_map = {name: file for file, names in files.items() for name in names}
    index = {'metadata': {'total_size': sum(sizes.values())}, 'weight_map': weight_map}
    _write_json(path / 'model.safetensors.index.json', index)
  if writes:
    save_config(path, config, dtype)


def save_config(path: str | os.PathLike[str], config: model.ModelConfig, dtype: str = 'float32') -> None:
  """Writes config.json alone; `dtype` is that of the weights beside it."""
  _write_json(pathlib.Path(path) / 'config.json', hf_config.config_to_hf(config) | {'torch_dtype': dtype})


def _split(sizes: dict[str, int], max_bytes: float) -> dict[str, list[str]]:
  """Returns the tensors of each file: as many as fit, and at least one. `sizes` are in bytes."""
  shards, used = [[]], 0
  for name, size in sizes.items():
    if shards[-1] and used + size > max_bytes:
      shards.append([])
      used = 0
    shards[-1].append(name)
    used += size
  if len(shards) == 1:
    return {'model.safetensors': shards[0]}
  return {f'model-{i:05}-of-{len(shards):05}.safetensors': names for i, names in enumerate(shards, start=1)}


def _fetch(x: jax.Array, row: table.Row, layer: int | None, dtype: str) -> np.ndarray:
  """Returns one tensor as the file has it, on the host (of every process)."""
  x = _to_file(x, row, dtype) if layer is None else _layer_to_file(x, np.int32(layer), row, dtype)
  if not x.is_fully_addressable:
    x = multihost_utils.process_allgather(x, tiled=True)
  return np.ascontiguousarray(x)


@functools.partial(jax.jit, static_argnames=('row', 'dtype'))
def _to_file(x: jax.Array, row: table.Row, dtype: str) -> jax.Array:
  return row.to_file(x).astype(dtype)


@functools.partial(jax.jit, static_argnames=('row', 'dtype'))
def _layer_to_file(x: jax.Array, layer: jax.Array, row: table.Row, dtype: str) -> jax.Array:
  return _to_file(jax.lax.dynamic_index_in_dim(x, layer, keepdims=False), row, dtype)


def _write_json(file: pathlib.Path, content: dict[str, Any]) -> None:
  file.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
