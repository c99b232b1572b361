"""Attention over cached and new keys and values.

It is computed by XLA's own fusion, or by kernels for TPUs and GPUs.
"""

from collections.abc import Sequence
import functools
from typing import Any

import flax.struct
import jax
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel,
  splash_attention_mask,
)
import jax.numpy as jnp

# The position of a slot that holds no token: later than every query, so that none attends to it.
EMPTY = 2**30


# The segment that all other segments see: the past, or a question that several options share.
SHARED = -1


@flax.struct.dataclass
class KeyValues:
  """Keys and values that queries attend to, with their positions and segments.

  k [B, K, H, S] and v [B, K, S, H] have the layouts in which each head's matrix is multiplied by
  queries or weights without a transpose: a CPU takes twice as long to attend to keys [S, H].
  positions [B, S] int32 (EMPTY: no token); segment_ids [B, S] int32. B may be 1: every row sees
  them.
  """

  k: jax.Array
  v: jax.Array
  positions: jax.Array
  segment_ids: jax.Array


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
  """Returns cap * tanh(x / cap), which keeps x in (-cap, cap) (arXiv 2408.00118).

  Without a cap it returns x itself.
  """
  return x if cap is None else cap * jnp.tanh(x / cap)


def attend(
  q: jax.Array,
  positions: jax.Array,
  segment_ids: jax.Array,
  sources: Sequence[KeyValues],
  window: int | jax.Array | None,
  cap: float | None = None,
  min_rows: int = 1,
) -> jax.Array:
  """Softmax attention of q [B, T, N, H] over all sources at once -> [B, T, N, H].

  A query sees a key of its own segment, or of SHARED, at its own or an earlier position, at most
  window - 1 back. N is a multiple of K: grouped-query attention (arXiv 2305.13245). Scores,
  softcapped at `cap`, and softmax are float32. If fewer than min_rows queries read the same keys,
  they are padded with zeros: a TPU multiplies a vector and a matrix without its matrix unit, at
  half the speed, and is made for eight rows.
  """
  B, T, N, H = q.shape
  K = sources[0].k.shape[1]
  # The queries that read the same keys are the rows of one matrix; the rows of padding are dropped
  # in the end.
  G = max(N // K, -(-min_rows // T))
  q = q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
  q = jnp.pad(q, ((0, 0), (0, 0), (0, G - N // K), (0, 0), (0, 0))).reshape(B, K, G * T, H)
  scores = []
  for source in sources:
    # A source of batch 1 broadcasts: its keys are read once for all rows.
    k = 'KHS' if source.k.shape[0] == 1 else 'BKHS'
    score = jnp.einsum(
      f'BKQH,{k}->BKQS',
      q,
      source.k[0] if k == 'KHS' else source.k,
      preferred_element_type=jnp.float32,
    )
    bias = _mask(positions, segment_ids, source, window)
    scores.append(softcap(score.reshape(B, K, G, T, -1) * H**-0.5, cap) + bias[:, None, None])
  largest = functools.reduce(
    jnp.maximum, [jnp.max(score, axis=-1, keepdims=True) for score in scores]
  )
  out, total = jnp.zeros(q.shape, jnp.float32), jnp.zeros((B, K, G * T, 1), jnp.float32)
  for source, score in zip(sources, scores, strict=True):
    weights = jnp.exp(score - jax.lax.stop_gradient(largest)).reshape(B, K, G * T, -1)
    total += jnp.sum(weights, axis=-1, keepdims=True)
    v = 'KSH' if source.v.shape[0] == 1 else 'BKSH'
    out += jnp.einsum(
        f'BKQS,{v}->BKQH', weights.astype(q.dtype), source.v[0] if v == 'KSH' else source.v,
        preferred_element_type=jnp.float32,
    )  # fmt: skip
  out = (out / total).astype(q.dtype).reshape(B, K, G, T, H)[:, :, : N // K]
  return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _mask(
  positions: jax.Array,
  segment_ids: jax.Array,
  source: KeyValues,
  window: int | jax.Array | None,
) -> jax.Array:
  """Returns what is added to scores [B, T, S] f32: 0 where a query sees a key.

  Elsewhere it is the lowest float and not -inf, which gives a query that sees nothing (padding) a
  uniform mix in place of NaN.
  """
  distance = positions[:, :, None] - source.positions[:, None, :]
  own = segment_ids[:, :, None] == source.segment_ids[:, None, :]
  seen = (distance >= 0) & (own | (source.segment_ids == SHARED)[:, None, :])
  if window is not None:
    seen &= distance < window
  return jnp.where(seen, 0.0, jnp.finfo(jnp.float32).min)


def splash(
  q: jax.Array,
  kv: KeyValues,
  segment_ids: jax.Array,
  window: int | None,
  cap: float | None,
  spec: jax.P,
  *,
  interpret: bool = False,
) -> jax.Array:
  """Returns `attend` of rows to themselves, by a TPU kernel that never stores the scores.

  q and the result are [B, T, N, H]. A row's tokens are in the order of their positions, and T is a
  multiple of 128. spec: how [B, heads, T, H] of q and kv are sharded alike; T is whole on every
  device.
  """
  T, N, H = q.shape[1:]
  size = next(size for size in (512, 384, 256, 128) if T % size == 0)
  blocks = splash_attention_kernel.BlockSizes(
      block_q=size, block_kv=size, block_q_dkv=size, block_kv_dkv=size, block_q_dq=size,
      block_kv_dq=size
  )  # fmt: skip
  causal = splash_attention_mask.CausalMask((T, T))
  if window is not None:
    causal = splash_attention_mask.LocalMask((T, T), (window - 1, 0), 0)

  def local(q, k, v, segment_ids):
    mask = splash_attention_mask.MultiHeadMask([causal] * q.shape[1])
    kernel = splash_attention_kernel.make_splash_mha_single_device(
        mask, block_sizes=blocks, attn_logits_soft_cap=cap, interpret=interpret
    )  # fmt: skip
    segments = splash_attention_kernel.SegmentIds(segment_ids, segment_ids)
    return jax.vmap(kernel)(q * H**-0.5, k, v, segments)

  if not jax.sharding.get_abstract_mesh().empty:
    rows = jax.P(spec[0], None)
    local = jax.shard_map(local, in_specs=(spec, spec, spec, rows), out_specs=spec, check_vma=False)
  mixed: Any = local(q.swapaxes(1, 2), kv.k.swapaxes(2, 3), kv.v, segment_ids)
  return mixed.swapaxes(1, 2).astype(q.dtype)


def cudnn(q: jax.Array, kv: KeyValues, segment_ids: jax.Array, window: int | None) -> jax.Array:
  """Returns `attend` of rows to themselves by cuDNN, in bfloat16 on a GPU.

  q and the result are [B, T, N, H].
  """
  own = (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
  return jax.nn.dot_product_attention(
      q, kv.k.transpose(0, 3, 1, 2), kv.v.swapaxes(1, 2), mask=own, is_causal=True,
      local_window_size=None if window is None else (window - 1, 0), implementation='cudnn',
  )  # fmt: skip
