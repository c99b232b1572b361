"""The parts of a decoder block: RMSNorm, rotary embedding, attention, gated MLP."""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from imm_jax import sharding
from imm_jax.models.attention import attend, cudnn, EMPTY, KeyValues, splash


@dataclasses.dataclass(frozen=True)
class Llama3Rope:
  """Llama 3.1's stretching of the low rotary frequencies (`llama3` rope type of transformers)."""

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_length: int


@dataclasses.dataclass(frozen=True)
class LongRope:
  """LongRoPE (arXiv 2402.13753), for a context that was stretched to max_length tokens.

  It was stretched from original_max_length. Each frequency is divided by its own factor: a short
  one in texts of up to original_max_length. Longer texts would need the long factors from their
  first token on and are not supported: a model's max_length is the original one.
  """

  short_factor: tuple[float, ...]  # [R / 2]
  long_factor: tuple[float, ...]
  original_max_length: int
  max_length: int

  def magnitude(self) -> float:
    """Returns the factor that multiplies rotated queries and keys."""
    stretch = max(1.0, self.max_length / self.original_max_length)
    return math.sqrt(1 + math.log(stretch) / math.log(self.original_max_length))


def rope_frequencies(
  head_dim: int, theta: float, scaling: Llama3Rope | LongRope | None
) -> np.ndarray:
  """Returns the rotary frequencies [H / 2] f32 in radians per position.

  See RoFormer, arXiv 2104.09864.
  """
  freqs = (1.0 / theta ** (np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
  if scaling is None:
    return freqs
  if isinstance(scaling, LongRope):
    return freqs / np.asarray(scaling.short_factor, np.float32)
  wavelengths = 2 * np.pi / freqs
  turns = scaling.original_max_length / wavelengths
  smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
  smooth = np.clip(smooth, 0.0, 1.0)
  return ((1 - smooth) * freqs / scaling.factor + smooth * freqs).astype(np.float32)


def rotate(
  x: jax.Array, positions: jax.Array, freqs: np.ndarray | jax.Array, magnitude: float = 1.0
) -> jax.Array:
  """Applies the rotary embedding to x [B, T, N, H] at positions [B, T] int32.

  freqs [R / 2] rotate the first R of the H dimensions.
  """
  angles = positions[:, :, None, None].astype(jnp.float32) * freqs[None, None, None, :]
  sin, cos = magnitude * jnp.sin(angles), magnitude * jnp.cos(angles)
  half = freqs.shape[0]
  x1, x2, rest = jnp.split(x.astype(jnp.float32), [half, 2 * half], axis=-1)
  return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest], axis=-1).astype(x.dtype)


def param(
  module: nn.Module,
  name: str,
  init: nn.initializers.Initializer,
  shape: tuple[int, ...],
  axes: tuple[sharding.Axis, ...],
) -> Any:
  """Declares a float32 parameter with a logical axis for each dimension, and returns it."""
  boxed = nn.with_logical_partitioning(init, axes)  # pyright: ignore[reportArgumentType]: flax only keeps them
  return module.param(name, boxed, shape, jnp.float32)


class RMSNorm(nn.Module):
  """x / rms(x) * scale over the last axis, in float32 (arXiv 1910.07467).

  Gemma's multiplies by 1 + scale.
  """

  eps: float
  axis: str
  plus_one: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = nn.initializers.zeros if self.plus_one else nn.initializers.ones
    scale = param(self, 'scale', init, (x.shape[-1],), (self.axis,))
    normed = x.astype(jnp.float32)
    normed *= jax.lax.rsqrt(jnp.mean(normed**2, axis=-1, keepdims=True) + self.eps)
    if self.plus_one:  # Added in float32, as bfloat16 would lose most of a small scale.
      return (normed * (1 + jnp.expand_dims(scale, range(x.ndim - 1)))).astype(x.dtype)
    return normed.astype(x.dtype) * jnp.expand_dims(scale.astype(x.dtype), range(x.ndim - 1))


class Projection(nn.Module):
  """The product of x [..., inputs] with a kernel [inputs, outputs], and a bias of outputs."""

  shape: tuple[int, int]
  axes: tuple[sharding.Axis, sharding.Axis]
  rules: sharding.Rules
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = param(
      self,
      'kernel',
      nn.initializers.variance_scaling(1.0, 'fan_in', 'normal'),
      self.shape,
      self.axes,
    )
    if self.has_variable('params', 'lora_a'):  # An adapter is trained; see lora.attach.
      kernel += self.get_variable('params', 'lora_a') @ self.get_variable('params', 'lora_b')
    # The kernel is gathered here, once for all uses: left to XLA, the recomputation and the
    # gradient would gather it in two layouts.
    gathered = tuple(None if axis == 'embed' else axis for axis in self.axes)
    kernel = sharding.constrain(kernel.astype(x.dtype), gathered, self.rules)
    # The operands are reshaped to matrices, as XLA's CPU backend copies those with more dimensions
    # in the backward pass.
    y = (x.reshape(-1, self.shape[0]) @ kernel).reshape(*x.shape[:-1], self.shape[1])
    if self.use_bias:
      y += param(self, 'bias', nn.initializers.zeros, self.shape[1:], self.axes[1:]).astype(
        x.dtype
      )[None, None]
    return y


class Matrix(nn.Module):
  """A kernel without the product, for callers that multiply by it themselves."""

  shape: tuple[int, ...]
  axes: tuple[str, ...]

  @nn.compact
  def __call__(self) -> jax.Array:
    return param(self, 'kernel', nn.initializers.lecun_normal(), self.shape, self.axes)


