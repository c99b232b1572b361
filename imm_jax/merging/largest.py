"""The k largest of a tensor's scores: one search on the devices, one on a host.

Scores are non-negative float32: their bits, read as int32, are in the order of the scores.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imm_jax import sharding

SAMPLE = 32  # The device search looks at one row in 32 first.
_SAMPLE_ON_HOST = 127  # The host search sorts one element in 127: odd, so it meets all columns.


class Cut(NamedTuple):
  """What separates the k largest scores of a tensor from the rest; of equal ones the first stay."""

  threshold: Any  # [] int32: the bits of the k-th largest
  end: Any  # [] uint32: elements before this index are kept where they equal the threshold

  def after(self, start: int) -> 'Cut':
    """Returns the cut of the piece that starts at the element `start`."""
    return Cut(self.threshold, np.uint32(np.clip(int(self.end) - start, 0, 2**32 - 1)))


def is_largest(scores: jax.Array, cut: Cut) -> jax.Array:
  """Returns where the scores are among the k largest of the cut, bool of their shape."""
  bits = jax.lax.bitcast_convert_type(scores, jnp.int32)
  ties = (bits == cut.threshold) & (sharding.element_index(scores.shape) < cut.end)
  return (bits > cut.threshold) | ties


def find_cut(scores: jax.Array, k: jax.Array | int) -> Cut:
  """Returns the cut of the k largest scores, k in [0, number of scores].

  A search for the k-th largest in reductions only: no sort, no copy, and sharded tensors stay where
  they are.
  """
  bits = jax.lax.bitcast_convert_type(jnp.atleast_1d(scores), jnp.int32)
  k = jnp.asarray(k, jnp.uint32)
  guesses = ()
  if len(bits) >= 2 * SAMPLE:
    # A sample of the rows says where to look, three standard errors to both sides: passes over
    # it cost little.
    sample = bits[::SAMPLE]
    rank = k.astype(jnp.float32) * (sample.size / scores.size)
    ranks = rank + jnp.array([3.0, -3.0]) * jnp.sqrt(rank)
    ranks = jnp.clip(ranks, 1, sample.size).astype(jnp.uint32)
    guesses = tuple(jax.vmap(_kth_largest, (None, 0))(sample, ranks)[0])
  threshold, num_enough = _kth_largest(bits, k, guesses)
  # At least k scores reach the threshold: of those that equal it only the first are kept.
  equal = bits == threshold
  num_too_many = num_enough - k
  return Cut(threshold, _index_after(equal, jnp.sum(_count_in_rows(equal)) - num_too_many))


def find_cut_on_host(scores: np.ndarray, k: int) -> Cut:
  """Returns the same of a host's array [n], by sorting a sample, then few elements."""
  if k == 0:
    return Cut(np.int32(2**31 - 1), np.uint32(0))
  bits = scores.view(np.int32)
  threshold = _kth_largest_on_host(bits, k)
  num_equal = k - np.count_nonzero(bits > threshold)
  return Cut(threshold, np.flatnonzero(bits == threshold)[num_equal - 1] + 1)


def _index_after(mask: jax.Array, num: jax.Array) -> jax.Array:
  """Returns the index, uint32, after the num-th True of a flattened mask; 0 where num is 0."""
  width = mask.shape[-1]
  in_rows = _count_in_rows(mask)
  until = jnp.cumsum(in_rows, dtype=jnp.uint32).reshape(in_rows.shape)
  rows_before = until < num
  row = jnp.sum(rows_before, dtype=jnp.uint32)
  left = num - jnp.sum(jnp.where(rows_before, in_rows, 0), dtype=jnp.uint32)
  is_row = sharding.element_index(in_rows.shape) == row
  columns = jnp.sum(mask & is_row, axis=tuple(range(mask.ndim - 1)), dtype=jnp.uint32)
  column = jnp.sum(jnp.cumsum(columns, dtype=jnp.uint32) < left, dtype=jnp.uint32)
  return jnp.where(num == 0, 0, row * width + column + 1)


def _kth_largest(
  bits: jax.Array,
  k: jax.Array,
  guesses: Sequence[jax.Array] = (),
) -> tuple[jax.Array, jax.Array]:
  """Returns the k-th largest of non-negative bits, int32, and how many reach it, uint32.

  It tries the guesses, then interpolates, which mostly takes a dozen passes, and every second time
  halves, which bounds them by 62.
  """

  def searching(state):
    _, low, high, num_low, _ = state
    return (num_low != k) & (high - low > 1)

  def narrow(state):
    i, low, high, num_low, num_high = state  # num: how many are >= low, >= high
    num_between = jnp.maximum(num_low - num_high, 1).astype(jnp.float32)
    share = jnp.where(i % 2 == 0, (num_low - k).astype(jnp.float32) / num_between, 0.5)
    middle = low + ((high - low).astype(jnp.float32) * share).astype(jnp.int32)
    for n, guess in enumerate(guesses):
      middle = jnp.where(i == n, guess, middle)
    middle = jnp.clip(middle, low + 1, high - 1)
    num = jnp.sum(_count_in_rows(bits >= middle))
    enough = num >= k
    low, num_low = jnp.where(enough, middle, low), jnp.where(enough, num, num_low)
    high, num_high = jnp.where(enough, high, middle), jnp.where(enough, num_high, num)
    return i + 1, low, high, num_low, num_high

  above = jnp.max(bits, initial=0) + 1
  start = (0, jnp.int32(0), above, jnp.uint32(bits.size), jnp.uint32(0))
  _, low, _, num_low, _ = jax.lax.while_loop(searching, narrow, start)
  return low, num_low


def _count_in_rows(mask: jax.Array) -> jax.Array:
  """Returns the number of True in each row [..., 1], uint32.

  float32 is exact below 2^24, and vectorises.
  """
  if mask.shape[-1] >= 2**24:
    return jnp.sum(mask, axis=-1, keepdims=True, dtype=jnp.uint32)
  return jnp.sum(jnp.where(mask, 1.0, 0.0), axis=-1, keepdims=True).astype(jnp.uint32)


def _kth_largest_on_host(bits: np.ndarray, k: int) -> np.int32:
  """Returns the k-th largest of non-negative bits, int32.

  A sample says between which two it lies, as sorting many equal ones is slow.
  """
  sample = np.sort(bits[::_SAMPLE_ON_HOST])
  rank, margin = (1 - k / bits.size) * sample.size, 3 * np.sqrt(sample.size)
  low, high = (sample[int(np.clip(rank + side, 0, sample.size - 1))] for side in (-margin, margin))
  num_above = np.count_nonzero(bits > high)
  between = bits[(bits >= low) & (bits <= high)]
  if not num_above < k <= num_above + between.size:
    num_above, between = 0, bits
  elif low == high:
    return low
  place = between.size - (k - num_above)
  return np.partition(between, place)[place]
