"""Evaluation: intervals and estimators against known values, and accuracies against the answers recorded."""

import dataclasses
import itertools
import json

from imm_jax import evaluate, sharding
from imm_jax.evaluate import EvaluateConfig
from imm_jax.formats.tokenizer import Tokenizer
from imm_jax.models import transformer
from imm_jax.models.transformer import Transformer
from imm_jax.rounds.experiment import make_task
from imm_jax.sampling.sampler import SamplerConfig
from imm_jax.tasks import catalog
from imm_jax.tasks.synthetic import CHARACTERS
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.conftest import random_params

SAMPLER = SamplerConfig(num_samples_per_prompt=1, temperature=1.0, top_k=0, top_p=1.0, num_slots=8, chunk_steps=8)
SUM = make_task('sum', {'family': 'synthetic', 'operation': 'sum'})


@pytest.mark.parametrize('right, n, low, high', [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)])
def test_wilson_gives_published_values(right, n, low, high):
  np.testing.assert_allclose(evaluate.wilson(right, n), (low, high), atol=1e-4)


@pytest.mark.parametrize('n, right, k', [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 2), (6, 5, 3)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n, right, k):
  subsets = list(itertools.combinations([True] * right + [False] * (n - right), k))
  np.testing.assert_allclose(evaluate.pass_at_k(n, right, k), np.mean([any(s) for s in subsets]))


@pytest.fixture
def model(config):
  mesh = sharding.make_mesh()
  params = jax.device_put(random_params(config), transformer.param_shardings(config, mesh, sharding.SAMPLE))
  with jax.set_mesh(mesh):
    yield Transformer(config, sharding.SAMPLE), params, Tokenizer.from_characters(CHARACTERS)


@pytest.mark.parametrize('name, value', [('temperature', 1e-40), ('temperature', -1.0), ('num_samples_per_prompt', -1)])
def test_a_value_out_of_range_is_named(name, value):
  with pytest.raises(ValueError, match=f'^evaluate.{name}: {value} is '):
    EvaluateConfig(**{'tuned': False, 'num_samples_per_prompt': 2, 'temperature': 1.0, name: value})


def test_generated_answers_are_counted_and_recorded(model):
  settings = EvaluateConfig(tuned=False, num_samples_per_prompt=4, temperature=1.0)
  results, records = evaluate.evaluate(*model, {'sum': SUM}, settings, SAMPLER, key=jax.random.key(0))
  result = results['sum']
  assert result['n'] == len(records) == 20
  assert result['accuracy'] == np.mean([record['right'] for record in records])
  assert (result['low'], result['high']) == evaluate.wilson(sum(r['right'] for r in records), 20)
  assert result['mean@4'] <= result['pass@4'] and result['maj@4'] <= result['pass@4']
  by_id = {example.id: example for example in SUM.test}
  assert all(record['right'] == SUM.verify(by_id[record['id']], record['answer']) for record in records)


def test_the_likeliest_option_is_taken(model, tmp_path):
  rows = [
    {'question': f'{a}+{a}=', 'choices': {'text': ['1', '23', '456'], 'label': list('ABC')}, 'answerKey': 'B'}
    for a in range(9)
  ]
  path = tmp_path / 'rows.json'
  path.write_text(json.dumps(rows))
  spec = catalog.spec('arc_easy', train_source=str(path), test_source='', test_size=4)
  transformer, params, _ = model
  tokenizer = Tokenizer.from_characters(''.join(sorted(set('Question: Answer:\n0123456789+= '))))
  logits = jax.jit(lambda p, t: transformer.apply({'params': p}, t, jnp.arange(40)[None])[0])
  chosen = {}
  for normalize in ('sum', 'per_character'):
    task = make_task('choice', {**spec, 'normalize': normalize})
    results, records = evaluate.evaluate(
      transformer,
      params,
      tokenizer,
      {'choice': task},
      EvaluateConfig(False, 0, 1.0),
      dataclasses.replace(SAMPLER, num_slots=5),
      key=jax.random.key(0),
    )
    np.testing.assert_allclose(results['choice']['guess'], 1 / 3)
    chosen[normalize] = [record['answer'] for record in records]
    for example, answer in zip(task.test, chosen[normalize], strict=True):
      totals = {}
      for option in example.options:
        prompt, target = tokenizer.encode(task.prompt(example)), tokenizer.encode(task.continuation(option))
        tokens = np.zeros((1, 40), np.int32)
        tokens[0, : len(prompt + target)] = prompt + target
        where = np.arange(len(prompt) - 1, len(prompt + target) - 1)
        total = np.sum(jax.nn.log_softmax(logits(params, tokens)[0])[where, np.asarray(target)])
        totals[option] = total / (len(option) if normalize == 'per_character' else 1)
      assert answer == max(totals, key=lambda option: totals[option])
  assert set(chosen['sum']) == {'1'}  # the shortest option has the fewest tokens to pay for


def test_the_likelihood_of_a_text_is_that_of_its_pieces(model, tmp_path):
  transformer, params, tokenizer = model
  (tmp_path / 'text.txt').write_text('3+4=7\n' * 5)  # 30 tokens
  settings = EvaluateConfig(False, 0, 1.0, text_source=str(tmp_path / 'text.txt'), text_length=8)
  found = evaluate.text_nll(*model, settings, batch_size=3)
  tokens = tokenizer.encode('3+4=7\n' * 5)
  pieces = [tokens[start : start + 8] for start in range(0, 30, 8)]
  losses = []
  for piece in pieces:
    logits, _ = transformer.apply({'params': params}, jnp.asarray([piece]), jnp.arange(len(piece))[None])
    losses += [-jax.nn.log_softmax(logits[0])[i, token] for i, token in enumerate(piece[1:])]
  assert found['num_tokens'] == len(losses) == 26
  np.testing.assert_allclose(found['nll_nats'], np.mean(losses), rtol=1e-5)
  with pytest.raises(ValueError, match=r'evaluate.text_source: nowhere: no such file'):
    EvaluateConfig(False, 0, 1.0, text_source='nowhere')
