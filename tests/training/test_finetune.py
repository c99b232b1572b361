"""Fine-tuning: packed = unpacked, accumulated = whole, sharded = one device, data order by names, and it learns."""

import dataclasses

from imm_jax import sharding
from imm_jax.models import transformer
from imm_jax.models.config import REMAT_POLICIES
from imm_jax.models.transformer import Transformer
from imm_jax.planning import hlo
from imm_jax.training import finetune, packing
from imm_jax.training.finetune import FinetuneConfig, Trainer
from imm_jax.training.optimizer import OptimizerConfig
import jax
import jax.numpy as jnp
import numpy as np
import pytest

OPTIMIZER = OptimizerConfig(
  1e-2, warmup_fraction=0.03, weight_decay=0.1, b1=0.9, b2=0.999, eps=1e-8, clip_norm=0.5, keep_opt_state=False
)
SETTINGS = FinetuneConfig(num_epochs=1, batch_size=1, accumulation_steps=1, max_length=16)


@pytest.fixture
def pairs():
  rng = np.random.default_rng(0)
  return [(list(rng.integers(0, 64, n)), list(rng.integers(0, 64, 3))) for n in rng.integers(2, 6, 12)]


def tune(config, params, rows, finetune_config, mesh, optimizer=OPTIMIZER):
  """Returns params after all steps, and the metrics of each."""
  trainer = Trainer(Transformer(config), finetune_config, optimizer, mesh)
  metrics = []
  with jax.set_mesh(mesh):
    placed = jax.device_put(jax.tree.map(jnp.copy, params), transformer.param_shardings(config, mesh, sharding.TRAIN))
    state = trainer.init(placed, key=jax.random.fold_in(jax.random.key(0), 1))
    for step in trainer.steps(state, rows, seed=0, round_=1):
      state = step.state
      metrics.append({name: float(value) for name, value in step.metrics.items()})
    return trainer.result(state), metrics


def test_packed_loss_equals_unpacked_loss(config, params, pairs):
  def loss(rows):
    return finetune.loss_fn(params, Transformer(config), rows, jnp.float32(rows.loss_mask.sum()))

  packed, apart = packing.pack(pairs, 24), [packing.pack([pair], 24) for pair in pairs]
  assert packed.tokens.shape[0] < len(pairs)
  np.testing.assert_allclose(loss(packed), np.mean([loss(rows) for rows in apart]), rtol=1e-5)


def test_the_loss_ignores_prompt_targets_and_padding(config, params, pairs):
  rows = packing.pack(pairs, 24)
  changed = rows._replace(
    targets=np.where(rows.loss_mask, rows.targets, 7), tokens=np.where(rows.segment_ids == 0, 9, rows.tokens)
  )
  one, two = (finetune.loss_fn(params, Transformer(config), r, jnp.float32(36)) for r in (rows, changed))
  np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize('remat', REMAT_POLICIES)
def test_weights_are_gathered_once_forward_and_once_backward_and_not_kept(config, remat):
  one, mesh = dataclasses.replace(config, remat=remat), sharding.make_mesh(1, 8, 1)
  whole = np.zeros((1, 8, 16), np.int32)
  batch = packing.Batch(whole, whole, whole == 0, whole, whole)
  with jax.set_mesh(mesh):
    params = transformer.init_params(one, 0, mesh)
    trainer = Trainer(Transformer(one), SETTINGS, OPTIMIZER, mesh)
    lowered = trainer.program.lower(trainer.init(params), batch, np.float32(1))
    gathered = hlo.cost(lowered.compile().as_text(), unknown_trips=1).collective_bytes['all-gather']
  num_bytes, of_layers = (sum(x.nbytes for x in jax.tree.leaves(tree)) for tree in (params, params['layers']))
  assert 2 * of_layers <= gathered <= of_layers + num_bytes  # the head once


def test_accumulation_and_meshes_change_nothing(config, params, pairs, mesh):
  rows = packing.pack(pairs, 16)
  small = FinetuneConfig(num_epochs=2, batch_size=16, accumulation_steps=1, max_length=16)
  whole, metrics = tune(config, params, rows, small, sharding.make_mesh())
  parts, other = tune(config, params, rows, dataclasses.replace(small, accumulation_steps=2), mesh)
  np.testing.assert_allclose([m['loss_nats'] for m in metrics], [m['loss_nats'] for m in other], rtol=1e-5)
  np.testing.assert_allclose([m['grad_norm'] for m in metrics], [m['grad_norm'] for m in other], rtol=1e-4)
  # Adam's first steps are lr * sign(gradient): an element whose gradient is rounding noise may go either way.
  moved = jax.tree.map(lambda a, b: np.mean(np.abs(a - b) > 1e-5), *jax.device_get((whole, parts)))
  assert max(jax.tree.leaves(moved)) < 0.02


def test_it_learns_and_leaves_no_gradient_to_chance(config, params, pairs):
  rows = packing.pack(pairs, 32)
  settings = FinetuneConfig(num_epochs=30, batch_size=8, accumulation_steps=1, max_length=32)
  tuned, metrics = tune(config, params, rows, settings, sharding.make_mesh())
  again, _ = tune(config, params, rows, settings, sharding.make_mesh())
  assert metrics[-1]['loss_nats'] < 0.2 * metrics[0]['loss_nats']
  jax.tree.map(np.testing.assert_array_equal, tuned, again)
  assert len(metrics) == finetune.num_steps(rows, settings)


def test_each_epoch_is_a_permutation_and_depends_on_seed_and_round():
  rows = packing.pack([([i], [i + 1]) for i in range(1, 11)], 1)
  settings = FinetuneConfig(num_epochs=3, batch_size=4, accumulation_steps=1, max_length=1)
  order = np.concatenate([part.tokens.ravel() for part in finetune.batches(rows, settings, 0, 1)])
  for epoch in range(3):
    assert sorted(order[10 * epoch : 10 * (epoch + 1)]) == list(range(1, 11))
  assert list(order[30:]) == [0, 0]
  others = [np.concatenate([p.tokens.ravel() for p in finetune.batches(rows, settings, *key)]) for key in ((1, 1), (0, 2))]
  assert all((order != other).any() for other in others)


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'batch_size': 0}, 'finetune.batch_size: 0 is less than 1'),
    ({'batch_size': 6, 'accumulation_steps': 4}, 'finetune.batch_size: 6 is not a multiple of accumulation_steps=4'),
  ],
)
def test_wrong_settings_name_the_key(settings, message):
  with pytest.raises(ValueError, match=message):
    FinetuneConfig(**{'num_epochs': 1, 'accumulation_steps': 1, 'max_length': 8} | settings)


def test_a_batch_that_does_not_split_over_the_mesh_is_padded(config, params, pairs, mesh):
  rows = packing.pack(pairs, 24)
  one = jax.make_mesh((1, 1, 1), sharding.AXES, (jax.sharding.AxisType.Auto,) * 3, devices=jax.devices()[:1])
  settings = FinetuneConfig(num_epochs=1, batch_size=3, accumulation_steps=1, max_length=24)
  _, metrics = tune(config, params, rows, settings, mesh)
  _, expected = tune(config, params, rows, settings, one)
  assert len(metrics) == len(expected) == finetune.num_steps(rows, settings)
  np.testing.assert_allclose([m['loss_nats'] for m in metrics], [m['loss_nats'] for m in expected], rtol=1e-4)
