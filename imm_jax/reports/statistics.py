"""The statistics of reports: intervals of differences, rank correlation, the Pareto front."""

from collections.abc import Sequence
import functools
from typing import NamedTuple

import numpy as np
from scipy import special, stats

_NUM_RESAMPLES = 1000  # Of a bootstrap.
_NUM_PERMUTATIONS = 10_000


class Interval(NamedTuple):
  """A number with its 95 % interval, as fractions."""

  mean: float
  low: float
  high: float

  @property
  def is_clear(self) -> bool:
    """Whether 0 is outside of the interval, by more than rounding errors."""
    return self.low > 1e-6 or self.high < -1e-6


def paired_bootstrap(differences: Sequence[np.ndarray]) -> Interval:
  """Returns the mean over tasks of differences, between the 2.5 and 97.5 percentiles of resamples.

  Questions are resampled within each task, and seeds where there are several, the same ones in all
  tasks. The result is a function of the arguments alone.

  Args:
    differences: for each task [S, n], of each seed and question: 1 where only one side is right, -1
      where only the other.
  """
  num_seeds = len(differences[0])
  seed_weights = _weights(num_seeds, 0)
  resampled = np.zeros(_NUM_RESAMPLES)
  for stream, x in enumerate(differences, start=1):
    means = x.mean(axis=1, keepdims=True)
    widened = x + (_widening(num_seeds) - 1) * (means - means.mean())
    question_weights = _weights(x.shape[1], stream)
    resampled += np.sum((seed_weights @ widened) * question_weights, axis=1) / len(differences)
  low, high = np.quantile(resampled, (0.025, 0.975))
  return Interval(float(np.mean([x.mean() for x in differences])), float(low), float(high))


def _widening(num_seeds: int) -> float:
  """Returns by what a seed's deviation from the mean is multiplied before seeds are resampled.

  Resamples of a few seeds vary less than their mean does. With this, seeds alone would give about
  Student's interval.
  """
  if num_seeds == 1:
    return 1.0
  freedom = num_seeds - 1
  return np.sqrt(num_seeds / freedom) * special.stdtrit(freedom, 0.975) / special.ndtri(0.975)


@functools.lru_cache(maxsize=32)
def _weights(n: int, stream: int) -> np.ndarray:
  """Returns the share of each of n items in each resample, [_NUM_RESAMPLES, n] f64."""
  rng = np.random.default_rng([n, stream])
  return rng.multinomial(n, np.full(n, 1 / n), size=_NUM_RESAMPLES) / n


def spearman(x: Sequence[float], y: Sequence[float]) -> dict[str, float] | None:
  """Returns Spearman's rank correlation 'rho' of x and y [n], and its two-sided 'p'.

  p is the share of permutations of one side that are as far out.

  Of few values all permutations are tried, of others 10,000, always the same. None where x or y has
  one value only, and so no order.
  """
  if np.ptp(x) == 0 or np.ptp(y) == 0:
    return None
  # The correlation is the mean product of standardised ranks.
  ranks_x = stats.zscore(stats.rankdata(x))
  ranks_y = stats.zscore(stats.rankdata(y))
  test = stats.permutation_test(
    (ranks_x,),
    lambda ranks, axis: np.mean(ranks * ranks_y, axis=axis),
    permutation_type='pairings',
    vectorized=True,
    n_resamples=_NUM_PERMUTATIONS,
    rng=np.random.default_rng(0),
  )
  return {'rho': float(test.statistic), 'p': float(test.pvalue)}


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
  """Returns the points that no other one reaches in both coordinates and passes in one.

  They are in the order of the first coordinate.
  """
  front: list[tuple[float, float]] = []
  for point in sorted(set(points), reverse=True):
    if not front or point[1] > front[-1][1]:
      front.append(point)
  return front[::-1]
