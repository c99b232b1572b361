"""What a round is on disk: Orbax checkpoints of params."""

from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp


def save(path: str, trees: Mapping[str, Any]) -> None:
  """Writes named trees of arrays to a new directory; it appears whole or not at all."""
  items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
    checkpointer.save(path, ocp.args.Composite(**items), force=True)


def restore(path: str, name: str, abstract: Any) -> Any:
  """Returns one tree, placed by the shardings of its abstract arrays (ShapeDtypeStruct with sharding).

  Raises ValueError when there is no such checkpoint, it is damaged, or its tree, shapes or dtypes differ.
  """
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
    try:
      found = checkpointer.restore(path, ocp.args.Composite(**{name: ocp.args.StandardRestore(abstract)}))
    except (ValueError, KeyError, OSError) as error:
      reason = str(error).splitlines()[0]
      raise ValueError(
        f'{path}: cannot restore {name!r}: {reason}; if it is damaged, delete its round to have it done again'
      ) from error
  return found[name]


def abstract(shapes: Any, shardings: Any) -> Any:
  """Returns ShapeDtypeStructs that carry shardings: what `restore` is asked for."""
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
