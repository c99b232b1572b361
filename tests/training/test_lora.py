"""Adapters: beside their kernels and in them they are the same model; only they are trained; resumed = not stopped."""

import dataclasses

from imm_jax import sharding
from imm_jax.models import transformer
from imm_jax.models.transformer import Transformer
from imm_jax.training import lora, packing
from imm_jax.training.finetune import FinetuneConfig
from imm_jax.training.optimizer import OptimizerConfig
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.conftest import every_family
from tests.training.test_finetune import tune

OPTIMIZER = OptimizerConfig(
  1e-2, warmup_fraction=0.03, weight_decay=0.0, b1=0.9, b2=0.999, eps=1e-8, clip_norm=0.5, keep_opt_state=False
)
CONFIG = FinetuneConfig(2, batch_size=8, accumulation_steps=2, max_length=16, lora_rank=2, lora_alpha=4.0)


@pytest.fixture
def rows():
  rng = np.random.default_rng(0)
  pairs = [(list(rng.integers(0, 64, n)), list(rng.integers(0, 64, 3))) for n in rng.integers(2, 6, 40)]
  return packing.pack(pairs, 16)


@every_family
def test_an_adapter_beside_its_kernel_is_the_adapter_in_it(config, params):
  adapters = lora.init(jax.random.key(0), config, 3)
  tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, 64)

  @jax.jit
  def logits(params):
    return Transformer(config).apply({'params': params}, tokens, jnp.broadcast_to(jnp.arange(12)[None], (2, 12)))[0]

  np.testing.assert_array_equal(logits(lora.attach(params, adapters, 2.0)), logits(params))  # B is zero
  adapters = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), adapters)
  attached, merged = lora.attach(params, adapters, 2.0), lora.merge(params, adapters, 2.0)
  np.testing.assert_allclose(logits(attached), logits(merged), atol=2e-4)
  assert np.abs(logits(merged) - logits(params)).max() > 0.1
  assert jax.tree.structure(merged) == jax.tree.structure(params)


def test_only_kernels_of_attention_and_mlp_move_and_by_the_rank(config, params, rows):
  tuned, metrics = tune(config, params, rows, CONFIG, sharding.make_mesh(), OPTIMIZER)
  assert metrics[-1]['loss_nats'] < metrics[0]['loss_nats']
  for path, delta in jax.tree.leaves_with_path(jax.tree.map(lambda a, b: np.asarray(a - b), jax.device_get(tuned), params)):
    names = [key.key for key in path]
    if names[0] == 'layers' and names[-1] == 'kernel':
      inputs = delta.shape[1] if names[2] not in ('o', 'down') else np.prod(delta.shape[1:-1])
      sizes = np.linalg.svd(delta.reshape(delta.shape[0], inputs, -1), compute_uv=False)
      assert (sizes[:, 1] > 1e-4).all() and (sizes[:, 2] < 1e-5).all(), names
    else:
      assert not delta.any(), names


def test_meshes_change_nothing_and_params_stay_where_they_are(config, params, rows, mesh):
  one = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
  tuned, metrics = tune(config, params, rows, CONFIG, mesh, OPTIMIZER)
  expected, expected_metrics = tune(config, params, rows, CONFIG, one, OPTIMIZER)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), jax.device_get(tuned), jax.device_get(expected))
  np.testing.assert_allclose([m['loss_nats'] for m in metrics], [m['loss_nats'] for m in expected_metrics], rtol=1e-4)
  wanted = transformer.param_shardings(config, mesh, sharding.TRAIN)
  assert all(jax.tree.leaves(jax.tree.map(lambda x, s: x.sharding == s, tuned, wanted)))


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'lora_rank': -1}, 'finetune.lora_rank, lora_alpha: -1, 4.0 are not above 0'),
    ({'lora_alpha': 0.0}, 'finetune.lora_rank, lora_alpha: 2, 0.0 are not above 0'),
    ({'max_drift': 0.1}, 'finetune.max_drift: is measured on params'),
  ],
)
def test_wrong_settings_name_the_key(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(CONFIG, **changes)
