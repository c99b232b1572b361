"""Sampling and scoring: a prefix computed once for all prompts, a prompt once for its samples, a decode loop over slots.

A fixed number of slots decodes in step. A finished row leaves its slot, and the next question takes it. Every row writes its
keys and values at the same cache index, so the part of the cache behind the prompts is a ring; positions say what a slot of
the cache holds and who may see it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple
import zlib

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from imm_jax import processes, sharding
from imm_jax.formats.tokenizer import Tokenizer
from imm_jax.models import layers
from imm_jax.models.transformer import (
  empty_cache,
  is_likeliest,
  KVCache,
  of_logits,
  param_shardings,
  Params,
  target_logprobs,
  Transformer,
  XLA_OPTIONS,
)
from imm_jax.sampling.choice import choose

CACHE_AXES = ('layers', 'attention_batch', 'attention_heads', None, None)  # a head's keys, or values, are whole


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
  """How tokens are chosen, and how many rows decode at once."""

  num_samples_per_prompt: int
  temperature: float  # 0 is greedy
  top_k: int  # 0 keeps all tokens
  top_p: float  # 1 keeps all tokens
  num_slots: int  # rows
  chunk_steps: int  # decode steps between two looks at which rows are done

  def __post_init__(self):
    for name, valid in (
      ('num_samples_per_prompt', self.num_samples_per_prompt >= 1),
      ('temperature', self.temperature >= 0),
      ('top_k', self.top_k >= 0),
      ('top_p', 0 < self.top_p <= 1),
      ('num_slots', self.num_slots >= 1),
      ('chunk_steps', self.chunk_steps >= 1),
    ):
      if not valid:
        raise ValueError(f'sampler.{name}: {getattr(self, name)} is out of range')


@dataclasses.dataclass(frozen=True)
class Completion:
  """What the model wrote: the ids it sampled are the truth, the text is for people and verifiers."""

  text: str  # without the stop string
  tokens: list[int]  # the one that stopped it included
  logprobs: list[float]  # nats, under the model itself (temperature 1, nothing cut off)
  entropies: list[float]  # nats, of that distribution where each token was drawn
  finish_reason: str  # 'stop' or 'length'


class Score(NamedTuple):
  """What the model thinks of an option."""

  logprobs: Any  # [n] f32, nats, of its tokens
  greedy: Any  # [n] bool: whether no other token is likelier


@flax.struct.dataclass
class Slots:
  """The decode loop's state: B rows in flight."""

  cache: KVCache  # S = T + R slots: prompts in the first T, completions in a ring of R = max_new_tokens
  token: jax.Array  # [B] int32, the newest token, not yet in the cache
  position: jax.Array  # [B] int32, its position
  active: jax.Array  # [B] bool, still decoding
  key: jax.Array  # [B] PRNG keys, f(seed, round, question id, sample index)
  length: jax.Array  # [B] int32, completion tokens so far
  tokens: jax.Array  # [B, R] int32, the completion
  logprobs: jax.Array  # [B, R] f32
  entropies: jax.Array  # [B, R] f32


@functools.lru_cache
def make_cast(model: Any, mesh: jax.sharding.Mesh) -> Any:
  """Returns the jitted cast(params) -> params in the compute dtype, sharded as the model samples."""
  shardings = param_shardings(model.config, mesh, model.rules)
  return jax.jit(lambda params: jax.tree.map(lambda x: x.astype(model.config.dtype), params), out_shardings=shardings)


@functools.partial(jax.jit, static_argnames='model', compiler_options=XLA_OPTIONS)
def prefill(
  model: Transformer, params: Params, prefix: KVCache | None, tokens: jax.Array, lengths: jax.Array, start: jax.Array
) -> tuple[jax.Array, KVCache]:
  """Returns the logits [B, V] f32 after each row's last token, and the cache of the rows' tokens.

  tokens [B, T] int32, of which the first lengths [B] of a row count; start [] int32 is the position of the first.
  """
  bound = model.bind({'params': params})
  x, cache = bound.features(tokens, _positions(tokens, lengths, start), prefix=prefix)
  last = jnp.take_along_axis(x, lengths[:, None, None] - 1, axis=1)
  return bound.unembed(last)[:, 0], cache


