"""Hugging Face directories: equal to transformers (golden files, and live where torch is), bit exact, clear when wrong."""

import dataclasses
import functools
import json
import shutil

from imm_jax import formats, sharding
from imm_jax.formats import hf, hf_config, peft, table
from imm_jax.models import layers, transformer
from imm_jax.models.config import ModelConfig
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from tests.conftest import ROOT

pytestmark = pytest.mark.xdist_group('golden')

GOLDEN = ROOT / 'tests' / 'golden'
FAMILIES = ('llama', 'llama3', 'mistral', 'qwen2', 'qwen3', 'smollm2', 'gemma2', 'gemma3', 'olmo2', 'phi3')
TOLERANCE = 2e-4  # max |logit| is 3 to 5; float32 sums in another order differ by 5e-6


def one_device() -> jax.sharding.Mesh:
  types = (jax.sharding.AxisType.Auto,) * 3
  return jax.make_mesh((1, 1, 1), sharding.AXES, axis_types=types, devices=jax.devices()[:1])


def load(path, mesh=None, rules=sharding.TRAIN):
  config = formats.read_config(path)
  return config, formats.load_params(path, config, mesh or one_device(), rules)


@functools.cache
def load_golden(family):
  return load(GOLDEN / family)


@functools.partial(jax.jit, static_argnames='config')
def logits_of(config, params, tokens):
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
  return transformer.Transformer(config).apply({'params': params}, tokens, positions)[0]


def tensors_of(path):
  """The tensors of a directory by name, whatever the number of files."""
  return {k: v for file in sorted(path.glob('*.safetensors')) for k, v in safetensors.numpy.load_file(file).items()}


