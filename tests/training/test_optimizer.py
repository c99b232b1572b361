"""The schedule and what decays."""

from imm_jax.training import lora, optimizer
from imm_jax.training.optimizer import OptimizerConfig
import jax
import jax.numpy as jnp

CONFIG = OptimizerConfig(
  1.0, warmup_fraction=0.1, weight_decay=0.5, b1=0.9, b2=0.999, eps=1e-8, clip_norm=1.0, keep_opt_state=False
)


def test_the_learning_rate_warms_up_to_its_peak_and_falls_to_zero():
  schedule = optimizer.learning_rate(CONFIG, 20)
  rates = [float(schedule(step)) for step in range(20)]
  assert rates[0] == 0.5 and rates[1] == max(rates) == 1.0
  assert rates[1:] == sorted(rates[1:], reverse=True) and 0 < rates[-1] < 0.02


def test_adapters_decay(config):
  adapters = jax.tree.map(lambda x: jnp.ones(x.shape), lora.abstract(config, 2))
  tx = optimizer.make(CONFIG)
  with jax.numpy_dtype_promotion('standard'):
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, adapters), tx.init(adapters), adapters)
  assert all(jnp.all(update == 0.5) for update in jax.tree.leaves(updates))


def test_norms_and_biases_do_not_decay(config, params):
  zero = jax.tree.map(jnp.zeros_like, params)
  tx = optimizer.make(CONFIG)
  with jax.numpy_dtype_promotion('standard'):
    updates, _ = tx.update(zero, tx.init(params), params)
  for path, update in jax.tree_util.tree_leaves_with_path(updates):
    assert bool(jnp.any(update != 0)) == (path[-1].key in ('kernel', 'embedding'))
