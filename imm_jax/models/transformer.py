"""One decoder-only Transformer for all supported families.

They are Llama 2 and 3, SmolLM2, Mistral, Qwen2 and 3, Gemma 2 and 3, OLMo 2, and Phi-3. Params are
a nested dict of float32 arrays; the layers are stacked [L, ...] and scanned. The KV cache is an
argument and a return value:

  Transformer(config).apply({'params': params}, tokens, positions, cache=cache) -> (logits, cache)
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from imm_jax import sharding
from imm_jax.models import attention, layers
from imm_jax.models import cache as cache_lib
from imm_jax.models.cache import KVCache
from imm_jax.models.config import ModelConfig, REMAT_POLICIES

Params = dict[str, Any]


LOGIT_BYTES = 2**28  # The most bytes of float32 logits that a device holds at once.


# Compiler options for programs that run the whole model. By default, XLA's CPU backend orders
# operations so that many can run at the same time: matrix products then wait for threads, and a
# decode step takes 1.6 times as long. A TPU's compiler accepts the option and ignores it.
XLA_OPTIONS = {'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED'}


class Block(nn.Module):
  """A decoder block: x + attention(norm(x)), then x + mlp(norm(x)).

  Some families have the norms after attention and MLP, x + norm(mlp(x)), or both.
  """

  config: ModelConfig
  rules: sharding.Rules

  @nn.compact
  def __call__(self, x, past_kv, positions, segment_ids, past_positions, gate=None, is_global=None):
    c = self.config

    def norm(name, x, where):
      return (
        layers.RMSNorm(c.rms_norm_eps, 'embed', c.norm_plus_one, name=name)(x)
        if c.norms in (where, 'both')
        else x
      )

    unchanged = x = sharding.constrain(x, ('batch', 'length', 'embed'), self.rules)
    past = [
      attention.KeyValues(k, v, where, jnp.full_like(where, attention.SHARED))
      for (k, v), where in zip(past_kv, past_positions, strict=True)
    ]
    attend = layers.Attention(c, self.rules, name='attn')
    mixed, kv = attend(norm('attn_norm', x, 'before'), positions, segment_ids, past, is_global)
    x += norm('attn_post_norm', mixed, 'after')
    x += norm(
      'mlp_post_norm', layers.MLP(c, self.rules, name='mlp')(norm('mlp_norm', x, 'before')), 'after'
    )
    return x if gate is None else jnp.where(gate == 0, unchanged, x), kv


class Transformer(nn.Module):
  """Embedding, L scanned blocks, final norm, (tied) output head."""

  config: ModelConfig
  rules: sharding.Rules = sharding.TRAIN

  def setup(self):
    c = self.config
    block = nn.remat(Block, policy=REMAT_POLICIES[c.remat], prevent_cse=False)
    init = nn.initializers.normal(c.embed_dim**-0.5)
    self.embedding = layers.param(
      self, 'embedding', init, (c.vocab_size, c.embed_dim), ('vocab', 'embed')
    )
    self.layers = nn.scan(
      block,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast, 0, 0),  # pyright: ignore[reportArgumentType]
      length=c.num_layers,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )(c, self.rules)
    self.final_norm = layers.RMSNorm(c.rms_norm_eps, 'embed', c.norm_plus_one)
    if not c.tie_embeddings:
      self.lm_head = layers.Matrix((c.embed_dim, c.vocab_size), ('embed', 'vocab'))

  def features(
    self,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array | None = None,
    cache: KVCache | None = None,
    prefix: KVCache | None = None,
    gates: jax.Array | None = None,
  ) -> tuple[jax.Array, KVCache]:
    """Returns the input of the output head, [B, T, D] in the compute dtype, and the updated cache.

    Args:
      tokens: [B, T] int32.
      positions: [B, T] int32; attention.EMPTY marks padding, which no token sees.
      segment_ids: [B, T] int32; a token sees its own segment, and attention.SHARED. None puts all
        in one segment.
      cache: read, and written at its index. None: the cache returned holds just these tokens.
      prefix: a cache of batch 1 that every row reads.
      gates: [L] f32; a block whose gate is 0 is skipped, one whose gate is 1 is applied. None
        applies all.
    """
    past = [source for source in (prefix, cache) if source is not None]
    if segment_ids is None:
      segment_ids = jnp.zeros_like(tokens)
    x = jnp.take(self.embedding.astype(self.config.dtype), tokens, axis=0)
    if self.config.scale_embeddings:
      x *= jnp.asarray(self.config.embed_dim**0.5, x.dtype)
    past_kv, past_positions = tuple((p.k, p.v) for p in past), tuple(p.positions for p in past)
    x, (k, v) = self.layers(
      x, past_kv, positions, segment_ids, past_positions, gates, self.config.is_global()
    )
    if cache is None:
      return self.final_norm(x), KVCache(k, v, positions, jnp.int32(tokens.shape[1]))
    return self.final_norm(x), KVCache(
      *cache_lib.write(cache, k, v),
      jax.lax.dynamic_update_slice_in_dim(cache.positions, positions, cache.index, axis=1),
      cache.index + tokens.shape[1],
    )

  def unembed(self, x: jax.Array) -> jax.Array:
    """Returns logits [B, T, V] f32 of features x [B, T, D]."""
    head = self.embedding if self.config.tie_embeddings else self.lm_head()
    equation = 'BTD,VD->BTV' if self.config.tie_embeddings else 'BTD,DV->BTV'
    logits = jnp.einsum(equation, x, head.astype(x.dtype), preferred_element_type=jnp.float32)
    return attention.softcap(logits, self.config.logit_softcap)

  def __call__(
    self, tokens, positions, segment_ids=None, cache=None, prefix=None, gates=None
  ) -> tuple[jax.Array, KVCache]:
    """Returns (logits [B, T, V] f32, cache); the arguments are those of `features`."""
    x, cache = self.features(tokens, positions, segment_ids, cache, prefix, gates)
    return self.unembed(x), cache


def of_logits(
  model: Transformer, params: Params, x: jax.Array, targets: jax.Array, function: Callable[..., Any]
) -> Any:
  """Returns function(logits, targets) of features x, computed chunk by chunk.

  x is [B, T, D]; in each chunk logits are [..., V] f32 and targets [...] int32. The results are
  arrays [B, T].
  """

  def of_chunk(chunk):
    return function(model.bind({'params': params}).unembed(chunk[0]), chunk[1])

  rows = max(
    1, x.shape[0] // model.rules.num_parts('batch', jax.sharding.get_abstract_mesh().shape)
  )
  length = chunk_length(rows, x.shape[1], model.config.vocab_size)
  chunks = jax.lax.map(of_chunk, (split(x, length), split(targets, length)))

  def join(chunk):
    return chunk.swapaxes(0, 1).reshape(targets.shape[0], -1)[:, : targets.shape[1]]

  return jax.tree.map(join, chunks)


def target_logprobs(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns log p(target) [...] f32 from logits [..., V] f32 and targets [...] int32."""
  return _chosen(logits, targets) - jax.nn.logsumexp(logits, axis=-1)


