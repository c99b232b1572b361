"""Sampling: the same completions whatever the batch, order, slots or mesh; every way to stop."""

import dataclasses
import functools
import re

from imm_jax import sharding
from imm_jax.formats.tokenizer import Tokenizer
from imm_jax.models import transformer
from imm_jax.models.transformer import Transformer
from imm_jax.sampling import prefill, scoring, slots
from imm_jax.sampling import sampler as sampler_lib
from imm_jax.sampling.choice import MIN_TEMPERATURE, Rule
from imm_jax.sampling.prefill import Request
from imm_jax.sampling.sampler import Sampler, SamplerConfig
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.conftest import every_family, FAMILIES, MESHES

# 63 characters, and the end token.
CHARACTERS = 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789\n'
TOKENIZER = Tokenizer.from_characters(CHARACTERS)
TAILS = [7], [8, 9, 10], [11, 12], [13, 14, 15, 16, 17], [8, 9], [20] * 9
PROMPTS = [list(range(5)) + tail for tail in TAILS]
IDS = [f'q{i}' for i in range(len(PROMPTS))]
CONFIG = SamplerConfig(num_samples_per_prompt=3, temperature=1.3, top_k=0, top_p=1.0, num_slots=6, chunk_steps=3)


@pytest.fixture
def place(config, params):
  """Returns a function from a mesh to (model, params as sampling shards them)."""
  return lambda mesh: (
    Transformer(config, sharding.SAMPLE),
    jax.device_put(params, transformer.param_shardings(config, mesh, sharding.SAMPLE)),
  )


@pytest.fixture
def run(place):
  def sample(config=CONFIG, prompts=PROMPTS, ids=IDS, mesh=None, seed=0, max_new_tokens=7, stop=(), **options):
    mesh = mesh or sharding.make_mesh(devices=jax.devices()[:1])
    requests = [Request(*pair) for pair in zip(ids, prompts, strict=True)]
    decoding = config.decoding(max_new_tokens, stop)
    with jax.set_mesh(mesh):
      sampler = Sampler(*place(mesh), TOKENIZER, config)
      return sampler.sample(requests, decoding, key=jax.random.key(seed), **options)

  return sample


def tokens_of(completions):
  return [[sample.tokens for sample in samples] for samples in completions]


@functools.partial(jax.jit, static_argnames='config')
def next_token(config, params, tokens, length):
  positions = jnp.arange(tokens.shape[0])[None]
  logits, _ = Transformer(config).apply({'params': params}, tokens[None], positions)
  return jnp.argmax(logits[0, length - 1])


def reference(config, params, prompt, steps):
  """Greedy decoding by full forward passes."""
  tokens = list(prompt)
  for _ in range(steps):
    padded = jnp.asarray(tokens + [0] * (24 - len(tokens)))
    tokens.append(int(next_token(config, params, padded, len(tokens))))
    if tokens[-1] in TOKENIZER.stop_ids:
      break
  return tokens[len(prompt) :]


@every_family
def test_greedy_equals_decoding_by_full_forward_passes(config, params, run):
  greedy = dataclasses.replace(CONFIG, temperature=0.0, num_samples_per_prompt=1)
  expected = [reference(config, params, prompt, 7) for prompt in PROMPTS]
  assert [samples[0].tokens for samples in run(greedy)] == expected


@pytest.mark.parametrize('temperature', [pytest.param(0.0, marks=pytest.mark.slow), 1.3])
def test_a_completion_does_not_depend_on_slots_order_company_or_chunks(run, temperature):
  config = dataclasses.replace(CONFIG, temperature=temperature)
  expected = tokens_of(run(config))
  assert tokens_of(run(dataclasses.replace(config, num_slots=3, chunk_steps=1))) == expected
  assert tokens_of(run(dataclasses.replace(config, num_slots=64, chunk_steps=8))) == expected
  assert tokens_of(run(config, PROMPTS[::-1], IDS[::-1]))[::-1] == expected
  assert tokens_of(run(config, PROMPTS[2:4], IDS[2:4])) == expected[2:4]


@pytest.mark.parametrize(
  'config, temperature',
  [
    ('qwen', 0.0),
    *(pytest.param(name, 1.3, marks=() if name == 'gemma' else pytest.mark.slow) for name in FAMILIES),
  ],
  indirect=['config'],
)
def test_a_completion_does_not_depend_on_the_mesh(run, mesh, temperature):
  config = dataclasses.replace(CONFIG, temperature=temperature)
  assert tokens_of(run(config, mesh=mesh)) == tokens_of(run(config))


