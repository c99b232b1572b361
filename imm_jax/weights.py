"""What a round's tuned params are merged with, and by which weight."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from imm_jax import lm as lm_lib
from imm_jax import merging, sharding
from imm_jax import model as model_lib
from imm_jax.experiment import Experiment
from imm_jax.lm import LM
from imm_jax.merging import coefficients
from imm_jax.model import Params
from imm_jax.workdir import Workdir


def make_merge(exp: Experiment, lm: LM) -> Callable[[Params, Params, int, jax.Array], Params]:
  """Returns merge(anchor, tuned, round_, key) -> params, compiled once; key seeds the masks.

  tuned is donated, unless the next round samples from it.
  """
  shardings = model_lib.param_shardings(lm.config, lm.mesh, sharding.TRAIN)
  jitted = merging.make_merge(exp.merge, shardings, donates=exp.sample_from != 'tuned')

  def merge(anchor, tuned, round_, key):
    alpha = coefficients.schedule(exp.merge.alpha, round_)
    return jitted(anchor, tuned, None if coefficients.varies(alpha) else jnp.float32(alpha), key)

  return merge


def first_anchor(exp: Experiment, workdir: Workdir, lm: LM, params: Params, first_round: int) -> Params:
  """Returns what the next round merges with: the original, the newest params, or the mean of those of all rounds so far."""
  anchor = params if exp.merge.anchor == 'previous' else lm.params
  for round_ in range(1, first_round if exp.merge.anchor == 'all_previous' else 0):
    anchor = next_anchor('all_previous', anchor, lm_lib.restore(workdir, round_, 'params', lm), round_)
  return anchor


def next_anchor(which: str, anchor: Params, params: Params, round_: int) -> Params:
  """Returns the anchor after a round; for 'all_previous' the mean of round_ + 1 params, from that of round_ of them."""
  if which == 'all_previous':
    return running_mean(anchor, params, jnp.float32(round_ + 1))
  return params if which == 'previous' else anchor


@jax.jit
def running_mean(mean: Params, params: Params, n: jax.Array) -> Params:
  """Returns the mean of n trees, given that of the first n - 1 and the last."""
  return jax.tree.map(lambda m, p: m + (p - m) / n, mean, params)
