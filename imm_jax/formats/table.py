"""From the tensors of a file to stacked, sharded params, through a name table: what hf.py and gguf.py share.

The table has a row for each parameter that a model may have: our path, how the dimensions lie in a file and with us, and the
tensor's name in each format. The same rows are read for loading, for saving and for saying what is missing.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
import concurrent.futures
import dataclasses
import math
import re
from typing import Any

import jax
import numpy as np

from imm_jax import model, sharding

LAYERS = 'layers/'  # The params under it are stacked [L, ...] with us, and one tensor a layer in a file.


Index = tuple[slice, ...]
Read = Callable[[str, Index], np.ndarray]  # (the file's name of a tensor, which part of it) -> that part, float32


@dataclasses.dataclass(frozen=True)
class Names:
  """One parameter: `path` is ours, the others are the names of its tensor, {layer} the number of its layer."""

  path: str
  dims: str  # see Row
  hf: str
  gguf: str


_HF, _GGUF = 'model.layers.{layer}.', 'blk.{layer}.'
_TABLE = (
  Names('embedding', 'V D -> V D', 'model.embed_tokens.weight', 'token_embd.weight'),
  Names('layers/attn_norm/scale', 'D -> D', f'{_HF}input_layernorm.weight', f'{_GGUF}attn_norm.weight'),
  Names('layers/attn/q/kernel', '(N H) D -> D N H', f'{_HF}self_attn.q_proj.weight', f'{_GGUF}attn_q.weight'),
  Names('layers/attn/q/bias', '(N H) -> N H', f'{_HF}self_attn.q_proj.bias', f'{_GGUF}attn_q.bias'),
  Names('layers/attn/k/kernel', '(K H) D -> D K H', f'{_HF}self_attn.k_proj.weight', f'{_GGUF}attn_k.weight'),
  Names('layers/attn/k/bias', '(K H) -> K H', f'{_HF}self_attn.k_proj.bias', f'{_GGUF}attn_k.bias'),
  Names('layers/attn/v/kernel', '(K H) D -> D K H', f'{_HF}self_attn.v_proj.weight', f'{_GGUF}attn_v.weight'),
  Names('layers/attn/v/bias', '(K H) -> K H', f'{_HF}self_attn.v_proj.bias', f'{_GGUF}attn_v.bias'),
  Names('layers/attn/q_norm/scale', 'H -> H', f'{_HF}self_attn.q_norm.weight', f'{_GGUF}attn_q_norm.weight'),
  Names('layers/attn/k_norm/scale', 'H -> H', f'{_HF}self_attn.k_norm.weight', f'{_GGUF}attn_k_norm.weight'),
  Names('layers/attn/o/kernel', 'D (N H) -> N H D', f'{_HF}self_attn.o_proj.weight', f'{_GGUF}attn_output.weight'),
  Names(
    'layers/attn_post_norm/scale', 'D -> D', f'{_HF}post_attention_layernorm.weight', f'{_GGUF}post_attention_norm.weight'
  ),
  Names('layers/mlp_norm/scale', 'D -> D', f'{_HF}post_attention_layernorm.weight', f'{_GGUF}ffn_norm.weight'),
  Names('layers/mlp/gate/kernel', 'F D -> D F', f'{_HF}mlp.gate_proj.weight', f'{_GGUF}ffn_gate.weight'),
  Names('layers/mlp/up/kernel', 'F D -> D F', f'{_HF}mlp.up_proj.weight', f'{_GGUF}ffn_up.weight'),
  Names('layers/mlp/down/kernel', 'D F -> F D', f'{_HF}mlp.down_proj.weight', f'{_GGUF}ffn_down.weight'),
  Names('layers/mlp_post_norm/scale', 'D -> D', f'{_HF}post_feedforward_layernorm.weight', f'{_GGUF}post_ffw_norm.weight'),
  Names('final_norm/scale', 'D -> D', 'model.norm.weight', 'output_norm.weight'),
  Names('lm_head/kernel', 'V D -> D V', 'lm_head.weight', 'output.weight'),
)

# What a family's Hugging Face files call otherwise. Where parameters share a name, the file holds them one behind the other.
_QKV, _GATE_UP = f'{_HF}self_attn.qkv_proj.weight', f'{_HF}mlp.gate_up_proj.weight'
_GEMMA = {'layers/mlp_norm/scale': f'{_HF}pre_feedforward_layernorm.weight'}
_HF_NAMES = {
  'gemma2': _GEMMA,
  'gemma3_text': _GEMMA,
  'phi3': {f'layers/attn/{x}/kernel': _QKV for x in 'qkv'} | {f'layers/mlp/{x}/kernel': _GATE_UP for x in ('gate', 'up')},
}


@dataclasses.dataclass(frozen=True)
class Row:
  """One parameter: `path` is ours, `name` the file's with {layer}, `dims` the file's dimensions and ours.

  '(N H) D -> D N H': the file holds a matrix whose first dimension is heads and head_dim in one.
  """

  path: str
  name: str
  dims: str

  def groups(self) -> list[list[str]]:
    """Returns our dimensions that each dimension of the file holds, in order."""
    groups = re.findall(r'\(([\w ]+)\)|(\w+)', self.dims.split(' -> ')[0])
    return [(several or single).split() for several, single in groups]

  def ours(self) -> list[str]:
    """Returns our dimensions."""
    return self.dims.split(' -> ')[1].split()

  def file_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the tensor's shape in the file; `shape` is ours, of one layer."""
    sizes = dict(zip(self.ours(), shape, strict=True))
    return tuple(math.prod(sizes[dim] for dim in group) for group in self.groups())

  def to_file(self, x: jax.Array) -> jax.Array:
    """Returns one layer's parameter as the file has it."""
    order = [self.ours().index(dim) for group in self.groups() for dim in group]
    return x.transpose(order).reshape(self.file_shape(x.shape))

  def read(self, read: Read, name: str, shape: Sequence[int], index: Index) -> np.ndarray:
    """Returns the part `index` of one layer's parameter of this shape; reads no other part of the file if it can."""
    ours = self.ours()
    sizes, wanted = dict(zip(ours, shape, strict=True)), dict(zip(ours, index, strict=True))
    part, read_sizes, rest = [], {}, []
    for first, *inner in self.groups():
      start, stop, _ = wanted[first].indices(sizes[first])
      inner_size = math.prod(sizes[dim] for dim in inner)
      part.append(slice(start * inner_size, stop * inner_size))
      read_sizes |= {first: stop - start} | {dim: sizes[dim] for dim in inner}
      rest += inner
    x = read(name, tuple(part)).reshape(list(read_sizes.values()))
    x = x.transpose([list(read_sizes).index(dim) for dim in ours])
    return x[tuple(wanted[dim] if dim in rest else slice(None) for dim in ours)]


