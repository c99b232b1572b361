"""What a round's tuned params are merged with, and by which alpha: `merge.anchor` and `merge.rule`."""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import jax
import numpy as np

from imm_jax import lm as lm_lib
from imm_jax import merging, processes, sharding
from imm_jax.lm import LM
from imm_jax.merging import coefficients, rules
from imm_jax.models import transformer
from imm_jax.models.transformer import Params
from imm_jax.rounds import layerwise, phases
from imm_jax.rounds.experiment import Experiment
from imm_jax.rounds.phases import Part
from imm_jax.rounds.workdir import Workdir


def make_merge(exp: Experiment, lm: LM) -> Any:
  """Returns the jitted merge(anchor, tuned, alpha, key) -> params; see merging.make_merge."""
  shardings = transformer.param_shardings(lm.config, lm.mesh, sharding.TRAIN)
  return merging.make_merge(exp.merge, shardings, donates=exp.merge_donates)


def choose(
  exp: Experiment,
  lm: LM,
  merge: Callable[[Params, Params, Any, jax.Array], Params],
  anchor: Params,
  tuned: Params,
  records: Sequence[Mapping[str, Any]],
  *,
  round_: int,
  key: jax.Array,
  part: Part,
  first: Mapping[str, Any] | None,
) -> tuple[Params, dict[str, Any]]:
  """Returns the alpha that `merge` takes in a round, by merge.rule, and what the round's row says of it.

  alpha is a tree of float32 arrays, see coefficients.resolve.

  Args:
    exp: the experiment.
    lm: the original model.
    merge: of make_merge.
    anchor: what tuned will be merged with.
    tuned: the round's tuned params.
    records: of the round's completions.
    round_: from 1 on.
    key: of the masks.
    part: computes a part of the round once.
    first: what the row of round 1 says, None in round 1: what is measured once in a run is there.
  """
  alpha, row = rules.schedule(exp.merge.alpha, round_), {}
  if exp.merge.rule == 'search':
    alpha, row = search(exp, lm, lambda alpha: merge(anchor, tuned, coefficients.resolve(alpha, anchor), key), part, first)
  elif exp.merge.rule != 'fixed':
    importance = first['importance'] if first else part('importance', lambda: measure_importance(exp, lm, records))
    by_layer = layer_adaptive(exp, importance, anchor, tuned, alpha)
    row = {'alpha': alpha, 'alpha_by_layer': by_layer, 'importance': importance}
    return coefficients.resolve(coefficients.by_layer(by_layer, alpha), anchor), row
  return coefficients.resolve(alpha, anchor), {'alpha': alpha} | row


def measure_importance(exp: Experiment, lm: LM, records: Sequence[Mapping[str, Any]]) -> list[float]:
  """Returns the importance of each layer of the original model, [L] nats a token, on the completions of `imm analyze`."""
  pairs = phases.some_pairs(exp, lm, records, layerwise.NUM_COMPLETIONS)
  return layerwise.importance(lm, lm.params, pairs, max_length=exp.finetune.max_length).nll_rise.tolist()


def layer_adaptive(exp: Experiment, importance: Sequence[float], anchor: Params, tuned: Params, alpha: float) -> list[float]:
  """Returns alpha of each layer; see rules.layer_adaptive. The control's order of layers is drawn by the seed."""
  change, norms = layerwise.change(anchor, tuned)['layers'], processes.fetch(rules.delta_norms(anchor, tuned))
  is_control = exp.merge.rule == 'layer_adaptive_shuffled'
  order = np.random.default_rng(exp.seed).permutation(len(importance)) if is_control else None
  return rules.layer_adaptive(importance, change, alpha, norms, order).tolist()


def search(
  exp: Experiment, lm: LM, merged: Callable[[float], Params], part: Part, first: Mapping[str, Any] | None
) -> tuple[float, dict[str, Any]]:
  """Returns the alpha that is best in tasks.dev while tasks.probe loses at most merge.search_eps, and what the row says.

  merged(alpha) makes the params of a trial; each trial is a part of the round. See rules.search.
  """
  base = first['base_probe'] if first else part('search-base', lambda: phases.accuracy(exp, lm, lm.params, exp.probe_tasks))

  def measure(alpha: float) -> list[float]:
    params = merged(alpha)
    return [phases.accuracy(exp, lm, params, tasks) for tasks in (exp.dev_tasks, exp.probe_tasks)]

  def trial(alpha: float) -> tuple[float, float]:
    inside, outside = part(f'search-{alpha}', functools.partial(measure, alpha))
    return inside, outside

  alpha, trials = rules.search(trial, lowest=base - exp.merge.search_eps - 1e-9)  # less what rounding takes
  return alpha, {'base_probe': base, 'trials': [list(values) for values in trials]}


def first_anchor(exp: Experiment, workdir: Workdir, lm: LM, params: Params, first_round: int) -> Params:
  """Returns what the next round merges with: the original, the newest params, or the mean of those of all rounds so far."""
  anchor = params if exp.merge.anchor == 'previous' else lm.params
  for round_ in range(1, first_round if exp.merge.anchor == 'all_previous' else 0):
    anchor = rules.next_anchor('all_previous', anchor, lm_lib.restore(workdir.path, round_, 'params', lm), round_)
  return anchor
