"""What a merge refuses: a method, parameters or models that do not go together."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from imm_jax.merging.methods import FLAGS, Method, METHODS
from imm_jax.text import nearest


def check_method(
  method: str,
  *,
  has_base: bool,
  num_models: int,
  has_alpha: bool = False,
) -> Method:
  """Returns the method's row of METHODS.

  Raises:
    ValueError: the method is unknown, or does not take these models or an alpha.
  """
  if method not in METHODS:
    hint = nearest(method, METHODS)
    raise ValueError(f'{method!r} is no merge method{hint}; there are {", ".join(METHODS)}')
  row = METHODS[method]
  if has_alpha:
    if not row.alpha:
      own = ', '.join(row.parameters) or 'none'
      raise ValueError(f'{method}: has no alpha; its parameters are {own}')
    if not has_base:
      raise ValueError(f'{method}: alpha weighs the models against a base; give it')
    if row.alpha == 'weight':  # The base becomes one of the models.
      num_models, has_base = num_models + has_base, False
  if row.base == 'required' and not has_base:
    raise ValueError(f'{method}: needs a base model')
  if row.base == 'none' and has_base:
    raise ValueError(f'{method}: takes no base model; make it one of the models')
  least, most = row.num_models
  if num_models < least or (most is not None and num_models > most):
    wanted = f'{least}' if least == most else f'at least {least}'
    beside = ' beside the base' if has_base else ''
    raise ValueError(f'{method}: takes {wanted} models{beside} and got {num_models}')
  return row


def check_parameters(
  method: str,
  parameters: Mapping[str, Any],
  *,
  has_alpha: bool = False,
) -> dict[str, Any]:
  """Returns the parameters with the defaults, without those that alpha sets.

  Raises:
    ValueError: a parameter is unknown, missing, of a wrong type, or set by alpha too; it is named.
  """
  row = METHODS[method]
  by_alpha = (row.alpha, 'weight') if has_alpha else ()
  for name in parameters:
    if name not in row.parameters:
      hint, own = nearest(name, row.parameters), ', '.join(row.parameters) or 'none'
      raise ValueError(f'{method}: has no parameter {name!r}{hint}; it has {own}')
    if name in by_alpha:
      raise ValueError(f'{method}: alpha sets {name!r}; give one of the two')
  values = {**row.parameters, **parameters}
  for name in [name for name, value in values.items() if value is None]:
    if name not in by_alpha:
      raise ValueError(f'{method}: parameter {name!r} is missing')
    del values[name]
  for name in FLAGS:
    if name in values and not isinstance(values[name], bool):
      value = values[name]
      raise ValueError(f'{method}: {name} is true or false for the whole model, not {value!r}')
  return values


def check_weights(
  name: str,
  method: str,
  numbers: Mapping[str, Any],
  flags: Mapping[str, bool],
) -> None:
  """Raises ValueError when a tensor would be divided by a sum of weights that is 0.

  Args:
    name: of the tensor.
    method: a key of METHODS.
    numbers: its parameters in the tensor (tensors.numbers_of); those that are traced are not looked
      at.
    flags: its flags.
  """
  if METHODS[method].base == 'required':  # Task vectors are then divided by 1, as with mergekit.
    return
  weights = numbers.get('weight', ())
  if 'fisher' in numbers:
    weights = [w * f for w, f in zip(weights, numbers['fisher'], strict=True)]
  elif not flags.get('normalize') and not flags.get('normalize_weights'):
    return
  if not weights or any(isinstance(w, jax.Array) for w in weights):
    return
  total, size = sum(weights), sum(np.abs(w) for w in weights)
  if np.any(np.abs(total) <= 1e-6 * size):
    raise ValueError(
      f'{method}: the weights add up to 0 in {name}, and the result is divided by their sum',
    )


def check_trees(trees: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
  """Returns the first of trees, model -> name -> what has a dtype and a shape.

  Raises:
    ValueError: models differ; every tensor that differs is named.
  """
  (first, tree), *others = trees.items()
  lines = []
  for second, other in others:
    for name in dict.fromkeys([*tree, *other]):
      one, two = _describe(tree, name), _describe(other, name)
      if one != two:
        lines.append(f'{name} is {one} in {first} and {two} in {second}')
  if lines:
    raise ValueError(
      f'the models differ in {len(lines)} tensors (a given dtype makes dtypes equal): '
      + '; '.join(lines)
    )
  return tree


def _describe(tree: Mapping[str, Any], name: str) -> str:
  if name not in tree:
    return 'missing'
  return f'{tree[name].dtype} {list(tree[name].shape)}'


def check_equal(name: str, arrays: Sequence[Any]) -> None:
  """Raises ValueError when tensors that cannot be merged are not equal."""
  if any((np.asarray(x) != np.asarray(arrays[0])).any() for x in arrays[1:]):
    dtype = arrays[0].dtype
    raise ValueError(f'{name}: is {dtype}, which cannot be merged, and differs between the models')