def hf_rows(family: str) -> tuple[Row, ...]:
  """Returns the table with the names in Hugging Face's files of a family."""
  own = _HF_NAMES.get(family, {})
  return tuple(Row(names.path, own.get(names.path, names.hf), names.dims) for names in _TABLE)


def gguf_rows() -> tuple[Row, ...]:
  """Returns the table with the names in GGUF files."""
  return tuple(Row(names.path, names.gguf, names.dims) for names in _TABLE)


def by_path(params: Any) -> dict[str, Any]:
  """Returns the leaves by their path, 'layers/attn/q/kernel'."""
  return {_path(keys): leaf for keys, leaf in jax.tree.leaves_with_path(params)}


def used_rows(table: Sequence[Row], config: model.ModelConfig) -> Iterator[tuple[Row, tuple[int, ...]]]:
  """Yields the rows whose parameter a model of this config has, and its shape with us (stacked)."""
  abstract, _ = model.abstract_params(config)
  shapes = {path: leaf.shape for path, leaf in by_path(abstract).items()}
  assert set(shapes) <= {row.path for row in table}, set(shapes) - {row.path for row in table}
  for row in table:
    if row.path in shapes:
      yield row, shapes[row.path]


def file_shapes(table: Sequence[Row], config: model.ModelConfig) -> dict[str, tuple[int, ...]]:
  """Returns the name and shape of every tensor that a file of this config holds."""
  shapes = {}
  for row, shape in used_rows(table, config):
    in_layers = row.path.startswith(LAYERS)
    length, *rest = row.file_shape(shape[1:] if in_layers else shape)
    for name in [row.name.format(layer=layer) for layer in range(config.num_layers)] if in_layers else [row.name]:
      before = shapes[name][0] if name in shapes else 0
      shapes[name] = (before + length, *rest)
  return shapes


def check(source: object, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
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
  table: Sequence[Row], config: model.ModelConfig, mesh: jax.sharding.Mesh, rules: sharding.Rules, read: Read
) -> model.Params:
  """Returns float32 params on the devices of `mesh`; each process reads what its devices hold.

  The host holds one device's part of one stacked tensor at a time.
  """
  abstract, axes = model.abstract_params(config)
  row_of, start_of, ends = {row.path: row for row in table}, {}, collections.Counter()
  for row, shape in used_rows(table, config):  # where in its tensor a parameter starts
    start_of[row.path] = ends[row.name]
    ends[row.name] += row.file_shape(shape[1:] if row.path.startswith(LAYERS) else shape)[0]

  with concurrent.futures.ThreadPoolExecutor() as pool:

    def read_leaf(keys, struct, where):
      row, start = row_of[_path(keys)], start_of[_path(keys)]

      def read_own(name: str, index: Index) -> np.ndarray:
        return read(name, (slice(start + index[0].start, start + index[0].stop), *index[1:]))

      def read_part(index):
        if not row.path.startswith(LAYERS):
          return row.read(read_own, row.name, struct.shape, index)
        layers = range(config.num_layers)[index[0]]
        part = _empty([len(range(n)[i]) for i, n in zip(index, struct.shape, strict=True)])

        def read_layer(i):
          part[i] = row.read(read_own, row.name.format(layer=layers[i]), struct.shape[1:], index[1:])

        list(pool.map(read_layer, range(len(layers))))
        return part

      return jax.make_array_from_callback(struct.shape, where, read_part)

    return jax.tree.map_with_path(read_leaf, abstract, sharding.shardings(mesh, rules, abstract, axes))


def _empty(shape: Sequence[int]) -> np.ndarray:
  """Returns an array, float32, that starts where XLA's CPU backend wants it to: there it is used without a copy."""
  alignment, num_bytes = 64, 4 * math.prod(shape)
  memory = np.empty(num_bytes + alignment, np.uint8)
  start = -memory.ctypes.data % alignment
  return memory[start : start + num_bytes].view(np.float32).reshape(shape)


def _path(keys) -> str:
  return jax.tree_util.keystr(keys, simple=True, separator='/')
