"""Converts between config.json of the families in _FAMILIES and ModelConfig.

It reads the styles of transformers 4 and 5.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from imm_jax.models import layers
from imm_jax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class _Family:
  """The properties that set a model_type apart."""

  architecture: str
  optional: tuple[str, ...] = ()  # Sizes that its config.json may leave out.
  windows: str = 'none'  # Which layers may have a sliding window: 'none', 'all', or 'some'.
  flags: dict[str, Any] = dataclasses.field(default_factory=dict)  # Fields of ModelConfig.
  fields: dict[str, tuple[str, type]] = dataclasses.field(default_factory=dict)  # Adds to _FIELDS.
  fixed: dict[str, Any] = dataclasses.field(default_factory=dict)  # Overrides _FIXED.
  ties: bool = False  # Whether embeddings are tied if its config.json does not say.
  global_theta: float = 10000.0  # The rotary base if its config.json does not say.
  has_local_theta: bool = False


_GEMMA = {
  'activation': 'gelu_tanh',
  'norms': 'both',
  'norm_plus_one': True,
  'scale_embeddings': True,
}
_GELU = {
  'hidden_act': 'gelu_pytorch_tanh',
  'hidden_activation': 'gelu_pytorch_tanh',
  'use_bidirectional_attention': False,
}
_SCALAR = {'query_pre_attn_scalar': ('query_scalar', int)}
_LOGIT_SOFTCAP = {'final_logit_softcapping': ('logit_softcap', float)}
_SOFTCAPS = {'attn_logit_softcapping': ('attention_softcap', float)} | _LOGIT_SOFTCAP

_FAMILIES = {
  'llama': _Family('LlamaForCausalLM', ('num_key_value_heads', 'head_dim')),
  'mistral': _Family('MistralForCausalLM', ('head_dim',), windows='all'),
  'qwen2': _Family('Qwen2ForCausalLM', ('head_dim',), windows='some', flags={'qkv_bias': True}),
  'qwen3': _Family('Qwen3ForCausalLM', windows='some', flags={'qk_norm': 'head'}),
  'gemma2': _Family(
    'Gemma2ForCausalLM',
    windows='some',
    flags=_GEMMA,
    fields=_SCALAR | _SOFTCAPS,
    fixed=_GELU,
    ties=True,
  ),
  'gemma3_text': _Family(
      'Gemma3ForCausalLM', windows='some', flags=_GEMMA | {'qk_norm': 'head'},
      fields=_SCALAR | _LOGIT_SOFTCAP,
      fixed=_GELU | {'attn_logit_softcapping': None}, ties=True, global_theta=1_000_000.0,
      has_local_theta=True,
  ),
  'olmo2': _Family(
    'Olmo2ForCausalLM',
    ('num_key_value_heads', 'head_dim'),
    flags={'norms': 'after', 'qk_norm': 'all'},
  ),
  'phi3': _Family('Phi3ForCausalLM', ('num_key_value_heads', 'head_dim'), windows='all'),
}  # fmt: skip

# The fields of config.json that are a field of ModelConfig, and their type.
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
# The fields that must have this value if they are present.
_FIXED = {
  'attention_bias': False,
  'full_attn_mod': 1,
  'hidden_act': 'silu',
  'interpolate_factor': 1,
  'lm_head_bias': False,
  'mlp_bias': False,
  'qk_layernorm': False,
  'rope_interleaved': False,
  'use_mrope': False,
}
# The fields that _rope and _sliding_window read.
_READ = {
  '_sliding_window_pattern',
  'layer_types',
  'max_window_layers',
  'model_type',
  'partial_rotary_factor',
  'rope_local_base_freq',
  'rope_parameters',
  'rope_scaling',
  'rope_theta',
  'sliding_window',
  'sliding_window_pattern',
  'use_sliding_window',
}
# The fields that do not change the model's outputs.
_IGNORED = {
  '_attn_implementation_autoset',
  '_model_name_or_path',
  '_name_or_path',
  'architectures',
  'attention_dropout',
  'attn_implementation',
  'auto_map',
  'bos_token_id',
  'cache_implementation',
  'dtype',
  'embd_pdrop',
  'eos_token_id',
  'initializer_range',
  'is_llama_config',
  'neftune_noise_alpha',
  'original_max_position_embeddings',
  'pad_token_id',
  'pretraining_tp',
  'resid_pdrop',
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
# rope_type -> its numbers and its lists, apart from rope_theta and partial_rotary_factor.
_ROPES = {
  'default': ((), ()),
  'llama3': (tuple(_LLAMA3), ()),
  'longrope': (('original_max_position_embeddings',), ('short_factor', 'long_factor')),
}


def config_from_hf(d: Mapping[str, Any], source: object) -> ModelConfig:
  """Returns the config that a config.json describes.

  Raises ValueError naming the field that is missing, wrong or unknown.
  """
  if d.get('model_type') not in _FAMILIES:
    raise ValueError(
      f'{source}: model_type = {d.get("model_type")!r} is not supported (only'
      f' {", ".join(_FAMILIES)})'
    )
  family = _FAMILIES[d['model_type']]
  fields, fixed = _FIELDS | family.fields, _FIXED | family.fixed
  given = {'tie_word_embeddings': family.ties} | {
    key: value for key, value in d.items() if value is not None
  }
  if 'num_key_value_heads' in family.optional:
    given.setdefault('num_key_value_heads', given.get('num_attention_heads'))
  if 'head_dim' in family.optional and all(
    _is_a(given.get(key), int) for key in ('hidden_size', 'num_attention_heads')
  ):
    given.setdefault('head_dim', given['hidden_size'] // given['num_attention_heads'])
  wrong = [f'{key} is missing' for key in _FIELDS | _SCALAR if key in fields and key not in given]
  wrong += [
    f'{key} is missing (null means that there is none)'
    for key in _SOFTCAPS
    if key in fields and key not in d
  ]
  for key, value in given.items():
    if key in fields and not _is_a(value, fields[key][1]):
      wrong.append(f'{key} = {value!r} is not of type {fields[key][1].__name__}')
    elif key in fixed and value != fixed[key]:
      wrong.append(f'{key} = {value!r} is not supported (only {fixed[key]!r})')
    elif key not in fields.keys() | fixed.keys() | _READ | _IGNORED:
      wrong.append(
        f'{key} = {value!r} is not known, and may change what the model computes; delete it if it'
        ' does not'
      )
  if wrong:
    raise ValueError(f'{source}: ' + '; '.join(wrong))
  sizes = {ours: kind(given[key]) for key, (ours, kind) in fields.items() if key in given}
  rope, window = _rope(given, family, source), _sliding_window(d, family, source)
  if isinstance(rope['rope_scaling'], layers.LongRope):
    sizes['max_length'] = rope['rope_scaling'].original_max_length
  try:
    return ModelConfig(family=d['model_type'], **sizes, **family.flags, **rope, **window)
  except ValueError as error:
    raise ValueError(f'{source}: {error}') from None


def _is_a(value: Any, kind: type) -> bool:
  return type(value) in ((int, float) if kind is float else (kind,))


def _rope(given: Mapping[str, Any], family: _Family, source: object) -> dict[str, Any]:
  """Returns the fields of ModelConfig for the rotary embedding.

  transformers 4 writes rope_theta and rope_scaling, transformers 5 rope_parameters.
  """
  parameters, flags = given.get('rope_parameters', {}), {}
  if family.has_local_theta:  # parameters of full and of sliding attention
    local = {'rope_theta': given.get('rope_local_base_freq', 10000.0)} | parameters.get(
      'sliding_attention', {}
    )
    parameters = {key: value for key, value in parameters.items() if key != 'sliding_attention'}
    parameters |= parameters.pop('full_attention', {})
    flags = {
      f'local_{name}': value for name, value in _rope_parameters(local, given, source).items()
    }
    if flags.pop('local_rope_scaling') or flags.pop('local_rotary_fraction') != 1.0:
      raise ValueError(
        f'{source}: the rotary embedding of sliding attention has more than a theta: that is not'
        ' supported'
      )
  rope = {key: given[key] for key in ('rope_theta', 'partial_rotary_factor') if key in given}
  rope = {'rope_theta': family.global_theta} | rope | given.get('rope_scaling', {}) | parameters
  flags |= _rope_parameters(rope, given, source)
  is_long = isinstance(flags['rope_scaling'], layers.LongRope)
  if given['model_type'] != 'phi3' and (is_long or flags['rotary_fraction'] != 1.0):
    raise ValueError(
      f'{source}: longrope and partial_rotary_factor are not supported in a model_type'
      f' {given["model_type"]}'
    )
  return flags


def _rope_parameters(
  rope: dict[str, Any], given: Mapping[str, Any], source: object
) -> dict[str, Any]:
  """Returns the fields of ModelConfig for the parameters of one rotary embedding."""
  old_name = rope.pop('type', 'default')
  kind = rope.pop('rope_type', old_name)
  if kind not in _ROPES:
    raise ValueError(f'{source}: rope_type = {kind!r} is not supported (only {", ".join(_ROPES)})')
  numbers, lists = _ROPES[kind]
  rope = {key: given.get(key) for key in numbers} | {'partial_rotary_factor': 1.0} | rope
  numbers = ('rope_theta', 'partial_rotary_factor', *numbers)
  wrong = [
    f'{key} = {rope.get(key)!r} is not a number'
    for key in numbers
    if not _is_a(rope.get(key), float)
  ]
  size = 0 if wrong else int(given['head_dim'] * rope['partial_rotary_factor']) // 2
  for key in lists:
    x = rope.get(key)
    if not isinstance(x, list) or len(x) != size or not all(_is_a(value, float) for value in x):
      wrong.append(f'{key} is not a list of {size} numbers')
  wrong += [
    f'{key} = {value!r} is not known'
    for key, value in rope.items()
    if key not in (*numbers, *lists)
  ]
  if wrong:
    raise ValueError(f'{source}: in the rotary embedding of type {kind}: ' + '; '.join(wrong))
  scaling = None
  if kind == 'llama3':
    scaling = layers.Llama3Rope(**{ours: rope[key] for key, ours in _LLAMA3.items()})
  elif kind == 'longrope':
    short, long = (tuple(map(float, rope[key])) for key in lists)
    scaling = layers.LongRope(
      short, long, rope['original_max_position_embeddings'], given['max_position_embeddings']
    )
  return {
    'rope_theta': float(rope['rope_theta']),
    'rope_scaling': scaling,
    'rotary_fraction': float(rope['partial_rotary_factor']),
  }


def _sliding_window(d: Mapping[str, Any], family: _Family, source: object) -> dict[str, Any]:
  """Returns the window, and the layers that attend globally in spite of it."""
  is_qwen, num_layers, window = (
    d['model_type'].startswith('qwen'),
    d['num_hidden_layers'],
    d.get('sliding_window'),
  )
  if window is not None and (family.windows == 'none' or not _is_a(window, int)):
    raise ValueError(
      f'{source}: sliding_window = {window!r} is not supported in a model_type {d["model_type"]}'
    )
  if is_qwen and not d.get('use_sliding_window'):
    window = None
  elif 'sliding_window' not in d and family.windows != 'none':
    raise ValueError(f'{source}: sliding_window is missing (null means that there is none)')
  if window is None:
    full = range(num_layers)
  elif is_qwen:
    # 28 is transformers' default, and so are 2 and 6 below.
    full = range(min(d.get('max_window_layers', 28), num_layers))
  elif family.windows == 'some':
    period = (
      2
      if d['model_type'] == 'gemma2'
      else d.get('sliding_window_pattern', d.get('_sliding_window_pattern', 6))
    )
    full = range(period - 1, num_layers, period)
  else:
    full = ()
  kinds = d.get('layer_types') or [
    'full_attention' if i in full else 'sliding_attention' for i in range(num_layers)
  ]
  full = tuple(layer for layer, kind in enumerate(kinds) if kind == 'full_attention')
  supported = {
    'none': (num_layers,),
    'all': (0 if window else num_layers,),
    'some': range(num_layers + 1),
  }[family.windows]
  num_sliding = kinds.count('sliding_attention')
  if (
    len(full) + num_sliding != num_layers
    or len(full) not in supported
    or num_sliding
    and window is None
  ):
    raise ValueError(
      f'{source}: layers of the kinds {kinds} are not supported with num_hidden_layers ='
      f' {num_layers}, sliding_window = {window} and model_type {d["model_type"]}'
    )
  return {'sliding_window': window, 'global_layers': full} if num_sliding else {}


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
  """Returns the config.json of this config, in the style of transformers 4.

  transformers 5 and vLLM read that style too.
  """
  d = {
    'architectures': [_FAMILIES[config.family].architecture],
    'model_type': config.family,
    'hidden_act': 'silu',
    'attention_dropout': 0.0,
    # None because the tokenizer's ids are in generation_config.json; transformers' defaults would
    # be 1 and 2.
    'bos_token_id': None,
    'eos_token_id': None,
    'pad_token_id': None,
    'rope_theta': config.rope_theta,
    'rope_scaling': None,
    'torch_dtype': 'float32',
    'use_cache': True,
  }
  family = _FAMILIES[config.family]
  d |= {
    **family.fixed,
    **{key: getattr(config, ours) for key, (ours, _) in (_FIELDS | family.fields).items()},
  }
  scaling = config.rope_scaling
  if isinstance(scaling, layers.Llama3Rope):
    d['rope_scaling'] = {'rope_type': 'llama3'} | {
      key: getattr(scaling, ours) for key, ours in _LLAMA3.items()
    }
  elif scaling is not None:
    factors = {'short_factor': list(scaling.short_factor), 'long_factor': list(scaling.long_factor)}
    d |= {'rope_scaling': {'rope_type': 'longrope', 'type': 'longrope'} | factors}
    d |= {
      'max_position_embeddings': scaling.max_length,
      'original_max_position_embeddings': scaling.original_max_length,
    }
  if config.rotary_fraction != 1.0:
    d['partial_rotary_factor'] = config.rotary_fraction
  if family.has_local_theta:
    d['rope_local_base_freq'] = config.local_rope_theta
  if family.windows != 'none':
    d['sliding_window'] = config.sliding_window
  if family.windows == 'some':
    full = range(config.num_layers) if config.sliding_window is None else config.global_layers
    d['layer_types'] = [
      'full_attention' if i in full else 'sliding_attention' for i in range(config.num_layers)
    ]
  if config.family in ('qwen2', 'qwen3'):
    d['use_sliding_window'] = config.sliding_window is not None
    d['max_window_layers'] = (
      config.num_layers if config.sliding_window is None else len(config.global_layers)
    )
  read_back = dataclasses.replace(
      config_from_hf(d, 'config.json'),
      dtype=config.dtype,
      remat=config.remat,
      attention=config.attention,
  )  # fmt: skip
  if read_back != config:
    raise ValueError(
      f'a {config.family} of Hugging Face cannot be like this: {config} would be read as'
      f' {read_back}'
    )
  return d
