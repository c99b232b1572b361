"""Coefficients: what a merge parameter is in each tensor and in each round.

A coefficient is one of
  a number, or a traced scalar;
  an array [L]: a number a layer; what is in no layer takes the first;
  a list or tuple of numbers, a gradient: interpolated over the layers at l / (L - 1); what is in no layer is at 0;
  a list of {'filter': TEXT, 'value': COEFFICIENT}: the first whose TEXT is in the tensor's name; no TEXT, or '*', fits all;
  a dict of groups, GROUPS and 'default' -> COEFFICIENT.
Gradients and filters are mergekit's.
"""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

# Group -> what a tensor's name has in it; the first that fits.
GROUPS = {
  'norms': ('norm',),
  'attention': ('attn', 'attention'),
  'mlp': ('mlp', 'feed_forward', 'ffn'),
  'embeddings': ('embed', 'lm_head'),
}


def varies(coefficient: Any) -> bool:
  """Returns whether it can differ between tensors or layers."""
  return isinstance(coefficient, Mapping | list | tuple) or bool(getattr(coefficient, 'ndim', 0))


def at(coefficient: Any, name: str, layer: int | None, num_layers: int) -> Any:
  """Returns the value in a tensor, a number or traced scalar. Raises ValueError where no filter or group fits its name."""
  value = find(coefficient, name, layer, num_layers)
  if value is None:
    raise ValueError(f'{name}: no filter or group of {coefficient} fits it; add a default')
  return value


def find(coefficient: Any, name: str, layer: int | None, num_layers: int) -> Any:
  """Returns the same, None where no filter or group fits."""
  if isinstance(coefficient, Mapping):
    group = next((group for group, parts in GROUPS.items() if any(part in name for part in parts)), 'default')
    return find(coefficient.get(group, coefficient.get('default')), name, layer, num_layers)
  if isinstance(coefficient, list | tuple):
    if isinstance(coefficient[0], Mapping):
      for rule in coefficient:
        if rule.get('filter') in (None, '*') or rule['filter'] in name:
          return find(rule['value'], name, layer, num_layers)
      return None
    return gradient(coefficient, layer or 0, num_layers)
  if getattr(coefficient, 'ndim', 0):
    return coefficient[layer or 0]
  return coefficient


def check(where: str, coefficient: Any, least: float = -math.inf, most: float = math.inf, *, whole: bool = False) -> None:
  """Raises ValueError when it is no coefficient, or a number in it is not in [least, most]; `where` names it.

  whole: it must say something of every tensor, and may be a schedule.
  """
  parts: Sequence[Any] = ()
  if isinstance(coefficient, Mapping) and 'schedule' in coefficient:
    if not whole:
      raise ValueError(f'{where}: {coefficient}: a schedule stands for merge.alpha as a whole, and nowhere else')
    known = coefficient['schedule'] in ('linear', 'cosine', 'step') and set(coefficient) == {
      'schedule',
      'start',
      'end',
      'rounds',
    }
    if not known or not isinstance(coefficient['rounds'], int) or coefficient['rounds'] < 1:
      raise ValueError(
        f"{where}: {coefficient} is not {{'schedule': 'linear', 'cosine' or 'step', 'start': x, 'end': y, 'rounds': n}}"
      )
    parts = [coefficient['start'], coefficient['end']]
  elif isinstance(coefficient, Mapping):
    unknown = set(coefficient) - set(GROUPS) - {'default'}
    if unknown or not coefficient:
      raise ValueError(f'{where}: {coefficient} is not a dict of groups; those are {", ".join(GROUPS)} and default')
    if whole and 'default' not in coefficient:
      raise ValueError(f'{where}: {coefficient} has no default')
    parts = list(coefficient.values())
  elif isinstance(coefficient, list | tuple) and coefficient and all(isinstance(rule, Mapping) for rule in coefficient):
    for rule in coefficient:
      if set(rule) - {'filter'} != {'value'} or not isinstance(rule.get('filter'), str | None):
        raise ValueError(f"{where}: {coefficient} is not a list of {{'filter': text, 'value': number}}")
    if whole and not any(rule.get('filter') in (None, '*') for rule in coefficient):
      raise ValueError(f'{where}: {coefficient} has no rule without a filter')
    parts = [rule['value'] for rule in coefficient]
  elif isinstance(coefficient, list | tuple) and coefficient:
    parts = list(coefficient)
    if not all(_is_number(part) for part in parts):
      raise ValueError(f'{where}: {coefficient} is not a list of numbers')
  elif not _is_number(coefficient):
    raise ValueError(f'{where}: {coefficient!r} is not a number, nor a list of numbers or filters, nor a dict of groups')
  elif not least <= float(cast(float, coefficient)) <= most:
    raise ValueError(f'{where}: {coefficient} is not in [{least}, {most}]')
  for part in parts:
    check(where, part, least, most)


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def layer_means(tree: Any) -> list[dict[str, Any]]:
  """Returns the coefficient that is in each tensor, layer by layer, its mean in a tree: a diagonal Fisher, for `fisher`."""
  rules = []
  for path, leaf in jax.tree.leaves_with_path(tree):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    axes = tuple(range(1, leaf.ndim)) if name.startswith('layers/') else None
    rules.append({'filter': name, 'value': jnp.mean(leaf, axis=axes)})
  return rules


