"""The library's front door: load(path) -> LM with logits, generate, score, save."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import operator
import os
import pathlib
import shutil
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from imm_jax import formats, sharding
from imm_jax.formats import at_round, checkpoint, peft
from imm_jax.formats.tokenizer import Tokenizer
from imm_jax.models import transformer
from imm_jax.models.config import choose_attention, ModelConfig
from imm_jax.models.transformer import Params, Transformer, XLA_OPTIONS
from imm_jax.sampling import scoring
from imm_jax.sampling.prefill import check_length, Request
from imm_jax.sampling.sampler import Completion, Sampler, SamplerConfig
from imm_jax.sampling.scoring import Score


@dataclasses.dataclass
class LM:
  """A language model on the devices: configuration, params, tokenizer and the mesh they live on."""

  config: ModelConfig
  params: Params = dataclasses.field(repr=False)  # Float32, sharded by `rules`.
  tokenizer: Tokenizer
  mesh: jax.sharding.Mesh
  rules: sharding.Rules = sharding.SAMPLE
  # The path it was loaded from, for the model card that `save` writes; '' for params of your own.
  source: str = ''

  @property
  def model(self) -> Transformer:
    """The model, as a function of params that are sharded by `rules`."""
    return Transformer(self.config, self.rules)

  def to_sample(self) -> 'LM':
    """Returns the model with params in the compute dtype, sharded for sampling.

    A decode step then reads each param once. If the params are already so, nothing is copied.
    """
    lm = dataclasses.replace(self, rules=sharding.SAMPLE)
    if jax.tree.leaves(self.params)[0].dtype.name == self.config.dtype:
      lm.params = jax.device_put(
        self.params, transformer.param_shardings(self.config, self.mesh, sharding.SAMPLE)
      )
    else:
      lm.params = _make_cast(lm.model, self.mesh)(self.params)  # pyright: ignore[reportArgumentType]
    return lm

  def logits(self, tokens: jax.Array | np.ndarray) -> jax.Array:
    """Returns the logits [B, T, V] f32 after each of tokens [B, T] int32.

    Raises ValueError for values that are not token ids.
    """
    tokens = np.asarray(tokens)
    if (
      tokens.ndim != 2
      or not tokens.size
      or tokens.min() < 0
      or tokens.max() >= self.config.vocab_size
    ):
      raise ValueError(
        f'tokens: are not [B, T] ids below {self.config.vocab_size}, as rows of'
        ' tokenizer.encode(text) are'
      )
    with jax.set_mesh(self.mesh):
      return _logits(self.model, self.params, jnp.asarray(tokens, jnp.int32))

  def generate(
    self,
    prompts: Sequence[str | list[dict[str, str]] | Sequence[int]],
    *,
    num_samples: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    max_new_tokens: int = 128,
    stop: Sequence[str] = (),
    seed: int = 0,
    num_slots: int = 64,
    advance: Callable[[int], None] = lambda num_completions: None,
  ) -> list[list[Completion]]:
    """Returns num_samples completions of each prompt.

    A Completion has the fields text, tokens, logprobs, entropies and finish_reason.

    Args:
      prompts: texts, chats as lists of {'role', 'content'}, or token ids.
      num_samples: completions of each prompt; the prompt is computed once for all.
      temperature: 0 is greedy.
      top_k: keep this many of the most likely tokens; 0 keeps all.
      top_p: keep the fewest tokens that hold this probability; 1 keeps all.
      max_new_tokens: the most tokens of a completion.
      stop: strings that end a completion and are left out of its text; they may be or contain
        special tokens. The model's own end tokens always end one.
      seed: a completion is a function of the seed, its prompt and its index, whatever else is asked
        for in the same call.
      num_slots: rows decoded at once; a free slot is refilled.
      advance: called with the number of completions that have just ended.

    Raises:
      ValueError: a prompt is empty or too long, or an argument is out of range.
    """
    if isinstance(prompts, str):
      raise ValueError('prompts: is one text; give a list of texts or chats')
    config = SamplerConfig(num_samples, temperature, top_k, top_p, num_slots, chunk_steps=8)
    decoding = config.decoding(max_new_tokens, stop)
    requests = self._requests(prompts, max_new_tokens)
    lm = self.to_sample()
    with jax.set_mesh(self.mesh):
      sampler = Sampler(lm.model, lm.params, self.tokenizer, config)
      return sampler.sample(requests, decoding, key=jax.random.key(seed), advance=advance)

  def score(
    self,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    *,
    batch_size: int = 64,
    advance: Callable[[int], None] = lambda num_options: None,
  ) -> list[list[Score]]:
    """Returns the Score(logprobs, greedy) of each option of each prompt, all given as token ids.

    batch_size prompts are computed at once, each with all its options. Raises ValueError when a
    prompt or an option is empty or too long.
    """
    requests = [Request(f'prompt {i}', prompt) for i, prompt in enumerate(prompts)]
    for request, own in zip(requests, options, strict=True):
      scoring.check_options(request.id, request.tokens, own, self.config.max_length)
    lm = self.to_sample()
    with jax.set_mesh(self.mesh):
      return scoring.score(
        lm.model, lm.params, requests, options, batch_size=batch_size, advance=advance
      )

  def _requests(self, prompts: Sequence[Any], max_new_tokens: int) -> list[Request]:
    """Returns the prompts as tokens, each named by them; equal prompts are numbered."""
    seen: Counter[str] = Counter()
    requests = []
    for i, prompt in enumerate(prompts):
      tokens = self._encode(prompt)
      check_length(f'prompt {i}', tokens, max_new_tokens, self.config.max_length)
      name = ','.join(map(str, tokens))
      requests.append(Request(f'{name}#{seen[name]}', tokens))
      seen[name] += 1
    return requests

  def _encode(self, prompt: str | list[dict[str, str]] | Sequence[int]) -> list[int]:
    if isinstance(prompt, str) or any(isinstance(message, Mapping) for message in prompt):
      return self.tokenizer.encode_prompt(prompt)  # pyright: ignore[reportArgumentType]
    return [operator.index(token) for token in prompt]  # pyright: ignore[reportArgumentType]

  def save(self, path: str | os.PathLike[str], dtype: str = 'float32', card: str = '') -> None:
    """Writes a Hugging Face directory that transformers loads.

    It holds the weights in `dtype`, configs, tokenizer and card. It appears whole or not at all.
    Raises ValueError when `path` exists and is not an empty directory.
    """
    path = check_target(path)
    temporary = f'{path}.tmp{os.getpid()}'
    os.makedirs(temporary)
    try:
      formats.hf.save(temporary, self.config, self.params, dtype)
      self.tokenizer.save(temporary)
      if card:
        pathlib.Path(temporary, 'README.md').write_text(card, encoding='utf-8')
      if os.path.isdir(path):
        os.rmdir(path)
      os.rename(temporary, path)
    finally:
      shutil.rmtree(temporary, ignore_errors=True)


def check_target(path: str | os.PathLike[str]) -> str:
  """Returns the absolute path.

  Raises ValueError when the path already holds something that would be overwritten.
  """
  path = os.path.abspath(os.path.expanduser(os.fspath(path)))
  if os.path.exists(path) and (not os.path.isdir(path) or os.listdir(path)):
    raise ValueError(
      f'{path}: exists and is not an empty directory; remove it or choose another target'
    )
  return path


def load(
  path: str | os.PathLike[str],
  *,
  dtype: str = 'float32',
  remat: str = 'none',
  attention: str = 'auto',
  mesh: jax.sharding.Mesh | None = None,
  rules: sharding.Rules = sharding.SAMPLE,
) -> LM:
  """Loads a Hugging Face directory, a .gguf file, or WORKDIR@ROUND of a run.

  Args:
    path: the path of the model.
    dtype: the dtype of the computation, float32 or bfloat16; params are float32.
    remat: which values a backward pass recomputes, a key of model.REMAT_POLICIES.
    attention: 'xla', 'splash' (TPU), 'cudnn' (GPU); 'auto' takes the kernel of the devices.
    mesh: the devices of the params; by default all devices, with the weights split.
    rules: how the params are split.

  Raises:
    FileNotFoundError: the file or directory does not exist.
    ValueError: the architecture, a config field or a tensor is not supported; it is named.
  """
  mesh = mesh or sharding.make_mesh()
  path = os.path.expanduser(os.fspath(path))
  named, source = at_round.parse(path), at_round.source_of(path)
  config = dataclasses.replace(formats.read_config(source), dtype=dtype, remat=remat)
  config = dataclasses.replace(config, attention=choose_attention(attention, config, mesh))
  tokenizer = formats.load_tokenizer(source)
  tokenizer.check_vocab_size(config.vocab_size, source)
  lm = LM(config, {}, tokenizer, mesh, rules, path)
  if named:
    lm.params = restore(*named, 'params', lm)
  else:
    lm.params = formats.load_params(path, config, mesh, rules)
  return lm


def load_adapter(path: str | os.PathLike[str], base: str | None = None) -> LM:
  """Loads the base of a LoRA adapter with the adapter merged into it, W + scale * B A in float32.

  Args:
    path: the adapter's directory, as PEFT and TRL write it; its tokenizer is used if it has one.
    base: the Hugging Face directory of its base; None takes the one that the adapter names.

  Raises:
    FileNotFoundError: the base does not exist.
    ValueError: the adapter has something that is not supported, or does not fit its base; it is
      named.
  """
  adapter = peft.open_adapter(path, base)
  config, mesh = formats.read_config(adapter.base), sharding.make_mesh()
  source = path if os.path.isfile(os.path.join(path, 'tokenizer.json')) else adapter.base
  tokenizer = formats.load_tokenizer(source)
  tokenizer.check_vocab_size(config.vocab_size, source)
  return LM(
    config,
    formats.hf.load_params(adapter.base, config, mesh, sharding.SAMPLE, adapter),
    tokenizer,
    mesh,
  )


def restore(workdir: str, round_: int, name: str, like: LM) -> Params:
  """Returns the params 'params' or 'tuned' of a round's checkpoint, placed as those of `like`.

  Raises FileNotFoundError when the round is not done, ValueError when the checkpoint is damaged.
  """
  path = at_round.checkpoint(workdir, round_)
  if not epath.Path(path).is_dir():
    raise FileNotFoundError(f'{path}: no such checkpoint; round {round_} of this run is not done')
  abstract, _ = transformer.abstract_params(like.config)
  shardings = transformer.param_shardings(like.config, like.mesh, like.rules)
  return checkpoint.restore(path, name, checkpoint.abstract(abstract, shardings))


@functools.lru_cache
def _make_cast(model: Transformer, mesh: jax.sharding.Mesh) -> Any:
  """Returns the jitted cast(params) -> params in the compute dtype, sharded for sampling."""
  shardings = transformer.param_shardings(model.config, mesh, model.rules)
  return jax.jit(
    lambda params: jax.tree.map(lambda x: x.astype(model.config.dtype), params),
    out_shardings=shardings,
  )


@jax.jit(static_argnames='model', compiler_options=XLA_OPTIONS)
def _logits(model: Transformer, params: Any, tokens: jax.Array) -> jax.Array:
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
  return model.bind({'params': params})(tokens, positions)[0]
