"""Chooses the weight of the tuned params in a round's merge, by `merge.rule`.

Measurements that a rule needs are taken once in a run.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from imm_jax import evaluate, processes
from imm_jax.merging import coefficients, rules
from imm_jax.models.transformer import Params
from imm_jax.rounds import layerwise, synthesize
from imm_jax.rounds.records import Sample
from imm_jax.rounds.run import Round, Run, RunState
from imm_jax.tasks import Task


def choose(
  run: Run, round: Round, state: RunState, tuned: Params, samples: Sequence[Sample]
) -> tuple[Params, dict[str, Any]]:
  """Returns the alpha of each tensor and layer in a round, and an entry for the round's summary.

  The alphas are a tree of float32 arrays like the params: [L] for a tensor that is stacked over
  layers, [] for others.
  """
  alpha = rules.schedule(run.exp.merge.alpha, round.number)
  found = {}
  coefficient = alpha
  if run.exp.merge.rule == 'search':
    alpha, found = _search(run, round, state, tuned)
    coefficient = alpha
  elif run.exp.merge.rule != 'fixed':
    importance = _importance(run, round, samples)
    by_layer = layer_adaptive(
      run.exp.merge.rule, run.exp.seed, importance, state.anchor, tuned, alpha
    )
    coefficient = coefficients.by_layer(by_layer, alpha)
    found = {'alpha_by_layer': by_layer, 'importance': importance}
  return coefficients.resolve(coefficient, state.anchor), {'alpha': alpha} | found


def _importance(run: Run, round: Round, samples: Sequence[Sample]) -> list[float]:
  """Returns the importance of each layer of the original model, [L] in nats per token.

  It is measured on samples accepted in round 1.
  """
  if round.number > 1:
    return run.workdir.finished()[1]['merge']['importance']

  def measure() -> list[float]:
    pairs = synthesize.some_pairs(samples, layerwise.NUM_COMPLETIONS, run.exp.seed)
    max_length = run.exp.finetune.max_length
    return layerwise.importance(
      run.lm, run.lm.params, pairs, max_length=max_length
    ).nll_rise.tolist()

  return round.part('importance', measure)


def layer_adaptive(
  rule: str, seed: int, importance: Sequence[float], anchor: Params, tuned: Params, alpha: float
) -> list[float]:
  """Returns the alpha of each layer; see rules.layer_adaptive.

  For the control, the seed draws the order of the layers.
  """
  change = layerwise.change(anchor, tuned)['layers']
  norms = processes.fetch(rules.delta_norms(anchor, tuned))
  is_control = rule == 'layer_adaptive_shuffled'
  order = np.random.default_rng(seed).permutation(len(importance)) if is_control else None
  return rules.layer_adaptive(importance, change, alpha, norms, order).tolist()


def _search(run: Run, round: Round, state: RunState, tuned: Params) -> tuple[float, dict[str, Any]]:
  """Returns the alpha that scores best on tasks.dev, and an entry for the round's summary.

  tasks.probe may lose at most merge.search_eps.
  """
  exp = run.exp
  if round.number > 1:
    base = run.workdir.finished()[1]['merge']['base_probe']
  else:
    base = round.part('search-base', lambda: _accuracy(run, run.lm.params, exp.probe_tasks))

  def trial(alpha: float) -> tuple[float, float]:
    def measure() -> list[float]:
      params = run.merge(state.anchor, tuned, coefficients.resolve(alpha, state.anchor), round.key)
      return [_accuracy(run, params, tasks) for tasks in (exp.dev_tasks, exp.probe_tasks)]

    inside, outside = round.part(f'search-{alpha}', measure)
    return inside, outside

  lowest = base - exp.merge.search_eps - 1e-9  # The small term allows for rounding.
  alpha, trials = rules.search(trial, lowest=lowest)
  return alpha, {'base_probe': base, 'trials': [list(values) for values in trials]}


def _accuracy(run: Run, params: Params, tasks: Mapping[str, Task]) -> float:
  """Returns the mean accuracy of params over tasks, greedy or by likelihood."""
  lm = dataclasses.replace(run.lm, params=params).to_sample()
  config = dataclasses.replace(run.exp.evaluate, num_samples_per_prompt=0)
  results, _ = evaluate.evaluate(
    lm.model, lm.params, lm.tokenizer, tasks, config, run.exp.sampler, key=jax.random.key(0)
  )
  return float(np.mean([result['accuracy'] for result in results.values()]))
