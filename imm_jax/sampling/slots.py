"""The decode loop over slots.

A fixed number of rows decodes in step, each in a slot. A finished row leaves its slot to the next
question.

Every row writes its keys and values at the same cache index, so the part of the cache after the
prompts is a ring. Each place of the cache has the position of its token, which decides which
queries see it.
"""

from collections.abc import Mapping
import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp

from imm_jax import sharding
from imm_jax.models import attention
from imm_jax.models.cache import empty_cache, KVCache
from imm_jax.models.transformer import Params, Transformer, XLA_OPTIONS
from imm_jax.sampling.choice import Choice, choose, Rule
from imm_jax.sampling.prefill import Prefilled

# The logical axes of a cache's keys and values: those of a head are whole.
CACHE_AXES = ('layers', 'attention_batch', 'attention_heads', None, None)


@flax.struct.dataclass
class Slots:
  """The state of the decode loop: B slots.

  Each has a row in flight, has a finished row, or is empty.

  Attributes:
    cache: Keys and values of S = T + R places per slot: prompts in the first T, then completions in
      a ring of R = max_new_tokens. All rows write at cache.index, which goes around the ring.
    token: [B] int32. The newest token of each row. The cache lacks its keys and values so far.
    position: [B] int32. The position of the newest token in prompt and completion.
    active: [B] bool. Whether the row still decodes. The others compute too, but leave no token.
    key: [B] PRNG keys. A row's draws are a function of its key, f(seed, round, question id, sample
      index), and of its length.
    length: [B] int32. The number of tokens of the completion.
    tokens: [B, R] int32. The completion, of which the first `length` tokens count.
    logprobs: [B, R] float32. The log-probabilities of these tokens in nats, under the model itself.
    entropies: [B, R] float32. The entropies in nats of the distributions that they are from.
  """

  cache: KVCache
  token: jax.Array
  position: jax.Array
  active: jax.Array
  key: jax.Array
  length: jax.Array
  tokens: jax.Array
  logprobs: jax.Array
  entropies: jax.Array

  @property
  def max_new_tokens(self) -> int:
    """The most tokens of a completion, R."""
    return self.tokens.shape[1]

  @property
  def prompt_length(self) -> int:
    """The number of places for a prompt's tokens, T."""
    return self.cache.positions.shape[1] - self.max_new_tokens

  def write(self, rows: jax.Array, columns: jax.Array | int, choice: Choice) -> 'Slots':
    """Returns the slots with the chosen tokens in these rows and columns.

    Tokens whose row or column is out of range are dropped.
    """

    def put(array, values):
      return array.at[rows, columns].set(values, mode='drop')

    return dataclasses.replace(
      self,
      tokens=put(self.tokens, choice.tokens),
      logprobs=put(self.logprobs, choice.logprobs),
      entropies=put(self.entropies, choice.entropies),
    )


