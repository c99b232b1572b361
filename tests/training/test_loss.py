"""The chunked cross-entropy and its own gradient are those of all logits, on every mesh, and not all logits are held."""

import dataclasses

from imm_jax import sharding
from imm_jax.models import transformer
from imm_jax.models.transformer import Transformer
from imm_jax.planning import hlo
from imm_jax.training import loss
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.conftest import random_params

B, T = 8, 12


def whole(config, params, x, targets, weights):
  logits = Transformer(config).bind({'params': params}).unembed(x)
  logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
  return -3 * jnp.sum(logprobs * weights)


def chunked(config, params, x, targets, weights):
  return 3 * loss.cross_entropy(Transformer(config), params, x, targets, weights)


def data(config):
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (B, T, config.embed_dim))
  return x, jax.random.randint(keys[1], (B, T), 0, config.vocab_size), jax.random.uniform(keys[2], (B, T))


def gradients(function, config, params, *batch):
  return jax.jit(jax.value_and_grad(lambda p, x, t, w: function(config, p, x, t, w), (0, 1)))(params, *batch)


@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('cap', [None, 3.0])
@pytest.mark.parametrize('logit_bytes', [2**28, 4 * 64 * B * 3, 4 * 64 * 7])  # at once, in divisors, with a rest
def test_value_and_gradient_are_those_of_all_logits(config, tied, cap, logit_bytes, monkeypatch):
  monkeypatch.setattr(transformer, 'LOGIT_BYTES', logit_bytes)
  config = dataclasses.replace(config, tie_embeddings=tied, logit_softcap=cap)
  params, batch = random_params(config), data(config)
  expected, found = (gradients(function, config, params, *batch) for function in (whole, chunked))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


@pytest.mark.parametrize('tied', [True, False])
def test_every_mesh_gives_the_same(config, tied, mesh):
  config = dataclasses.replace(config, tie_embeddings=tied)
  params, batch = random_params(config), data(config)
  placed = jax.device_put(params, transformer.param_shardings(config, mesh, sharding.TRAIN))
  rows = jax.NamedSharding(mesh, sharding.TRAIN.spec(('batch', 'length'), (B, T), mesh.shape))
  with jax.set_mesh(mesh):
    found = gradients(chunked, config, placed, *jax.device_put(batch, rows))
  expected = gradients(chunked, config, params, *batch)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


def test_the_heads_gradient_is_reduced_once_and_outside_the_loop(config, monkeypatch):
  monkeypatch.setattr(transformer, 'LOGIT_BYTES', 4 * 64 * 3)  # four chunks a device
  mesh, params, batch = sharding.make_mesh(1, 8, 1), random_params(config), data(config)
  placed = jax.device_put(params, transformer.param_shardings(config, mesh, sharding.TRAIN))
  rows = jax.NamedSharding(mesh, sharding.TRAIN.spec(('batch', 'length'), (B, T), mesh.shape))
  step = jax.jit(jax.grad(lambda p, x, t, w: chunked(config, p, x, t, w)))
  with jax.set_mesh(mesh):
    text = step.lower(placed, *jax.device_put(batch, rows)).compile().as_text()
  cost = hlo.cost(text)
  assert cost.collective_bytes['reduce-scatter'] == cost.collective_bytes['all-gather'] == 4 * config.embed_dim * 64


def test_no_array_of_all_logits_is_held(config, monkeypatch):
  monkeypatch.setattr(transformer, 'LOGIT_BYTES', 4 * 4096 * B)
  config = dataclasses.replace(config, vocab_size=4096)
  params, batch = random_params(config), data(config)
  compiled = jax.jit(jax.grad(lambda p, *batch: chunked(config, p, *batch))).lower(params, *batch).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 4 * B * T * 4096
