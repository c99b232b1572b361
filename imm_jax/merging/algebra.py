"""Sums of tensors with exact ends, and the arithmetic that methods share. All float32."""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp

from imm_jax.merging.pieces import Tensors


def weighted_sum(tensors: Tensors, weights: Sequence[Any]) -> jax.Array:
  """Returns sum_i w_i x_i; weights are numbers or of the tensors' shape.

  Where a weight is 0 its tensor does not matter (inf, NaN); where it is 1 and the others are 0, the
  result has its bits (-0.0, subnormals); where the weights add up to 1 and the tensors are equal,
  the result is the first.
  """
  weights = [jnp.asarray(w, jnp.float32) for w in weights]
  total = add([jnp.where(w == 0, 0.0, w * x) for w, x in zip(weights, tensors, strict=True)])
  are_equal = every([x == tensors[0] for x in tensors[1:]])
  total = jnp.where(are_equal & (jnp.abs(add(weights) - 1) < 1e-6), tensors[0], total)
  return exact_ends(total, tensors, weights)


def shift(base: jax.Array, models: Tensors, coefs: Sequence[Any]) -> jax.Array:
  """Returns theta_0 + sum_i c_i delta_i.

  It has theta_0's bits where all c_i are 0, and theta_i's where c_i is 1 and the others are 0.
  """
  coefs = [jnp.asarray(c, jnp.float32) for c in coefs]
  pairs = zip(coefs, models, strict=True)
  moves = [jnp.where(c == 0, 0.0, c * (model - base)) for c, model in pairs]
  total = jnp.where(every([c == 0 for c in coefs]), base, base + add(moves))
  return exact_ends(total, models, coefs)


def exact_ends(total: jax.Array, tensors: Tensors, weights: Sequence[jax.Array]) -> jax.Array:
  """Returns total, and where one weight is 1 and the others are 0 that tensor."""
  for i, (w, x) in enumerate(zip(weights, tensors, strict=True)):
    is_alone = every([v == 0 for j, v in enumerate(weights) if j != i])
    total = jnp.where(is_alone & (w == 1), x, total)
  return total


def unless_equal(mixed: jax.Array, models: Tensors) -> jax.Array:
  """Returns mixed, or the first of models that are all equal: a mean of directions would round."""
  return jnp.where(every([jnp.all(x == models[0]) for x in models[1:]]), models[0], mixed)


def agree(deltas: Tensors) -> list[jax.Array]:
  """Returns where each delta has the sign of their sum; a sum of zero counts as +."""
  total = add(deltas)
  return [jnp.where(total >= 0, d > 0, d < 0) for d in deltas]


def add(xs: Sequence[Any]) -> jax.Array:
  """Returns the sum of the arrays, from left to right."""
  return functools.reduce(jnp.add, xs)


def every(masks: Sequence[jax.Array]) -> jax.Array:
  """Returns where all masks are True."""
  return functools.reduce(jnp.logical_and, masks, jnp.asarray(True))


def divide(x: Any, y: Any) -> jax.Array:
  """Returns x / y, and x where y is 0."""
  return x / jnp.where(y == 0, 1.0, y)


def dot(x: jax.Array, y: jax.Array) -> jax.Array:
  """Returns sum x y, [] float32, of products in full float32."""
  axes = tuple(range(x.ndim))
  return jax.lax.dot_general(x, y, ((axes, axes), ((), ())), precision=jax.lax.Precision.HIGHEST)


def norm(x: jax.Array) -> jax.Array:
  """Returns the Euclidean norm of all elements, [] float32."""
  return jnp.sqrt(dot(x, x))


def normalized(weights: Sequence[Any], normalize: bool = True) -> list[jax.Array]:
  """Returns the weights, float32, divided by their sum when asked."""
  arrays = [jnp.asarray(w, jnp.float32) for w in weights]
  return [w / add(arrays) for w in arrays] if normalize else arrays