@functools.partial(jax.jit, static_argnames=('model', 'num_slots', 'prompt_length', 'max_new_tokens'))
def empty_slots(model: Transformer, num_slots: int, prompt_length: int, max_new_tokens: int) -> Slots:
  """Returns slots with nothing in them."""
  cache = empty_cache(model.config, num_slots, prompt_length + max_new_tokens)
  zeros = jnp.zeros((num_slots,), jnp.int32)
  return Slots(
    cache=_pin(model, dataclasses.replace(cache, index=jnp.int32(prompt_length))),
    token=zeros,
    position=zeros,
    active=zeros.astype(bool),
    key=jax.random.split(jax.random.key(0), num_slots),
    length=zeros,
    tokens=jnp.zeros((num_slots, max_new_tokens), jnp.int32),
    logprobs=jnp.zeros((num_slots, max_new_tokens), jnp.float32),
    entropies=jnp.zeros((num_slots, max_new_tokens), jnp.float32),
  )


@functools.partial(jax.jit, static_argnames=('model', 'config'), donate_argnames='slots')
def insert(
  model: Transformer,
  slots: Slots,
  prompts: KVCache,
  logits: jax.Array,
  next_positions: jax.Array,
  keys: jax.Array,
  rows: jax.Array,
  stops: jax.Array,
  config: SamplerConfig,
) -> Slots:
  """Puts Q prefilled prompts, n = num_samples_per_prompt rows each, into slots `rows`, with their first token chosen.

  prompts: a cache of Q rows and T slots; logits [Q, V] f32; next_positions [Q] int32; keys [Q * n, 2] uint32; rows
  [Q * n] int32, out of range where there is no prompt; stops [V] bool.
  """
  row_keys = jax.random.wrap_key_data(keys)
  n, ring = config.num_samples_per_prompt, slots.tokens.shape[1]
  prompt_length = prompts.positions.shape[1]
  length = jnp.zeros((rows.shape[0],), jnp.int32)
  token, logprob, entropy = choose(jnp.repeat(logits, n, axis=0), row_keys, length, config)
  empty = jnp.full((rows.shape[0], slots.cache.positions.shape[1] - prompt_length), layers.EMPTY, jnp.int32)
  positions = jnp.concatenate([jnp.repeat(prompts.positions, n, axis=0), empty], axis=1)

  def put(old, new):
    return old.at[rows].set(new, mode='drop')

  cache = dataclasses.replace(
    slots.cache,
    k=slots.cache.k.at[:, rows, :, :, :prompt_length].set(jnp.repeat(prompts.k, n, axis=1), mode='drop'),
    v=slots.cache.v.at[:, rows, :, :prompt_length].set(jnp.repeat(prompts.v, n, axis=1), mode='drop'),
    positions=put(slots.cache.positions, positions),
  )
  return Slots(
    cache=_pin(model, cache),
    token=put(slots.token, token),
    position=put(slots.position, jnp.repeat(next_positions, n)),
    active=put(slots.active, ~stops[token] & (ring > 1)),
    key=put(slots.key, row_keys),
    length=put(slots.length, length + 1),
    tokens=slots.tokens.at[rows, 0].set(token, mode='drop'),
    logprobs=slots.logprobs.at[rows, 0].set(logprob, mode='drop'),
    entropies=slots.entropies.at[rows, 0].set(entropy, mode='drop'),
  )