def gradient(points: Sequence[float], layer: int, num_layers: int) -> float:
  """Returns the value at l / (L - 1) of the line through evenly spaced points."""
  position = layer / (num_layers - 1) if num_layers > 1 else 0.0
  return float(np.interp(position, np.linspace(0, 1, len(points)), points)) if len(points) > 1 else float(points[0])


def schedule(coefficient: Any, round_: int) -> Any:
  """Returns the coefficient in a round, from 1 on.

  A {'schedule': 'linear', 'cosine' or 'step', 'start': x, 'end': y, 'rounds': n} goes from x in round 1 to y in round n, in
  a line, half a cosine or at once, and stays there; anything else is constant. A step from 1 is a single merge after n
  rounds of plain self-improvement. It does not depend on a run's num_rounds, which may change.
  """
  if not (isinstance(coefficient, Mapping) and 'schedule' in coefficient):
    return coefficient
  progress = min(1.0, (round_ - 1) / max(1, coefficient['rounds'] - 1))
  if coefficient['schedule'] == 'step':
    return coefficient['start'] if round_ < coefficient['rounds'] else coefficient['end']
  if coefficient['schedule'] == 'cosine':
    progress = (1 - math.cos(math.pi * progress)) / 2
  return (1 - progress) * coefficient['start'] + progress * coefficient['end']


def layer_adaptive(
  importance: Sequence[float],
  change: Sequence[float],
  alpha: float,
  delta_norms: Sequence[float],
  order: np.ndarray | None = None,
) -> np.ndarray:
  """Returns alpha_l [L]: more of tuned where a layer matters and moved little, at the drift norm of a uniform alpha (ours).

  alpha_l = min(1, c (1 + (rank of importance_l - rank of change_l) / (L - 1))), ranks from 0, the least; c makes
  sum_l alpha_l^2 |delta_l|^2 = alpha^2 sum_l |delta_l|^2. A layer whose share is 0 gets next to nothing, but what is left
  where all others are at 1.

  Args:
    importance: [L], of each layer for the task.
    change: [L], of each layer by fine-tuning.
    alpha: the uniform weight of tuned, in [0, 1].
    delta_norms: [L], |delta_l| of each layer.
    order: [L] int, of the control: layer l gets, before the scaling by c, what is due to layer order[l].
  """
  ranks = [np.argsort(np.argsort(values, kind='stable'), kind='stable') for values in (importance, change)]
  shares = np.maximum(1 + (ranks[0] - ranks[1]) / max(1, len(importance) - 1), 1e-6)
  shares = shares if order is None else shares[order]
  squares = np.square(np.asarray(delta_norms, np.float64))
  if not squares.sum() or not alpha:
    return np.full(len(importance), alpha)
  return _at_norm(shares, squares, alpha**2 * squares.sum())


def _at_norm(shares: np.ndarray, squares: np.ndarray, wanted: float) -> np.ndarray:
  """Returns min(1, c shares) with sum (min(1, c shares))^2 squares = wanted, which is at most sum squares."""
  low, high = 0.0, 1.0 / np.min(shares)
  for _ in range(100):
    middle = (low + high) / 2
    low, high = (middle, high) if np.sum(np.minimum(1, middle * shares) ** 2 * squares) < wanted else (low, middle)
  return np.minimum(1, high * shares)


def search(
  evaluate: Callable[[float], tuple[float, float]], lowest: float
) -> tuple[float, list[tuple[float, float, float]]]:
  """Returns the alpha with the best ID-dev accuracy of those whose probe-OOD accuracy is at least `lowest`, and the trials.

  A grid of five first, then twice the midpoints beside the best (ours). Of equal ones the smallest alpha. When none reaches
  `lowest`, the one with the best probe accuracy.

  Args:
    evaluate: alpha -> (ID-dev accuracy, probe-OOD accuracy).
    lowest: the base's probe-OOD accuracy less what may be lost.
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