class Attention(nn.Module):
  """Causal self-attention with rotary positions; see `attend` for which tokens a token sees.

  is_global [] bool: whether this layer has no sliding window, if the config's layers differ in
  that; else None.
  """

  config: Any  # model.ModelConfig
  rules: sharding.Rules

  @nn.compact
  def __call__(
    self, x, positions, segment_ids, past: Sequence[KeyValues], is_global: jax.Array | None
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    c = self.config
    q, k, v = self._projections(x)
    q, k = self._normed(q, k)
    if c.query_scalar is not None:
      q *= (c.head_dim / c.query_scalar) ** 0.5
    freqs = c.frequencies(is_global)
    magnitude = c.rope_scaling.magnitude() if isinstance(c.rope_scaling, LongRope) else 1.0
    q, k = rotate(q, positions, freqs, magnitude), rotate(k, positions, freqs, magnitude)
    # The queries are computed where the weights are, then moved to the rows' devices, so that only
    # activations travel.
    q = sharding.constrain(q, ('batch', 'length', 'heads', 'head_dim'), self.rules)
    k = sharding.constrain(k, ('batch', 'length', 'kv_heads', 'head_dim'), self.rules)
    v = sharding.constrain(v, ('batch', 'length', 'kv_heads', 'head_dim'), self.rules)
    axes = ('attention_batch', 'attention_heads', 'length', 'head_dim')
    q, k, v = (sharding.constrain(y.swapaxes(1, 2), axes, self.rules) for y in (q, k, v))
    q, k = q.swapaxes(1, 2), k.swapaxes(2, 3)
    own = KeyValues(k, v, positions, segment_ids)
    mixed = self._mix(q, own, past, is_global)
    mixed = sharding.constrain(mixed, ('batch', 'length', 'heads', 'head_dim'), self.rules)
    mixed = mixed.reshape(*mixed.shape[:2], -1)
    shape, axes = (c.num_heads * c.head_dim, c.embed_dim), (('heads', c.head_dim), 'embed')
    return Projection(shape, axes, self.rules, name='o')(mixed), (k, v)

  def _projections(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns queries [B, T, N, H], keys and values [B, T, K, H] of x [B, T, D]."""
    c = self.config

    def heads(name, num_heads, axis):
      shape, axes = (c.embed_dim, num_heads * c.head_dim), ('embed', (axis, c.head_dim))
      y = Projection(shape, axes, self.rules, use_bias=c.qkv_bias, name=name)(x)
      return y.reshape(*y.shape[:-1], -1, c.head_dim)

    q = heads('q', c.num_heads, 'heads')
    k = heads('k', c.num_kv_heads, 'kv_heads')
    return q, k, heads('v', c.num_kv_heads, 'kv_heads')

  def _normed(self, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns queries and keys after the RMSNorm that the config asks for."""
    c = self.config
    if not c.qk_norm:
      return q, k

    def norm(name, y, axis):
      # Over each head's own dimensions, or over those of all heads at once.
      one = y if c.qk_norm == 'head' else y.reshape(*y.shape[:2], -1)
      return RMSNorm(c.rms_norm_eps, axis, c.norm_plus_one, name=name)(one).reshape(y.shape)

    by_head = c.qk_norm == 'head'
    q = norm('q_norm', q, 'head_dim' if by_head else 'heads')
    return q, norm('k_norm', k, 'head_dim' if by_head else 'kv_heads')

  def _mix(
    self,
    q: jax.Array,
    own: KeyValues,
    past: Sequence[KeyValues],
    is_global: jax.Array | None,
  ) -> jax.Array:
    """Returns the values [B, T, N, H] that each query sees, mixed, by a kernel where one serves."""
    c = self.config
    kernel = None
    if c.attention == 'splash' and not past and q.shape[1] % 128 == 0:
      axes = ('attention_batch', 'attention_heads', 'length', 'head_dim')
      spec = self.rules.spec(axes, own.v.shape, jax.sharding.get_abstract_mesh().shape)
      kernel = functools.partial(
        splash, q, own, own.segment_ids, cap=c.attention_softcap, spec=spec
      )
    elif c.attention == 'cudnn' and not past:
      kernel = functools.partial(cudnn, q, own, own.segment_ids)
    if kernel is None:
      window = c.sliding_window
      if is_global is not None:
        window = jnp.where(is_global, EMPTY, window)
      min_rows = 8 if c.attention == 'splash' else 1
      sources = (*past, own)
      return attend(
        q, own.positions, own.segment_ids, sources, window, c.attention_softcap, min_rows
      )
    if is_global is None:
      return kernel(window=c.sliding_window)
    # A kernel's window is part of its program, so each kind of layer has its own.
    return jax.lax.cond(
      is_global, lambda: kernel(window=None), lambda: kernel(window=c.sliding_window)
    )


ACTIVATIONS = {'silu': jax.nn.silu, 'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True)}


class MLP(nn.Module):
  """down(activation(gate(x)) * up(x)): SwiGLU, or GeGLU (arXiv 2002.05202)."""

  config: Any  # model.ModelConfig
  rules: sharding.Rules

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape, axes = (self.config.embed_dim, self.config.mlp_dim), ('embed', 'mlp')
    gate = Projection(shape, axes, self.rules, name='gate')(x)
    up = Projection(shape, axes, self.rules, name='up')(x)
    return Projection(shape[::-1], ('mlp', 'embed'), self.rules, name='down')(
      ACTIVATIONS[self.config.activation](gate) * up
    )
