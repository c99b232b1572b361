"""Coefficients: what a merge parameter is in each tensor and in each layer.

A coefficient is one of
  a number, or a traced scalar;
  an array [L]: a number a layer; what is in no layer takes the first;
  a list or tuple of numbers, a gradient: interpolated over the layers at l / (L - 1), of a single
    layer its end; what is in no layer is at 0;
  a list of {'filter': TEXT, 'value': COEFFICIENT}: the first whose TEXT is in the tensor's name; no
    TEXT, or '*', fits all;
  a dict of groups, GROUPS and 'default' -> COEFFICIENT.
Gradients and filters are mergekit's. `resolve` turns any of them into arrays, one a leaf, before a
merge is traced.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from imm_jax.merging import names

# Group -> what a tensor's name has in it; the first that fits.
GROUPS = {
  'norms': ('norm',),
  'attention': ('attn', 'attention'),
  'mlp': ('mlp', 'feed_forward', 'ffn'),
  'embeddings': ('embed', 'lm_head'),
}


def resolve(coefficient: Any, tree: Any) -> Any:
  """Returns the coefficient's values in the leaves of a model, a tree of its structure.

  Args:
    coefficient: any of the above; numpy's or Python's numbers give numpy arrays, jax's give jax's.
    tree: the model's params, or their shapes and dtypes.

  Returns:
    float32 arrays: [L] for a leaf that is stacked under 'layers/', [] for others; 0 where a leaf is
    of integers, which are not merged.

  Raises:
    ValueError: no filter or group fits a leaf's name.
  """
  num_layers = names.count_layers(names.by_name(tree))

  def leaf(path, x):
    if not jnp.issubdtype(x.dtype, jnp.floating):
      return np.zeros((), np.float32)
    return in_leaf(coefficient, names.of_path(path), num_layers)

  return jax.tree.map_with_path(leaf, tree)


def in_leaf(coefficient: Any, name: str, num_layers: int) -> Any:
  """Returns the coefficient in the leaf of that name, float32: [L] where it is stacked, else []."""
  if isinstance(coefficient, jax.Array) and not coefficient.ndim:
    # One operation in place of one a layer.
    shape = (num_layers,) if names.is_stacked(name) else ()
    return jnp.broadcast_to(coefficient.astype(jnp.float32), shape)
  layers = range(num_layers) if names.is_stacked(name) else [names.locate(name)[1]]
  values = [at(coefficient, name, layer, num_layers) for layer in layers]
  xp = jnp if any(isinstance(value, jax.Array) for value in values) else np
  arrays = [xp.asarray(value, np.float32) for value in values]
  return xp.stack(arrays) if names.is_stacked(name) else arrays[0]


def varies(coefficient: Any) -> bool:
  """Returns whether it can differ between tensors or layers."""
  return isinstance(coefficient, Mapping | list | tuple) or bool(getattr(coefficient, 'ndim', 0))


def at(coefficient: Any, name: str, layer: int | None, num_layers: int) -> Any:
  """Returns the value in a tensor, a number or traced scalar.

  Raises:
    ValueError: no filter or group fits the tensor's name.
  """
  value = find(coefficient, name, layer, num_layers)
  if value is None:
    raise ValueError(f'{name}: no filter or group of {coefficient} fits it; add a default')
  return value


def find(coefficient: Any, name: str, layer: int | None, num_layers: int) -> Any:
  """Returns the same, None where no filter or group fits."""
  if isinstance(coefficient, Mapping):
    fits = (group for group, parts in GROUPS.items() if any(part in name for part in parts))
    value = coefficient.get(next(fits, 'default'), coefficient.get('default'))
    return find(value, name, layer, num_layers)
  if isinstance(coefficient, list | tuple):
    if isinstance(coefficient[0], Mapping):
      for rule in coefficient:
        if rule.get('filter') in (None, '*') or rule['filter'] in name:
          return find(rule['value'], name, layer, num_layers)
      return None
    return gradient(coefficient, layer, num_layers)
  if getattr(coefficient, 'ndim', 0):
    return coefficient[layer or 0]
  return coefficient


def gradient(points: Sequence[float], layer: int | None, num_layers: int) -> float:
  """Returns the value of the line through evenly spaced points at l / (L - 1).

  A single layer is at 1, as with mergekit; what is in no layer is at 0.
  """
  if layer is None:
    return float(points[0])
  position = layer / (num_layers - 1) if num_layers > 1 else 1.0
  return float(np.interp(position, np.linspace(0, 1, len(points)), points))


def by_layer(values: Sequence[float], elsewhere: float) -> list[dict[str, Any]]:
  """Returns the coefficient that is values[l] in layer l, and `elsewhere` in what is in no layer.

  It is for models whose layers are stacked.
  """
  return [{'filter': names.STACKED, 'value': np.asarray(values, np.float32)}, {'value': elsewhere}]


def layer_means(tree: Any) -> list[dict[str, Any]]:
  """Returns the coefficient that is the mean of each tensor of a tree, layer by layer.

  Of a diagonal Fisher information it is the parameter `fisher` of that method.
  """
  rules = []
  for name, leaf in names.by_name(tree).items():
    axes = tuple(range(1, leaf.ndim)) if names.is_stacked(name) else None
    rules.append({'filter': name, 'value': jnp.mean(leaf, axis=axes)})
  return rules


def check(
  where: str,
  coefficient: Any,
  least: float = -math.inf,
  most: float = math.inf,
  *,
  whole: bool = False,
) -> None:
  """Raises ValueError when it is no coefficient, or a number in it is not in [least, most].

  where: what the message calls it.
  whole: it must have a value for every tensor.
  """
  if isinstance(coefficient, Mapping):
    parts = _check_groups(where, coefficient, whole)
  elif isinstance(coefficient, list | tuple) and coefficient:
    parts = _check_list(where, coefficient, whole)
  elif not _is_number(coefficient):
    forms = 'a number, nor a list of numbers or filters, nor a dict of groups'
    raise ValueError(f'{where}: {coefficient!r} is not {forms}')
  elif not least <= float(cast(float, coefficient)) <= most:
    raise ValueError(f'{where}: {coefficient} is not in [{least}, {most}]')
  else:
    return
  for part in parts:
    check(where, part, least, most)


def _check_groups(where: str, groups: Mapping[str, Any], whole: bool) -> list[Any]:
  """Returns the coefficients in a dict of groups. Raises ValueError when it is none."""
  if 'schedule' in groups:
    raise ValueError(
      f'{where}: {groups}: a schedule stands for merge.alpha as a whole, and nowhere else',
    )
  if not groups or set(groups) - set(GROUPS) - {'default'}:
    known = ', '.join(GROUPS)
    raise ValueError(f'{where}: {groups} is not a dict of groups; those are {known} and default')
  if whole and 'default' not in groups:
    raise ValueError(f'{where}: {groups} has no default')
  return list(groups.values())


def _check_list(where: str, values: Sequence[Any], whole: bool) -> list[Any]:
  """Returns the coefficients in a gradient or a list of filters. Raises ValueError otherwise."""
  if not all(isinstance(value, Mapping) for value in values):
    if not all(_is_number(value) for value in values):
      raise ValueError(f'{where}: {values} is not a list of numbers')
    return list(values)
  for rule in values:
    if set(rule) - {'filter'} != {'value'} or not isinstance(rule.get('filter'), str | None):
      raise ValueError(f"{where}: {values} is not a list of {{'filter': text, 'value': number}}")
  if whole and not any(rule.get('filter') in (None, '*') for rule in values):
    raise ValueError(f'{where}: {values} has no rule without a filter')
  return [rule['value'] for rule in values]


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)