@functools.partial(jax.jit, static_argnames=('model', 'config'), donate_argnames='slots', compiler_options=XLA_OPTIONS)
def decode(
  model: Transformer,
  params: Params,
  prefix: KVCache | None,
  slots: Slots,
  stops: jax.Array,
  config: SamplerConfig,
) -> Slots:
  """Runs config.chunk_steps decode steps, fewer when every row is done. stops [V] bool: tokens that end a row."""

  def unfinished(state):
    return (state[0] < config.chunk_steps) & jnp.any(state[1].active)

  def step(state):
    return state[0] + 1, decode_step(model, params, prefix, state[1], stops, config)

  return jax.lax.while_loop(unfinished, step, (jnp.int32(0), slots))[1]


def decode_step(
  model: Transformer, params: Params, prefix: KVCache | None, slots: Slots, stops: jax.Array, config: SamplerConfig
) -> Slots:
  """Returns the slots with one more token in each active row."""
  num_rows, ring = slots.tokens.shape
  prompt_length = slots.cache.positions.shape[1] - ring
  bound, rows = model.bind({'params': params}), jnp.arange(num_rows)
  logits, cache = bound(slots.token[:, None], slots.position[:, None], cache=slots.cache, prefix=prefix)
  token, logprob, entropy = choose(logits[:, 0], slots.key, slots.length, config)
  where = jnp.where(slots.active, slots.length, ring)  # a finished row writes out of range: dropped
  length = slots.length + slots.active.astype(jnp.int32)
  index = jnp.where(cache.index == prompt_length + ring, prompt_length, cache.index)
  return dataclasses.replace(
    slots,
    cache=_pin(model, dataclasses.replace(cache, index=index)),
    token=token,
    position=slots.position + 1,
    active=slots.active & ~stops[token] & (length < ring),
    length=length,
    tokens=slots.tokens.at[rows, where].set(token, mode='drop'),
    logprobs=slots.logprobs.at[rows, where].set(logprob, mode='drop'),
    entropies=slots.entropies.at[rows, where].set(entropy, mode='drop'),
  )


