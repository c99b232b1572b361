"""Choosing the next token: temperature, top-k, top-p, and a draw with one random number a row."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Below it, logits divided by the temperature may overflow.
MIN_TEMPERATURE = 1e-5


@dataclasses.dataclass(frozen=True)
class Rule:
  """How the next token is chosen from the model's distribution.

  Tokens are cut off as in transformers: temperature, then top_k, then top_p (nucleus sampling,
  arXiv 1904.09751).
  """

  temperature: float  # 0 is greedy.
  top_k: int = 0  # The likeliest tokens that are kept; 0 keeps all.
  top_p: float = 1.0  # The fewest tokens are kept that have this probability; 1 keeps all.

  def problem(self) -> str:
    """Returns which field is out of range and what its range is, '' where none is."""
    if self.temperature != 0 and not self.temperature >= MIN_TEMPERATURE:
      wanted = f'give 0, which is greedy, or at least {MIN_TEMPERATURE:g}'
      return f'temperature: {self.temperature} is out of range: {wanted}'
    if self.top_k < 0:
      return f'top_k: {self.top_k} is out of range: give at least 0'
    if not 0 < self.top_p <= 1:
      return f'top_p: {self.top_p} is out of range: give a number above 0, and 1 at most'
    return ''


class Choice(NamedTuple):
  """The next tokens, and what the model's own distribution is there.

  That is the one at temperature 1, with nothing cut off.
  """

  tokens: jax.Array  # [B] int32.
  logprobs: jax.Array  # [B] f32, nats, of these tokens.
  entropies: jax.Array  # [B] f32, nats, of the distribution.


def choose(logits: jax.Array, keys: jax.Array, length: jax.Array, rule: Rule) -> Choice:
  """Chooses the next token of each row.

  The draw is a function of the row's key and of the number of tokens it has, so neither batch nor
  order matters.

  Args:
    logits: [B, V] f32.
    keys: [B] PRNG keys.
    length: [B] int32, the number of tokens that each row has.
    rule: how tokens are chosen.
  """
  if rule.temperature == 0:
    token = jnp.argmax(logits, axis=-1)
  else:
    scaled = logits / rule.temperature
    if rule.top_k:
      scaled = cut_off(scaled, jnp.ones_like(scaled), rule.top_k)
    if rule.top_p < 1:
      scaled = cut_off(scaled, jax.nn.softmax(scaled), rule.top_p)
    uniform = jax.vmap(jax.random.uniform)(jax.vmap(jax.random.fold_in)(keys, length))
    token = draw(jnp.exp(scaled - jnp.max(scaled, axis=-1, keepdims=True)), uniform)
  below = logits - jnp.max(logits, axis=-1, keepdims=True)
  weights = jnp.exp(below)
  total = jnp.sum(weights, axis=-1)
  chosen = jnp.take_along_axis(below, token[:, None], axis=-1)[:, 0]
  entropy = jnp.log(total) - jnp.sum(weights * below, axis=-1) / total
  return Choice(token.astype(jnp.int32), chosen - jnp.log(total), entropy)


def cut_off(scores: jax.Array, amounts: jax.Array, most: float) -> jax.Array:
  """Returns scores [B, V], -inf where the amounts [B, V] of all higher scores reach `most`.

  With amounts of 1 that is top_k, with probabilities it is top_p.

  A binary search, over the bits of a float, for the lowest score that stays: 32 sums and no sort.
  """
  bits = jax.lax.bitcast_convert_type(scores, jnp.int32)
  # Integers in the order of the scores.
  order = jnp.where(bits < 0, bits ^ jnp.int32(2**31 - 1), bits)

  def halve(_, bounds):
    low, high = bounds  # The lowest that stays is in (low, high].
    middle = (low & high) + ((low ^ high) >> 1)  # Their mean, without overflow.
    stays = jnp.sum(jnp.where(order > middle[:, None], amounts, 0.0), axis=-1) < most
    return jnp.where(stays, low, middle), jnp.where(stays, middle, high)

  ends = jnp.min(order, axis=-1) - 1, jnp.max(order, axis=-1)
  _, lowest = jax.lax.fori_loop(0, 32, halve, ends)
  return jnp.where(order < lowest[:, None], -jnp.inf, scores)


def draw(weights: jax.Array, uniform: jax.Array) -> jax.Array:
  """Returns tokens [B] int32, drawn in proportion to weights [B, V].

  They are the inverse of the running sum of the weights at uniform [B] f32, in [0, 1).

  One random number a row, where the Gumbel trick takes one a token. First a block of tokens is
  found, then one in it.
  """
  B, V = weights.shape
  width = 128
  blocks = jnp.pad(weights, ((0, 0), (0, -V % width))).reshape(B, -1, width)
  sums = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
  block, rest = _invert(sums, uniform * sums[:, -1])
  inside = jnp.cumsum(jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0], axis=-1)
  return block * width + _invert(inside, rest)[0]


def _invert(sums: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the first index [B] int32 at which running sums [B, N] exceed target [B].

  The second result is the target less the sum before that index, [B].

  Where rounding has put the target at the end, the index is the last that adds something.
  """
  exceeding = jnp.sum(sums <= target[:, None], axis=-1)
  last = jnp.sum(sums < sums[:, -1:], axis=-1)
  index = jnp.minimum(exceeding, last).astype(jnp.int32)
  before = jnp.take_along_axis(sums, jnp.maximum(index - 1, 0)[:, None], axis=-1)[:, 0]
  return index, target - jnp.where(index > 0, before, 0.0)
