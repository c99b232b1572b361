"""TensorMerge: a method applied to one tensor, or to a piece of it."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple
import zlib

import jax
import jax.numpy as jnp

from imm_jax.merging import names, pieces, sparsify
from imm_jax.merging.methods import FLAGS, Method, METHODS
from imm_jax.merging.pieces import PER_MODEL, Piece


class Inputs(NamedTuple):
  """The arrays that a merge of one tensor or piece reads."""

  arrays: Sequence[jax.Array]  # theta_0, if there is one, and theta_1 .. theta_n, of one shape
  numbers: Mapping[str, Any]  # of numbers_of, and 'alpha' where there is one
  key: jax.Array | None = None  # of the tensor's masks (leaf_key); None for a method without
  first: Any = 0  # index of the piece's first element in the tensor, modulo 2^32
  size: Any = None  # number of elements of the tensor; None: of the arrays


@dataclasses.dataclass(frozen=True)
class TensorMerge:
  """How a tensor is merged, but for its numbers; hashable: jit compiles once for each."""

  method: str  # a key of METHODS
  has_base: bool  # whether the first array is theta_0
  flags: tuple[tuple[str, bool], ...]  # of flags_of

  @property
  def row(self) -> Method:
    """The method."""
    return METHODS[self.method]

  def piece(self, inputs: Inputs) -> Piece:
    """Returns what the method sees, in float32, with its random numbers drawn."""
    tensors, parameters = (
      [x.astype(jnp.float32) for x in inputs.arrays],
      {**inputs.numbers, **dict(self.flags)},
    )
    base, models = (tensors[0], tensors[1:]) if self.has_base else (None, tensors)
    if 'alpha' in parameters:
      base, models, by_alpha = self.row.with_alpha(base, models, parameters.pop('alpha'))
      parameters |= by_alpha
    uniform = None
    if inputs.key is not None:
      keys = [jax.random.fold_in(inputs.key, i) for i in range(len(models))]
      uniform = [sparsify.uniform(key, tensors[0].shape, inputs.first) for key in keys]
    size = tensors[0].size if inputs.size is None else inputs.size
    return Piece(base, models, parameters, uniform, size)

  def ask(self, piece: Piece) -> Any:
    """Returns what the method asks of the whole tensor; None: nothing."""
    return self.row.reduce(piece) if self.row.reduce else None

  def __call__(self, inputs: Inputs) -> jax.Array:
    """Returns the merge of a whole tensor, float32."""
    piece = self.piece(inputs)
    return self.row.apply(piece, pieces.answer(self.ask(piece)))


def flags_of(parameters: Mapping[str, Any]) -> tuple[tuple[str, bool], ...]:
  """Returns the parameters that are flags."""
  return tuple((name, value) for name, value in parameters.items() if name in FLAGS)


def numbers_of(
  parameters: Mapping[str, Any],
  num_models: int,
  resolve: Callable[[Any], Any],
) -> dict[str, Any]:
  """Returns resolve(coefficient) of the parameters that are no flags.

  Those in PER_MODEL become lists of one for each model, from a tuple of these or from one
  coefficient for all.
  """
  numbers = {}
  for name, value in parameters.items():
    if name in PER_MODEL:
      of_models = value if isinstance(value, tuple) else (value,) * num_models
      numbers[name] = [resolve(one) for one in of_models]
    elif name not in FLAGS:
      numbers[name] = resolve(value)
  return numbers


def leaf_key(key: jax.Array | None, name: str) -> jax.Array | None:
  """Returns the key of a leaf's masks; a single layer has that of its layer of a stacked leaf."""
  if key is None:
    return None
  plain, layer = names.locate(name)
  key = jax.random.fold_in(key, zlib.crc32(plain.encode()))
  return key if layer is None else jax.random.fold_in(key, layer)
