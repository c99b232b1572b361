"""config.json of Llama, Mistral, Qwen2 and Qwen3 models <-> ModelConfig, in the styles of transformers 4 and 5."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from imm_jax import layers, model


@dataclasses.dataclass(frozen=True)
class _Family:
  """What sets a model_type apart; `optional` names the sizes that its config.json may leave out."""

  architecture: str
  optional: tuple[str, ...] = ()
  qkv_bias: bool = False
  qk_norm: bool = False


_FAMILIES = {
  'llama': _Family('LlamaForCausalLM', ('num_key_value_heads', 'head_dim')),
  'mistral': _Family('MistralForCausalLM', ('head_dim',)),
  'qwen2': _Family('Qwen2ForCausalLM', ('head_dim',), qkv_bias=True),
  'qwen3': _Family('Qwen3ForCausalLM', qk_norm=True),
}

# The fields of config.json. Those that are a field of ModelConfig, and their type:
_FIELDS = {
  'vocab_size': ('vocab_size', int),
  'num_hidden_layers': ('num_layers', int),
  'hidden_size': ('embed_dim', int),
  'intermediate_size': ('mlp_dim', int),
  'num_attention_heads': ('num_heads', int),
  'num_key_value_heads': ('num_kv_heads', int),
  'head_dim': ('head_dim', int),
  'max_position_embeddings': ('max_length', int),
  'rms_norm_eps': ('rms_norm_eps', float),
  'tie_word_embeddings': ('tie_embeddings', bool),
}
# those that, where they stand, must have this value:
_FIXED = {
  'attention_bias': False,
  'hidden_act': 'silu',
  'mlp_bias': False,
  'partial_rotary_factor': 1.0,
  'qk_layernorm': False,
  'rope_interleaved': False,
  'use_mrope': False,
}
# those that _rope and _sliding_window read:
_READ = {
  'layer_types',
  'max_window_layers',
  'model_type',
  'rope_parameters',
  'rope_scaling',
  'rope_theta',
  'sliding_window',
  'use_sliding_window',
}
# and those that do not change what the model computes.
_IGNORED = {
  '_attn_implementation_autoset',
  '_model_name_or_path',
  '_name_or_path',
  'architectures',
  'attention_dropout',
  'attn_implementation',
  'bos_token_id',
  'dtype',
  'eos_token_id',
  'initializer_range',
  'is_llama_config',
  'neftune_noise_alpha',
  'pad_token_id',
  'pretraining_tp',
  'tokenizer_class',
  'torch_dtype',
  'transformers.js_config',
  'transformers_version',
  'unk_token_id',
  'unsloth_fixed',
  'unsloth_version',
  'use_cache',
}
_LLAMA3 = {
  'factor': 'factor',
  'low_freq_factor': 'low_freq_factor',
  'high_freq_factor': 'high_freq_factor',
  'original_max_position_embeddings': 'original_max_length',
}


def config_from_hf(d: Mapping[str, Any], source: object) -> model.ModelConfig:
  """Returns the config of a config.json; raises ValueError naming what is missing, wrong or unknown in it."""
  if d.get('model_type') not in _FAMILIES:
    raise ValueError(f'{source}: model_type = {d.get("model_type")!r} is not supported (only {", ".join(_FAMILIES)})')
  family = _FAMILIES[d['model_type']]
  given = {'tie_word_embeddings': False} | {key: value for key, value in d.items() if value is not None}
  if 'num_key_value_heads' in family.optional:
    given.setdefault('num_key_value_heads', given.get('num_attention_heads'))
  if 'head_dim' in family.optional and all(_is_a(given.get(key), int) for key in ('hidden_size', 'num_attention_heads')):
    given.setdefault('head_dim', given['hidden_size'] // given['num_attention_heads'])
  wrong = [f'{key} is missing' for key in _FIELDS if key not in given]
  for key, value in given.items():
    if key in _FIELDS and not _is_a(value, _FIELDS[key][1]):
      wrong.append(f'{key} = {value!r} is not of type {_FIELDS[key][1].__name__}')
    elif key in _FIXED and value != _FIXED[key]:
      wrong.append(f'{key} = {value!r} is not supported (only {_FIXED[key]!r})')
    elif key not in _FIELDS.keys() | _FIXED.keys() | _READ | _IGNORED:
      wrong.append(f'{key} = {value!r} is not known, and may change what the model computes; delete it if it does not')
  if wrong:
    raise ValueError(f'{source}: ' + '; '.join(wrong))
  theta, scaling = _rope(given, source)
  window = _sliding_window(d, source)
  try:
    return model.ModelConfig(
      family=d['model_type'],
      **{ours: kind(given[key]) for key, (ours, kind) in _FIELDS.items()},
      rope_theta=theta,
      rope_scaling=scaling,
      qkv_bias=family.qkv_bias,
      qk_norm=family.qk_norm,
      sliding_window=window,
    )
  except ValueError as error:
    raise ValueError(f'{source}: {error}') from None


def _is_a(value: Any, kind: type) -> bool:
  return type(value) in ((int, float) if kind is float else (kind,))


def _rope(given: Mapping[str, Any], source: object) -> tuple[float, layers.Llama3Rope | None]:
  """Returns theta and scaling. transformers 4 writes rope_theta and rope_scaling, 5 writes rope_parameters."""
  rope = {'rope_theta': given.get('rope_theta', 10000.0)} | given.get('rope_scaling', {}) | given.get('rope_parameters', {})
  old_name = rope.pop('type', 'default')
  kind = rope.pop('rope_type', old_name)
  if kind not in ('default', 'llama3'):
    raise ValueError(f'{source}: rope_type = {kind!r} is not supported (only default and llama3)')
  if rope.pop('partial_rotary_factor', 1.0) != 1.0:
    raise ValueError(f'{source}: a partial_rotary_factor is not supported (only 1.0)')
  names = {'rope_theta': 'rope_theta'} | (_LLAMA3 if kind == 'llama3' else {})
  wrong = [f'{key} = {rope.get(key)!r} is not a number' for key in names if not _is_a(rope.get(key), float)]
  wrong += [f'{key} = {value!r} is not known' for key, value in rope.items() if key not in names]
  if wrong:
    raise ValueError(f'{source}: in the rotary embedding of type {kind}: ' + '; '.join(wrong))
  theta = float(rope.pop('rope_theta'))
  return theta, layers.Llama3Rope(**{_LLAMA3[key]: value for key, value in rope.items()}) if rope else None


def _sliding_window(d: Mapping[str, Any], source: object) -> int | None:
  """Returns the window that every layer has. A mix of layers with and without one is not supported."""
  is_qwen, kinds, window = d['model_type'].startswith('qwen'), d.get('layer_types'), d.get('sliding_window')
  if window is not None and (d['model_type'] == 'llama' or not _is_a(window, int)):
    raise ValueError(f'{source}: sliding_window = {window!r} is not supported in a model_type {d["model_type"]}')
  if is_qwen and not d.get('use_sliding_window'):
    window = None
  elif 'sliding_window' not in d and d['model_type'] != 'llama':
    raise ValueError(f'{source}: sliding_window is missing (null means that there is none)')
  if is_qwen and window is not None:
    full = min(d.get('max_window_layers', 28), d['num_hidden_layers'])  # 28 is transformers' default
    kinds = kinds or ['full_attention'] * full + ['sliding_attention'] * (d['num_hidden_layers'] - full)
    window = window if 'sliding_attention' in kinds else None
  expected = 'full_attention' if window is None else 'sliding_attention'
  if kinds and set(kinds) != {expected}:
    raise ValueError(f'{source}: layers of the kinds {kinds} are not supported (only {expected} with this sliding_window)')
  return window


def config_to_hf(config: model.ModelConfig) -> dict[str, Any]:
  """Returns the config.json of this config, in the style of transformers 4, which 5 and vLLM read as well."""
  d = {
    'architectures': [_FAMILIES[config.family].architecture],
    'model_type': config.family,
    'hidden_act': 'silu',
    'attention_dropout': 0.0,
    'bos_token_id': None,  # The tokenizer's, in generation_config.json; transformers' default would be 1 and 2.
    'eos_token_id': None,
    'rope_theta': config.rope_theta,
    'rope_scaling': None,
    'torch_dtype': 'float32',
    'use_cache': True,
  }
  d |= {key: getattr(config, ours) for key, (ours, _) in _FIELDS.items()}
  if config.rope_scaling is not None:
    scaling = {key: getattr(config.rope_scaling, ours) for key, ours in _LLAMA3.items()}
    d['rope_scaling'] = {'rope_type': 'llama3'} | scaling
  if config.family != 'llama':
    d['sliding_window'] = config.sliding_window
  if config.family in ('qwen2', 'qwen3'):
    d['use_sliding_window'] = config.sliding_window is not None
    d['max_window_layers'] = config.num_layers if config.sliding_window is None else 0
  read_back = dataclasses.replace(config_from_hf(d, 'config.json'), dtype=config.dtype, remat=config.remat)
  if read_back != config:
    raise ValueError(f'a {config.family} of Hugging Face cannot be like this: {config} would be read as {read_back}')
  return d
