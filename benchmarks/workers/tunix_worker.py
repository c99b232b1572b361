"""Tunix's side of the benchmarks.

Its Llama 3 ignores rope_theta: every call uses a default, which is set here to the model's value.
"""

import functools
import json
import pathlib
import time

from flax import nnx
import jax.numpy as jnp
import numpy as np
import optax
import serve
import transformers
from tunix.generate import sampler
from tunix.models.llama3 import model as llama
from tunix.models.llama3 import params

compile_secs = serve.watch_compiler()


@functools.cache
def config():
  """Returns the architecture."""
  c = json.loads((pathlib.Path(serve.MODEL) / 'config.json').read_text())
  llama.apply_rope.__defaults__ = (c['rope_theta'],)
  return llama.ModelConfig(
    num_layers=c['num_hidden_layers'],
    vocab_size=c['vocab_size'],
    embed_dim=c['hidden_size'],
    hidden_dim=c['intermediate_size'],
    num_heads=c['num_attention_heads'],
    head_dim=c['head_dim'],
    num_kv_heads=c['num_key_value_heads'],
    rope_theta=c['rope_theta'],
    norm_eps=c['rms_norm_eps'],
    weight_tying=c['tie_word_embeddings'],
  )


@functools.cache
def model():
  """Returns the model."""
  return params.create_model_from_safe_tensors(serve.MODEL, config(), dtype=jnp.float32)


class Ids:
  """A tokenizer for prompts that are token ids already."""

  def __init__(self):
    self._fast = transformers.PreTrainedTokenizerFast.from_pretrained(serve.MODEL)

  def encode(self, prompt):
    """Returns the ids."""
    return prompt

  def decode(self, tokens):
    """Returns the text."""
    return self._fast.decode(tokens, skip_special_tokens=True)

  def bos_id(self):
    """Nothing is put in front."""

  def eos_id(self):
    """Returns the end token."""
    return self._fast.eos_token_id

  def pad_id(self):
    """Returns a special token that the model does not write.

    The model does not see written tokens that equal the padding.
    """
    return max(self._fast.added_tokens_decoder)


@functools.cache
def _sampler(cache_size, stop_ids):
  """Returns a sampler, one for each set of stop tokens.

  The stop tokens are constants of its compiled functions.
  """
  del stop_ids
  c = config()
  return sampler.Sampler(
    model(), Ids(), sampler.CacheConfig(cache_size, c.num_layers, c.num_kv_heads, c.head_dim)
  )


def _sample(prompts, rows, max_new_tokens, stop_ids, **settings):
  """Returns the new tokens of `rows`, the stop tokens left out.

  The longest of all prompts sets the length.
  """
  length = max(map(len, prompts))
  sample = _sampler(length + max_new_tokens, tuple(stop_ids))
  return sample(
    rows, max_new_tokens, max_prompt_length=length, eos_tokens=stop_ids, **settings
  ).tokens


def generate(prompts, texts, num_samples, temperature, max_new_tokens, stop, stop_ids, batch_size):
  """Completes prompts, batch_size at a time, each num_samples times."""
  del texts, stop
  model()
  compile_secs.clear()
  start = time.monotonic()
  lengths = []
  for first in range(0, len(prompts), batch_size):
    rows = [prompt for prompt in prompts[first : first + batch_size] for _ in range(num_samples)]
    tokens = _sample(
      prompts, rows, max_new_tokens, stop_ids, temperature=temperature, top_p=1.0, seed=first
    )
    # With the token that stopped it
    lengths += [min(len(row) + 1, max_new_tokens) for row in tokens]
  secs = time.monotonic() - start
  return {
    'secs': secs,
    'num_tokens': sum(lengths),
    'num_rows': len(lengths),
    'compile_secs': sum(compile_secs),
  }


def decode(prompts, max_new_tokens):
  """Completes prompts greedily, with nothing that stops."""
  model()
  compile_secs.clear()
  start = time.monotonic()
  rows = [np.asarray(row).tolist() for row in _sample(prompts, prompts, max_new_tokens, [-1])]
  secs = time.monotonic() - start
  return {
    'secs': secs,
    'num_tokens': sum(map(len, rows)),
    'tokens': rows,
    'compile_secs': sum(compile_secs),
  }


@functools.cache
def _trainer(learning_rate):
  """Returns the optimizer and the compiled step, which takes model and optimizer over."""
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(learning_rate, weight_decay=0.0))

  def loss_fn(model, ids, targets):
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    mask = jnp.broadcast_to(
      jnp.tril(jnp.ones((ids.shape[1],) * 2, bool)), (*ids.shape, ids.shape[1])
    )
    logits, _ = model(ids, positions, None, mask)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

  @functools.partial(nnx.jit, donate_argnums=(0, 1))
  def step(model, optimizer, ids, targets):
    loss, grads = nnx.value_and_grad(loss_fn)(model, ids, targets)
    optimizer.update(model, grads)
    return loss

  return nnx.Optimizer(model(), tx, wrt=nnx.Param), step


def train(tokens, num_steps, learning_rate):
  """Takes steps on one batch [B, T + 1] of which every token is a target."""
  tokens = np.array(tokens, np.int32)
  optimizer, step = _trainer(learning_rate)
  compile_secs.clear()
  start = time.monotonic()
  losses = [step(model(), optimizer, tokens[:, :-1], tokens[:, 1:]) for _ in range(num_steps)]
  losses = [float(loss) for loss in losses]
  num_tokens = num_steps * tokens[:, 1:].size
  return {
    'secs': time.monotonic() - start,
    'losses': losses,
    'num_tokens': num_tokens,
    'compile_secs': sum(compile_secs),
  }


serve.serve({'generate': generate, 'decode': decode, 'train': train})
