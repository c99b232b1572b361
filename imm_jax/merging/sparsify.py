"""Which elements of a task vector are kept: delta, parameters and a key -> a mask. A density of 1 keeps all."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

Values = Mapping[str, Any]


def largest(scores: jax.Array, k: jax.Array | int) -> jax.Array:
  """Returns the mask of the k largest of non-negative float32 scores; of equal ones the first.

  A search for the k-th largest in reductions only: no sort, no copy, and sharded tensors stay where they are. It guesses by
  interpolation, which mostly takes a dozen passes, and every second time halves, which bounds them by 62.
  """
  bits = jax.lax.bitcast_convert_type(scores, jnp.int32)  # in the order of the scores
  k = jnp.asarray(k, jnp.uint32)

  def searching(state):
    _, low, high, num_low, _ = state
    return (num_low != k) & (high - low > 1)

  def narrow(state):
    i, low, high, num_low, num_high = state  # num: how many are >= low, >= high
    share = (num_low - k).astype(jnp.float32) / jnp.maximum(num_low - num_high, 1).astype(jnp.float32)
    share = jnp.where(i % 2 == 0, share, 0.5)
    step = ((high - low).astype(jnp.float32) * share).astype(jnp.int32)
    middle = low + jnp.clip(step, 1, high - low - 1)
    num = _count(bits >= middle)
    enough = num >= k
    low, num_low = jnp.where(enough, middle, low), jnp.where(enough, num, num_low)
    high, num_high = jnp.where(enough, high, middle), jnp.where(enough, num_high, num)
    return i + 1, low, high, num_low, num_high

  size = jnp.uint32(scores.size)
  start = (0, jnp.int32(0), jnp.max(bits, initial=0) + 1, size, jnp.uint32(0))
  _, low, _, num_low, _ = jax.lax.while_loop(searching, narrow, start)

  # Too many are >= low: those that equal it. The first `wanted` of them, before `end`, are found in the same way.
  equal = bits == low
  wanted = _count(equal) - (num_low - k)
  index = jnp.zeros(scores.shape, jnp.uint32)
  for axis, length in enumerate(scores.shape):
    index = index * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, scores.shape, axis)

  def undecided(state):
    return (state[0] > 1) & (num_low > k)

  def raise_end(state):
    step, end = state[0] >> 1, state[1]
    return step, jnp.where(_count(equal & (index < end + step)) <= wanted, end + step, end)

  _, end = jax.lax.while_loop(undecided, raise_end, (jnp.uint32(1 << scores.size.bit_length()), jnp.uint32(0)))
  return (bits >= low) & ~(equal & (index >= end) & (num_low > k))


def _count(mask: jax.Array) -> jax.Array:
  """Returns the number of True, uint32: rows are counted in float32, exact below 2^24, which is what vectorises."""
  if not mask.ndim or mask.shape[-1] >= 2**24:
    return jnp.sum(mask, dtype=jnp.uint32)
  return jnp.sum(jnp.sum(jnp.where(mask, 1.0, 0.0), axis=-1).astype(jnp.uint32))


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