def capacity(config: SamplerConfig, rules: sharding.Rules, mesh_shape: Mapping[str, int]) -> tuple[int, int]:
  """Returns how many rows decode at once, a multiple of the devices that share them, and how many questions are prefilled.

  A quarter of the slots is refilled when it is free.
  """
  n, ways = config.num_samples_per_prompt, rules.num_parts('attention_batch', mesh_shape)
  num_questions = max(1, config.num_slots // n)
  return -(-num_questions * n // ways) * ways, -(-num_questions // 4)


def sample(
  model: Transformer,
  params: Params,
  tokenizer: Tokenizer,
  prompts: Sequence[Sequence[int]],
  config: SamplerConfig,
  *,
  key: jax.Array,
  max_new_tokens: int,
  ids: Sequence[str] | None = None,
  stop: Sequence[str] = (),
  among: Sequence[Sequence[int]] = (),
  advance: Callable[[int], None] = lambda num_rows: None,
) -> list[list[Completion]]:
  """Returns config.num_samples_per_prompt completions of each prompt; greedy ones are alike, and decoded once.

  Args:
    model: its rules are sharding.SAMPLE, and params are sharded by them.
    params: of the model.
    tokenizer: decodes, and knows which tokens stop.
    prompts: token ids; at least one each. What all share at the beginning is computed once.
    config: how tokens are chosen.
    key: f(seed, round). A completion is a function of this key, its prompt's id and its index, and of nothing else.
    max_new_tokens: at most so many tokens a completion.
    ids: the prompts' stable names; by default their place in the list.
    stop: strings that end a completion.
    among: the prompts of which these are a part, so that all parts share what all prompts do, and compile once.
    advance: called with the number of rows that have just finished.

  Raises:
    processes.Stopped: a notice to stop has come.
    ValueError: a prompt is empty, or longer with its completion than the model's context.
  """
  copies = config.num_samples_per_prompt if config.temperature == 0 else 1
  n = config.num_samples_per_prompt // copies
  if max_new_tokens < 1:
    raise ValueError(f'max_new_tokens: {max_new_tokens} is less than 1')
  if isinstance(stop, str) or '' in stop:
    raise ValueError(f'stop: {stop!r} is not a list of strings with something in each')
  _check(prompts, max_new_tokens, model.config.max_length)
  if not prompts:
    return []
  among = among or prompts
  most = 2 ** (n * len(among) - 1).bit_length()  # a slot that no row takes is decoded too; powers of two compile seldom
  config = dataclasses.replace(config, num_samples_per_prompt=n, num_slots=min(config.num_slots, most))
  start, prefix = _share_prefix(model, params, among)
  suffixes = [prompt[start:] for prompt in prompts]
  prompt_length = _bucket(max(map(len, among)) - start)
  keys = _row_keys(key, ids or [str(i) for i in range(len(prompts))], n)
  stops = np.zeros(model.config.vocab_size, bool)
  stops[: tokenizer.size] = tokenizer.tokens_containing(stop)
  stops[list(tokenizer.ending(stop))] = True
  stops = jnp.asarray(stops)

  num_rows, wave = capacity(config, model.rules, jax.sharding.get_abstract_mesh().shape)
  slots = empty_slots(model, num_rows, prompt_length, max_new_tokens)
  free = list(range(num_rows))
  pending = sorted(range(len(prompts)), key=lambda i: (_bucket(len(suffixes[i])), -i), reverse=True)  # like lengths together
  owners: dict[int, tuple[int, int]] = {}  # slot -> (prompt, sample index)
  completions: list[dict[int, Completion]] = [{} for _ in prompts]
  while pending or owners:
    processes.check_stop()
    while pending and len(free) >= min(wave, len(pending)) * n:
      batch = [pending.pop() for _ in range(min(wave, len(pending)))]
      taken = [free.pop() for _ in range(len(batch) * n)]
      owners.update({slot: (batch[i // n], i % n) for i, slot in enumerate(taken)})
      tokens, lengths = _pad([suffixes[i] for i in batch], wave, _bucket(max(len(suffixes[i]) for i in batch)))
      logits, cache = prefill(model, params, prefix, tokens, lengths, np.int32(start))
      rows = np.pad(taken, (0, wave * n - len(taken)), constant_values=num_rows).astype(np.int32)
      row_keys = keys[np.resize(batch, wave)].reshape(wave * n, -1)
      slots = insert(model, slots, cache, logits, np.int32(start) + lengths, row_keys, rows, stops, config)
    slots = decode(model, params, prefix, slots, stops, config)
    done = _finished(slots, owners, tokenizer, stop)
    for slot, completion in done.items():
      prompt, index = owners.pop(slot)
      completions[prompt][index] = completion
    free += done
    active = np.array([slot in owners for slot in range(num_rows)])
    slots = dataclasses.replace(slots, active=jax.device_put(active, slots.active.sharding))
    advance(len(done) * copies)
  return [[samples[i] for i in range(n)] * copies for samples in completions]


def score(
  model: Transformer,
  params: Params,
  prompts: Sequence[Sequence[int]],
  options: Sequence[Sequence[Sequence[int]]],
  *,
  batch_size: int,
  advance: Callable[[int], None] = lambda num_options: None,
) -> list[list[Score]]:
  """Returns for each prompt the Score of each of its options, which may fill the context but for their last token.

  A row of the batch is a prompt and all its options, which do not see each other: the prompt is computed once.
  """
  for prompt, own in zip(prompts, options, strict=True):
    _check([prompt], max(map(len, own)) - 1, model.config.max_length)  # the last token is never read
  if not prompts:
    return []
  start, prefix = _share_prefix(model, params, prompts)
  suffixes = [prompt[start:] for prompt in prompts]
  results: list[list[Score]] = [[] for _ in prompts]
  sizes = [(len(suffix) + sum(map(len, own)), i) for i, (suffix, own) in enumerate(zip(suffixes, options, strict=True))]
  order = [i for _, i in sorted(sizes)]  # rows of like length together
  num_rows = min(batch_size, len(order))
  for first in range(0, len(order), num_rows):
    processes.check_stop()
    batch = order[first : first + num_rows]
    rows = _option_rows([(suffixes[i], options[i]) for i in batch], num_rows)
    scores = processes.fetch(score_rows(model, params, prefix, rows, np.int32(start)))
    for r, i in enumerate(batch):
      ends = np.cumsum([len(option) for option in options[i]])
      split = (np.split(of_rows[r, : ends[-1]], ends[:-1]) for of_rows in scores)
      results[i] = [Score(*of_option) for of_option in zip(*split, strict=True)]
    advance(sum(len(options[i]) for i in batch))
  return results


class OptionRows(NamedTuple):
  """A batch of prompts, each with its options behind it in its row."""

  tokens: Any  # [B, T] int32
  offsets: Any  # [B, T] int32, of a token from the end of the shared prefix; EMPTY for padding
  segment_ids: Any  # [B, T] int32: SHARED, then 1, 2, ...: a token sees its prompt and its own option
  sources: Any  # [B, M] int32, where the features are that predict each token of the options
  targets: Any  # [B, M] int32, those tokens


def _option_rows(rows: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]], num_rows: int) -> OptionRows:
  """Returns the batch of (prompt, options); rows that are missing hold nothing."""
  counts = [sum(map(len, options)) for _, options in rows]
  T = _bucket(max(len(prompt) + count for (prompt, _), count in zip(rows, counts, strict=True)))
  tokens, segment_ids = np.zeros((num_rows, T), np.int32), np.full((num_rows, T), layers.SHARED, np.int32)
  offsets = np.full((num_rows, T), layers.EMPTY, np.int32)
  sources, targets = (np.zeros((num_rows, _bucket(max(counts))), np.int32) for _ in range(2))
  for r, (prompt, options) in enumerate(rows):
    end, done = len(prompt), 0
    tokens[r, :end], offsets[r, :end] = prompt, np.arange(end)
    for segment, option in enumerate(options, start=1):
      n = len(option)
      tokens[r, end : end + n], segment_ids[r, end : end + n] = option, segment
      offsets[r, end : end + n] = len(prompt) + np.arange(n)
      sources[r, done : done + n] = [len(prompt) - 1, *range(end, end + n - 1)][:n]
      targets[r, done : done + n] = option
      end, done = end + n, done + n
  return OptionRows(tokens, offsets, segment_ids, sources, targets)


@functools.partial(jax.jit, static_argnames='model', compiler_options=XLA_OPTIONS)
def score_rows(model: Transformer, params: Params, prefix: KVCache | None, rows: OptionRows, start: jax.Array) -> Score:
  """Returns the Score of the options' tokens, [B, M]; start [] int32 is the first position of a row."""
  model = model.clone(config=dataclasses.replace(model.config, attention='xla'))  # no kernel knows of SHARED
  positions = jnp.where(rows.offsets == layers.EMPTY, layers.EMPTY, start + rows.offsets)
  x, _ = model.bind({'params': params}).features(rows.tokens, positions, rows.segment_ids, prefix=prefix)
  x = jnp.take_along_axis(x, rows.sources[..., None], axis=1)

  def of_targets(logits, targets):
    return Score(target_logprobs(logits, targets), is_likeliest(logits, targets))

  return of_logits(model, params, x, rows.targets, of_targets)


def _positions(tokens: jax.Array, lengths: jax.Array, start: jax.Array) -> jax.Array:
  """Returns [B, T] int32: start, start + 1, ... for a row's first lengths tokens, layers.EMPTY behind."""
  offsets = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
  return jnp.where(offsets < lengths[:, None], start + offsets, layers.EMPTY)


def _pin(model: Transformer, cache: KVCache) -> KVCache:
  """Returns the cache with its sharding pinned: it stays where it is from one call to the next."""
  k, v = (sharding.constrain(x, CACHE_AXES, model.rules) for x in (cache.k, cache.v))
  return dataclasses.replace(cache, k=k, v=v)


def _check(prompts, max_new_tokens, max_length):
  for i, prompt in enumerate(prompts):
    if not prompt:
      raise ValueError(f'prompt {i} has no token; give at least one')
    if len(prompt) + max_new_tokens > max_length:
      raise ValueError(
        f'prompt {i} has {len(prompt)} tokens: with {max_new_tokens} new ones it exceeds the context of {max_length}'
      )


def _bucket(length: int) -> int:
  """Returns the length rounded up by at most a quarter, so that few shapes are compiled: 8, 16, ... 64, 80, 96, ..."""
  multiple = max(8, 2 ** (length.bit_length() - 3))
  return -(-length // multiple) * multiple


def _share_prefix(model: Transformer, params: Params, prompts: Sequence[Sequence[int]]) -> tuple[int, KVCache | None]:
  """Returns how many tokens all prompts share at the beginning, and their cache.

  The last token of a prompt is never shared: its logits are what the first new token is chosen from.
  """
  first, last = min(map(tuple, prompts)), max(map(tuple, prompts))  # in order, the two that differ first
  limit = min(map(len, prompts)) - 1
  shared = next((i for i in range(limit) if first[i] != last[i]), limit)
  prefix = None
  if shared:
    padded, lengths = _pad([prompts[0][:shared]], 1, _bucket(shared))
    prefix = prefill(model, params, None, padded, lengths, np.int32(0))[1]
  return shared, prefix


def _pad(rows: Sequence[Sequence[int]], num_rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns tokens [num_rows, length] int32 and lengths [num_rows] int32; rows that are missing have length 1."""
  tokens, lengths = np.zeros((num_rows, length), np.int32), np.ones(num_rows, np.int32)
  for i, row in enumerate(rows):
    tokens[i, : len(row)], lengths[i] = row, len(row)
  return tokens, lengths


@functools.partial(jax.jit, static_argnames='n')
def _fold_rows(key, names, n):
  fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
  return jax.random.key_data(fold(jax.vmap(jax.random.fold_in, (None, 0))(key, names), jnp.arange(n)))


def _row_keys(key: jax.Array, ids: Sequence[str], n: int) -> np.ndarray:
  """Returns the data of keys [len(ids), n], [len(ids), n, 2] uint32: f(key, id, sample index)."""
  names = np.array([zlib.crc32(name.encode()) for name in ids], np.uint32)
  return jax.device_get(_fold_rows(key, names, n))


def _finished(slots: Slots, owned: Iterable[int], tokenizer: Tokenizer, stop: Sequence[str]) -> dict[int, Completion]:
  """Returns the completions of the owned slots that have ended: by a stop token, a stop string or their length."""
  fields = slots.active, slots.length, slots.tokens, slots.logprobs, slots.entropies
  active, length, tokens, *measured = processes.fetch(fields)
  done, ends = {}, tokenizer.ending(stop)
  for slot in owned:
    row, reason = [int(token) for token in tokens[slot, : length[slot]]], ''
    text, num_tokens = until_stop(row, tokenizer, stop)
    if num_tokens:
      row, reason = row[:num_tokens], 'stop'  # what was decoded beyond it in this chunk is dropped
    elif not active[slot]:
      reason = 'stop' if row[-1] in ends else 'length'
    if reason:
      logprobs, entropies = (of_rows[slot, : len(row)].tolist() for of_rows in measured)
      done[slot] = Completion(text, row, logprobs, entropies, reason)
  return done


def until_stop(tokens: Sequence[int], tokenizer: Tokenizer, stop: Sequence[str]) -> tuple[str, int]:
  """Returns the tokens' text before the first stop string, and how many tokens that string needed, 0 where there is none."""
  text = tokenizer.decode(tokens)
  found = [text.find(string) for string in stop if string in text]
  if not found:
    return text, 0
  ends = (i for i in range(1, len(tokens) + 1) if any(string in tokenizer.decode(tokens[:i]) for string in stop))
  return text[: min(found)], next(ends)
