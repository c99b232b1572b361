"""Choosing a token: the distribution that is left, over vocabularies of one block and of many."""

from imm_jax.sampling import choice
from imm_jax.sampling.choice import Rule
import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.mark.parametrize(
  'options, allowed',
  [
    ({}, [0.5, 0.25, 0.15, 0.1]),
    ({'top_k': 2}, [2 / 3, 1 / 3, 0, 0]),
    ({'top_p': 0.5}, [1, 0, 0, 0]),
    ({'top_p': 0.74}, [2 / 3, 1 / 3, 0, 0]),
    ({'top_p': 0.76}, [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0]),
    ({'top_k': 3, 'top_p': 0.8}, [2 / 3, 1 / 3, 0, 0]),
    (
      {'temperature': 0.5},
      np.square([0.5, 0.25, 0.15, 0.1]) / np.square([0.5, 0.25, 0.15, 0.1]).sum(),
    ),
    ({'temperature': 0.0}, [1, 0, 0, 0]),
  ],
)
def test_draws_follow_the_distribution_that_is_left(options, allowed):
  draws = 20_000
  logits = jnp.broadcast_to(jnp.log(jnp.asarray([0.5, 0.25, 0.15, 0.1])), (draws, 4))
  keys = jax.random.split(jax.random.key(0), draws)
  choose = jax.jit(lambda *a: choice.choose(*a, Rule(**{'temperature': 1.0, **options})))
  tokens, logprobs, entropies = choose(logits, keys, jnp.zeros(draws, jnp.int32))
  share = np.bincount(tokens, minlength=4) / draws
  errors = np.sqrt(np.multiply(allowed, 1 - np.asarray(allowed)) / draws)
  assert (np.abs(share - allowed) <= 4 * errors).all()
  # The log-probabilities are the model's own, whatever was cut off.
  np.testing.assert_allclose(logprobs, logits[0, tokens], atol=1e-6)
  np.testing.assert_allclose(entropies, -np.sum(np.exp(logits[0]) * logits[0]), atol=1e-6)


def test_a_large_vocabulary_is_drawn_from_in_all_its_blocks():
  draws, size = 50_000, 300  # two blocks, and a part of a third
  logits = jnp.broadcast_to(jnp.linspace(-2, 2, size)[None], (draws, size))
  choose = jax.jit(lambda *a: choice.choose(*a, Rule(1.0)))
  keys = jax.random.split(jax.random.key(1), draws)
  tokens, *_ = choose(logits, keys, jnp.zeros(draws, jnp.int32))
  expected = np.asarray(jax.nn.softmax(logits[0]))
  share = np.bincount(tokens, minlength=size) / draws
  chi_squared = np.sum((share - expected) ** 2 / expected) * draws
  assert chi_squared < size + 5 * np.sqrt(2 * size)


@pytest.mark.parametrize('top_k', [1, 7, 299, 300, 1000])
def test_top_k_leaves_the_k_largest(top_k):
  logits = jax.random.normal(jax.random.key(0), (3, 300)) * 5
  left = jax.jit(lambda x: choice.cut_off(x, jnp.ones_like(x), top_k))(logits)
  for row, kept in zip(np.asarray(logits), np.asarray(left), strict=True):
    assert set(np.flatnonzero(np.isfinite(kept))) == set(np.argsort(-row)[:top_k])


def test_a_token_without_weight_is_never_drawn():
  rng = np.random.default_rng(0)
  weights = jnp.asarray(rng.random((64, 300)) * (np.arange(300) % 3 == 0), jnp.float32)
  for uniform in (0.0, 0.5, np.float32(1) - np.float32(2**-24)):
    tokens = jax.jit(choice.draw)(weights, jnp.full(64, uniform, jnp.float32))
    assert (np.take_along_axis(np.asarray(weights), np.asarray(tokens)[:, None], axis=1) > 0).all()
