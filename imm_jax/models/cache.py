"""The cache of the keys and values of earlier tokens."""

import flax.struct
import jax
import jax.numpy as jnp

from imm_jax.models import attention
from imm_jax.models.config import ModelConfig


@flax.struct.dataclass
class KVCache:
  """Keys and values of earlier tokens, for all layers.

  A slot is not a position: `positions` maps a slot to its token's position, so all rows can write
  at the same `index`.
  """

  k: jax.Array  # [L, B, K, H, S] in the compute dtype.
  v: jax.Array  # [L, B, K, S, H].
  positions: jax.Array  # [B, S] int32; attention.EMPTY where nothing is written.
  index: jax.Array  # [] int32, the slot that the next tokens are written to.


def empty_cache(config: ModelConfig, batch_size: int, length: int) -> KVCache:
  """Returns an empty cache of `batch_size` rows and `length` slots."""
  v = jnp.zeros(
    (config.num_layers, batch_size, config.num_kv_heads, length, config.head_dim), config.dtype
  )
  return KVCache(
    v.swapaxes(3, 4),
    v,
    jnp.full((batch_size, length), attention.EMPTY, jnp.int32),
    jnp.zeros((), jnp.int32),
  )


def write(cache: KVCache, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the cache's keys and values with new ones written at its index.

  k is [L, B, K, H, T] and v [L, B, K, T, H]. They are written layer by layer: in one update a TPU
  would pad the keys of one token, for all layers, to 128 times their bytes.
  """

  def write(layer, caches):
    starts = (layer, 0, 0, 0, cache.index), (layer, 0, 0, cache.index, 0)
    new = k[layer][None], v[layer][None]
    return tuple(
      jax.lax.dynamic_update_slice(*update) for update in zip(caches, new, starts, strict=True)
    )

  return jax.lax.fori_loop(0, k.shape[0], write, (cache.k, cache.v))
