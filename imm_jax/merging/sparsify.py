"""Which elements of a task vector are kept.

A density of 1 keeps all.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from imm_jax import sharding
from imm_jax.merging import largest
from imm_jax.merging.pieces import TopK

Values = Mapping[str, Any]


def share(fraction: Any, size: Any) -> jax.Array:
  """Returns floor(fraction size), f32."""
  return jnp.floor(jnp.asarray(fraction, jnp.float32) * size)


def ask_largest(delta: jax.Array, p: Values, size: Any) -> TopK:
  """Asks for the max(1, floor(density n)) largest by magnitude (TIES)."""
  return TopK(jnp.abs(delta), jnp.maximum(share(p['density'], size), 1))


def keep_largest(delta: jax.Array, p: Values, cut: largest.Cut) -> jax.Array:
  """Keeps what ask_largest asks for."""
  return largest.is_largest(jnp.abs(delta), cut) | (jnp.asarray(p['density']) >= 1)


def ask_band(delta: jax.Array, p: Values, size: Any) -> tuple[TopK, TopK]:
  """Asks for the floor(gamma n) largest, and for these with the floor(density n) that follow."""
  magnitude, kept = jnp.abs(delta), share(p['density'], size)
  outliers = jnp.minimum(share(p['gamma'], size), size - kept)
  return TopK(magnitude, outliers), TopK(magnitude, kept + outliers)


def keep_band(delta: jax.Array, p: Values, cuts: tuple[largest.Cut, largest.Cut]) -> jax.Array:
  """Keeps floor(density n): not the floor(gamma n) largest, nor the smallest (Breadcrumbs)."""
  is_outlier, is_large = (largest.is_largest(jnp.abs(delta), cut) for cut in cuts)
  return is_large & ~is_outlier | (jnp.asarray(p['density']) >= 1)


def keep_random(unused_delta: jax.Array, p: Values, drawn: jax.Array) -> jax.Array:
  """Keeps each element with probability density (DARE)."""
  return drawn < jnp.asarray(p['density'], jnp.float32)


def keep_by_rank(delta: jax.Array, p: Values, drawn: jax.Array) -> jax.Array:
  """Keeps larger elements of a row with a higher probability (DELLA).

  It is density - epsilon for the smallest, and density + epsilon for the largest.
  """
  size = delta.shape[-1] if delta.ndim else 1
  rank = jnp.argsort(jnp.argsort(jnp.abs(delta), axis=-1), axis=-1).astype(jnp.float32)
  density, epsilon = (jnp.asarray(p[name], jnp.float32) for name in ('density', 'epsilon'))
  probability = density - epsilon + 2 * epsilon * rank / max(1, size - 1)
  return (drawn < jnp.clip(probability, 0, 1)) | (density >= 1)


def uniform(key: jax.Array, shape: tuple[int, ...], first: Any = 0) -> jax.Array:
  """Returns numbers in [0, 1), f32, for a tensor, or for its piece from the element `first` on.

  Each is Threefry of the element's index, so that no mesh and no cut into pieces shows, and of
  nothing in memory, so that it fuses with what it is for; jax.random does neither on every
  platform. Elements 2^32 apart draw the same.
  """
  index = sharding.element_index(shape) + first
  bits, _ = threefry_2x32(jax.random.bits(key, (2,)), index, jnp.zeros_like(index))
  return (bits >> 8).astype(jnp.float32) * 2.0**-24


def threefry_2x32(key: jax.Array, x0: jax.Array, x1: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the two words, uint32, that Threefry-2x32-20 makes of a counter.

  See Salmon et al. (2011), Parallel random numbers: as easy as 1, 2, 3.
  """
  keys = key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA)
  x0, x1 = x0 + keys[0], x1 + keys[1]
  for i in range(5):
    for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
      x0 = x0 + x1
      x1 = x0 ^ ((x1 << turn) | (x1 >> (32 - turn)))
    x0, x1 = x0 + keys[(i + 1) % 3], x1 + keys[(i + 2) % 3] + jnp.uint32(i + 1)
  return x0, x1
