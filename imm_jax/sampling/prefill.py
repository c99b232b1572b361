"""Requests, batches of prompts and their common prefix, for both sampling and scoring."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from imm_jax.models import attention
from imm_jax.models.cache import KVCache
from imm_jax.models.transformer import Params, Transformer, XLA_OPTIONS


@dataclasses.dataclass(frozen=True)
class Request:
  """A prompt to complete, or to score options of."""

  id: str  # The question's stable name: completions are drawn by it, and errors name it.
  tokens: Sequence[int]  # The prompt's token ids, at least one.


@flax.struct.dataclass
class Prefilled:
  """Prompts whose tokens the model has read."""

  cache: KVCache  # Q rows of T slots: the keys and values of the prompts' tokens.
  logits: jax.Array  # [Q, V] f32, after each prompt's last token.
  next_positions: jax.Array  # [Q] int32, the position of the first token after each prompt.


class Prefix(NamedTuple):
  """The tokens that all prompts have in common at the beginning."""

  length: int  # The number of these tokens.
  cache: KVCache | None  # Their keys and values, in one row; None where the length is 0.


def check_length(name: str, tokens: Sequence[int], num_new: int, max_length: int) -> None:
  """Checks that a prompt and the tokens after it fit the context.

  Args:
    name: the prompt's name, with which the error begins.
    tokens: the prompt's token ids.
    num_new: the number of tokens after the prompt that the model reads or writes.
    max_length: the model's context, in tokens.

  Raises:
    ValueError: the prompt is empty or too long.
  """
  if not len(tokens):  # not `not tokens`: they may be a NumPy array.
    raise ValueError(f'{name} has no token; give at least one')
  if len(tokens) + num_new > max_length:
    raise ValueError(
      f'{name} has {len(tokens)} tokens: with {num_new} new ones it exceeds the context of'
      f' {max_length}'
    )


def check_requests(requests: Sequence[Request], num_new: int, max_length: int) -> None:
  """Checks the length of each request's prompt; see check_length.

  Raises ValueError that names the question.
  """
  for request in requests:
    check_length(f'question {request.id}: its prompt', request.tokens, num_new, max_length)


@functools.partial(jax.jit, static_argnames='model', compiler_options=XLA_OPTIONS)
def prefill(
  model: Transformer,
  params: Params,
  prefix: KVCache | None,
  tokens: jax.Array,
  lengths: jax.Array,
  start: jax.Array,
) -> Prefilled:
  """Computes a batch of prompts.

  Args:
    model: the function of params.
    params: the params of the model.
    prefix: the cache of one row that all prompts begin with, or None.
    tokens: [Q, T] int32, the prompts' tokens after the prefix, padded.
    lengths: [Q] int32, how many of a row's tokens count.
    start: [] int32, the position of each row's first token.
  """
  bound = model.bind({'params': params})
  offsets = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
  positions = jnp.where(offsets < lengths[:, None], start + offsets, attention.EMPTY)
  x, cache = bound.features(tokens, positions, prefix=prefix)
  last = jnp.take_along_axis(x, lengths[:, None, None] - 1, axis=1)
  return Prefilled(cache, bound.unembed(last)[:, 0], start + lengths)


def share_prefix(model: Transformer, params: Params, prompts: Sequence[Sequence[int]]) -> Prefix:
  """Computes the common start of all prompts.

  The last token of a prompt is never shared: the first new token is chosen from its logits.
  """
  # Of all prompts in order, the first and the last differ the earliest.
  first, last = min(map(tuple, prompts)), max(map(tuple, prompts))
  limit = min(map(len, prompts)) - 1
  length = next((i for i in range(limit) if first[i] != last[i]), limit)
  if not length:
    return Prefix(0, None)
  tokens, lengths = pad([prompts[0][:length]], 1, bucket(length))
  return Prefix(length, prefill(model, params, None, tokens, lengths, np.int32(0)).cache)


def bucket(length: int) -> int:
  """Rounds a length up by at most a quarter: 8, 16, ... 64, 80, 96, ...

  So few shapes are compiled.
  """
  multiple = max(8, 2 ** (length.bit_length() - 3))
  return -(-length // multiple) * multiple


def pad(rows: Sequence[Sequence[int]], num_rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns tokens [num_rows, length] int32 and lengths [num_rows] int32.

  Missing rows have length 1.
  """
  tokens = np.zeros((num_rows, length), np.int32)
  lengths = np.ones(num_rows, np.int32)
  for i, row in enumerate(rows):
    tokens[i, : len(row)] = row
    lengths[i] = len(row)
  return tokens, lengths
