"""Merge methods: pure functions on pytrees, float32 inside, the input's dtype outside.

`base` is the original theta_0, `tuned` the fine-tuned theta_1, `alpha` the weight of tuned: 0 returns base, bit for bit, and
1 returns tuned where nothing is dropped.
"""

from collections.abc import Callable
from typing import Any
import zlib

import jax
import jax.numpy as jnp

Params = Any


def _blend(base: jax.Array, tuned: jax.Array, alpha: jax.Array | float) -> jax.Array:
  """Returns (1 - alpha) * base + alpha * tuned; the ends exactly, whatever the other side holds (-0.0, inf, NaN)."""
  a = jnp.asarray(alpha, jnp.float32)
  mixed = (1 - a) * base.astype(jnp.float32) + a * tuned.astype(jnp.float32)
  mixed = jnp.where(base == tuned, base.astype(jnp.float32), mixed)
  return jnp.where(a == 0, base, jnp.where(a == 1, tuned, mixed.astype(base.dtype)))


def linear(base: Params, tuned: Params, *, alpha: jax.Array | float) -> Params:
  """Returns (1 - alpha) * base + alpha * tuned, leaf by leaf (WiSE-FT, arXiv 2109.01903)."""
  return jax.tree.map(lambda b, t: _blend(b, t, alpha), base, tuned)


def dare(base: Params, tuned: Params, *, alpha: jax.Array | float, drop_rate: jax.Array | float, key: jax.Array) -> Params:
  """Returns base + alpha * m * (tuned - base) / (1 - drop_rate), m ~ Bernoulli(1 - drop_rate) (DARE, arXiv 2311.03099).

  The expectation is `linear`. The mask of a leaf is a function of key, f(seed, round), and the leaf's path: the same on
  every mesh, another in every round.
  """

  keep_rate = 1 - jnp.asarray(drop_rate, jnp.float32)

  def merge(path, b, t):
    leaf_key = jax.random.fold_in(key, zlib.crc32(jax.tree_util.keystr(path, simple=True, separator='/').encode()))
    keep = jax.random.bernoulli(leaf_key, keep_rate, b.shape)
    return jnp.where(keep, _blend(b, t, alpha / keep_rate), b)

  return jax.tree.map_with_path(merge, base, tuned)


# name -> (function, parameters beyond alpha with their defaults)
METHODS: dict[str, tuple[Callable[..., Params], dict[str, float]]] = {
  'linear': (linear, {}),
  'dare': (dare, {'drop_rate': 0.2}),
}
