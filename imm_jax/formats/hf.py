"""Reads and writes Hugging Face directories (config.json and *.safetensors)."""

import collections
import functools
import os
import pathlib
import re

import jax
from jax.experimental import multihost_utils
import numpy as np

from imm_jax import sharding
from imm_jax.formats import hf_config, peft, shards, table
from imm_jax.formats.tokenizer import Tokenizer
from imm_jax.models import transformer
from imm_jax.models.config import ModelConfig


def read_config(path: str | os.PathLike[str]) -> ModelConfig:
  """Returns the architecture that the directory's config.json describes."""
  file = pathlib.Path(path) / 'config.json'
  return hf_config.config_from_hf(shards.read_json(file), file)


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
  """Returns the directory's tokenizer."""
  return Tokenizer.load(path)


def read_license(path: str | os.PathLike[str]) -> str:
  """Returns the license in the front matter of the directory's README.md, '' without one."""
  file = pathlib.Path(path) / 'README.md'
  front = (
    re.match(r'---\n(.*?)\n---', file.read_text(encoding='utf-8'), re.DOTALL)
    if file.exists()
    else None
  )
  found = re.search(r'^license:[ ]*(\S+)', front[1], re.MULTILINE) if front else None
  return found[1] if found else ''


def load_params(
  path: str | os.PathLike[str],
  config: ModelConfig,
  mesh: jax.sharding.Mesh,
  rules: sharding.Rules,
  adapter: peft.Adapter | None = None,
) -> transformer.Params:
  """Returns the directory's weights as float32 params on the devices of `mesh`.

  bfloat16 and float16 are widened. With an adapter, the weights are those of its base with the
  adapter merged into them.
  """
  tensors, rows = shards.open_tensors(path), table.hf_rows(config.family)

  def read(name: str, index: table.Index) -> np.ndarray:
    return tensors[name].array()[index].astype(np.float32, copy=False)

  wanted, found = (
    table.file_shapes(rows, config),
    {name: tensor.shape for name, tensor in tensors.items()},
  )
  embedding, head = 'model.embed_tokens.weight', 'lm_head.weight'
  if config.tie_embeddings and embedding in found and found.get(head) == found[embedding]:
    for start in range(0, config.vocab_size, 4096):
      part = (slice(start, min(start + 4096, config.vocab_size)), slice(None))
      if not np.array_equal(read(head, part), read(embedding, part), equal_nan=True):
        raise ValueError(
          f'{path}: tie_word_embeddings is true, and {head} differs from {embedding}; set it to'
          ' false'
        )
    del found[head]
  table.check(path, wanted, found)
  dtypes = {name: tensors[name].dtype_name for name in wanted}
  narrow = [
    f'{name} is {dtype}' for name, dtype in dtypes.items() if dtype not in ('F32', 'BF16', 'F16')
  ]
  if narrow:
    raise ValueError(f'{path}: only F32, BF16 and F16 tensors are supported: {", ".join(narrow)}')
  if adapter:
    adapter.check(wanted, config.tie_embeddings)
  return table.load(rows, config, mesh, rules, adapter.apply(read) if adapter else read)


def save(
  path: str | os.PathLike[str],
  config: ModelConfig,
  params: transformer.Params,
  dtype: str = 'float32',
  max_shard_bytes: float = 5e9,
) -> None:
  """Writes config.json and the weights into `path`.

  The weights go into one file or, with an index, into several of at most max_shard_bytes. Every
  process calls it; process 0 writes. The host holds one tensor at a time.
  """
  if dtype not in ('float32', 'bfloat16'):
    raise ValueError(f"dtype: '{dtype}' is not one of float32, bfloat16")
  path, leaves, rows = pathlib.Path(path), table.by_path(params), table.hf_rows(config.family)
  parts = collections.defaultdict(list)  # The parts of each tensor.
  for row, shape in table.used_rows(rows, config):
    assert leaves[row.path].shape == shape, (row.path, leaves[row.path].shape, shape)
    for layer in range(config.num_layers) if row.path.startswith(table.LAYERS) else (None,):
      parts[row.name.format(layer=layer)].append((leaves[row.path], row, layer))
  specs = {
    name: shards.Spec(np.dtype(dtype), shape)
    for name, shape in table.file_shapes(rows, config).items()
  }
  writes = jax.process_index() == 0
  if writes:
    path.mkdir(parents=True, exist_ok=True)
  shards.write_tensors(
    path,
    specs,
    lambda name: (_fetch(*part, dtype=dtype) for part in parts[name]),
    max_shard_bytes=max_shard_bytes,
    writes=writes,
  )
  if writes:
    save_config(path, config, dtype)


def save_config(path: str | os.PathLike[str], config: ModelConfig, dtype: str = 'float32') -> None:
  """Writes config.json alone; `dtype` is the dtype of the weights beside it."""
  shards.write_json(
    pathlib.Path(path) / 'config.json', hf_config.config_to_hf(config) | {'torch_dtype': dtype}
  )


def _fetch(x: jax.Array, row: table.Row, layer: int | None, dtype: str) -> np.ndarray:
  """Returns one tensor in the file's layout, on the host of every process."""
  x = _to_file(x, row, dtype) if layer is None else _layer_to_file(x, np.int32(layer), row, dtype)
  if not x.is_fully_addressable:
    x = multihost_utils.process_allgather(x, tiled=True)
  return np.ascontiguousarray(x)


@functools.partial(jax.jit, static_argnames=('row', 'dtype'))
def _to_file(x: jax.Array, row: table.Row, dtype: str) -> jax.Array:
  return row.turn(x).astype(dtype)


@functools.partial(jax.jit, static_argnames=('row', 'dtype'))
def _layer_to_file(x: jax.Array, layer: jax.Array, row: table.Row, dtype: str) -> jax.Array:
  return _to_file(jax.lax.dynamic_index_in_dim(x, layer, keepdims=False), row, dtype)
