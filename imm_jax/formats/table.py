"""Maps the tensors of a file to stacked, sharded params, for hf.py and gguf.py.

The table has a row for each parameter that a model may have: our path, and the tensor's name in
each format. Loading, saving and reporting missing tensors read the same rows.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import concurrent.futures
import dataclasses
import math
from typing import Any

import jax
import numpy as np

from imm_jax import sharding
from imm_jax.models import transformer
from imm_jax.models.config import ModelConfig

# Params with this prefix are stacked [L, ...] here, and one tensor per layer in a file.
LAYERS = 'layers/'


Index = tuple[slice, ...]
# Takes the file's name of a tensor and an index; returns that part of the tensor, float32.
Read = Callable[[str, Index], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Names:
  """The names of one parameter: `path` is ours, the others are its tensor's name in each format.

  {layer} is replaced by the number of the layer.
  """

  path: str
  hf: str
  gguf: str


_HF, _GGUF = 'model.layers.{layer}.', 'blk.{layer}.'
_TABLE = (
  Names('embedding', 'model.embed_tokens.weight', 'token_embd.weight'),
  Names('layers/attn_norm/scale', f'{_HF}input_layernorm.weight', f'{_GGUF}attn_norm.weight'),
  Names('layers/attn/q/kernel', f'{_HF}self_attn.q_proj.weight', f'{_GGUF}attn_q.weight'),
  Names('layers/attn/q/bias', f'{_HF}self_attn.q_proj.bias', f'{_GGUF}attn_q.bias'),
  Names('layers/attn/k/kernel', f'{_HF}self_attn.k_proj.weight', f'{_GGUF}attn_k.weight'),
  Names('layers/attn/k/bias', f'{_HF}self_attn.k_proj.bias', f'{_GGUF}attn_k.bias'),
  Names('layers/attn/v/kernel', f'{_HF}self_attn.v_proj.weight', f'{_GGUF}attn_v.weight'),
  Names('layers/attn/v/bias', f'{_HF}self_attn.v_proj.bias', f'{_GGUF}attn_v.bias'),
  Names('layers/attn/q_norm/scale', f'{_HF}self_attn.q_norm.weight', f'{_GGUF}attn_q_norm.weight'),
  Names('layers/attn/k_norm/scale', f'{_HF}self_attn.k_norm.weight', f'{_GGUF}attn_k_norm.weight'),
  Names('layers/attn/o/kernel', f'{_HF}self_attn.o_proj.weight', f'{_GGUF}attn_output.weight'),
  Names(
    'layers/attn_post_norm/scale',
    f'{_HF}post_attention_layernorm.weight',
    f'{_GGUF}post_attention_norm.weight',
  ),
  Names(
    'layers/mlp_norm/scale', f'{_HF}post_attention_layernorm.weight', f'{_GGUF}ffn_norm.weight'
  ),
  Names('layers/mlp/gate/kernel', f'{_HF}mlp.gate_proj.weight', f'{_GGUF}ffn_gate.weight'),
  Names('layers/mlp/up/kernel', f'{_HF}mlp.up_proj.weight', f'{_GGUF}ffn_up.weight'),
  Names('layers/mlp/down/kernel', f'{_HF}mlp.down_proj.weight', f'{_GGUF}ffn_down.weight'),
  Names(
    'layers/mlp_post_norm/scale',
    f'{_HF}post_feedforward_layernorm.weight',
    f'{_GGUF}post_ffw_norm.weight',
  ),
  Names('final_norm/scale', 'model.norm.weight', 'output_norm.weight'),
  Names('lm_head/kernel', 'lm_head.weight', 'output.weight'),
)

# The names that differ in a family's Hugging Face files. Parameters that share a name follow each
# other in one tensor of the file.
_QKV, _GATE_UP = f'{_HF}self_attn.qkv_proj.weight', f'{_HF}mlp.gate_up_proj.weight'
_GEMMA = {'layers/mlp_norm/scale': f'{_HF}pre_feedforward_layernorm.weight'}
_HF_NAMES = {
  'gemma2': _GEMMA,
  'gemma3_text': _GEMMA,
  'phi3': {f'layers/attn/{x}/kernel': _QKV for x in 'qkv'}
  | {f'layers/mlp/{x}/kernel': _GATE_UP for x in ('gate', 'up')},
}


@dataclasses.dataclass(frozen=True)
class Row:
  """One parameter in one format: `path` is ours, `name` the file's with {layer}.

  A kernel is a matrix [inputs, outputs] in our params, and [outputs, inputs] in a file. Other
  parameters have the same layout in both.
  """

  path: str
  name: str

  def order(self, dims: Iterable[Any]) -> tuple[Any, ...]:
    """Reorders the values for our dimensions of one layer to the file's order, or back."""
    return tuple(dims)[::-1] if self.path.endswith('/kernel') else tuple(dims)

  def turn(self, x: Any) -> Any:
    """Converts one layer's parameter to the file's layout, or back."""
    return x.transpose(self.order(range(x.ndim)))

  def read(self, read: Read, name: str, index: Index) -> np.ndarray:
    """Returns the part `index` of one layer's parameter.

    It reads no other part of the file, where that is possible.
    """
    return self.turn(read(name, self.order(index)))


