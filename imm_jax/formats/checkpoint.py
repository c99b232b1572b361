"""Arrays on disk: Orbax checkpoints, which know a digest of every array that is in them."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import copy
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from imm_jax import sharding

_STATE = 'state'  # the item that is JSON: the digests, and what belongs to the arrays


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """How often a round is saved before its end."""

  every_steps: int  # of fine-tuning; 0 saves at a notice to stop only

  def __post_init__(self):
    if self.every_steps < 0:
      raise ValueError(f'checkpoint.every_steps: {self.every_steps} is negative')


class Damaged(ValueError):
  """A checkpoint is not what was saved, or is of another model."""

  def __init__(self, path: str, reason: str):
    super().__init__(f'{path}: is damaged or of another model: {reason}')
    self.path = path


def save(path: str, trees: Mapping[str, Any]) -> None:
  """Writes named trees of arrays to a new directory; it appears whole or not at all.

  Raises OSError when it cannot.
  """
  with _writing(path), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
    checkpointer.save(path, _items(trees, {}), force=True)


def restore(path: str, name: str, abstract: Any) -> Any:
  """Returns one tree, placed by the shardings of its abstract arrays (ShapeDtypeStruct with
  sharding).

  Raises Damaged when there is no such checkpoint, it is damaged, or its tree, shapes or dtypes
  differ.
  """
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
    return _checked(path, {name: abstract}, lambda args: checkpointer.restore(path, args))[0][name]


class Steps:
  """The checkpoints within a round: written while the devices go on, and only the newest two
  kept.
  """

  def __init__(self, path: str):
    self._path = path
    self._manager = ocp.CheckpointManager(path, options=ocp.CheckpointManagerOptions(max_to_keep=2))

  def save(self, step: int, trees: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Writes what is there after `step` steps, a state of JSON with it; returns as soon as the
    arrays may be donated.
    """
    with _writing(self._path):
      self._manager.save(step, args=_items(trees, state), force=True)

  def restore(
    self, abstract: Mapping[str, Any], report: Callable[[str], None]
  ) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
    """Returns (step, trees, state) of the newest that is whole, None where none is; reports and
    deletes a damaged one.
    """
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        return step, *_checked(
          f'{self._path}/{step}',
          abstract,
          lambda args, step=step: self._manager.restore(step, args=args),
        )
      except Damaged as error:
        report(f'{error}; an earlier one is used')
        self._manager.delete(step)
    return None

  def close(self) -> None:
    """Waits until all is written. Raises OSError when that could not be done."""
    with _writing(self._path):
      self._manager.close()


def abstract(shapes: Any, shardings: Any) -> Any:
  """Returns ShapeDtypeStructs that carry shardings: what `restore` is asked for."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
  )


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
  try:
    yield
  # tensorstore's, and Orbax's own that name no file: the disk is full, ...
  except (ValueError, OSError) as error:
    raise OSError(f'{path}: cannot be written: {str(error).splitlines()[0]}') from error


def _items(trees: Mapping[str, Any], state: Mapping[str, Any]) -> ocp.args.Composite:
  items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
  digests = {name: digests_of(tree) for name, tree in trees.items()}
  # A copy: it is written later, when who gave it may have changed it.
  return ocp.args.Composite(
    **items, **{_STATE: ocp.args.JsonSave({'digests': digests, **copy.deepcopy(dict(state))})}
  )


def _checked(
  path: str, abstract: Mapping[str, Any], read: Callable[[Any], Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns (trees, state) that read(args) gives.

  Raises Damaged when they are not what was saved.
  """
  items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
  try:
    found = read(ocp.args.Composite(**items, **{_STATE: ocp.args.JsonRestore()}))
    state = dict(found[_STATE])
    digests = state.pop('digests')
    for name in abstract:
      differing = [
        leaf for leaf, value in digests_of(found[name]).items() if value != digests[name][leaf]
      ]
      if differing:
        raise ValueError(f'{name} has other bits than were saved in {", ".join(differing[:3])}')
  except (ValueError, KeyError, FileNotFoundError) as error:
    reason = (str(error).splitlines() or [''])[0]
    raise Damaged(path, reason) from error
  return {name: found[name] for name in abstract}, state


def digests_of(tree: Any) -> dict[str, int]:
  """Returns a digest of each array of 32-bit elements, by its path: the same on every mesh; no
  element can change unseen.
  """
  leaves = jax.tree.leaves_with_path(_digests(tree))
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): int(value) for path, value in leaves
  }


@jax.jit
def _digests(tree: Any) -> Any:
  def digest(x):
    # odd: they have an inverse modulo 2^32, and tell places apart
    factors = 2 * sharding.element_index(x.shape) + 1
    return jnp.sum(jax.lax.bitcast_convert_type(x, jnp.uint32) * factors, dtype=jnp.uint32)

  return jax.tree.map(digest, tree)
