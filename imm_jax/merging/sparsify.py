"""Which elements of a task vector are kept: delta, parameters, what was drawn for each element, Whole -> a mask.

A density of 1 keeps all.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from imm_jax import sharding

Values = Mapping[str, Any]

_SAMPLE = 32  # a row in so many is looked at first


def largest(scores: jax.Array, k: jax.Array | int) -> jax.Array:
  """Returns the mask of the k largest of non-negative float32 scores; of equal ones the first.

  A search for the k-th largest in reductions only: no sort, no copy, and sharded tensors stay where they are.
  """
  shape = scores.shape
  bits = jax.lax.bitcast_convert_type(jnp.atleast_1d(scores), jnp.int32)  # in the order of the scores
  k = jnp.asarray(k, jnp.uint32)
  guesses = ()
  if len(bits) >= 2 * _SAMPLE:
    # One row in _SAMPLE says where to look, three standard errors to both sides: passes over a sample cost nothing.
    sample = bits[::_SAMPLE]
    rank = k.astype(jnp.float32) * (sample.size / scores.size)
    ranks = jnp.clip(rank + jnp.array([3.0, -3.0]) * jnp.sqrt(rank), 1, sample.size).astype(jnp.uint32)
    guesses = tuple(jax.vmap(_kth_largest, (None, 0))(sample, ranks)[0])
  low, num_low = _kth_largest(bits, k, guesses)

  # Too many are >= low: those that equal it. Rows keep them all until one keeps some, its first, and the rest none.
  equal = bits == low
  num_equal = _count_in_rows(equal)
  until = jnp.cumsum(num_equal, dtype=jnp.uint32).reshape(num_equal.shape)
  wanted = until.ravel()[-1] - (num_low - k)
  left = jnp.where(until - num_equal < wanted, wanted - (until - num_equal), 0)
  parts = (left > 0) & (left < num_equal)
  row = jnp.sum(parts & equal, axis=tuple(range(bits.ndim - 1)), keepdims=True, dtype=jnp.uint32)
  kept = equal & ((left >= num_equal) | parts & (jnp.cumsum(row, axis=-1) <= left))
  return ((bits > low) | kept).reshape(shape)


def at_least(scores: jax.Array, threshold: jax.Array, last: jax.Array) -> jax.Array:
  """Returns where the bits of non-negative float32 scores are above threshold, or equal it up to the index `last`, int32."""
  bits, index = jax.lax.bitcast_convert_type(scores, jnp.int32), jnp.arange(scores.size).reshape(scores.shape)
  return (bits > threshold) | (bits == threshold) & (index <= last)


class Whole(NamedTuple):
  """What a method asks of the whole tensor, so that it may be given a piece of it."""

  size: Any  # number of elements
  total: Callable[[jax.Array], jax.Array] = lambda x: x  # makes a sum over the piece one over the tensor
  largest: Callable[[jax.Array, Any], jax.Array] = largest  # of the tensor
  drawn: Callable[[jax.Array], jax.Array] = lambda x: x  # a mask of the piece: it need not be drawn again


def _kth_largest(bits: jax.Array, k: jax.Array, guesses: Sequence[jax.Array] = ()) -> tuple[jax.Array, jax.Array]:
  """Returns the k-th largest of non-negative bits, int32, and how many are at least as large.

  It tries the guesses, then interpolates, which mostly takes a dozen passes, and every second time halves, which bounds them
  by 62.
  """

  def searching(state):
    _, low, high, num_low, _ = state
    return (num_low != k) & (high - low > 1)

  def narrow(state):
    i, low, high, num_low, num_high = state  # num: how many are >= low, >= high
    share = (num_low - k).astype(jnp.float32) / jnp.maximum(num_low - num_high, 1).astype(jnp.float32)
    share = jnp.where(i % 2 == 0, share, 0.5)
    middle = low + ((high - low).astype(jnp.float32) * share).astype(jnp.int32)
    for n, guess in enumerate(guesses):
      middle = jnp.where(i == n, guess, middle)
    middle = jnp.clip(middle, low + 1, high - 1)
    num = _count(bits >= middle)
    enough = num >= k
    low, num_low = jnp.where(enough, middle, low), jnp.where(enough, num, num_low)
    high, num_high = jnp.where(enough, high, middle), jnp.where(enough, num_high, num)
    return i + 1, low, high, num_low, num_high

  start = (0, jnp.int32(0), jnp.max(bits, initial=0) + 1, jnp.uint32(bits.size), jnp.uint32(0))
  _, low, _, num_low, _ = jax.lax.while_loop(searching, narrow, start)
  return low, num_low


def _count(mask: jax.Array) -> jax.Array:
  """Returns the number of True, uint32."""
  return jnp.sum(_count_in_rows(mask))


def _count_in_rows(mask: jax.Array) -> jax.Array:
  """Returns the number of True in each row [..., 1], uint32; float32 is exact below 2^24, and vectorises."""
  if mask.shape[-1] >= 2**24:
    return jnp.sum(mask, axis=-1, keepdims=True, dtype=jnp.uint32)
  return jnp.sum(jnp.where(mask, 1.0, 0.0), axis=-1, keepdims=True).astype(jnp.uint32)


def num(fraction: Any, size: Any) -> jax.Array:
  """Returns floor(fraction size), f32."""
  return jnp.floor(jnp.asarray(fraction, jnp.float32) * size)


def uniform(key: jax.Array, shape: tuple[int, ...], first: Any = 0) -> jax.Array:
  """Returns numbers in [0, 1) of a tensor, f32, or of its piece of that shape from the element `first` on.

  Each is Threefry of the element's index, so that no mesh and no cut into pieces shows, and of nothing in memory, so that it
  fuses with what it is for; jax.random does neither on every platform. Elements 2^32 apart draw the same.
  """
  index = sharding.element_index(shape) + first
  bits, _ = threefry_2x32(jax.random.bits(key, (2,)), index, jnp.zeros_like(index))
  return (bits >> 8).astype(jnp.float32) * 2.0**-24


def threefry_2x32(key: jax.Array, x0: jax.Array, x1: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the two words, uint32, that Threefry-2x32 with 20 rounds makes of a counter (Salmon et al. 2011)."""
  keys = key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA)
  x0, x1 = x0 + keys[0], x1 + keys[1]
  for i in range(5):
    for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
      x0 = x0 + x1
      x1 = x0 ^ ((x1 << turn) | (x1 >> (32 - turn)))
    x0, x1 = x0 + keys[(i + 1) % 3], x1 + keys[(i + 2) % 3] + jnp.uint32(i + 1)
  return x0, x1


