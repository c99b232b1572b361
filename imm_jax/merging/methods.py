"""Merge methods: each is an equation for one tensor, in float32; merging.merge applies it to pytrees.

theta_0 is the base, theta_i the models, delta_i = theta_i - theta_0. METHODS, at the end, is the one list of them: the
command's help, recipes and the docs read it.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from imm_jax.merging import sparsify
from imm_jax.merging.sparsify import Whole

Tensors = Sequence[jax.Array]
Values = Mapping[str, Any]  # a tensor's parameters: a number, or one for each model


def _sum(tensors: Tensors, weights: Sequence[Any]) -> jax.Array:
  """Returns sum_i w_i x_i; weights are numbers or of the tensors' shape.

  Where a weight is 0 its tensor does not matter (inf, NaN); where it is 1 and the others are 0, the result has its bits
  (-0.0, subnormals); where the weights add up to 1 and the tensors are equal, the result is the first.
  """
  weights = [jnp.asarray(w, jnp.float32) for w in weights]
  total = _add([jnp.where(w == 0, 0.0, w * x) for w, x in zip(weights, tensors, strict=True)])
  total = jnp.where(_all([x == tensors[0] for x in tensors[1:]]) & (jnp.abs(_add(weights) - 1) < 1e-6), tensors[0], total)
  return _ends(total, tensors, weights)


def _shift(base: jax.Array, models: Tensors, coefs: Sequence[Any]) -> jax.Array:
  """Returns theta_0 + sum_i c_i delta_i; theta_0's bits where all c_i are 0, theta_i's where c_i is 1 and the others 0."""
  coefs = [jnp.asarray(c, jnp.float32) for c in coefs]
  total = base + _add([jnp.where(c == 0, 0.0, c * (model - base)) for c, model in zip(coefs, models, strict=True)])
  total = jnp.where(_all([c == 0 for c in coefs]), base, total)
  return _ends(total, models, coefs)


def _ends(total: jax.Array, tensors: Tensors, weights: Sequence[jax.Array]) -> jax.Array:
  """Returns total, and where one weight is 1 and the others are 0 that tensor."""
  for i, (w, x) in enumerate(zip(weights, tensors, strict=True)):
    total = jnp.where(_all([v == 0 for j, v in enumerate(weights) if j != i]) & (w == 1), x, total)
  return total


def _elect(deltas: Tensors) -> list[jax.Array]:
  """Returns where each delta has the sign of their sum; zero counts as +."""
  total = _add(deltas)
  return [jnp.where(total >= 0, d > 0, d < 0) for d in deltas]


def _add(xs: Sequence[Any]) -> jax.Array:
  return functools.reduce(jnp.add, xs)


def _all(masks: Sequence[jax.Array]) -> jax.Array:
  return functools.reduce(jnp.logical_and, masks, jnp.asarray(True))


def _divide(x: Any, y: Any) -> jax.Array:
  """Returns x / y, and x where y is 0."""
  return x / jnp.where(y == 0, 1.0, y)


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
  """Returns sum x y, of products in full float32."""
  axes = tuple(range(x.ndim))
  return jax.lax.dot_general(x, y, ((axes, axes), ((), ())), precision=jax.lax.Precision.HIGHEST)


def _norm(x: jax.Array) -> jax.Array:
  return jnp.sqrt(_dot(x, x))


def _norm_1(x: jax.Array) -> jax.Array:
  return jnp.sum(jnp.abs(x))


def _weights(weights: Sequence[Any], normalize: bool) -> list[jax.Array]:
  """Returns the weights, f32, divided by their sum when asked."""
  arrays = [jnp.asarray(w, jnp.float32) for w in weights]
  return [w / _add(arrays) for w in arrays] if normalize else arrays


def _unless_equal(mixed: jax.Array, models: Tensors) -> jax.Array:
  """Returns mixed, or the first of models that are all the same: a mean of directions would round."""
  return jnp.where(_all([jnp.all(x == models[0]) for x in models[1:]]), models[0], mixed)


# Methods. Each takes (base, models, parameters, drawn, whole). drawn: for each model a uniform number for each element.
# whole: what is asked of the whole tensor, where these are a piece of it. For both see sparsify.


def linear(base: None, models: Tensors, p: Values, drawn: None, whole: Whole) -> jax.Array:
  """sum_i w_i theta_i, divided by sum_i w_i when `normalize`."""
  del base, drawn, whole
  return _sum(models, _weights(p['weight'], p['normalize']))


def task_vectors(
  base: jax.Array,
  models: Tensors,
  p: Values,
  drawn: Tensors | None,
  whole: Whole,
  *,
  keep: Any = None,
  elect: bool = False,
  rescale: str = '',
) -> jax.Array:
  """theta_0 + lambda sum_i w_i m_i delta_i; see `combine`. `keep` makes the masks m_i."""
  masks = []
  for i, model in enumerate(models):
    own = {name: value[i] if name in PER_MODEL else value for name, value in p.items()}
    mask = keep(model - base, own, drawn and drawn[i], whole) if keep else jnp.ones((), bool)
    masks.append(whole.drawn(mask) if drawn else mask)
  return combine(base, models, masks, p, whole, elect=elect, rescale=rescale)


def combine(
  base: jax.Array, models: Tensors, masks: Tensors, p: Values, whole: Whole, *, elect: bool, rescale: str
) -> jax.Array:
  """theta_0 + lambda sum_i c_i delta_i with c_i = w_i m_i r_i, divided by sum_i w_i when `normalize`.

  Args:
    base: theta_0, float32.
    models: theta_i, float32.
    masks: m_i, bool: what is kept of delta_i.
    p: `weight` w_i, `lambda`, `normalize`, and `density` where rescale asks for it.
    whole: see above.
    elect: c_i, and w_i in that sum, is 0 where delta_i has not the sign of sum_i c_i delta_i (TIES).
    rescale: what makes up for what is dropped. 'density': r_i = 1 / density_i; 'l1': |delta_i|_1 / |m_i delta_i|_1, unless
      the parameter `rescale` is off; '': 1.
  """
  weights = [jnp.asarray(w, jnp.float32) for w in p['weight']]
  deltas = [jnp.where(mask, model - base, 0.0) for mask, model in zip(masks, models, strict=True)]
  factors = [jnp.where(mask, 1.0, 0.0) for mask in masks]
  if rescale == 'density':
    factors = [f / jnp.asarray(d, jnp.float32) for f, d in zip(factors, p['density'], strict=True)]
  if rescale == 'l1' and p['rescale']:
    sizes = [whole.total(_norm_1(model - base)) for model in models]
    kept = [whole.total(_norm_1(d)) for d in deltas]
    ratios = [jnp.where((s == k) | (d >= 1), 1.0, _divide(s, k)) for s, k, d in zip(sizes, kept, p['density'], strict=True)]
    factors = [f * ratio for f, ratio in zip(factors, ratios, strict=True)]
  coefs = [w * f for w, f in zip(weights, factors, strict=True)]
  if elect:
    agree = _elect([c * d for c, d in zip(coefs, deltas, strict=True)])
    coefs = [jnp.where(a, c, 0.0) for a, c in zip(agree, coefs, strict=True)]
    weights = [jnp.where(a, w, 0.0) for a, w in zip(agree, weights, strict=True)]
  if p['normalize']:
    weight = _add(weights)
    coefs = [_divide(c, weight) for c in coefs]
  scale = jnp.asarray(p['lambda'], jnp.float32)
  return _shift(base, models, [jnp.where(scale == 0, 0.0, scale * c) for c in coefs])


def dare(base: jax.Array, models: Tensors, p: Values, drawn: Tensors, whole: Whole) -> jax.Array:
  """theta_0 + lambda sum_i w_i m_i delta_i / (1 - drop_rate), m_i ~ Bernoulli(1 - drop_rate): unbiased."""
  p = {**p, 'density': [1 - jnp.asarray(rate, jnp.float32) for rate in p['drop_rate']]}
  return task_vectors(base, models, p, drawn, whole, keep=sparsify.keep_random, rescale='density')


def lines(base: jax.Array, models: Tensors, p: Values, drawn: None, whole: Whole) -> jax.Array:
  """theta_0 + (a + (1 - a) depth) sum_i w_i delta_i; depth is l / (L - 1) in layer l, 0 elsewhere."""
  a = jnp.asarray(p['a'], jnp.float32)
  return task_vectors(base, models, {**p, 'lambda': a + (1 - a) * p['depth'], 'normalize': False}, drawn, whole)


def _slerp(
  x: jax.Array, y: jax.Array, t: Any, parallel: float, total: Callable[[jax.Array], jax.Array] = lambda x: x
) -> jax.Array:
  """Returns sin((1 - t) W) / sin W x + sin(t W) / sin W y, W their angle; (1 - t) x + t y where |cos W| > parallel."""
  t = jnp.asarray(t, jnp.float32)
  squares = total(_dot(x, x)), total(_dot(y, y))
  cos = jnp.clip(_divide(_divide(total(_dot(x, y)), jnp.sqrt(squares[0])), jnp.sqrt(squares[1])), -1, 1)
  lerp = jnp.abs(cos) > parallel
  angle = jnp.where(lerp, 1.0, jnp.arccos(cos))
  weights = jnp.sin((1 - t) * angle) / jnp.sin(angle), jnp.sin(t * angle) / jnp.sin(angle)
  mixed = _sum([x, y], [jnp.where(lerp, w, s) for w, s in zip((1 - t, t), weights, strict=True)])
  return _ends(mixed, [x, y], [1 - t, t])


def slerp(base: jax.Array, models: Tensors, p: Values, drawn: None, whole: Whole) -> jax.Array:
  """sin((1-t)W)/sin W theta_0 + sin(tW)/sin W theta_1, W their angle; (1-t) theta_0 + t theta_1 where |cos W| > 0.9995."""
  del drawn
  return _slerp(base, models[0], p['t'], 0.9995, whole.total)


def nuslerp(base: jax.Array | None, models: Tensors, p: Values, drawn: None, whole: Whole) -> jax.Array:
  """slerp of two models, or of their task vectors, at t = w_2 / (w_1 + w_2).

  Of whole tensors; with `nuslerp_flatten` off of the vectors along the last axis, with `nuslerp_row_wise` along the first.
  """
  del drawn, whole
  first, second = (jnp.asarray(w, jnp.float32) for w in p['weight'])
  x, y = models if base is None else (model - base for model in models)
  one = functools.partial(_slerp, t=second / (first + second), parallel=1 - 1e-7)
  if p['nuslerp_flatten'] or x.ndim < 2:
    mixed = one(x, y)
  else:
    axis = -1 if p['nuslerp_row_wise'] else 0  # mergekit's names: its row-wise angle is that of vectors along axis 0
    mixed = jax.vmap(one, in_axes=axis, out_axes=axis)(x, y)
  return _unless_equal(mixed if base is None else base + mixed, models)


def multislerp(base: jax.Array | None, models: Tensors, p: Values, drawn: None, whole: Whole) -> jax.Array:
  """(sum_i w_i u_i) / |sum_i w_i u_i| sum_i w_i |x_i|, u_i = x_i / |x_i|; x_i is theta_i, with a base delta_i.

  That is what mergekit's step in the tangent space at the mean direction comes to: the step is zero there.
  """
  del drawn, whole
  weights = _weights(p['weight'], p['normalize_weights'])
  xs = list(models) if base is None else [model - base for model in models]
  norms = [_norm(x) for x in xs]
  mixed = _unit(_sum([_divide(x, norm) for x, norm in zip(xs, norms, strict=True)], weights)) * _sum(norms, weights)
  return _ends(_unless_equal(mixed if base is None else base + mixed, models), models, weights)


def karcher(base: None, models: Tensors, p: Values, drawn: None, whole: Whole) -> jax.Array:
  """The Karcher mean of the directions (the point with least squared angles to all) times the mean norm."""
  del base, drawn, whole
  weights = [1 / len(models)] * len(models)
  norms = [_norm(x) for x in models]
  units = [_divide(x, norm) for x, norm in zip(models, norms, strict=True)]

  def tangent(mean):
    return _sum([_log(mean, unit) for unit in units], weights)

  def moves(state):
    return (state[0] < p['max_iter']) & (_norm(state[2]) >= p['tol'])

  def step(state):
    mean = _unit(_exp(state[1], state[2]))
    return state[0] + 1, mean, tangent(mean)

  mean = _unit(_sum(units, weights))
  _, mean, _ = jax.lax.while_loop(moves, step, (0, mean, tangent(mean)))
  return _unless_equal(mean * _sum(norms, weights), models)


def _unit(x: jax.Array) -> jax.Array:
  return _divide(x, _norm(x))


def _log(at: jax.Array, unit: jax.Array) -> jax.Array:
  """Returns the tangent at `at` that leads to `unit` on the sphere."""
  cos = _dot(at, unit)
  across = unit - cos * at
  length = _norm(across)
  return _divide(across, length) * jnp.arctan2(length, cos)  # arccos would lose small angles


def _exp(at: jax.Array, tangent: jax.Array) -> jax.Array:
  """Returns where `tangent` leads from `at` on the sphere."""
  length = _norm(tangent)
  return jnp.cos(length) * at + _divide(jnp.sin(length), length) * tangent


def model_stock(base: jax.Array, models: Tensors, p: Values, drawn: None, whole: Whole) -> jax.Array:
  """t mean_i theta_i + (1 - t) theta_0, t = n cos / (1 + (n - 1) cos), cos the mean cosine between the task vectors.

  `filter_wise`: for each row by itself. Cosines are scale-free; with `mergekit_compat` they are divided by at least 1e-6.
  """
  del drawn
  if p['filter_wise'] and base.ndim > 1:
    one = functools.partial(model_stock, p={**p, 'filter_wise': False}, drawn=None, whole=whole)
    rows = [x.reshape(-1, x.shape[-1]) for x in (base, *models)]
    return jax.vmap(one)(rows[0], rows[1:]).reshape(base.shape)
  deltas, n = [model - base for model in models], len(models)
  cosines = []
  for i in range(n):
    for j in range(i):
      scale = _norm(deltas[i]) * _norm(deltas[j])
      scale = jnp.maximum(scale, 1e-6) if p['mergekit_compat'] else scale
      cosines.append(jnp.clip(_divide(_dot(deltas[i], deltas[j]), scale), -1, 1))
  cos = _add(cosines) / len(cosines)
  t = n * cos / (1 + (n - 1) * cos)
  return _sum([base, *models], [1 - t, *[t / n] * n])


def sce(base: jax.Array, models: Tensors, p: Values, drawn: None, whole: Whole) -> jax.Array:
  """theta_0 + sum_i c_i delta_i / sum_i c_i: of the select_topk elements that vary most between models, weighed by energy.

  c_i = |delta_i|^2, 0 where delta_i has not the sign of sum_i delta_i. With no energy at all (mergekit_compat: a mean square
  below 1e-6), all weigh the same.
  """
  del drawn, whole
  deltas, n = [model - base for model in models], len(models)
  mean = _add(deltas) / n
  variance = _add([(d - mean) ** 2 for d in deltas])
  fraction = jnp.asarray(p['select_topk'], jnp.float32)
  chosen = sparsify.largest(variance, jnp.maximum(sparsify.num(fraction, base.size), 1)) | (fraction >= 1)
  deltas = [jnp.where(chosen, d, 0.0) for d in deltas]
  energies = [jnp.mean(d * d) for d in deltas]
  energy = _add(energies)
  nothing = energy < 1e-6 if p['mergekit_compat'] else energy == 0
  coefs = [jnp.where(agrees, jnp.where(nothing, 1.0, e), 0.0) for agrees, e in zip(_elect(deltas), energies, strict=True)]
  whole = _add(coefs)
  return _shift(base, models, [_divide(c, whole) for c in coefs])


def passthrough(base: None, models: Tensors, p: Values, drawn: None, whole: Whole) -> jax.Array:
  """scale theta_1."""
  del base, drawn, whole
  return _sum(models, p['scale'])


def fisher(base: None, models: Tensors, p: Values, drawn: None, whole: Whole) -> jax.Array:
  """sum_i w_i F_i theta_i / sum_i w_i F_i; F_i is the mean of model i's diagonal Fisher information over the tensor."""
  del base, drawn, whole
  return _sum(models, _weights([w * f for w, f in zip(p['weight'], p['fisher'], strict=True)], normalize=True))


