"""Which elements of a task vector are kept: delta, parameters and a key -> a mask. A density of 1 keeps all."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

Values = Mapping[str, Any]


def largest(scores: jax.Array, k: jax.Array | int) -> jax.Array:
  """Returns the mask of the k largest of non-negative float32 scores; of equal ones the first.

  The k-th largest is found bit by bit, in reductions only: no sort, no copy, and sharded tensors stay where they are.
  """
  bits = jax.lax.bitcast_convert_type(scores, jnp.uint32)
  k = jnp.asarray(k, jnp.uint32)

  def count(mask):
    return jnp.sum(mask, dtype=jnp.uint32)

  def raise_threshold(i, threshold):
    higher = threshold | (jnp.uint32(1) << (30 - i).astype(jnp.uint32))
    return jnp.where(count(bits >= higher) >= k, higher, threshold)

  threshold = jax.lax.fori_loop(0, 31, raise_threshold, jnp.uint32(0))
  above, equal = bits > threshold, bits == threshold
  wanted, num_equal = k - count(above), count(equal)

  # Of the equal ones those before `end`, found in the same way; not run where all of them are wanted.
  index = jnp.zeros(scores.shape, jnp.uint32)
  for axis, size in enumerate(scores.shape):
    index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, scores.shape, axis)

  def undecided(state):
    return (state[0] > 0) & (num_equal > wanted)

  def raise_end(state):
    step, end = state[0] >> 1, state[1]
    return step, jnp.where(count(equal & (index < end + step)) <= wanted, end + step, end)

  start = jnp.uint32(1 << scores.size.bit_length()), jnp.uint32(0)
  _, end = jax.lax.while_loop(undecided, raise_end, start)
  return above | (equal & ((index < end) | (num_equal <= wanted)))


def num(fraction: Any, size: int) -> jax.Array:
  """Returns floor(fraction size), f32."""
  return jnp.floor(jnp.asarray(fraction, jnp.float32) * size)


def keep_largest(delta: jax.Array, p: Values, unused_key: Any) -> jax.Array:
  """Keeps the max(1, floor(density n)) largest by magnitude (TIES)."""
  return largest(jnp.abs(delta), jnp.maximum(num(p['density'], delta.size), 1)) | (jnp.asarray(p['density']) >= 1)


def keep_random(delta: jax.Array, p: Values, key: jax.Array) -> jax.Array:
  """Keeps each element with probability density (DARE)."""
  return jax.random.bernoulli(key, jnp.asarray(p['density'], jnp.float32), delta.shape)


def keep_by_rank(delta: jax.Array, p: Values, key: jax.Array) -> jax.Array:
  """Keeps an element with probability density - epsilon (a row's smallest) .. density + epsilon (its largest) (DELLA)."""
  size = delta.shape[-1] if delta.ndim else 1
  rank = jnp.argsort(jnp.argsort(jnp.abs(delta), axis=-1), axis=-1).astype(jnp.float32)
  density, epsilon = (jnp.asarray(p[name], jnp.float32) for name in ('density', 'epsilon'))
  probability = density - epsilon + 2 * epsilon * rank / max(1, size - 1)
  return jax.random.bernoulli(key, jnp.clip(probability, 0, 1), delta.shape) | (density >= 1)


def keep_band(delta: jax.Array, p: Values, unused_key: Any) -> jax.Array:
  """Keeps floor(density n), without the floor(gamma n) largest and the smallest of the rest (Model Breadcrumbs)."""
  kept = num(p['density'], delta.size)
  outliers = jnp.minimum(num(p['gamma'], delta.size), delta.size - kept)
  magnitude = jnp.abs(delta)
  return largest(magnitude, kept + outliers) & ~largest(magnitude, outliers) | (jnp.asarray(p['density']) >= 1)
