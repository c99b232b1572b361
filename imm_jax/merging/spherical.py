"""Methods on the sphere: means of directions, times a mean norm."""

from typing import Any

import jax
import jax.numpy as jnp

from imm_jax.merging import algebra
from imm_jax.merging.algebra import divide, dot, norm
from imm_jax.merging.pieces import Piece, Sum


def ask_angle(piece: Piece) -> tuple[Sum, Sum, Sum]:
  """Asks for |theta_0|^2, |theta_1|^2 and their product."""
  x, y = piece.base, piece.models[0]
  return Sum(dot(x, x)), Sum(dot(y, y)), Sum(dot(x, y))


def slerp(piece: Piece, stats: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
  """sin((1 - t) W) / sin W theta_0 + sin(t W) / sin W theta_1, W their angle.

  (1 - t) theta_0 + t theta_1 where |cos W| > 0.9995.
  """
  return _slerp(piece.base, piece.models[0], piece.parameters['t'], stats, 0.9995)


def nuslerp(piece: Piece, stats: None) -> jax.Array:
  """slerp of two models, or of their task vectors, at t = w_2 / (w_1 + w_2).

  t is 0.5 where |w_1 + w_2| < 1e-6. The angle is that of whole tensors; with `nuslerp_flatten` off,
  of the vectors along the last axis, and with `nuslerp_row_wise` along the first.
  """
  p = piece.parameters
  first, second = (jnp.asarray(w, jnp.float32) for w in p['weight'])
  is_zero = jnp.abs(first + second) < 1e-6  # mergekit's threshold, and its t there
  t = jnp.where(is_zero, 0.5, second / jnp.where(is_zero, 1.0, first + second))

  def mix(x, y):
    return _slerp(x, y, t, (dot(x, x), dot(y, y), dot(x, y)), 1 - 1e-7)

  x, y = piece.models if piece.base is None else piece.deltas
  if p['nuslerp_flatten'] or x.ndim < 2:
    mixed = mix(x, y)
  else:
    # mergekit's names: its row-wise angle is that of vectors along axis 0.
    axis = -1 if p['nuslerp_row_wise'] else 0
    mixed = jax.vmap(mix, in_axes=axis, out_axes=axis)(x, y)
  return algebra.unless_equal(mixed if piece.base is None else piece.base + mixed, piece.models)


def multislerp(piece: Piece, stats: None) -> jax.Array:
  """(sum_i w_i u_i) / |sum_i w_i u_i| sum_i w_i |x_i|, u_i = x_i / |x_i|.

  x_i is theta_i, with a base delta_i. That is what mergekit's step in the tangent space at the mean
  direction comes to: the step is zero there.
  """
  weights = algebra.normalized(piece.parameters['weight'], piece.parameters['normalize_weights'])
  xs = list(piece.models) if piece.base is None else piece.deltas
  norms = [norm(x) for x in xs]
  units = [divide(x, size) for x, size in zip(xs, norms, strict=True)]
  mixed = _unit(algebra.weighted_sum(units, weights)) * algebra.weighted_sum(norms, weights)
  mixed = algebra.unless_equal(mixed if piece.base is None else piece.base + mixed, piece.models)
  return algebra.exact_ends(mixed, piece.models, weights)


def karcher(piece: Piece, stats: None) -> jax.Array:
  """The Karcher mean of the directions times the mean norm.

  It is the point on the sphere with the least squared angles to all.
  """
  models, p = piece.models, piece.parameters
  weights = [1 / len(models)] * len(models)
  norms = [norm(x) for x in models]
  units = [divide(x, size) for x, size in zip(models, norms, strict=True)]

  def tangent(mean):
    return algebra.weighted_sum([_log(mean, unit) for unit in units], weights)

  def moves(state):
    i, _, step = state
    return (i < p['max_iter']) & (norm(step) >= p['tol'])

  def move(state):
    i, mean, step = state
    mean = _unit(_exp(mean, step))
    return i + 1, mean, tangent(mean)

  start = _unit(algebra.weighted_sum(units, weights))
  _, mean, _ = jax.lax.while_loop(moves, move, (0, start, tangent(start)))
  return algebra.unless_equal(mean * algebra.weighted_sum(norms, weights), models)


def _slerp(x: jax.Array, y: jax.Array, t: Any, products: Any, parallel: float) -> jax.Array:
  """Returns sin((1 - t) W) / sin W x + sin(t W) / sin W y, W their angle.

  parallel: the |cos W| above which it is (1 - t) x + t y.
  products: |x|^2, |y|^2 and x y of the whole tensors.
  """
  t = jnp.asarray(t, jnp.float32)
  xx, yy, xy = products
  cos = jnp.clip(divide(divide(xy, jnp.sqrt(xx)), jnp.sqrt(yy)), -1, 1)
  lerp = jnp.abs(cos) > parallel
  angle = jnp.where(lerp, 1.0, jnp.arccos(cos))
  weights = jnp.sin((1 - t) * angle) / jnp.sin(angle), jnp.sin(t * angle) / jnp.sin(angle)
  weights = [jnp.where(lerp, w, s) for w, s in zip((1 - t, t), weights, strict=True)]
  return algebra.exact_ends(algebra.weighted_sum([x, y], weights), [x, y], [1 - t, t])


def _unit(x: jax.Array) -> jax.Array:
  return divide(x, norm(x))


def _log(at: jax.Array, unit: jax.Array) -> jax.Array:
  """Returns the tangent at `at` that leads to `unit` on the sphere."""
  cos = dot(at, unit)
  across = unit - cos * at
  length = norm(across)
  return divide(across, length) * jnp.arctan2(length, cos)  # arccos would lose small angles


def _exp(at: jax.Array, tangent: jax.Array) -> jax.Array:
  """Returns where `tangent` leads from `at` on the sphere."""
  length = norm(tangent)
  return jnp.cos(length) * at + divide(jnp.sin(length), length) * tangent