# What there is.


@dataclasses.dataclass(frozen=True)
class Method:
  """A row of METHODS."""

  function: Callable[..., jax.Array]
  reference: str
  base: Literal['required', 'optional', 'none'] = 'required'
  parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # with their defaults; None: must be given
  num_models: tuple[int, int | None] = (1, None)  # at least, at most; the base not counted
  random: bool = False  # draws masks, and needs a key
  elementwise: bool = False  # no element of the result depends on another
  by_whole: bool = False  # they do, but only by what Whole gives
  by_row: bool = False  # and on the others of its row, what lies along the last axis
  drops: bool = False  # leaves out a part of a task vector
  alpha: Literal['', 'weight', 't', 'lambda', 'a'] = ''  # the parameter that the weight of tuned sets; '' has none

  @property
  def in_pieces(self) -> bool:
    """Whether a tensor can be merged piece by piece."""
    return self.elementwise or self.by_whole

  def with_alpha(self, base: Any, tuned: Sequence[Any], alpha: Any) -> tuple[Any, list[Any], dict[str, Any]]:
    """Returns (base, models, parameters) that merge tuned models at the weight alpha: 0 is base, 1 (the mean of) tuned."""
    n = len(tuned)
    if self.alpha == 'weight':
      return None, [base, *tuned], {'weight': [1 - alpha, *[alpha / n] * n]}
    return base, list(tuned), {self.alpha: alpha, 'weight': [1 / n] * n}