def capacity(
  num_slots: int, num_samples: int, rules: sharding.Rules, mesh_shape: Mapping[str, int]
) -> tuple[int, int]:
  """Returns the number of rows that decode at once, and of questions that are prefilled at once.

  Rows are a multiple of the devices that share them. A quarter of the slots is refilled when it is
  free.

  Args:
    num_slots: the rows that are asked for.
    num_samples: the rows of a question.
    rules: the sharding rules of the model.
    mesh_shape: {axis: devices along it}.
  """
  ways = rules.num_parts('attention_batch', mesh_shape)
  num_questions = max(1, num_slots // num_samples)
  return -(-num_questions * num_samples // ways) * ways, -(-num_questions // 4)


@functools.partial(
  jax.jit, static_argnames=('model', 'num_slots', 'prompt_length', 'max_new_tokens')
)
def empty_slots(
  model: Transformer, num_slots: int, prompt_length: int, max_new_tokens: int
) -> Slots:
  """Returns slots without rows."""
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


@functools.partial(jax.jit, static_argnames=('model', 'rule'), donate_argnames='slots')
def insert(
  model: Transformer,
  slots: Slots,
  prompts: Prefilled,
  keys: jax.Array,
  rows: jax.Array,
  stops: jax.Array,
  rule: Rule,
) -> Slots:
  """Puts Q prompts, each n times, into slots, and chooses the first token of each row.

  Args:
    model: the function of params.
    slots: donated.
    prompts: of Q rows.
    keys: [Q * n, 2] uint32, the data of the rows' PRNG keys; the n rows of a prompt follow each
      other.
    rows: [Q * n] int32, the slots, out of range where there is no prompt.
    stops: [V] bool, the tokens that end a row.
    rule: how the token is chosen.
  """
  num_rows = rows.shape[0]
  n = num_rows // prompts.logits.shape[0]
  row_keys = jax.random.wrap_key_data(keys)
  length = jnp.zeros((num_rows,), jnp.int32)
  choice = choose(jnp.repeat(prompts.logits, n, axis=0), row_keys, length, rule)

  def put(array, values):
    return array.at[rows].set(values, mode='drop')

  return dataclasses.replace(
    slots.write(rows, 0, choice),
    cache=_pin(model, _put_prompts(slots.cache, prompts.cache, rows)),
    token=put(slots.token, choice.tokens),
    position=put(slots.position, jnp.repeat(prompts.next_positions, n)),
    active=put(slots.active, ~stops[choice.tokens] & (slots.max_new_tokens > 1)),
    key=put(slots.key, row_keys),
    length=put(slots.length, length + 1),
  )


def _put_prompts(cache: KVCache, prompts: KVCache, rows: jax.Array) -> KVCache:
  """Returns the cache with the prompts, of T places, at the beginning of these rows.

  The places after them are empty.
  """
  T = prompts.positions.shape[1]
  n = rows.shape[0] // prompts.positions.shape[0]
  behind = jnp.full((rows.shape[0], cache.positions.shape[1] - T), attention.EMPTY, jnp.int32)
  positions = jnp.concatenate([jnp.repeat(prompts.positions, n, axis=0), behind], axis=1)
  return dataclasses.replace(
    cache,
    k=cache.k.at[:, rows, :, :, :T].set(jnp.repeat(prompts.k, n, axis=1), mode='drop'),
    v=cache.v.at[:, rows, :, :T].set(jnp.repeat(prompts.v, n, axis=1), mode='drop'),
    positions=cache.positions.at[rows].set(positions, mode='drop'),
  )


@functools.partial(
  jax.jit,
  static_argnames=('model', 'rule', 'num_steps'),
  donate_argnames='slots',
  compiler_options=XLA_OPTIONS,
)
def decode(
  model: Transformer,
  params: Params,
  prefix: KVCache | None,
  slots: Slots,
  stops: jax.Array,
  rule: Rule,
  num_steps: int,
) -> Slots:
  """Takes num_steps decode steps, fewer when every row is finished.

  Args:
    model: the function of params.
    params: of the model.
    prefix: the cache of one row that all prompts begin with, or None.
    slots: donated.
    stops: [V] bool, the tokens that end a row.
    rule: how tokens are chosen.
    num_steps: a constant of the program.
  """

  def unfinished(state):
    step, slots = state
    return (step < num_steps) & jnp.any(slots.active)

  def body(state):
    step, slots = state
    return step + 1, decode_step(model, params, prefix, slots, stops, rule)

  return jax.lax.while_loop(unfinished, body, (jnp.int32(0), slots))[1]


def decode_step(
  model: Transformer,
  params: Params,
  prefix: KVCache | None,
  slots: Slots,
  stops: jax.Array,
  rule: Rule,
) -> Slots:
  """Returns the slots with one more token in each active row.

  The arguments are those of `decode`.
  """
  logits, cache = model.bind({'params': params})(
    slots.token[:, None], slots.position[:, None], cache=slots.cache, prefix=prefix
  )
  # After the last place of the ring comes its first.
  end = slots.prompt_length + slots.max_new_tokens
  index = jnp.where(cache.index == end, slots.prompt_length, cache.index)

  choice = choose(logits[:, 0], slots.key, slots.length, rule)
  # Finished rows write past the end of the buffer, where mode='drop' ignores them.
  rows = jnp.arange(slots.token.shape[0])
  columns = jnp.where(slots.active, slots.length, slots.max_new_tokens)
  length = slots.length + slots.active.astype(jnp.int32)

  # A row is finished when its newest token ends it, or when its buffer is full.
  is_finished = stops[choice.tokens] | (length == slots.max_new_tokens)
  return dataclasses.replace(
    slots.write(rows, columns, choice),
    cache=_pin(model, dataclasses.replace(cache, index=index)),
    token=choice.tokens,
    position=slots.position + 1,
    active=slots.active & ~is_finished,
    length=length,
  )


def _pin(model: Transformer, cache: KVCache) -> KVCache:
  """Returns the cache with its sharding fixed, so that no call moves it."""
  return dataclasses.replace(
    cache,
    k=sharding.constrain(cache.k, CACHE_AXES, model.rules),
    v=sharding.constrain(cache.v, CACHE_AXES, model.rules),
  )