def assert_same_bits(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    a, b = np.asarray(a), np.asarray(b)
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.tobytes() == b.tobytes()


def edited(tmp_path, family, **changes):
  """A copy of a golden directory with fields of its config.json changed, or, where the value is ..., left out."""
  shutil.copytree(GOLDEN / family, tmp_path / family)
  file = tmp_path / family / 'config.json'
  d = json.loads(file.read_text()) | changes
  file.write_text(json.dumps({key: value for key, value in d.items() if value is not ...}))
  return tmp_path / family


def with_tensors(tmp_path, family, changes):
  """A copy of a golden directory with tensors replaced, added, or, where None, removed."""
  path = edited(tmp_path, family)
  tensors = {k: v for k, v in (tensors_of(path) | changes).items() if v is not None}
  safetensors.numpy.save_file(tensors, path / 'model.safetensors', metadata={'format': 'pt'})
  return path


@pytest.mark.parametrize('family', FAMILIES)
def test_logits_are_those_of_transformers(family):
  golden = np.load(GOLDEN / family / 'logits.npz')
  logits = logits_of(*load_golden(family), golden['tokens'])
  np.testing.assert_allclose(logits, golden['logits'], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize('rules', [sharding.TRAIN, sharding.SAMPLE], ids=['train', 'sample'])
@pytest.mark.parametrize('family', ['llama', 'qwen2', 'phi3'])
def test_sharded_load_is_the_single_device_load(family, rules, mesh):
  config, params = load(GOLDEN / family, mesh, rules)
  assert_same_bits(params, load_golden(family)[1])
  wanted = transformer.param_shardings(config, mesh, rules)
  jax.tree.map(lambda x, where: pytest.fail(f'{x.sharding}') if x.sharding != where else None, params, wanted)


def test_a_device_reads_its_part_only():
  row = table.Row('layers/mlp/up/kernel', 'name')
  x, asked = np.arange(8 * 6, dtype=np.float32).reshape(8, 6), []

  def read(name, index):
    asked.append((name, x[index].size))
    return x[index]

  for index in [(slice(0, 3), slice(4, 8)), (slice(0, 6), slice(2, 4))]:
    np.testing.assert_array_equal(row.read(read, 'name', index), x.T[index])
  assert asked == [('name', 12), ('name', 12)]


def test_each_of_8_devices_reads_an_eighth():
  tensors, asked = tensors_of(GOLDEN / 'llama'), []

  def read(name, index):
    asked.append((tensors[name].size, tensors[name][index].size))
    return tensors[name][index]

  config = formats.read_config(GOLDEN / 'llama')
  params = table.load(table.hf_rows('llama'), config, sharding.make_mesh(1, 8, 1), sharding.TRAIN, read)
  assert_same_bits(params, load_golden('llama')[1])
  assert len(asked) == 8 * len(tensors)
  assert all(part == whole // 8 for whole, part in asked)


@pytest.mark.parametrize('dtype', [ml_dtypes.bfloat16, np.float16], ids=['bfloat16', 'float16'])
def test_narrow_weights_are_widened_exactly(tmp_path, dtype):
  narrow = {k: v.astype(dtype) for k, v in tensors_of(GOLDEN / 'smollm2').items()}
  wide = {k: v.astype(np.float32) for k, v in narrow.items()}
  _, params = load(with_tensors(tmp_path / 'narrow', 'smollm2', narrow))
  assert_same_bits(params, load(with_tensors(tmp_path / 'wide', 'smollm2', wide))[1])


def test_old_rotary_buffers_and_an_equal_tied_head_are_harmless(tmp_path):
  embedding = tensors_of(GOLDEN / 'smollm2')['model.embed_tokens.weight']
  extra = {'lm_head.weight': embedding, 'model.layers.1.self_attn.rotary_emb.inv_freq': np.ones(4, np.float32)}
  assert_same_bits(load(with_tensors(tmp_path, 'smollm2', extra))[1], load_golden('smollm2')[1])


@pytest.mark.parametrize('family', FAMILIES)
def test_load_save_load_changes_no_bit(tmp_path, family):
  config, params = load(GOLDEN / family, sharding.make_mesh(1, 4, 2))
  for max_shard_bytes in (5e9, 2e4):
    path = tmp_path / f'{max_shard_bytes:.0f}'
    hf.save(path, config, params, max_shard_bytes=max_shard_bytes)
    files = list(path.glob('*.safetensors'))
    assert_same_bits(tensors_of(path), tensors_of(GOLDEN / family))
    assert len(files) == 1 if max_shard_bytes == 5e9 else len(files) > 2
    assert (path / 'model.safetensors.index.json').exists() == (len(files) > 1)
    for file in files:
      assert sum(x.nbytes for x in safetensors.numpy.load_file(file).values()) <= max_shard_bytes
      with safetensors.safe_open(file, framework='numpy') as opened:
        assert opened.metadata() == {'format': 'pt'}
    assert ('lm_head.weight' in tensors_of(path)) == (not config.tie_embeddings)
    config_again, params_again = load(path)
    assert config_again == config
    assert_same_bits(params_again, load_golden(family)[1])


def test_bfloat16_is_written_rounded_to_nearest(tmp_path):
  hf.save(tmp_path, *load_golden('llama'), dtype='bfloat16')
  assert json.loads((tmp_path / 'config.json').read_text())['torch_dtype'] == 'bfloat16'
  expected = {k: v.astype(ml_dtypes.bfloat16) for k, v in tensors_of(GOLDEN / 'llama').items()}
  assert_same_bits(tensors_of(tmp_path), expected)
  with pytest.raises(ValueError, match="dtype: 'int8' is not one of float32, bfloat16"):
    hf.save(tmp_path, *load_golden('llama'), dtype='int8')


@pytest.mark.parametrize('family', FAMILIES)
def test_transformers_loads_what_we_save(tmp_path, family):
  torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
  config = formats.read_config(GOLDEN / family)
  rng = np.random.default_rng(0)
  where = transformer.param_shardings(config, one_device(), sharding.TRAIN)
  abstract, _ = transformer.abstract_params(config)
  params = jax.tree.map(lambda x, s: jax.device_put(np.float32(0.2 * rng.normal(size=x.shape)), s), abstract, where)
  hf.save(tmp_path, config, params)
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, attn_implementation='eager', output_loading_info=True
  )
  assert type(model).__name__ == json.loads((tmp_path / 'config.json').read_text())['architectures'][0]
  assert not any(info.values()), info
  assert model.dtype == torch.float32
  assert model.config.bos_token_id is model.config.eos_token_id is None  # those are the tokenizer's to say
  tokens = rng.integers(0, config.vocab_size, (2, 12)).astype(np.int32)
  with torch.no_grad():
    expected = model(torch.from_numpy(tokens).long()).logits.numpy()
  np.testing.assert_allclose(logits_of(config, params, tokens), expected, rtol=0, atol=TOLERANCE)


BASE = ModelConfig(
    family='llama', vocab_size=64, num_layers=2, embed_dim=32, mlp_dim=48, num_heads=4, num_kv_heads=2, head_dim=8,
    max_length=256, rope_theta=10000.0, rms_norm_eps=1e-5, tie_embeddings=False,
)  # fmt: skip
SCALED = layers.Llama3Rope(8.0, 1.0, 4.0, 128)
GEMMA = {
  'activation': 'gelu_tanh', 'norms': 'both', 'norm_plus_one': True, 'scale_embeddings': True, 'query_scalar': 144,
  'logit_softcap': 30.0, 'sliding_window': 64, 'global_layers': (1,),
}  # fmt: skip


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'rope_scaling': SCALED, 'tie_embeddings': True, 'rope_theta': 500000.0},
    {'family': 'mistral', 'sliding_window': None, 'head_dim': 16},
    {'family': 'mistral', 'sliding_window': 4096},
    {'family': 'qwen2', 'qkv_bias': True},
    {'family': 'qwen2', 'qkv_bias': True, 'sliding_window': 64},
    {'family': 'qwen3', 'qk_norm': 'head', 'head_dim': 128},
    {'family': 'qwen2', 'qkv_bias': True, 'sliding_window': 64, 'global_layers': (0,)},
    GEMMA | {'family': 'gemma2', 'attention_softcap': 50.0},
    GEMMA | {'family': 'gemma2', 'sliding_window': None, 'global_layers': (), 'logit_softcap': None},
    GEMMA | {'family': 'gemma3_text', 'qk_norm': 'head', 'local_rope_theta': 10000.0, 'rope_scaling': SCALED},
    {'family': 'olmo2', 'norms': 'after', 'qk_norm': 'all'},
    {'family': 'phi3', 'rotary_fraction': 0.75, 'sliding_window': 2047},
    {'family': 'phi3', 'rope_scaling': layers.LongRope((1.0,) * 4, (2.0,) * 4, 256, 1024)},
    {'dtype': 'bfloat16', 'remat': 'full', 'attention': 'splash'},
  ],
  ids=str,
)
def test_config_goes_there_and_back(changes):
  config = dataclasses.replace(BASE, **changes)
  d = json.loads(json.dumps(hf_config.config_to_hf(config)))
  read = hf_config.config_from_hf(d, 'config.json')
  assert dataclasses.replace(read, dtype=config.dtype, remat=config.remat, attention=config.attention) == config


