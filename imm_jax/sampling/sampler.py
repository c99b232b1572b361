"""Sampling completions: each prompt is computed once for all its samples, and slots decode."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from imm_jax import processes
from imm_jax.formats.tokenizer import Tokenizer
from imm_jax.models.transformer import Params, Transformer
from imm_jax.sampling.choice import Rule
from imm_jax.sampling.prefill import bucket, check_requests, pad, prefill, Request, share_prefix
from imm_jax.sampling.slots import capacity, decode, empty_slots, insert
from imm_jax.sampling.stopping import Ending, Stopping


@dataclasses.dataclass(frozen=True)
class Decoding:
  """How each prompt is to be completed."""

  num_samples: int  # Completions of a prompt.
  temperature: float  # 0 is greedy.
  top_k: int  # The likeliest tokens that are kept; 0 keeps all.
  top_p: float  # The fewest tokens are kept that have this probability; 1 keeps all.
  max_new_tokens: int  # The most tokens of a completion.
  stop: Sequence[str] = ()  # Strings that end a completion.

  def __post_init__(self):
    if self.num_samples < 1:
      raise ValueError(f'num_samples: {self.num_samples} is out of range')
    if problem := self.rule.problem():
      raise ValueError(problem)
    if self.max_new_tokens < 1:
      raise ValueError(f'max_new_tokens: {self.max_new_tokens} is less than 1')
    if isinstance(self.stop, str) or '' in self.stop:
      raise ValueError(f'stop: {self.stop!r} is not a list of strings with something in each')

  @property
  def rule(self) -> Rule:
    """How the next token is chosen."""
    return Rule(self.temperature, self.top_k, self.top_p)


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
  """The section `sampler` of a config: how tokens are chosen, and how many rows decode at once."""

  num_samples_per_prompt: int
  temperature: float  # 0 is greedy
  top_k: int  # 0 keeps all tokens
  top_p: float  # 1 keeps all tokens
  num_slots: int  # Rows that decode at once.
  chunk_steps: int  # Decode steps between two checks for finished rows.

  def __post_init__(self):
    for name in ('num_samples_per_prompt', 'num_slots', 'chunk_steps'):
      if getattr(self, name) < 1:
        raise ValueError(f'sampler.{name}: {getattr(self, name)} is out of range')
    if problem := self.rule.problem():
      raise ValueError(f'sampler.{problem}')

  @property
  def rule(self) -> Rule:
    """How the next token is chosen."""
    return Rule(self.temperature, self.top_k, self.top_p)

  def decoding(self, max_new_tokens: int, stop: Sequence[str] = ()) -> Decoding:
    """Returns the Decoding of this config with a task's limit and stop strings.

    Raises ValueError when one of them is out of range.
    """
    return Decoding(
      self.num_samples_per_prompt, self.temperature, self.top_k, self.top_p, max_new_tokens, stop
    )


@dataclasses.dataclass(frozen=True)
class Completion:
  """A completion of a prompt by the model.

  The sampled ids are authoritative; the text is for people and verifiers.
  """

  text: str  # Without the stop string.
  tokens: list[int]  # With the token that stopped it.
  logprobs: list[float]  # Nats, under the model itself (temperature 1, nothing cut off).
  entropies: list[float]  # Nats, of that distribution where each token was drawn.
  finish_reason: str  # 'stop' or 'length'.


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
  """Completes prompts with a model.

  Sampler(model, params, tokenizer, config).sample(requests, decoding, key=key)
  """

  model: Transformer  # Its rules are sharding.SAMPLE.
  params: Params = dataclasses.field(repr=False)  # Sharded by these rules.
  tokenizer: Tokenizer  # Decodes, and knows the end tokens.
  config: SamplerConfig  # Only num_slots and chunk_steps are used; a Decoding sets the rest.

  def sample(
    self,
    requests: Sequence[Request],
    decoding: Decoding,
    *,
    key: jax.Array,
    only: slice = slice(None),
    advance: Callable[[int], None] = lambda num_completions: None,
  ) -> list[list[Completion]]:
    """Returns decoding.num_samples completions of each request.

    Greedy completions of a request are identical, and one is decoded for all. A completion is a
    function of the key, of its request's id and prompt, of its index and of the decoding, and of
    nothing else.

    Args:
      requests: all requests. The common start of their prompts is computed once.
      decoding: how they are completed.
      key: f(seed, round).
      only: which of them are sampled now. The shapes and the shared prefix are those of all
        requests, so that the parts of a large set need no programs of their own.
      advance: called with the number of completions that have just ended.

    Raises:
      processes.Stopped: a notice to stop has come.
      ValueError: a request's prompt is empty, or longer with its completion than the model's
        context. The question is named, and nothing has been computed.
    """
    check_requests(requests, decoding.max_new_tokens, self.model.config.max_length)
    if not requests[only]:
      return []
    copies = decoding.num_samples if decoding.temperature == 0 else 1
    decoding = dataclasses.replace(decoding, num_samples=decoding.num_samples // copies)
    run = _Run(self, requests, only, decoding, key)
    while run.is_unfinished():
      processes.check_stop()
      run.refill()
      run.decode()
      advance(run.collect() * copies)
    return [samples * copies for samples in run.completions]


@dataclasses.dataclass
class _Row:
  """A completion that is being decoded."""

  request: int
  sample: int
  seen: int = 0  # Tokens that were looked at, and do not end it.


class _Run:
  """One call of Sampler.sample: requests that wait, rows that decode in slots, and results."""

  def __init__(
    self,
    sampler: Sampler,
    requests: Sequence[Request],
    only: slice,
    decoding: Decoding,
    key: jax.Array,
  ):
    self.sampler = sampler
    self.rule = decoding.rule
    self.num_samples = n = decoding.num_samples
    model = sampler.model
    self.prefix = share_prefix(model, sampler.params, [request.tokens for request in requests])
    self.suffixes = [request.tokens[self.prefix.length :] for request in requests[only]]
    self.keys = row_keys(key, [request.id for request in requests[only]], n)
    self.stopping = Stopping(sampler.tokenizer, decoding.stop)
    self.stops = jnp.asarray(self.stopping.mask(model.config.vocab_size))
    # Empty slots are decoded too, so use no more than there are rows. Rounding to powers of two
    # keeps the number of compilations small.
    most = 2 ** (n * len(requests) - 1).bit_length()
    mesh_shape = jax.sharding.get_abstract_mesh().shape
    num_rows, self.wave = capacity(min(sampler.config.num_slots, most), n, model.rules, mesh_shape)
    prompt_length = bucket(max(len(request.tokens) for request in requests) - self.prefix.length)
    self.slots = empty_slots(model, num_rows, prompt_length, decoding.max_new_tokens)
    # The last in the order is taken first, so short prompts come before long ones, and prompts of
    # similar lengths share a batch.
    order = range(len(self.suffixes))
    self.pending = sorted(order, key=lambda i: (bucket(len(self.suffixes[i])), -i), reverse=True)
    self.free = list(range(num_rows))
    self.rows: dict[int, _Row] = {}  # By slot.
    self.completions: list[list[Any]] = [[None] * n for _ in order]

  def is_unfinished(self) -> bool:
    """Returns whether requests still wait or rows still decode."""
    return bool(self.pending or self.rows)

  def refill(self) -> None:
    """Puts the next requests into free slots, as long as a whole batch of them has room."""
    while self.pending and len(self.free) >= min(self.wave, len(self.pending)) * self.num_samples:
      batch = [self.pending.pop() for _ in range(min(self.wave, len(self.pending)))]
      self._insert(batch)

  def _insert(self, batch: Sequence[int]) -> None:
    """Prefills a batch of requests, and puts each into num_samples slots."""
    sampler, n = self.sampler, self.num_samples
    slots = [self.free.pop() for _ in range(len(batch) * n)]
    self.rows |= {slot: _Row(batch[i // n], i % n) for i, slot in enumerate(slots)}
    longest = max(len(self.suffixes[i]) for i in batch)
    tokens, lengths = pad([self.suffixes[i] for i in batch], self.wave, bucket(longest))
    start = np.int32(self.prefix.length)
    prompts = prefill(sampler.model, sampler.params, self.prefix.cache, tokens, lengths, start)
    # Prompts that the batch lacks go to a slot out of range, where they are dropped.
    rows = np.full(self.wave * n, self.slots.token.shape[0], np.int32)
    rows[: len(slots)] = slots
    keys = self.keys[np.resize(batch, self.wave)].reshape(self.wave * n, -1)
    self.slots = insert(sampler.model, self.slots, prompts, keys, rows, self.stops, self.rule)

  def decode(self) -> None:
    """Takes the decode steps up to the next look at the rows."""
    sampler = self.sampler
    self.slots = decode(
      sampler.model,
      sampler.params,
      self.prefix.cache,
      self.slots,
      self.stops,
      self.rule,
      sampler.config.chunk_steps,
    )

  def collect(self) -> int:
    """Takes the rows that have ended out of their slots, and returns their number."""
    slots = self.slots
    fields = slots.active, slots.length, slots.tokens, slots.logprobs, slots.entropies
    active, lengths, tokens, logprobs, entropies = processes.fetch(fields)
    done = {}
    for slot, row in self.rows.items():
      written = tokens[slot, : lengths[slot]].tolist()
      ending = self._ending(row, written, is_active=bool(active[slot]))
      if ending is not None:
        (n, text), reason = ending
        done[slot] = Completion(
          text, written[:n], logprobs[slot, :n].tolist(), entropies[slot, :n].tolist(), reason
        )
    for slot, completion in done.items():
      row = self.rows.pop(slot)
      self.completions[row.request][row.sample] = completion
    self.free += done
    still = np.array([slot in self.rows for slot in range(len(active))])
    self.slots = dataclasses.replace(slots, active=jax.device_put(still, slots.active.sharding))
    return len(done)

  def _ending(
    self, row: _Row, written: Sequence[int], is_active: bool
  ) -> tuple[Ending, str] | None:
    """Returns where a row that has written these tokens ends, and its finish_reason.

    Returns None if the row continues. Tokens after the end, decoded since the last look, are
    dropped.
    """
    ending = self.stopping.find(written, row.seen)
    row.seen = len(written)
    if ending is not None:
      return ending, 'stop'
    if is_active:
      return None
    # A token of self.stops may end a row early without a stop string in its text: of the first
    # token of a text, some decoders drop the space in front.
    reason = 'length' if len(written) == self.slots.max_new_tokens else 'stop'
    return Ending(len(written), self.sampler.tokenizer.decode(written)), reason


def row_keys(key: jax.Array, ids: Sequence[str], num_samples: int) -> np.ndarray:
  """Returns the data of the rows' PRNG keys, [len(ids), num_samples, 2] uint32.

  A row's key is f(key, id, sample index).
  """
  names = np.array([zlib.crc32(name.encode()) for name in ids], np.uint32)
  return jax.device_get(_fold_rows(key, names, num_samples))


@functools.partial(jax.jit, static_argnames='num_samples')
def _fold_rows(key, names, num_samples):
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  keys = jax.vmap(fold, (0, None))(fold(key, names), jnp.arange(num_samples))
  return jax.random.key_data(keys)
