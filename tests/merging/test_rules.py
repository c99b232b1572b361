"""Rules: schedules, one alpha a layer at the drift of a uniform one, the search, the anchors."""

from hypothesis import given, settings, strategies
from imm_jax.merging import coefficients, rules
import jax.numpy as jnp
import numpy as np
import pytest


def test_schedules():
  linear, cosine = ({'schedule': kind, 'start': 0.2, 'end': 0.8} for kind in ('linear', 'cosine'))
  line = [rules.schedule(linear | {'rounds': 4}, t) for t in (1, 2, 3, 4, 5)]
  np.testing.assert_allclose(line, [0.2, 0.4, 0.6, 0.8, 0.8])
  np.testing.assert_allclose([rules.schedule(cosine | {'rounds': 3}, t) for t in (1, 2, 3)], [0.2, 0.5, 0.8])
  step = {'schedule': 'step', 'start': 1.0, 'end': 0.5, 'rounds': 3}
  rules.check_alpha('merge.alpha', step)
  assert [rules.schedule(step, t) for t in (1, 2, 3, 4)] == [1.0, 1.0, 0.5, 0.5]
  assert rules.schedule(0.4, 2) == 0.4


@settings(max_examples=50, deadline=None)
@given(
  strategies.lists(strategies.tuples(*[strategies.floats(0.1, 10)] * 3), min_size=2, max_size=8),
  strategies.floats(0.05, 1.0),
)
def test_layer_adaptive_keeps_the_drift_norm_and_its_order(layers, alpha):
  importance, change, norms = map(np.asarray, zip(*layers, strict=True))
  alphas = rules.layer_adaptive(importance, change, alpha, norms)
  assert (alphas >= 0).all() and (alphas <= 1).all()
  np.testing.assert_allclose(np.sum(alphas**2 * norms**2), alpha**2 * np.sum(norms**2), rtol=1e-6)
  score = np.argsort(np.argsort(importance, kind='stable')) - np.argsort(np.argsort(change, kind='stable'))
  assert all(alphas[i] <= alphas[j] for i in range(len(layers)) for j in range(len(layers)) if score[i] <= score[j])


def test_the_control_has_the_same_weights_in_other_layers():
  importance, change, norms = np.random.default_rng(0).random((3, 8))
  order = np.random.default_rng(1).permutation(8)
  alphas = rules.layer_adaptive(importance, change, 0.2, np.ones(8))
  np.testing.assert_allclose(rules.layer_adaptive(importance, change, 0.2, np.ones(8), order), alphas[order])
  control = rules.layer_adaptive(importance, change, 0.2, norms, order)  # scaled, where layers moved unlike
  assert alphas.max() < 1 > control.max()
  assert np.ptp(control / alphas[order]) < 1e-6
  np.testing.assert_allclose(np.sum(control**2 * norms**2), 0.2**2 * np.sum(norms**2), rtol=1e-6)


def test_search_finds_the_best_alpha_within_the_bound():
  evaluate = lambda alpha: (0.5 + 0.3 * alpha, 0.6 - 0.4 * alpha**2)  # noqa: E731
  alpha, trials = rules.search(evaluate, lowest=0.45)
  assert alpha == 0.5625 and len(trials) == 5 + 2 * 2
  assert trials == sorted(trials) and all(trial[1:] == evaluate(trial[0]) for trial in trials)
  assert rules.search(evaluate, lowest=0.0)[0] == 1.0
  assert rules.search(evaluate, lowest=0.9)[0] == 0.0
  assert rules.search(lambda alpha: (0.5, 0.5), lowest=0.5)[0] == 0.0


@pytest.mark.parametrize(
  'alpha, says',
  [
    ({'schedule': 'cubic', 'start': 0, 'end': 1, 'rounds': 2}, "is not {'schedule': 'linear', 'cosine' or 'step'"),
    ({'schedule': 'linear', 'start': 0, 'end': 1, 'rounds': 0}, "is not {'schedule'"),
    ({'schedule': 'linear', 'start': 0, 'end': 2, 'rounds': 2}, r'2 is not in \[0, 1\]'),
    ({'mlp': 0.5}, 'has no default'),
    ([{'filter': 'mlp', 'value': 0.5}], 'has no rule without a filter'),
    (1.5, r'1.5 is not in \[0, 1\]'),
    ('half', "'half' is not a number"),
  ],
)
def test_an_alpha_that_is_none_is_named(alpha, says):
  with pytest.raises(ValueError, match=f'merge.alpha: .*{says}'):
    rules.check_alpha('merge.alpha', alpha)
  with pytest.raises(ValueError, match='a schedule stands for merge.alpha'):
    coefficients.check('density', {'schedule': 'linear'})


def test_delta_norms_are_those_of_each_layer():
  anchor = {'embedding': jnp.ones(3), 'layers': {'a': jnp.zeros((2, 2)), 'b': jnp.zeros((2, 1, 2))}}
  tuned = {'embedding': jnp.zeros(3), 'layers': {'a': jnp.float32([[3, 0], [0, 0]]), 'b': jnp.float32([[[4, 0]], [[0, 2]]])}}
  np.testing.assert_allclose(rules.delta_norms(anchor, tuned), [5.0, 2.0])


def test_the_mean_of_all_previous_follows_its_definition():
  params = [{'w': jnp.float32([x, -x])} for x in (1.0, 4.0, 10.0)]
  anchor = params[0]
  for round_, new in enumerate(params[1:], start=1):
    anchor = rules.next_anchor('all_previous', anchor, new, round_)
  np.testing.assert_allclose(anchor['w'], [5.0, -5.0], rtol=1e-6)
  assert rules.next_anchor('previous', params[0], params[1], 1) is params[1]
  assert rules.next_anchor('base', params[0], params[1], 1) is params[0]