def test_config_that_the_family_cannot_have():
  with pytest.raises(ValueError, match='a llama of Hugging Face cannot be like this.*qkv_bias=True'):
    hf_config.config_to_hf(dataclasses.replace(BASE, qkv_bias=True))


def test_the_same_model_in_the_styles_of_transformers_4_and_5(tmp_path):
  old_style = edited(
      tmp_path, 'llama3', rope_parameters=..., rope_theta=10000.0, dtype=..., torch_dtype='bfloat16', head_dim=...,
      rope_scaling={'type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1, 'high_freq_factor': 4,
                    'original_max_position_embeddings': 128},
  )  # fmt: skip
  config = formats.read_config(old_style)
  assert config == formats.read_config(GOLDEN / 'llama3')
  assert config.rope_scaling == SCALED
  assert formats.read_config(GOLDEN / 'smollm2').rope_theta == 100000.0


LONG = {'rope_type': 'longrope', 'rope_theta': 1e4, 'short_factor': [1.0] * 4, 'long_factor': [2.0] * 4}
USED = {'sliding_window': 8, 'use_sliding_window': True}
BY_RULE = {'layer_types': ..., 'num_hidden_layers': 7}  # a family's own, as old files have it


@pytest.mark.parametrize(
  ('family', 'changes', 'window', 'global_layers'),
  [
    ('mistral', {}, 4, ()),
    ('mistral', {'sliding_window': None}, None, ()),
    ('qwen2', {'sliding_window': 8, 'use_sliding_window': False}, None, ()),
    ('qwen2', USED | {'max_window_layers': 0, 'layer_types': ...}, 8, ()),
    ('qwen2', USED | {'layer_types': ['sliding_attention'] * 2}, 8, ()),
    ('qwen2', USED | {'layer_types': ['full_attention', 'sliding_attention']}, 8, (0,)),
    ('qwen3', USED | {'max_window_layers': 1, 'layer_types': ...}, 8, (0,)),
    ('qwen3', USED | {'max_window_layers': 2, 'layer_types': ...}, None, ()),
    ('gemma2', BY_RULE, 4, (1, 3, 5)),
    ('gemma3', BY_RULE, 4, (5,)),
    ('gemma3', BY_RULE | {'sliding_window_pattern': 3}, 4, (2, 5)),
    ('gemma2', {'layer_types': ['full_attention'] * 2}, None, ()),
    ('phi3', {'sliding_window': None}, None, ()),
  ],
)
def test_sliding_window(tmp_path, family, changes, window, global_layers):
  config = formats.read_config(edited(tmp_path, family, **changes))
  assert (config.sliding_window, config.global_layers) == (window, global_layers)


