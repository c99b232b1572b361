"""What tuned params are merged with, and by which alpha; the loop's laws of it are in test_loop.py."""

from imm_jax import merging
from imm_jax.merging import coefficients, names
from imm_jax.rounds import experiment
from imm_jax.rounds.alpha import layer_adaptive
import jax
import jax.numpy as jnp
import numpy as np
from tests.rounds.test_loop import tiny

RULES = ('layer_adaptive', 'layer_adaptive_shuffled')


def test_layers_get_their_alpha_at_the_drift_of_a_uniform_one(config, params):
  exp = experiment.resolve(tiny(**{'merge.rule': 'layer_adaptive'}))
  rng = np.random.default_rng(0)
  tuned = jax.tree.map(lambda p: p + jnp.asarray(rng.normal(scale=0.01, size=p.shape), jnp.float32), params)
  by_layer = layer_adaptive('layer_adaptive', 0, [1.0, 2.0], params, tuned, 0.4)
  assert len(by_layer) == config.num_layers and by_layer[0] != by_layer[1]
  merge = merging.make_merge(exp.merge, None, donates=False)
  uniform, adaptive = (
    merge(params, tuned, coefficients.resolve(alpha, params), None) for alpha in (0.4, coefficients.by_layer(by_layer, 0.4))
  )
  np.testing.assert_allclose(merging.drift_norm(params, adaptive), merging.drift_norm(params, uniform), rtol=1e-5)
  for name, merged in names.by_name(adaptive).items():
    base, new, same = (names.by_name(tree)[name] for tree in (params, tuned, uniform))
    if not name.startswith('layers/'):
      np.testing.assert_array_equal(merged, same)
    for layer, alpha in enumerate(by_layer) if name.startswith('layers/') else ():
      np.testing.assert_allclose(merged[layer], (1 - alpha) * base[layer] + alpha * new[layer], atol=1e-6)


def test_the_control_has_the_weights_of_other_layers(params):
  tuned = jax.tree.map(lambda p: p * 1.01, params)
  one, *controls = (
    layer_adaptive(rule, seed, [1.0, 2.0], params, tuned, 0.4)
    for rule, seed in ((RULES[0], 0), *((RULES[1], seed) for seed in range(8)))
  )
  assert one[0] != one[1]
  found = {tuple(np.argsort(control)) for control in controls}
  assert found == {(0, 1), (1, 0)}  # both orders, by the seed