PER_MODEL = ('weight', 'density', 'drop_rate', 'epsilon', 'gamma', 'scale', 'fisher')  # these are given for each model
RANGES = {  # the least and the most of those that have one
  'density': (0, 1),
  'drop_rate': (0, 0.999),
  'epsilon': (0, 1),
  'gamma': (0, 1),
  'select_topk': (0, 1),
  't': (0, 1),
  'a': (0, 1),
}
STATIC = (
  'normalize',
  'normalize_weights',
  'rescale',
  'nuslerp_flatten',
  'nuslerp_row_wise',
  'filter_wise',
  'mergekit_compat',
)  # these are True or False

_DELTAS = {'weight': None, 'lambda': 1.0, 'normalize': False}


def _sparse(reference: str, keep: Any, *, elect: bool = False, rescale: str = '', **parameters: Any) -> Method:
  parameters = {**_DELTAS, 'density': 1.0, **parameters} | ({'rescale': True} if rescale else {})
  return Method(
    functools.partial(task_vectors, keep=keep, elect=elect, rescale=rescale),
    reference,
    parameters=parameters,
    random=keep in (sparsify.keep_random, sparsify.keep_by_rank),
    by_whole=True,
    by_row=keep is sparsify.keep_by_rank,
    drops=True,
    alpha='lambda',
  )


