"""Rules: what a round merges with, and at which alpha. Pure functions of arrays and numbers.

`merge.alpha` is fixed or a schedule over the rounds; `layer_adaptive` makes one a layer of it;
`search` finds it.
"""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imm_jax.merging import coefficients

_KINDS = ('linear', 'cosine', 'step')


# Schedules.


def schedule(alpha: Any, round_: int) -> Any:
  """Returns the coefficient in a round, from 1 on.

  A {'schedule': 'linear', 'cosine' or 'step', 'start': x, 'end': y, 'rounds': n} goes from x in
  round 1 to y in round n, in a line, half a cosine or at once, and stays there; any other
  coefficient is constant. A step from 1 is a single merge after n rounds of plain self-improvement.
  It does not depend on a run's num_rounds, which may change.
  """
  if not _is_schedule(alpha):
    return alpha
  progress = min(1.0, (round_ - 1) / max(1, alpha['rounds'] - 1))
  if alpha['schedule'] == 'step':
    return alpha['start'] if round_ < alpha['rounds'] else alpha['end']
  if alpha['schedule'] == 'cosine':
    progress = (1 - math.cos(math.pi * progress)) / 2
  return (1 - progress) * alpha['start'] + progress * alpha['end']


def check_alpha(where: str, alpha: Any) -> None:
  """Raises ValueError when it is no schedule, and no coefficient in [0, 1] for every tensor.

  where: what the message calls it.
  """
  if not _is_schedule(alpha):
    coefficients.check(where, alpha, 0, 1, whole=True)
    return
  is_known = alpha['schedule'] in _KINDS and set(alpha) == {'schedule', 'start', 'end', 'rounds'}
  if not is_known or not isinstance(alpha['rounds'], int) or alpha['rounds'] < 1:
    form = "{'schedule': 'linear', 'cosine' or 'step', 'start': x, 'end': y, 'rounds': n}"
    raise ValueError(f'{where}: {alpha} is not {form}')
  coefficients.check(where, alpha['start'], 0, 1)
  coefficients.check(where, alpha['end'], 0, 1)


def _is_schedule(alpha: Any) -> bool:
  return isinstance(alpha, Mapping) and 'schedule' in alpha


# One alpha a layer.


def layer_adaptive(
  importance: Sequence[float],
  change: Sequence[float],
  alpha: float,
  delta_norms: Sequence[float],
  order: np.ndarray | None = None,
) -> np.ndarray:
  """Returns alpha_l [L]: more of tuned where a layer matters and moved little.

  The drift norm is that of a uniform alpha.

  alpha_l = min(1, c (1 + (rank of importance_l - rank of change_l) / (L - 1))), ranks from 0, the
  least; c makes sum_l alpha_l^2 |delta_l|^2 = alpha^2 sum_l |delta_l|^2. A layer whose share is 0
  gets next to nothing, but what is left where all others are at 1. The formula is ours.

  Args:
    importance: [L], of each layer for the task.
    change: [L], of each layer by fine-tuning.
    alpha: the uniform weight of tuned, in [0, 1].
    delta_norms: [L], |delta_l| of each layer.
    order: [L] int, of the control: layer l gets, before the scaling by c, what is due to layer
      order[l].
  """
  ranks = _ranks(importance) - _ranks(change)
  shares = np.maximum(1 + ranks / max(1, len(importance) - 1), 1e-6)
  shares = shares if order is None else shares[order]
  squares = np.square(np.asarray(delta_norms, np.float64))
  if not squares.sum() or not alpha:
    return np.full(len(importance), alpha)
  return _at_norm(shares, squares, alpha**2 * squares.sum())


def _ranks(values: Sequence[float]) -> np.ndarray:
  """Returns the rank of each value, from 0, the least; of equal ones the first has the lower."""
  return np.argsort(np.argsort(values, kind='stable'), kind='stable')


def _at_norm(shares: np.ndarray, squares: np.ndarray, target: float) -> np.ndarray:
  """Returns min(1, c shares) with sum (min(1, c shares))^2 squares = target <= sum squares."""
  low, high = 0.0, 1.0 / np.min(shares)
  for _ in range(100):
    middle = (low + high) / 2
    if np.sum(np.minimum(1, middle * shares) ** 2 * squares) < target:
      low = middle
    else:
      high = middle
  return np.minimum(1, high * shares)


@jax.jit
def delta_norms(anchor: Any, tuned: Any) -> jax.Array:
  """Returns |tuned - anchor| of each layer, [L] f32, of params stacked under 'layers'."""

  def squares(a, t):
    return jnp.sum((t - a) ** 2, axis=range(1, a.ndim))

  return jnp.sqrt(sum(jax.tree.leaves(jax.tree.map(squares, anchor['layers'], tuned['layers']))))


# The best alpha.


def search(
  evaluate: Callable[[float], tuple[float, float]], lowest: float
) -> tuple[float, list[tuple[float, float, float]]]:
  """Returns the alpha with the best ID-dev accuracy, and the trials.

  It looks among those that keep probe-OOD accuracy.
  It tries a grid of five first, then twice the midpoints beside the best (ours). Of equal ones it
  takes the smallest alpha. When none reaches `lowest`, it takes the one with the best probe
  accuracy.

  Args:
    evaluate: alpha -> (ID-dev accuracy, probe-OOD accuracy).
    lowest: the base's probe-OOD accuracy less what may be lost.

  Returns:
    alpha, and (alpha, ID-dev accuracy, probe-OOD accuracy) of each trial, by alpha.
  """
  trials: dict[float, tuple[float, float]] = {}

  def rank(alpha: float) -> tuple[float, ...]:
    inside, outside = trials[alpha]
    return (1, inside, -alpha) if outside >= lowest else (0, outside, -alpha)

  for alpha in (0.0, 0.25, 0.5, 0.75, 1.0):
    trials[alpha] = evaluate(alpha)
  for _ in range(2):
    tried = sorted(trials)
    place = tried.index(max(trials, key=rank))
    neighbours = tried[max(0, place - 1) : place + 2]
    for left, right in zip(neighbours, neighbours[1:], strict=False):
      trials[(left + right) / 2] = evaluate((left + right) / 2)
  return max(trials, key=rank), [(alpha, *trials[alpha]) for alpha in sorted(trials)]


# What a round merges with.


def next_anchor(which: str, anchor: Any, params: Any, round_: int) -> Any:
  """Returns the anchor after a round, by merge.anchor.

  'base' keeps it; 'previous' takes the round's params; 'all_previous' the mean of round_ + 1
  params, from that of the first round_ of them.
  """
  if which == 'all_previous':
    return running_mean(anchor, params, jnp.float32(round_ + 1))
  return params if which == 'previous' else anchor


@jax.jit
def running_mean(mean: Any, params: Any, n: jax.Array) -> Any:
  """Returns the mean of n trees, given that of the first n - 1 and the last."""
  return jax.tree.map(lambda m, p: m + (p - m) / n, mean, params)
