"""Loads GGUF files, llama.cpp's format, of Llama, Qwen2 and Qwen3 models.

They become a ModelConfig and params. Quantised tensors become float32, so training starts from the
model as it is after quantisation.
"""

from collections.abc import Iterable, Mapping
import functools
import os
import pathlib
from typing import Any

import gguf
from gguf import quants
import jax
import numpy as np

from imm_jax import sharding
from imm_jax.formats import table
from imm_jax.formats.tokenizer import Tokenizer
from imm_jax.models import transformer
from imm_jax.models.config import ModelConfig

TABLE = table.gguf_rows()

# Architecture -> the ModelConfig fields in which it differs from a plain Llama.
_ARCHITECTURES = {'llama': {}, 'qwen2': {'qkv_bias': True}, 'qwen3': {'qk_norm': 'head'}}

# Metadata '<architecture>.<key>' -> ModelConfig field.
_FIELDS = {
  'block_count': 'num_layers',
  'context_length': 'max_length',
  'embedding_length': 'embed_dim',
  'feed_forward_length': 'mlp_dim',
  'attention.head_count': 'num_heads',
  'attention.head_count_kv': 'num_kv_heads',
  'attention.key_length': 'head_dim',
  'attention.layer_norm_rms_epsilon': 'rms_norm_eps',
  'rope.freq_base': 'rope_theta',
}
_IGNORED = {'vocab_size'}  # It is read from the embedding's shape instead.


@functools.lru_cache(maxsize=1)
def _open(
  path: pathlib.Path, unused_mtime_ns: int
) -> tuple[dict[str, gguf.ReaderField], dict[str, gguf.ReaderTensor]]:
  """Returns the metadata and the tensors by name.

  The result is cached, as reading the file's index takes seconds.
  """
  try:
    reader = gguf.GGUFReader(path)
  except (ValueError, IndexError, KeyError) as error:
    raise ValueError(
      f'{path}: not a whole GGUF file ({error}); download or copy it again'
    ) from None
  return reader.fields, {tensor.name: tensor for tensor in reader.tensors}


def read_config(path: str | os.PathLike[str]) -> ModelConfig:
  """Returns the architecture that the file's metadata describes."""
  path = pathlib.Path(path)
  fields, tensors = _open(path, path.stat().st_mtime_ns)
  values = {
    name: field.contents()
    for name, field in fields.items()
    if field.types[0] != gguf.GGUFValueType.ARRAY
  }
  shapes = {name: _shape(tensor) for name, tensor in tensors.items()}
  return config_from_gguf(values, shapes, path)


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
  """Returns the tokenizer that the file's metadata describes."""
  path, start = pathlib.Path(path), 'tokenizer.'
  fields, _ = _open(path, path.stat().st_mtime_ns)
  values = {
    name.removeprefix(start): field.contents()
    for name, field in fields.items()
    if name.startswith(start)
  }
  return Tokenizer.from_gguf(values, path)


def read_license(path: str | os.PathLike[str]) -> str:
  """Returns the license in the file's metadata, '' where there is none."""
  path = pathlib.Path(path)
  fields, _ = _open(path, path.stat().st_mtime_ns)
  return str(fields['general.license'].contents()) if 'general.license' in fields else ''


def config_from_gguf(
  fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], source: object
) -> ModelConfig:
  """Returns the config that this metadata and these tensor shapes describe.

  Raises ValueError naming the field or tensor that is not supported.
  """
  arch = fields.get('general.architecture')
  if arch not in _ARCHITECTURES:
    raise ValueError(
      f"{source}: general.architecture '{arch}' is not one of {', '.join(_ARCHITECTURES)}"
    )
  given = {
    key.removeprefix(f'{arch}.'): value
    for key, value in fields.items()
    if key.startswith(f'{arch}.')
  }
  if 'attention.head_count' in given and 'embedding_length' in given:
    given.setdefault('attention.head_count_kv', given['attention.head_count'])
    given.setdefault(
      'attention.key_length', given['embedding_length'] // given['attention.head_count']
    )
  given.setdefault('rope.freq_base', 10000.0)
  missing = [f'{arch}.{key}' for key in _FIELDS if key not in given]
  missing += ['the tensor token_embd.weight'] if 'token_embd.weight' not in shapes else []
  if missing:
    raise ValueError(f'{source}: missing: {", ".join(missing)}')
  # The file stores float32, where 1e-05 reads back as 9.999999747378752e-06, so round.
  values = {
    field: float(str(np.float32(given[key]))) if isinstance(given[key], float) else given[key]
    for key, field in _FIELDS.items()
  }
  if wrong := _mistakes(given, shapes, arch):
    raise ValueError(
      f'{source}: ' + '; '.join(wrong) + '; convert from the Hugging Face directory instead'
    )
  return ModelConfig(
    family=arch,
    vocab_size=shapes['token_embd.weight'][0],
    tie_embeddings='output.weight' not in shapes,
    **values,
    **_ARCHITECTURES[arch],
  )


def _mistakes(given: Mapping[str, Any], shapes: Iterable[str], arch: str) -> list[str]:
  """Returns a phrase for each field or tensor that is not supported."""
  fixed = {
    'attention.value_length': given['attention.key_length'],
    'rope.dimension_count': given['attention.key_length'],
    'rope.scaling.type': 'none',
    'expert_count': 0,
    'expert_used_count': 0,
  }
  wrong = []
  for key, value in given.items():
    if key not in _FIELDS and key not in _IGNORED and value != fixed.get(key):
      only = f' (only {fixed[key]!r})' if key in fixed else ''
      wrong.append(f'{arch}.{key} = {value!r} is not supported{only}')
  return wrong + [
    f'tensor {name} (scaled rotary frequencies) is not supported'
    for name in shapes
    if 'rope_freqs' in name
  ]


def load_params(
  path: str | os.PathLike[str], config: ModelConfig, mesh: jax.sharding.Mesh, rules: sharding.Rules
) -> transformer.Params:
  """Returns the file's weights, float32, on the devices of `mesh`."""
  path = pathlib.Path(path)
  _, tensors = _open(path, path.stat().st_mtime_ns)
  table.check(
    path,
    table.file_shapes(TABLE, config),
    {name: _shape(tensor) for name, tensor in tensors.items()},
  )

  # A block of quantised numbers is decoded whole, and each device asks for its part.
  @functools.lru_cache(maxsize=1)
  def whole(name: str) -> np.ndarray:
    try:
      x = quants.dequantize(tensors[name].data, tensors[name].tensor_type)
    except NotImplementedError:
      raise ValueError(
        f'{path}: tensor {name}: cannot decode {tensors[name].tensor_type.name}'
      ) from None
    if config.family == 'llama' and '.attn_q.' in name:
      return _unpermute(x, config.num_heads)
    if config.family == 'llama' and '.attn_k.' in name:
      return _unpermute(x, config.num_kv_heads)
    return x

  return table.load(
    TABLE,
    config,
    mesh,
    rules,
    lambda name, index: whole(name)[index].astype(np.float32, copy=False),
  )


def _unpermute(x: np.ndarray, num_heads: int) -> np.ndarray:
  """Reorders rotary dimensions from llama.cpp's pairs to halves.

  llama.cpp rotates neighbours, we rotate halves: [N * (H/2, 2), D] -> [N * (2, H/2), D].
  """
  return x.reshape(num_heads, -1, 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape)


def _shape(tensor: gguf.ReaderTensor) -> tuple[int, ...]:
  return tuple(int(size) for size in reversed(tensor.shape))