_TIES = 'https://arxiv.org/abs/2306.01708'
_DARE = 'https://arxiv.org/abs/2311.03099'
_DELLA = 'https://arxiv.org/abs/2406.11617'
_CRUMBS = 'https://arxiv.org/abs/2312.06795'
_KIT = 'https://github.com/arcee-ai/mergekit/blob/v0.1.5/docs/merge_methods.md'

METHODS: dict[str, Method] = {
  'linear': Method(
    linear, 'https://arxiv.org/abs/2203.05482', 'none', {'weight': None, 'normalize': True}, elementwise=True, alpha='weight'
  ),
  'task_arithmetic': Method(
    task_vectors, 'https://arxiv.org/abs/2212.04089', parameters=_DELTAS, elementwise=True, alpha='lambda'
  ),
  'slerp': Method(slerp, _KIT, parameters={'t': None}, num_models=(1, 1), by_whole=True, alpha='t'),
  'nuslerp': Method(
    nuslerp, _KIT, 'optional', {'weight': None, 'nuslerp_flatten': True, 'nuslerp_row_wise': False}, (2, 2), alpha='weight'
  ),
  'multislerp': Method(multislerp, _KIT, 'optional', {'weight': 1.0, 'normalize_weights': True}, (2, None), alpha='weight'),
  'karcher': Method(karcher, _KIT, 'none', {'max_iter': 10, 'tol': 1e-5}, (2, None)),
  'ties': _sparse(_TIES, sparsify.keep_largest, elect=True, normalize=True),
  'dare': Method(
    dare,
    _DARE,
    parameters={**_DELTAS, 'drop_rate': 0.2},
    random=True,
    elementwise=True,
    drops=True,
    alpha='lambda',
  ),
  'dare_linear': _sparse(_DARE, sparsify.keep_random, rescale='l1'),
  'dare_ties': _sparse(_DARE, sparsify.keep_random, rescale='l1', elect=True),
  'della': _sparse(_DELLA, sparsify.keep_by_rank, rescale='l1', elect=True, normalize=True, epsilon=0.15),
  'della_linear': _sparse(_DELLA, sparsify.keep_by_rank, rescale='l1', epsilon=0.15),
  'breadcrumbs': _sparse(_CRUMBS, sparsify.keep_band, gamma=0.01),
  'breadcrumbs_ties': _sparse(_CRUMBS, sparsify.keep_band, elect=True, gamma=0.01),
  'model_stock': Method(
    model_stock,
    'https://arxiv.org/abs/2403.19522',
    parameters={'filter_wise': False, 'mergekit_compat': False},
    num_models=(2, None),
  ),
  'sce': Method(
    sce, 'https://arxiv.org/abs/2408.07990', parameters={'select_topk': 1.0, 'mergekit_compat': False}, drops=True
  ),
  'passthrough': Method(passthrough, _KIT, 'none', {'scale': 1.0}, (1, 1), elementwise=True),
  'lines': Method(
    lines,
    'https://arxiv.org/abs/2410.17146',
    parameters={'weight': None, 'a': None, 'depth': (0.0, 1.0)},
    elementwise=True,
    alpha='a',
  ),
  'fisher': Method(
    fisher, 'https://arxiv.org/abs/2111.09832', 'none', {'weight': None, 'fisher': None}, (2, None), elementwise=True
  ),
}