def keep_largest(delta: jax.Array, p: Values, unused_drawn: Any, whole: Whole) -> jax.Array:
  """Keeps the max(1, floor(density n)) largest by magnitude (TIES)."""
  density = jnp.asarray(p['density'])
  return whole.largest(jnp.abs(delta), jnp.maximum(num(density, whole.size), 1)) | (density >= 1)


def keep_random(unused_delta: jax.Array, p: Values, drawn: jax.Array, unused_whole: Whole) -> jax.Array:
  """Keeps each element with probability density (DARE)."""
  return drawn < jnp.asarray(p['density'], jnp.float32)


def keep_by_rank(delta: jax.Array, p: Values, drawn: jax.Array, unused_whole: Whole) -> jax.Array:
  """Keeps an element with probability density - epsilon (a row's smallest) .. density + epsilon (its largest) (DELLA)."""
  size = delta.shape[-1] if delta.ndim else 1
  rank = jnp.argsort(jnp.argsort(jnp.abs(delta), axis=-1), axis=-1).astype(jnp.float32)
  density, epsilon = (jnp.asarray(p[name], jnp.float32) for name in ('density', 'epsilon'))
  probability = density - epsilon + 2 * epsilon * rank / max(1, size - 1)
  return (drawn < jnp.clip(probability, 0, 1)) | (density >= 1)


def keep_band(delta: jax.Array, p: Values, unused_drawn: Any, whole: Whole) -> jax.Array:
  """Keeps floor(density n), without the floor(gamma n) largest and the smallest of the rest (Model Breadcrumbs)."""
  kept = num(p['density'], whole.size)
  outliers = jnp.minimum(num(p['gamma'], whole.size), whole.size - kept)
  magnitude = jnp.abs(delta)
  return whole.largest(magnitude, kept + outliers) & ~whole.largest(magnitude, outliers) | (jnp.asarray(p['density']) >= 1)
