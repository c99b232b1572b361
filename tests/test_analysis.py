"""Importance and change of layers against brute force."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax import analysis, sharding
from imm_jax import model as model_lib
from imm_jax.lm import LM
from imm_jax.model import target_logprobs, Transformer
from imm_jax.tasks.synthetic import CHARACTERS
from imm_jax.tokenizer import Tokenizer
from tests.conftest import random_params

RNG = np.random.default_rng(0)
PAIRS = [([int(t) for t in RNG.integers(0, 64, p)], [int(t) for t in RNG.integers(0, 64, c)]) for p, c in
         ((5, 3), (2, 7), (9, 1), (4, 4), (3, 2))]  # fmt: skip


def lm_on(config, mesh, rules=sharding.TRAIN):
  params = jax.device_put(random_params(config), model_lib.param_shardings(config, mesh, rules))
  return LM(config, params, Tokenizer.from_characters(CHARACTERS), mesh, rules)


@functools.partial(jax.jit, static_argnames='config')
def all_logits(config, params, tokens):
  return Transformer(config).apply({'params': params}, tokens, jnp.arange(tokens.shape[1])[None])[0][0]


def completion_logits(config, params, prompt, completion):
  """The logits that each token of a completion is chosen from: a row of its own, no gates."""
  end = len(prompt) + len(completion)
  tokens = jnp.asarray([*prompt, *completion] + [0] * (16 - end))[None]  # no token sees what follows it
  return all_logits(config, params, tokens)[len(prompt) - 1 : end - 1]


def mean_nll(config, params, pairs):
  """The mean of -log p of a completion token, in nats."""
  logits = [completion_logits(config, params, *pair) for pair in pairs]
  return -target_logprobs(jnp.concatenate(logits), jnp.asarray([token for _, y in pairs for token in y])).mean()


def greedy_share(config, params, pairs):
  """The share of completions whose every token is the likeliest one."""
  return np.mean([jnp.argmax(completion_logits(config, params, x, y), -1).tolist() == y for x, y in pairs])


def with_greedy(config, params, pairs):
  """The pairs, and three whose completion the model itself would write: skipping a layer changes some."""
  own = []
  for prompt, _ in pairs[:3]:
    tokens = list(prompt)
    for _ in range(2):
      tokens.append(int(jnp.argmax(completion_logits(config, params, tokens, [0])[-1])))
    own.append((prompt, tokens[len(prompt) :]))
  return [*pairs, *own]


@pytest.mark.parametrize('rules', [sharding.TRAIN, sharding.SAMPLE], ids=['train', 'sample'])
def test_importance_is_what_taking_the_layer_out_costs(config, params, mesh, rules):
  pairs, lm = with_greedy(config, params, PAIRS), lm_on(config, mesh, rules)
  found = analysis.importance(lm, lm.params, pairs, batch_size=3)
  shorter = dataclasses.replace(config, num_layers=1)
  nll, accuracy = mean_nll(config, params, pairs), greedy_share(config, params, pairs)
  assert 3 / 8 <= accuracy < 1
  for layer in range(2):
    without = params | {'layers': jax.tree.map(lambda x, layer=layer: x[1 - layer : 2 - layer], params['layers'])}
    np.testing.assert_allclose(found.nll_rise[layer], mean_nll(shorter, without, pairs) - nll, atol=1e-5)
    np.testing.assert_allclose(found.accuracy_drop[layer], accuracy - greedy_share(shorter, without, pairs), atol=1e-9)
  assert found.accuracy_drop.max() > 0

  gradient = jax.jit(jax.grad(lambda params: mean_nll(config, params, pairs)))(params)['layers']
  products = jax.tree.map(lambda g, p: np.abs(g * p).reshape(2, -1).sum(1), gradient, params['layers'])
  np.testing.assert_allclose(found.taylor, sum(jax.tree.leaves(products)), rtol=1e-4)


def test_importance_of_rows_that_hold_many_completions_is_the_same(config):
  lm = lm_on(config, sharding.make_mesh())
  alone, packed = analysis.importance(lm, lm.params, PAIRS), analysis.importance(lm, lm.params, PAIRS, max_length=32)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), alone, packed)
  with pytest.raises(ValueError, match='every completion is empty'):
    analysis.importance(lm, lm.params, [([1, 2], [])])


def test_change_is_relative_to_the_original(config, params, mesh):
  moved = jax.tree.map(lambda x: x, params)
  moved['layers']['attn']['q'] = jax.tree.map(lambda x: x.at[1].multiply(1.5), moved['layers']['attn']['q'])
  moved['embedding'] = 0.8 * moved['embedding']
  shardings = model_lib.param_shardings(config, mesh, sharding.TRAIN)
  found = analysis.change(*jax.device_put((params, moved), (shardings, shardings)))
  assert found.keys() == {
    'layers', 'attn/q', 'attn/k', 'attn/v', 'attn/o', 'mlp/gate', 'mlp/up', 'mlp/down', 'norm', 'embedding', 'lm_head'
  }  # fmt: skip

  def norm(tree):
    return np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(tree)))

  q, block = params['layers']['attn']['q'], jax.tree.map(lambda x: x[1], params['layers'])
  moved_by = 0.5 * norm(jax.tree.map(lambda x: x[1], q))
  np.testing.assert_allclose(found['layers'], [0, moved_by / norm(block)], rtol=1e-5)
  np.testing.assert_allclose([found['attn/q'], found['embedding']], [moved_by / norm(q), 0.2], rtol=1e-5)
  assert all(found[kind] == 0 for kind in found.keys() - {'layers', 'attn/q', 'embedding'})