def test_gemma_and_phi3_in_the_style_of_transformers_4(tmp_path):
  old_style = edited(
      tmp_path, 'gemma3', rope_parameters=..., rope_theta=1000000, rope_local_base_freq=10000, rope_scaling=None,
      layer_types=..., _sliding_window_pattern=..., sliding_window_pattern=2, cache_implementation='hybrid',
      tie_word_embeddings=...,
  )  # fmt: skip
  assert formats.read_config(old_style) == formats.read_config(GOLDEN / 'gemma3')
  long = {'type': 'longrope', 'short_factor': [1.25, 2.0], 'long_factor': [2.0, 4.0]}
  old_style = edited(
      tmp_path, 'phi3', rope_parameters=..., rope_theta=10000.0, partial_rotary_factor=0.5, auto_map={}, rope_scaling=long
  )  # fmt: skip
  assert formats.read_config(old_style) == formats.read_config(GOLDEN / 'phi3')


@pytest.mark.parametrize(
  ('family', 'changes', 'message'),
  [
    (
      'llama',
      {'model_type': 'gemma3'},
      "model_type = 'gemma3' is not supported (only llama, mistral, qwen2,",
    ),
    ('gemma2', {'hidden_activation': 'gelu'}, "hidden_activation = 'gelu' is not supported (only 'gelu_pytorch_tanh')"),
    ('gemma2', {'query_pre_attn_scalar': None}, 'query_pre_attn_scalar is missing'),
    ('gemma2', {'attn_logit_softcapping': ...}, 'attn_logit_softcapping is missing (null means that there is none)'),
    ('gemma3', {'attn_logit_softcapping': 50.0}, 'attn_logit_softcapping = 50.0 is not supported (only None)'),
    (
      'gemma3',
      {'layer_types': ['full_attention'] * 2},
      'with num_hidden_layers = 3, sliding_window = 4 and model_type gemma3',
    ),
    ('phi3', {'rope_parameters': LONG | {'partial_rotary_factor': 0.5}}, 'type longrope: short_factor is not a list of 2'),
    ('phi3', {'rope_parameters': LONG | {'attention_factor': 1.2}}, 'attention_factor = 1.2 is not known'),
    (
      'llama',
      {'rope_parameters': LONG, 'original_max_position_embeddings': 64},
      'longrope and partial_rotary_factor are not',
    ),
    ('mistral', {'layer_types': ['full_attention', 'sliding_attention']}, 'layers of the kinds'),
    ('llama', {'hidden_act': 'gelu'}, "hidden_act = 'gelu' is not supported (only 'silu')"),
    ('llama', {'attention_bias': True, 'mlp_bias': True}, 'attention_bias = True is not supported (only False); mlp_bias'),
    ('llama', {'num_experts': 8}, 'num_experts = 8 is not known, and may change what the model computes'),
    ('llama', {'hidden_size': ..., 'rms_norm_eps': ...}, 'hidden_size is missing; rms_norm_eps is missing'),
    ('llama', {'vocab_size': '64'}, "vocab_size = '64' is not of type int"),
    ('llama', {'num_key_value_heads': 3}, 'num_heads=4 is not a multiple of num_kv_heads=3'),
    ('llama', {'sliding_window': 8}, 'sliding_window = 8 is not supported in a model_type llama'),
    ('llama', {'rope_parameters': {'rope_type': 'yarn', 'factor': 4.0}}, "rope_type = 'yarn' is not supported"),
    ('llama', {'rope_parameters': ..., 'rope_scaling': {'type': 'linear', 'factor': 2.0}}, "rope_type = 'linear' is not"),
    ('llama', {'rope_parameters': {'rope_type': 'llama3', 'factor': 8.0}}, 'low_freq_factor = None is not a number'),
    ('llama', {'rope_parameters': {'rope_theta': 1e4, 'mscale': 2}}, 'type default: mscale = 2 is not known'),
    (
      'llama',
      {'rope_parameters': {'partial_rotary_factor': 0.5}},
      'longrope and partial_rotary_factor are not supported in a',
    ),
    ('mistral', {'sliding_window': ...}, 'sliding_window is missing (null means that there is none)'),
    ('mistral', {'num_key_value_heads': ...}, 'num_key_value_heads is missing'),
    ('qwen3', {'head_dim': ...}, 'head_dim is missing'),
    ('qwen2', {'layer_types': ['full_attention', 'sliding_attention']}, 'layers of the kinds'),
  ],
)
def test_config_errors_name_the_file_the_field_and_its_value(tmp_path, family, changes, message):
  path = edited(tmp_path, family, **changes)
  with pytest.raises(ValueError) as error:
    formats.read_config(path)
  assert message in str(error.value)
  assert str(path / 'config.json') in str(error.value)
  assert '\n' not in str(error.value)


