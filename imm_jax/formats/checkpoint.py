"""Saves and restores arrays as Orbax checkpoints, with a digest of every array."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import copy
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from imm_jax import sharding

_STATE = 'state'  # The JSON item: the digests, and the state saved with the arrays.


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """How often checkpoints are saved within a round."""

  every_steps: int  # In steps of fine-tuning; 0 saves only on a notice to stop.

  def __post_init__(self):
    if self.every_steps < 0:
      raise ValueError(f'checkpoint.every_steps: {self.every_steps} is negative')


class Damaged(ValueError):
  """The checkpoint differs from what was saved, or belongs to another model."""

  def __init__(self, path: str, reason: str):
    super().__init__(f'{path}: is damaged or of another model: {reason}')
    self.path = path


def save(path: str, trees: Mapping[str, Any]) -> None:
  """Writes named trees of arrays to a new directory, which appears whole or not at all.

  Raises OSError when they cannot be written.
  """
  with _writing(path), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
    checkpointer.save(path, _items(trees, {}), force=True)


def restore(path: str, name: str, abstract: Any) -> Any:
  """Returns one tree of a checkpoint, sharded as its abstract arrays are.

  The abstract arrays are ShapeDtypeStructs with a sharding. Raises Damaged when the checkpoint
  does not exist or is damaged, or when its tree, shapes or dtypes differ.
  """
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
    return _checked(path, {name: abstract}, lambda args: checkpointer.restore(path, args))[0][name]


class Steps:
  """The checkpoints within a round: written in the background, and only the newest two kept."""

  def __init__(self, path: str):
    self._path = path
    self._manager = ocp.CheckpointManager(path, options=ocp.CheckpointManagerOptions(max_to_keep=2))

  def save(self, step: int, trees: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Writes the arrays after `step` steps, together with a JSON state.

    Returns as soon as the arrays may be donated.
    """
    with _writing(self._path):
      self._manager.save(step, args=_items(trees, state), force=True)

  def restore(
    self, abstract: Mapping[str, Any], report: Callable[[str], None]
  ) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
    """Returns (step, trees, state) of the newest intact checkpoint, or None.

    Damaged checkpoints that are newer are reported and deleted.
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
    """Waits until everything is written. Raises OSError when it could not be written."""
    with _writing(self._path):
      self._manager.close()


def abstract(shapes: Any, shardings: Any) -> Any:
  """Returns ShapeDtypeStructs with shardings, the form of tree that `restore` takes."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
  )


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
  try:
    yield
  # Errors of tensorstore and Orbax, such as a full disk, name no file; the message adds the path.
  except (ValueError, OSError) as error:
    raise OSError(f'{path}: cannot be written: {str(error).splitlines()[0]}') from error


def _items(trees: Mapping[str, Any], state: Mapping[str, Any]) -> ocp.args.Composite:
  items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
  digests = {name: digests_of(tree) for name, tree in trees.items()}
  # Copied because it is written later, when the caller may already have changed it.
  return ocp.args.Composite(
    **items, **{_STATE: ocp.args.JsonSave({'digests': digests, **copy.deepcopy(dict(state))})}
  )


def _checked(
  path: str, abstract: Mapping[str, Any], read: Callable[[Any], Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the (trees, state) that read(args) reads, after checking their digests.

  Raises Damaged when they differ from what was saved.
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
  """Returns a digest of each array of 32-bit elements, by the array's path.

  The digest is the same on every mesh, and a change of any one element changes it.
  """
  leaves = jax.tree.leaves_with_path(_digests(tree))
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): int(value) for path, value in leaves
  }


@jax.jit
def _digests(tree: Any) -> Any:
  def digest(x):
    # Odd factors have an inverse modulo 2^32, so that a change of one element always changes the
    # sum; distinct factors make the sum depend on the elements' places.
    factors = 2 * sharding.element_index(x.shape) + 1
    return jnp.sum(jax.lax.bitcast_convert_type(x, jnp.uint32) * factors, dtype=jnp.uint32)

  return jax.tree.map(digest, tree)
