"""Methods that average tensors, and two that weigh task vectors by how they agree."""

import jax
import jax.numpy as jnp

from imm_jax.merging import algebra, largest, sparsify
from imm_jax.merging.algebra import divide, dot, norm
from imm_jax.merging.pieces import Piece


def linear(piece: Piece, stats: None) -> jax.Array:
  """sum_i w_i theta_i, divided by sum_i w_i when `normalize`."""
  p = piece.parameters
  return algebra.weighted_sum(piece.models, algebra.normalized(p['weight'], p['normalize']))


def fisher(piece: Piece, stats: None) -> jax.Array:
  """sum_i w_i F_i theta_i / sum_i w_i F_i.

  F_i is the mean of model i's diagonal Fisher information over the tensor.
  """
  p = piece.parameters
  weights = [w * f for w, f in zip(p['weight'], p['fisher'], strict=True)]
  return algebra.weighted_sum(piece.models, algebra.normalized(weights))


def passthrough(piece: Piece, stats: None) -> jax.Array:
  """scale theta_1."""
  return algebra.weighted_sum(piece.models, piece.parameters['scale'])


def model_stock(piece: Piece, stats: None) -> jax.Array:
  """t mean_i theta_i + (1 - t) theta_0, with t = n cos / (1 + (n - 1) cos).

  cos is the mean cosine between the task vectors. Where they cancel, 1 + (n - 1) cos < 1e-4, it is
  theta_0. `filter_wise`: for each row by itself. Cosines are scale-free; with `mergekit_compat` the
  products of norms that they are divided by are at least 1e-6.
  """
  p = piece.parameters

  def merge(base, models):
    t = _stock_weight([model - base for model in models], p['mergekit_compat'])
    n = len(models)
    return algebra.weighted_sum([base, *models], [1 - t, *[t / n] * n])

  if not p['filter_wise'] or piece.base.ndim < 2:
    return merge(piece.base, piece.models)
  base, *models = (x.reshape(-1, x.shape[-1]) for x in (piece.base, *piece.models))
  return jax.vmap(merge)(base, models).reshape(piece.base.shape)


def _stock_weight(deltas: list[jax.Array], mergekit_compat: bool) -> jax.Array:
  """Returns t of model_stock, [] float32."""
  n = len(deltas)
  cosines = []
  for i in range(n):
    for j in range(i):
      scale = norm(deltas[i]) * norm(deltas[j])
      scale = jnp.maximum(scale, 1e-6) if mergekit_compat else scale
      cosines.append(jnp.clip(divide(dot(deltas[i], deltas[j]), scale), -1, 1))
  cos = algebra.add(cosines) / len(cosines)
  # Near 0 the deltas cancel, and their mean, which t would blow up, is little but rounding.
  scale = 1 + (n - 1) * cos
  cancel = scale < 1e-4
  return jnp.where(cancel, 0.0, n * cos / jnp.where(cancel, 1.0, scale))


def sce(piece: Piece, stats: None) -> jax.Array:
  """theta_0 + sum_i c_i delta_i / sum_i c_i, of the elements that vary most between models.

  The share select_topk of the elements is selected. c_i is the mean square of delta_i over them, 0
  where delta_i has not the sign of sum_i delta_i. Where all mean squares are 0 (mergekit_compat:
  below 1e-6), the models weigh the same. It takes two passes over the whole tensor.
  """
  p, deltas = piece.parameters, piece.deltas
  mean = algebra.add(deltas) / len(deltas)
  variance = algebra.add([(d - mean) ** 2 for d in deltas])
  fraction = jnp.asarray(p['select_topk'], jnp.float32)
  cut = largest.find_cut(variance, jnp.maximum(sparsify.share(fraction, piece.size), 1))
  chosen = largest.is_largest(variance, cut) | (fraction >= 1)
  deltas = [jnp.where(chosen, d, 0.0) for d in deltas]
  energies = [jnp.mean(d * d) for d in deltas]
  energy = algebra.add(energies)
  are_none = energy < 1e-6 if p['mergekit_compat'] else energy == 0
  energies = [jnp.where(are_none, 1.0, e) for e in energies]
  coefs = [jnp.where(a, e, 0.0) for a, e in zip(algebra.agree(deltas), energies, strict=True)]
  total = algebra.add(coefs)
  return algebra.shift(piece.base, piece.models, [divide(c, total) for c in coefs])