def test_all_wrong_tensors_are_named_at_once(tmp_path):
  path = with_tensors(tmp_path, 'llama', {
      'model.norm.weight': None,
      'model.layers.1.mlp.up_proj.weight': None,
      'model.layers.2.mlp.up_proj.weight': np.zeros((48, 32), np.float32),
      'model.layers.0.self_attn.k_proj.weight': np.zeros((8, 32), np.float32),
  })  # fmt: skip
  with pytest.raises(ValueError) as error:
    load(path)
  assert str(error.value).splitlines() == [
    f'{path}: the tensors are not those of its config:',
    '  missing: model.layers.1.mlp.up_proj.weight (48, 32)',
    '  missing: model.norm.weight (32,)',
    '  unknown: model.layers.2.mlp.up_proj.weight (48, 32)',
    '  shape: model.layers.0.self_attn.k_proj.weight is (8, 32) in the file, and (16, 32) by the config',
  ]


def test_a_tied_model_with_another_head(tmp_path):
  embedding = tensors_of(GOLDEN / 'smollm2')['model.embed_tokens.weight']
  with pytest.raises(ValueError, match='lm_head.weight differs from model.embed_tokens.weight'):
    load(with_tensors(tmp_path, 'smollm2', {'lm_head.weight': embedding + 1}))


def test_weights_that_are_not_floats(tmp_path):
  quantised = {'model.norm.weight': np.zeros(32, np.int8)}
  with pytest.raises(ValueError, match='only F32, BF16 and F16 tensors are supported: model.norm.weight is I8'):
    load(with_tensors(tmp_path, 'llama', quantised))


@pytest.mark.parametrize(
  'damage', [lambda x: x[:-100], lambda x: b'garbage' * 30, lambda x: b''], ids=['cut', 'garbage', 'empty']
)
@pytest.mark.parametrize('file', ['model.safetensors', 'config.json'])
def test_a_damaged_file_is_named_in_one_line(tmp_path, file, damage):
  path = edited(tmp_path, 'llama')
  (path / file).write_bytes(damage((path / file).read_bytes()))
  with pytest.raises(ValueError) as error:
    load(path)
  assert str(path / file) in str(error.value)
  assert '\n' not in str(error.value)


def test_missing_files_are_named(tmp_path):
  with pytest.raises(
    FileNotFoundError, match='nowhere: looked for a directory with config.json .* or a .gguf file; found nothing'
  ):
    load(tmp_path / 'nowhere')
  with pytest.raises(FileNotFoundError, match='found a file of another kind'):
    load(__file__)
  with pytest.raises(FileNotFoundError, match='has no config.json'):
    load(tmp_path)
  path = edited(tmp_path, 'llama')
  (path / 'model.safetensors').unlink()
  with pytest.raises(FileNotFoundError, match='has no model.safetensors and no model.safetensors.index.json'):
    load(path)
  index = {'weight_map': {'model.norm.weight': 'model-00001-of-00002.safetensors'}}
  (path / 'model.safetensors.index.json').write_text(json.dumps(index))
  with pytest.raises(FileNotFoundError, match='names files that are not there: model-00001-of-00002.safetensors'):
    load(path)


def adapter_with(tmp_path, tensors=(), **changes):
  """A copy of the golden adapter with fields of its config and tensors replaced, added, or, where None, removed."""
  path = tmp_path / 'adapter'
  shutil.copytree(GOLDEN / 'lora', path)
  config = json.loads((path / peft.CONFIG).read_text()) | changes
  (path / peft.CONFIG).write_text(json.dumps(config))
  content = safetensors.numpy.load_file(path / peft.WEIGHTS) | dict(tensors)
  safetensors.numpy.save_file({k: v for k, v in content.items() if v is not None}, path / peft.WEIGHTS)
  return path


def load_adapted(path, base='llama', mesh=None):
  config, mesh = formats.read_config(GOLDEN / base), mesh or one_device()
  adapter = peft.open_adapter(path, str(GOLDEN / base))
  return config, hf.load_params(GOLDEN / base, config, mesh, sharding.TRAIN, adapter)