def test_seed_id_and_sample_index_each_change_the_draw(run):
  base = tokens_of(run())
  assert tokens_of(run(seed=1)) != base
  assert tokens_of(run(ids=[f'other{i}' for i in range(len(PROMPTS))])) != base
  assert len({tuple(tokens) for tokens in base[0]}) > 1


def test_logprobs_are_those_of_scoring_the_completion_again(run, place):
  completions = run()
  mesh = sharding.make_mesh()
  options = [[sample.tokens for sample in samples] for samples in completions]
  with jax.set_mesh(mesh):
    requests = [Request(*pair) for pair in zip(IDS, PROMPTS, strict=True)]
    scores = scoring.score(*place(mesh), requests, options, batch_size=4)
  for samples, scored in zip(completions, scores, strict=True):
    for sample, score in zip(samples, scored, strict=True):
      np.testing.assert_allclose(sample.logprobs, score.logprobs, atol=2e-5)


def test_entropies_are_those_of_the_models_distributions(run, place):
  completions, mesh = run(), sharding.make_mesh()
  with jax.set_mesh(mesh):
    model, params = place(mesh)
    for prompt, samples in zip(PROMPTS, completions, strict=True):
      for sample in samples:
        tokens = jnp.asarray([[*prompt, *sample.tokens]])
        logits, _ = model.apply({'params': params}, tokens, jnp.arange(tokens.shape[1])[None])
        logprobs = jax.nn.log_softmax(logits[0, len(prompt) - 1 : -1])
        entropies = -np.sum(np.exp(logprobs) * logprobs, axis=-1)
        np.testing.assert_allclose(sample.entropies, entropies, atol=2e-5)


def test_stop_strings_end_a_completion_at_once_and_leave_its_text(run):
  free = run()
  text = free[1][0].text
  assert len(text) == 7
  for stop in (text[3], text[2:5]):  # one token, and one that spans three
    [samples] = run(prompts=PROMPTS[1:2], ids=IDS[1:2], stop=(stop, 'never there'))
    end = text.index(stop) + len(stop)
    assert samples[0].tokens == free[1][0].tokens[:end]
    assert (samples[0].text, samples[0].finish_reason) == (text[: text.index(stop)], 'stop')
    assert len(samples[0].logprobs) == len(samples[0].entropies) == end


@pytest.mark.parametrize('chunk_steps', range(1, 9))
def test_nested_stop_strings_end_a_completion_whatever_the_chunks(run, chunk_steps):
  [[free, *_]] = run(prompts=PROMPTS[1:2], ids=IDS[1:2])
  assert len(set(free.text)) > 5
  config = dataclasses.replace(CONFIG, chunk_steps=chunk_steps)
  for stop, num_tokens, num_characters in (
    ([free.text[1:6], free.text[2:4]], 4, 2),
    ([free.text[2:5], free.text[3:5], free.text[:6]], 5, 2),
    ([free.text[1:]], 7, 1),
  ):
    [[found, *_]] = run(config, prompts=PROMPTS[1:2], ids=IDS[1:2], stop=stop)
    assert (found.text, found.tokens) == (free.text[:num_characters], free.tokens[:num_tokens])
    assert found.finish_reason == 'stop' and len(found.logprobs) == num_tokens


def test_an_end_token_stops_and_is_kept_in_tokens_only(run, monkeypatch):
  free = run()
  end = free[3][1].tokens[2]
  monkeypatch.setattr(TOKENIZER, 'stop_ids', TOKENIZER.stop_ids | {end})
  for before, after in zip(free, run(), strict=True):
    for a, b in zip(before, after, strict=True):
      assert b.tokens == a.tokens[: a.tokens.index(end) + 1 if end in a.tokens else 7]
      assert b.finish_reason == ('stop' if b.tokens[-1] in TOKENIZER.stop_ids else 'length')


def test_one_new_token(run):
  first = [[tokens[:1] for tokens in samples] for samples in tokens_of(run())]
  assert tokens_of(run(max_new_tokens=1)) == first


@pytest.fixture
def shapes(monkeypatch):
  """A list of what is computed, filled by runs.

  (1, T) or (Q, T) is a prefix or a batch of prompts, ('slots', B, T, R) the slots of a run.
  """
  found = []

  def prefill_prompts(model, params, prefix, tokens, *rest):
    found.append(tokens.shape)
    return prefill.prefill(model, params, prefix, tokens, *rest)

  def share_prefix(model, params, prompts):
    shared = prefill.share_prefix(model, params, prompts)
    found.append(shared.cache.positions.shape)
    return shared

  def empty_slots(model, *shape):
    found.append(('slots', *shape))
    return slots.empty_slots(model, *shape)

  monkeypatch.setattr(sampler_lib, 'prefill', prefill_prompts)
  monkeypatch.setattr(sampler_lib, 'share_prefix', share_prefix)
  monkeypatch.setattr(sampler_lib, 'empty_slots', empty_slots)
  return found


