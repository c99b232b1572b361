"""Methods that add task vectors to the base: theta_0 + lambda sum_i w_i m_i r_i delta_i.

They differ in the masks m_i (sparsify.py), in the rescaling r_i that makes up for what a mask
drops, and in whether the models elect a sign.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from imm_jax.merging import algebra
from imm_jax.merging.pieces import Local, Piece, Sum, Tensors


def combine(
  piece: Piece,
  masks: Tensors,
  ratios: Sequence[Any] | None = None,
  *,
  elect: bool = False,
) -> jax.Array:
  """Returns theta_0 + lambda sum_i c_i delta_i with c_i = w_i m_i r_i.

  c_i is divided by sum_i w_i when `normalize`.

  Args:
    piece: with the parameters `weight` w_i, `lambda` and `normalize`.
    masks: m_i, bool: what is kept of delta_i.
    ratios: r_i, [] float32; 1 by default.
    elect: c_i, and w_i in that sum, is 0 where delta_i has not the sign of sum_i c_i delta_i
      (TIES).
  """
  p = piece.parameters
  weights = [jnp.asarray(w, jnp.float32) for w in p['weight']]
  factors = [jnp.where(mask, 1.0, 0.0) for mask in masks]
  if ratios is not None:
    factors = [f * ratio for f, ratio in zip(factors, ratios, strict=True)]
  coefs = [w * f for w, f in zip(weights, factors, strict=True)]
  if elect:
    deltas = _masked(piece.deltas, masks)
    agree = algebra.agree([c * d for c, d in zip(coefs, deltas, strict=True)])
    coefs = [jnp.where(a, c, 0.0) for a, c in zip(agree, coefs, strict=True)]
    weights = [jnp.where(a, w, 0.0) for a, w in zip(agree, weights, strict=True)]
  if p['normalize']:
    weight = algebra.add(weights)
    coefs = [algebra.divide(c, weight) for c in coefs]
  scale = jnp.asarray(p['lambda'], jnp.float32)
  coefs = [jnp.where(scale == 0, 0.0, scale * c) for c in coefs]
  return algebra.shift(piece.base, piece.models, coefs)


def _masked(deltas: Tensors, masks: Tensors) -> list[jax.Array]:
  return [jnp.where(mask, delta, 0.0) for mask, delta in zip(masks, deltas, strict=True)]


# Without a mask.


def task_arithmetic(piece: Piece, stats: None = None) -> jax.Array:
  """theta_0 + lambda sum_i w_i delta_i."""
  return combine(piece, [jnp.ones((), bool)] * len(piece.models))


def lines(piece: Piece, stats: None) -> jax.Array:
  """theta_0 + (a + (1 - a) depth) sum_i w_i delta_i.

  depth is l / (L - 1) in layer l, 1 in a single layer, 0 in what is in no layer.
  """
  p = piece.parameters
  a = jnp.asarray(p['a'], jnp.float32)
  own = {**p, 'lambda': a + (1 - a) * p['depth'], 'normalize': False}
  return task_arithmetic(piece._replace(parameters=own))


# With masks of the k largest, which are asked of the whole tensor (TIES, Model Breadcrumbs).


def ask_cuts(piece: Piece, *, ask: Callable[..., Any]) -> list[Any]:
  """Asks what the mask of each task vector needs: `ask` is sparsify.ask_largest or ask_band."""
  return [ask(delta, piece.of_model(i), piece.size) for i, delta in enumerate(piece.deltas)]


def trim(piece: Piece, cuts: Sequence[Any], *, keep: Callable[..., Any], elect: bool) -> jax.Array:
  """theta_0 + lambda sum_i w_i m_i delta_i, m_i 1 for elements of large or medium magnitude."""
  masks = [keep(delta, piece.of_model(i), cuts[i]) for i, delta in enumerate(piece.deltas)]
  return combine(piece, masks, elect=elect)


# With masks that are drawn (DARE, DELLA).


def dare(piece: Piece, stats: None) -> jax.Array:
  """theta_0 + lambda sum_i w_i m_i delta_i / (1 - drop_rate).

  m_i ~ Bernoulli(1 - drop_rate): unbiased.
  """
  densities = [1 - jnp.asarray(rate, jnp.float32) for rate in piece.parameters['drop_rate']]
  masks = [number < density for number, density in zip(piece.uniform, densities, strict=True)]
  return combine(piece, masks, [1 / density for density in densities])


class Masks(NamedTuple):
  """What `drop` needs: the masks of the piece, and |delta_i|_1 of the tensor, all and kept."""

  masks: Any
  sizes: Any = None  # None where nothing is rescaled
  kept: Any = None


def draw_masks(piece: Piece, *, keep: Callable[..., Any]) -> Masks:
  """Draws the masks: `keep` is sparsify.keep_random or keep_by_rank."""
  deltas = piece.deltas
  masks = [keep(delta, piece.of_model(i), piece.uniform[i]) for i, delta in enumerate(deltas)]
  return ask_sizes(piece, masks)


def ask_sizes(piece: Piece, masks: Tensors) -> Masks:
  """Asks for |delta_i|_1 and |m_i delta_i|_1 where the parameter `rescale` is on."""
  if not piece.parameters['rescale']:
    return Masks(Local(masks))
  sizes = [Sum(jnp.sum(jnp.abs(delta))) for delta in piece.deltas]
  kept = [Sum(jnp.sum(jnp.abs(delta))) for delta in _masked(piece.deltas, masks)]
  return Masks(Local(masks), sizes, kept)


def drop(piece: Piece, stats: Masks, *, elect: bool) -> jax.Array:
  """theta_0 + lambda sum_i w_i m_i r_i delta_i, m_i drawn.

  r_i = |delta_i|_1 / |m_i delta_i|_1 when `rescale`, else 1.
  """
  if stats.sizes is None:
    return combine(piece, stats.masks, elect=elect)
  ratios = []
  for size, kept, density in zip(stats.sizes, stats.kept, piece.parameters['density'], strict=True):
    keeps_all = (size == kept) | (density >= 1)
    ratios.append(jnp.where(keeps_all, 1.0, algebra.divide(size, kept)))
  return combine(piece, stats.masks, ratios, elect=elect)