def test_an_adapter_on_its_base_is_what_peft_makes_of_it():
  golden = np.load(GOLDEN / 'lora' / 'logits.npz')
  config, params = load_adapted(GOLDEN / 'lora')
  np.testing.assert_allclose(logits_of(config, params, golden['tokens']), golden['logits'], rtol=0, atol=TOLERANCE)
  _, sharded = load_adapted(GOLDEN / 'lora', mesh=sharding.make_mesh(1, 4, 2))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), sharded, params)


def test_an_adapter_of_a_fused_tensor_moves_its_parts(tmp_path):
  rng = np.random.default_rng(0)
  name = 'base_model.model.model.layers.1.self_attn.qkv_proj'
  A, B = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 32), (64, 2)))
  names = safetensors.numpy.load_file(GOLDEN / 'lora' / peft.WEIGHTS)
  tensors = dict.fromkeys(names) | {f'{name}.lora_A.weight': A, f'{name}.lora_B.weight': B}
  _, moved = load_adapted(adapter_with(tmp_path, tensors, use_rslora=False, lora_alpha=3), base='phi3')
  moved, base = moved['layers']['attn'], load_golden('phi3')[1]['layers']['attn']
  for part, rows in (('q', B[:32]), ('k', B[32:48]), ('v', B[48:])):
    delta = np.asarray(moved[part]['kernel'] - base[part]['kernel']).reshape(2, 32, -1)
    np.testing.assert_allclose(delta[1], 1.5 * (rows @ A).T, atol=1e-5)
    assert not delta[0].any()


LAYER = 'base_model.model.model.layers.0'


@pytest.mark.parametrize(
  ('tensors', 'changes', 'message'),
  [
    ({}, {'use_dora': True}, 'adapter_config.json: use_dora = True is not supported'),
    ({}, {'bias': 'all'}, "bias = 'all' is not supported (only none)"),
    ({}, {'peft_type': 'IA3'}, "peft_type = 'IA3' is not supported (only LORA)"),
    ({}, {'init_lora_weights': 'pissa'}, "init_lora_weights = 'pissa' is not supported"),
    ({}, {'lora_alpha': None}, 'lora_alpha = None is not a number'),
    ({f'{LAYER}.mlp.down_proj.lora_magnitude_vector': np.ones(32)}, {}, 'lora_magnitude_vector is not supported'),
    ({f'{LAYER}.mlp.down_proj.lora_B.weight': None}, {}, 'layers.0.mlp.down_proj.weight has only one of lora_A and lora_B'),
    (
      {f'{LAYER}.mlp.down_proj.lora_A.weight': np.ones((1, 9))},
      {},
      'weight is (32, 9) in the adapter, and (32, 48)',
    ),
    ({f'{LAYER}.input_layernorm.weight': np.ones(32)}, {}, 'only embed_tokens and lm_head'),
    ({'base_model.model.lm_head.weight': np.ones((65, 32))}, {}, 'lm_head.weight is (65, 32) in the adapter, and (64, 32)'),
    (
      {f'{LAYER}.mlp.fc.lora_A.weight': np.ones((1, 9)), f'{LAYER}.mlp.fc.lora_B.weight': np.ones((9, 1))},
      {},
      'model.layers.0.mlp.fc.weight is (9, 9) in the adapter, and not in',
    ),
  ],
)
def test_what_an_adapter_may_not_have_is_named_in_one_line(tmp_path, tensors, changes, message):
  with pytest.raises(ValueError) as error:
    load_adapted(adapter_with(tmp_path, tensors, **changes))
  assert message in str(error.value) and str(tmp_path / 'adapter') in str(error.value)
  assert '\n' not in str(error.value)


def test_an_adapter_without_its_base_or_of_a_tied_one():
  with pytest.raises(FileNotFoundError, match="its base 'OWNER/llama' is no directory here; give --base=DIR"):
    peft.open_adapter(GOLDEN / 'lora')
  with pytest.raises(ValueError, match='changes lm_head.weight, which .*smollm2 ties'):
    load_adapted(GOLDEN / 'lora', base='smollm2')


def test_a_stretched_model_takes_texts_of_its_original_length():
  config = formats.read_config(GOLDEN / 'phi3')
  assert config.max_length == 64 and config.rope_scaling.max_length == 256
  assert hf_config.config_to_hf(config)['max_position_embeddings'] == 256
