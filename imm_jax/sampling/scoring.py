"""Scores options of a prompt by the log-probabilities of their tokens, with one row per prompt."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imm_jax import processes
from imm_jax.models import attention
from imm_jax.models.cache import KVCache
from imm_jax.models.transformer import (
  is_likeliest,
  of_logits,
  Params,
  target_logprobs,
  Transformer,
  XLA_OPTIONS,
)
from imm_jax.sampling.prefill import bucket, check_length, Request, share_prefix

Options = Sequence[Sequence[int]]  # The token ids of each option of a prompt.


class Score(NamedTuple):
  """The model's probabilities of an option of n tokens."""

  logprobs: Any  # [n] f32, nats, of its tokens.
  greedy: Any  # [n] bool, whether no other token is likelier.


class OptionRows(NamedTuple):
  """A batch of prompts; each row is a prompt followed by all its options.

  Attributes:
    tokens: [B, T] int32.
    offsets: [B, T] int32. A token's place after the shared prefix; options of a prompt all begin at
      the same one. attention.EMPTY marks padding.
    segment_ids: [B, T] int32. attention.SHARED for the prompt, then 1, 2, ...: a token sees its
      prompt and its own option.
    sources: [B, M] int32. Where the features are that predict each token of the options.
    targets: [B, M] int32. These tokens.
  """

  tokens: Any
  offsets: Any
  segment_ids: Any
  sources: Any
  targets: Any


def check_options(name: str, prompt: Sequence[int], options: Options, max_length: int) -> None:
  """Checks that a prompt fits the context with each of its options.

  The last token of an option does not count: the model never reads it.

  Args:
    name: the prompt's name, with which the error begins.
    prompt: its token ids.
    options: its options: at least one, with a token each at least.
    max_length: the model's context, in tokens.

  Raises:
    ValueError: the prompt or an option is empty, they are too long together, or there is no option.
  """
  if not len(options):
    raise ValueError(f'{name} has no option; give at least one')
  for i, option in enumerate(options):
    if not len(option):
      raise ValueError(f'{name} has an option without a token, number {i}; give at least one')
  check_length(name, prompt, max(map(len, options)) - 1, max_length)


def check_requests(
  requests: Sequence[Request], options: Sequence[Options], max_length: int
) -> None:
  """Checks each request with its options; see check_options.

  Raises ValueError that names the question.
  """
  for request, own in zip(requests, options, strict=True):
    check_options(f'question {request.id}: its prompt', request.tokens, own, max_length)


def score(
  model: Transformer,
  params: Params,
  requests: Sequence[Request],
  options: Sequence[Options],
  *,
  batch_size: int,
  advance: Callable[[int], None] = lambda num_options: None,
) -> list[list[Score]]:
  """Returns the Score of each option of each request.

  A row of a batch is a prompt and all its options, which do not see each other, so the prompt is
  computed once.

  Args:
    model: its rules are sharding.SAMPLE.
    params: the params of the model, sharded by these rules.
    requests: the prompts. Their common start is computed once.
    options: the options of each prompt. The last token of one may be the first after the context.
    batch_size: the number of prompts that are computed at once.
    advance: called with the number of options that have just been scored.

  Raises:
    processes.Stopped: a notice to stop has come.
    ValueError: a prompt or an option is empty or too long; the question is named, and nothing has
      been computed.
  """
  check_requests(requests, options, model.config.max_length)
  if not requests:
    return []
  prefix = share_prefix(model, params, [request.tokens for request in requests])
  suffixes = [request.tokens[prefix.length :] for request in requests]
  rows = list(zip(suffixes, options, strict=True))
  # Rows of similar length share a batch.
  order = sorted(range(len(rows)), key=lambda i: _size(*rows[i]))
  num_rows = min(batch_size, len(rows))
  results: list[list[Score]] = [[] for _ in rows]
  for first in range(0, len(order), num_rows):
    processes.check_stop()
    batch = order[first : first + num_rows]
    packed = _pack([rows[i] for i in batch], num_rows)
    scores = processes.fetch(
      score_rows(model, params, prefix.cache, packed, np.int32(prefix.length))
    )
    for row, i in enumerate(batch):
      results[i] = _split(scores, row, [len(option) for option in options[i]])
    advance(sum(len(options[i]) for i in batch))
  return results


@functools.partial(jax.jit, static_argnames='model', compiler_options=XLA_OPTIONS)
def score_rows(
  model: Transformer, params: Params, prefix: KVCache | None, rows: OptionRows, start: jax.Array
) -> Score:
  """Returns the Score of the options' tokens, [B, M].

  start [] int32 is the position of each row's first token.
  """
  # XLA's attention is used because no kernel supports the segment that all others see.
  model = model.clone(config=dataclasses.replace(model.config, attention='xla'))
  positions = jnp.where(rows.offsets == attention.EMPTY, attention.EMPTY, start + rows.offsets)
  bound = model.bind({'params': params})
  x, _ = bound.features(rows.tokens, positions, rows.segment_ids, prefix=prefix)
  x = jnp.take_along_axis(x, rows.sources[..., None], axis=1)

  def of_targets(logits, targets):
    return Score(target_logprobs(logits, targets), is_likeliest(logits, targets))

  return of_logits(model, params, x, rows.targets, of_targets)


def _size(prompt: Sequence[int], options: Options) -> int:
  return len(prompt) + sum(map(len, options))


def _pack(rows: Sequence[tuple[Sequence[int], Options]], num_rows: int) -> OptionRows:
  """Returns the batch of (prompt, options) rows; missing rows are empty."""
  T = bucket(max(_size(prompt, options) for prompt, options in rows))
  M = bucket(max(sum(map(len, options)) for _, options in rows))
  batch = OptionRows(
    tokens=np.zeros((num_rows, T), np.int32),
    offsets=np.full((num_rows, T), attention.EMPTY, np.int32),
    segment_ids=np.full((num_rows, T), attention.SHARED, np.int32),
    sources=np.zeros((num_rows, M), np.int32),
    targets=np.zeros((num_rows, M), np.int32),
  )
  for row, (prompt, options) in enumerate(rows):
    end = len(prompt)
    batch.tokens[row, :end] = prompt
    batch.offsets[row, :end] = np.arange(end)
    done = 0
    for segment, option in enumerate(options, start=1):
      n = len(option)
      batch.tokens[row, end : end + n] = option
      batch.offsets[row, end : end + n] = len(prompt) + np.arange(n)
      batch.segment_ids[row, end : end + n] = segment
      batch.sources[row, done : done + n] = [len(prompt) - 1, *range(end, end + n - 1)]
      batch.targets[row, done : done + n] = option
      end += n
      done += n
  return batch


def _split(scores: Score, row: int, lengths: Sequence[int]) -> list[Score]:
  """Returns the Score of each option of a row, whose options have these lengths."""
  ends = np.cumsum(lengths)
  found = []
  for end, n in zip(ends, lengths, strict=True):
    found.append(Score(scores.logprobs[row, end - n : end], scores.greedy[row, end - n : end]))
  return found
