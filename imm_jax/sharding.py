"""Which mesh axis every tensor dimension lives on: one table, two columns.

Model code names logical axes only ('batch', 'embed', 'heads', ...). This file maps them to the mesh
axes `data` (replicas, over the data-centre network), `fsdp` and `tensor`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
import jax.numpy as jnp
import numpy as np

AXES = ('data', 'fsdp', 'tensor')
# The logical axis of a dimension; ('heads', 64) is split only between blocks of 64.
Axis = str | tuple[str, int] | None

# Logical axis -> (mesh axes when training, mesh axes when sampling). Training shards every weight
# over `fsdp` and gathers it where it is used. While decoding, weights stay put: they are split over
# `tensor` and `fsdp` along output dimensions, and only activations travel. Attention, and with it
# the cache, is split by rows over `fsdp` too: each device reads the keys and values of its own
# rows.
_TABLE = {
  'batch': (('data', 'fsdp'), ('data',)),
  'length': ((), ()),
  'embed': (('fsdp',), ()),
  'heads': (('tensor',), ('tensor', 'fsdp')),
  'kv_heads': (('tensor',), ('tensor', 'fsdp')),
  'head_dim': ((), ()),
  'attention_batch': (('data', 'fsdp'), ('data', 'fsdp')),
  'attention_heads': (('tensor',), ('tensor',)),
  'mlp': (('tensor',), ('tensor', 'fsdp')),
  'vocab': (('tensor',), ('tensor', 'fsdp')),
  'layers': ((), ()),
}


@dataclasses.dataclass(frozen=True)
class Rules:
  """Logical axis -> mesh axes. Hashable, so that it can be a static argument of a model."""

  table: tuple[tuple[str, tuple[str, ...]], ...]

  def spec(
    self, axes: tuple[Axis, ...], shape: tuple[int, ...], mesh_shape: Mapping[str, int]
  ) -> jax.P:
    """Returns the PartitionSpec of a tensor with these logical axes.

    A mesh axis serves one dimension, the first that asks for it, and only one that it divides (9
    heads on 8 devices are replicated, an MLP of 1536 is split).
    """
    table, free = dict(self.table), {name for name, size in mesh_shape.items() if size > 1}
    entries = []
    for axis, size in zip(axes, shape, strict=True):
      (logical, block), taken, parts = axis if isinstance(axis, tuple) else (axis, 1), [], 1
      for name in table[logical] if logical else ():
        if name in free and size % (block * parts * mesh_shape[name]) == 0:
          taken.append(name)
          parts *= mesh_shape[name]
      free -= set(taken)
      entries.append(tuple(taken) if len(taken) > 1 else taken[0] if taken else None)
    return jax.P(*entries)

  def num_parts(self, axis: str, mesh_shape: Mapping[str, int]) -> int:
    """Returns the number of parts that a dimension with this logical axis is split into.

    It is split only if the number divides it.
    """
    return math.prod(mesh_shape.get(name, 1) for name in dict(self.table)[axis])


TRAIN = Rules(tuple((axis, train) for axis, (train, _) in _TABLE.items()))
SAMPLE = Rules(tuple((axis, sample) for axis, (_, sample) in _TABLE.items()))


def make_mesh(
  data: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
  """Returns a mesh over all devices; an axis of -1 takes the remaining ones.

  `data` runs over slices first, where there are several. Raises ValueError when the sizes do not
  fit.
  """
  devices = jax.devices() if devices is None else devices
  sizes, num_devices = [data, fsdp, tensor], len(devices)
  described = f'mesh data={data} fsdp={fsdp} tensor={tensor}'
  if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
    raise ValueError(
      f'{described}: each axis is a positive size, and one at most is -1 (the rest of the devices)'
    )
  if -1 in sizes:
    known = int(np.prod([size for size in sizes if size != -1]))
    sizes[sizes.index(-1)] = max(1, num_devices // known)
  if np.prod(sizes) != num_devices:
    raise ValueError(f'{described}: needs {np.prod(sizes)} devices and there are {num_devices}')
  types = (jax.sharding.AxisType.Auto,) * len(AXES)
  num_slices = len({getattr(device, 'slice_index', 0) for device in devices})
  if num_slices == 1:
    return jax.make_mesh(tuple(sizes), AXES, axis_types=types, devices=devices)
  if sizes[0] % num_slices:
    raise ValueError(
      f'{described}: there are {num_slices} slices, and data is no multiple of that: only it runs'
      ' over them'
    )
  within = (sizes[0] // num_slices, *sizes[1:])
  grid = mesh_utils.create_hybrid_device_mesh(within, (num_slices, 1, 1), devices=devices)
  return jax.sharding.Mesh(grid, AXES, axis_types=types)


def shardings(mesh: jax.sharding.Mesh, rules: Rules, abstract: Any, axes: Any) -> Any:
  """Returns the NamedShardings of a tree of ShapeDtypeStructs and its tree of logical axes."""
  return jax.tree.map(
    lambda leaf, names: jax.NamedSharding(mesh, rules.spec(names, leaf.shape, mesh.shape)),
    abstract,
    axes,
  )


def element_index(shape: tuple[int, ...]) -> jax.Array:
  """Returns the index of each element in its flattened array, uint32, modulo 2^32.

  It is computed on the device that holds the element.
  """
  index = jnp.zeros(shape, jnp.uint32)
  for axis, size in enumerate(shape):
    index = index * size + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
  return index


def constrain(x: jax.Array, axes: tuple[Axis, ...], rules: Rules) -> jax.Array:
  """Pins the sharding of an array inside jit. Outside a mesh there is nothing to pin."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  return jax.lax.with_sharding_constraint(x, rules.spec(axes, x.shape, mesh.shape))
