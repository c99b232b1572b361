"""Names of tensors: the path of a leaf, the layers that it belongs to."""

from collections.abc import Mapping
import re
from typing import Any

import jax

STACKED = 'layers/'  # Leaves under this key are stacked [L, ...].
# A tensor of one layer: model.layers.3.mlp, h.3.attn.
_LAYER = re.compile(r'(?:^|(?<=[./]))(?:layers|h|blocks)([./](\d+))(?=[./])')


def of_path(path: Any) -> str:
  """Returns the name of a leaf, 'layers/attn/q/kernel', from its path in a pytree."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def by_name(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a pytree by their names."""
  return {of_path(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def locate(name: str) -> tuple[str, int | None]:
  """Returns the name without its layer's number, and that number, None where it has none.

  'model.layers.3.mlp' gives ('model.layers.mlp', 3).
  """
  match = _LAYER.search(name)
  if match is None:
    return name, None
  return name[: match.start(1)] + name[match.end(1) :], int(match[2])


def is_stacked(name: str) -> bool:
  """Returns whether the tensor holds all layers, [L, ...]."""
  return name.startswith(STACKED) and locate(name)[1] is None


def count_layers(tensors: Mapping[str, Any]) -> int:
  """Returns the number of layers of a model with these tensors by name, at least 1."""
  num_layers = 1
  for name, x in tensors.items():
    num_here = x.shape[0] if is_stacked(name) else (locate(name)[1] or 0) + 1
    num_layers = max(num_layers, num_here)
  return num_layers
