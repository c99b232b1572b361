"""Scoring options: what a full forward pass of each gives; what cannot be scored is named."""

from imm_jax import sharding
from imm_jax.models import transformer
from imm_jax.models.transformer import Transformer
from imm_jax.sampling import scoring
from imm_jax.sampling.prefill import Request
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.conftest import every_family


@every_family
def test_scores_equal_the_full_forward_of_each_option(config, params):
  mesh = sharding.make_mesh()
  prompts = [[1, 2, 3], [1, 2, 4, 5], [1, 2, 9]]
  options = [[[6], [7, 8, 9]], [[10, 11]], [[3], [5], [4, 4]]]
  requests = [Request(str(i), prompt) for i, prompt in enumerate(prompts)]
  placed = jax.device_put(params, transformer.param_shardings(config, mesh, sharding.SAMPLE))
  with jax.set_mesh(mesh):
    model = Transformer(config, sharding.SAMPLE)
    scores = scoring.score(model, placed, requests, options, batch_size=2)
  for prompt, own, scored in zip(prompts, options, scores, strict=True):
    assert len(scored) == len(own)
    for option, score in zip(own, scored, strict=True):
      tokens = jnp.asarray([prompt + option])
      positions = jnp.arange(tokens.shape[1])[None]
      logits, _ = jax.jit(Transformer(config).apply)({'params': params}, tokens, positions)
      rows = jax.nn.log_softmax(logits[0])[len(prompt) - 1 : tokens.shape[1] - 1]
      logprobs = np.asarray(rows)[np.arange(len(option)), option]
      np.testing.assert_allclose(score.logprobs, logprobs, atol=2e-5)
      greedy = np.argmax(rows, axis=-1) == np.asarray(option, int)
      np.testing.assert_array_equal(score.greedy, greedy)


def scored(config, params, prompts, options):
  requests = [Request(f'q{i}', prompt) for i, prompt in enumerate(prompts)]
  mesh = sharding.make_mesh()
  placed = jax.device_put(params, transformer.param_shardings(config, mesh, sharding.SAMPLE))
  calls = []
  with jax.set_mesh(mesh):
    model = Transformer(config, sharding.SAMPLE)
    found = scoring.score(model, placed, requests, options, batch_size=1, advance=calls.append)
  return found, calls


def test_a_row_may_fill_the_context_but_for_the_last_token(config, params):
  found, calls = scored(config, params, [[3], [4] * 126], [[[5]], [[6, 7, 8]]])
  assert [len(score.logprobs) for [score] in found] == [1, 3] and calls == [1, 1]
  assert scored(config, params, [], []) == ([], [])


@pytest.mark.parametrize(
  'prompt, own, message',
  [
    (
      [4] * 127,
      [[5], [6, 7, 8]],
      'question q1: its prompt has 127 tokens: with 2 new ones it exceeds the context of 128',
    ),
    ([], [[5]], 'question q1: its prompt has no token'),
    ([4], [], 'question q1: its prompt has no option'),
    ([4], [[5], []], 'question q1: its prompt has an option without a token, number 1'),
  ],
)
def test_what_cannot_be_scored_is_named_before_anything_is_computed(config, params, prompt, own, message, monkeypatch):
  monkeypatch.setattr(scoring, 'share_prefix', None)
  with pytest.raises(ValueError, match=message):
    scored(config, params, [[3], prompt], [[[5]], own])