def is_likeliest(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns [...] bool: True where no token has a larger logit than the target.

  See target_logprobs.
  """
  return _chosen(logits, targets) >= jnp.max(logits, axis=-1)


def _chosen(logits: jax.Array, targets: jax.Array) -> jax.Array:
  return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


def chunk_length(num_rows: int, length: int, vocab_size: int) -> int:
  """Returns the number of tokens per row in a chunk whose logits take at most LOGIT_BYTES.

  A row has `length` tokens.
  """
  most = max(1, LOGIT_BYTES // (4 * vocab_size * num_rows))
  num_chunks = -(-length // most)
  return -(-length // num_chunks)


def split(x: jax.Array, length: int) -> jax.Array:
  """Returns x [B, T, ...] in chunks [ceil(T / length), B, length, ...].

  The last chunk is filled with zeros.
  """
  padding = [(0, 0)] * x.ndim
  padding[1] = (0, -x.shape[1] % length)
  x = jnp.pad(x, padding)
  return x.reshape(x.shape[0], -1, length, *x.shape[2:]).swapaxes(0, 1)


def _init(config: ModelConfig, key: jax.Array) -> Any:
  tokens = jnp.zeros((1, 1), jnp.int32)
  return Transformer(config).init(key, tokens, tokens)['params']


@functools.cache
def abstract_params(config: ModelConfig) -> tuple[Any, Any]:
  """Returns the params as ShapeDtypeStructs, and their logical axes.

  The axes of each are a tuple of sharding.Axis.
  """
  boxed = jax.eval_shape(lambda: _init(config, jax.random.key(0)))
  axes = jax.tree.map(
    lambda box: box.names, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
  )
  return nn.meta.unbox(boxed), axes


def param_shardings(config: ModelConfig, mesh: jax.sharding.Mesh, rules: sharding.Rules) -> Any:
  """Returns the NamedSharding of every parameter."""
  return sharding.shardings(mesh, rules, *abstract_params(config))


def init_params(config: ModelConfig, seed: int, mesh: jax.sharding.Mesh) -> Params:
  """Returns random params, made in place on the devices; the same ones on every mesh."""
  out = param_shardings(config, mesh, sharding.TRAIN)
  return jax.jit(lambda key: nn.meta.unbox(_init(config, key)), out_shardings=out)(
    jax.random.key(seed)
  )