def hf_rows(family: str) -> tuple[Row, ...]:
  """Returns the table with the names in Hugging Face's files of a family."""
  own = _HF_NAMES.get(family, {})
  return tuple(Row(names.path, own.get(names.path, names.hf)) for names in _TABLE)


def gguf_rows() -> tuple[Row, ...]:
  """Returns the table with the names in GGUF files."""
  return tuple(Row(names.path, names.gguf) for names in _TABLE)


def by_path(params: Any) -> dict[str, Any]:
  """Returns the leaves by their path, 'layers/attn/q/kernel'."""
  return {_path(keys): leaf for keys, leaf in jax.tree.leaves_with_path(params)}


def used_rows(table: Sequence[Row], config: ModelConfig) -> Iterator[tuple[Row, tuple[int, ...]]]:
  """Yields the rows whose parameter a model of this config has, and its stacked shape."""
  abstract, _ = transformer.abstract_params(config)
  shapes = {path: leaf.shape for path, leaf in by_path(abstract).items()}
  assert set(shapes) <= {row.path for row in table}, set(shapes) - {row.path for row in table}
  for row in table:
    if row.path in shapes:
      yield row, shapes[row.path]


def file_shapes(table: Sequence[Row], config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Returns the name and shape of every tensor that a file of this config holds."""
  shapes = {}
  for row, shape in used_rows(table, config):
    in_layers = row.path.startswith(LAYERS)
    length, *rest = row.order(shape[1:] if in_layers else shape)
    for name in (
      [row.name.format(layer=layer) for layer in range(config.num_layers)]
      if in_layers
      else [row.name]
    ):
      before = shapes[name][0] if name in shapes else 0
      shapes[name] = (before + length, *rest)
  return shapes


def check(
  source: object, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
  """Raises ValueError with every tensor that is missing, unknown or of another shape."""
  lines = [f'missing: {name} {shape}' for name, shape in wanted.items() if name not in found]
  lines += [f'unknown: {name} {shape}' for name, shape in found.items() if name not in wanted]
  lines += [
    f'shape: {name} is {found[name]} in the file, and {shape} by the config'
    for name, shape in wanted.items()
    if found.get(name, shape) != shape
  ]
  if lines:
    raise ValueError(f'{source}: the tensors are not those of its config:\n  ' + '\n  '.join(lines))


def load(
  table: Sequence[Row],
  config: ModelConfig,
  mesh: jax.sharding.Mesh,
  rules: sharding.Rules,
  read: Read,
) -> transformer.Params:
  """Returns float32 params on the devices of `mesh`; each process reads its devices' parts.

  The host holds one device's part of one stacked tensor at a time.
  """
  abstract, axes = transformer.abstract_params(config)
  row_of, start_of, ends = {row.path: row for row in table}, {}, collections.Counter()
  for row, shape in used_rows(table, config):  # Finds where in its tensor a parameter starts.
    start_of[row.path] = ends[row.name]
    ends[row.name] += row.order(shape[1:] if row.path.startswith(LAYERS) else shape)[0]

  with concurrent.futures.ThreadPoolExecutor() as pool:

    def read_leaf(keys, struct, where):
      row, start = row_of[_path(keys)], start_of[_path(keys)]

      def read_own(name: str, index: Index) -> np.ndarray:
        return read(name, (slice(start + index[0].start, start + index[0].stop), *index[1:]))

      def read_part(index):
        index = tuple(slice(*i.indices(n)) for i, n in zip(index, struct.shape, strict=True))
        if not row.path.startswith(LAYERS):
          return row.read(read_own, row.name, index)
        layers = range(config.num_layers)[index[0]]
        part = _empty([i.stop - i.start for i in index])

        def read_layer(i):
          part[i] = row.read(read_own, row.name.format(layer=layers[i]), index[1:])

        list(pool.map(read_layer, range(len(layers))))
        return part

      return jax.make_array_from_callback(struct.shape, where, read_part)

    return jax.tree.map_with_path(
      read_leaf, abstract, sharding.shardings(mesh, rules, abstract, axes)
    )


def _empty(shape: Sequence[int]) -> np.ndarray:
  """Returns an uninitialised float32 array, aligned as XLA's CPU backend wants it.

  The backend can then use it without a copy.
  """
  alignment, num_bytes = 64, 4 * math.prod(shape)
  memory = np.empty(num_bytes + alignment, np.uint8)
  start = -memory.ctypes.data % alignment
  return memory[start : start + num_bytes].view(np.float32).reshape(shape)


def _path(keys) -> str:
  return jax.tree_util.keystr(keys, simple=True, separator='/')