def test_the_prefix_is_computed_once_and_each_question_once(run, shapes):
  run(dataclasses.replace(CONFIG, num_slots=24))
  assert [shape for shape in shapes if shape[0] != 'slots'] == [(1, 8), (2, 8), (2, 8), (2, 16)]


def test_there_are_no_more_slots_than_rows_but_for_a_power_of_two(run, shapes):
  run(dataclasses.replace(CONFIG, num_slots=64), PROMPTS[:3], IDS[:3])
  # 5 questions of 3 samples are what goes into 16.
  assert [shape[1] for shape in shapes if shape[0] == 'slots'] == [15]


@pytest.mark.parametrize('shape', MESHES)
def test_a_decode_step_gathers_no_weight_and_no_cache(config, shape):
  """Collectives of a decode step carry activations only.

  None is as large as the smallest matrix of a layer.
  """
  config = dataclasses.replace(config, embed_dim=64, mlp_dim=256, vocab_size=512, num_heads=8, num_kv_heads=8)
  mesh, model = sharding.make_mesh(*shape), Transformer(config, sharding.SAMPLE)
  abstract, _ = transformer.abstract_params(config)
  shardings = transformer.param_shardings(config, mesh, sharding.SAMPLE)
  with jax.set_mesh(mesh):
    # As `sample` does, a multiple of the devices that share the rows.
    state = slots.empty_slots(model, 8, 32, 8)
    params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
    lowered = slots.decode.lower(model, params, None, state, jnp.zeros(512, bool), Rule(0.0), num_steps=3)
  gathered = re.findall(r'= \w+\[([\d,]*)\][^=]* all-gather\(', lowered.compile().as_text())
  sizes = [int(np.prod([int(n) for n in dims.split(',') if n])) for dims in gathered]
  assert max(sizes, default=0) < 64 * 64


def test_no_prompts_and_bad_prompts(run):
  assert run(prompts=[], ids=[]) == []
  with pytest.raises(ValueError, match='question b: its prompt has no token'):
    run(prompts=[[1], []], ids=['a', 'b'])
  message = 'question b: its prompt has 125 tokens: with 7 new ones it exceeds the context of 128'
  with pytest.raises(ValueError, match=message):
    run(prompts=[[1], [1] * 125], ids=['a', 'b'])
  with pytest.raises(ValueError, match='max_new_tokens: 0 is less than 1'):
    run(max_new_tokens=0)
  with pytest.raises(ValueError, match="stop: 'ab' is not a list of strings"):
    run(stop='ab')


def test_a_long_prompt_is_found_before_the_part_that_has_it(run):
  with pytest.raises(ValueError, match='question q5: its prompt has 14 tokens: with 115 new ones'):
    run(only=slice(0, 2), max_new_tokens=115)


def test_parts_of_the_requests_have_the_completions_and_the_shapes_of_all(run, shapes):
  whole = run()
  of_whole = set(shapes)
  shapes.clear()
  parts = [run(only=slice(first, first + 2)) for first in (0, 2, 4)]
  assert tokens_of(sum(parts, [])) == tokens_of(whole)
  assert set(shapes) <= of_whole  # nothing is compiled for a part
  assert run(only=slice(6, 8)) == []


@pytest.mark.parametrize(
  'key, value',
  [
    ('top_p', 0.0),
    ('temperature', -1.0),
    ('temperature', 1e-40),
    ('temperature', np.nan),
    ('num_slots', 0),
    ('top_k', -1),
  ],
)
def test_a_value_out_of_range_is_named(key, value):
  with pytest.raises(ValueError, match=f'sampler.{key}: {value} is out of range'):
    dataclasses.replace(CONFIG, **{key: value})
  if key != 'num_slots':
    with pytest.raises(ValueError, match=f'^{key}: {value} is out of range'):
      dataclasses.replace(CONFIG.decoding(1), **{key: value})


def test_the_least_temperature_is_all_but_greedy(run):
  greedy = run(dataclasses.replace(CONFIG, temperature=0.0))
  coldest = run(dataclasses.replace(CONFIG, temperature=MIN_TEMPERATURE))
  assert tokens_of(coldest) == tokens_of(greedy)
  assert np.isfinite([sample.logprobs[0] for samples in coldest for sample in samples]).all()
