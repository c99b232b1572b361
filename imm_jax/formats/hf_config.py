"""Converts between config.json of the families in families.py and ModelConfig.

It reads the styles of transformers 4 and 5.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from imm_jax.formats import families
from imm_jax.models import layers
from imm_jax.models.config import ModelConfig


def config_from_hf(d: Mapping[str, Any], source: object) -> ModelConfig:
  """Returns the config that a config.json describes.

  Raises ValueError naming the field that is missing, wrong or unknown.
  """
  if d.get('model_type') not in families.FAMILIES:
    raise ValueError(
      f'{source}: model_type = {d.get("model_type")!r} is not supported (only'
      f' {", ".join(families.FAMILIES)})'
    )
  family = families.FAMILIES[d['model_type']]
  given = _with_defaults(d, family)
  if wrong := _mistakes(d, given, family):
    raise ValueError(f'{source}: ' + '; '.join(wrong))
  fields = families.FIELDS | family.fields
  sizes = {ours: kind(given[key]) for key, (ours, kind) in fields.items() if key in given}
  rope = _rope(given, family, source)
  window = _sliding_window(d, family, source)
  if isinstance(rope['rope_scaling'], layers.LongRope):
    sizes['max_length'] = rope['rope_scaling'].original_max_length
  try:
    return ModelConfig(family=d['model_type'], **sizes, **family.flags, **rope, **window)
  except ValueError as error:
    raise ValueError(f'{source}: {error}') from None


def _with_defaults(d: Mapping[str, Any], family: families.Family) -> dict[str, Any]:
  """Returns the fields that are not null, with those that the family lets a file leave out."""
  given: dict[str, Any] = {'tie_word_embeddings': family.ties}
  given |= {key: value for key, value in d.items() if value is not None}
  if 'num_key_value_heads' in family.optional:
    given.setdefault('num_key_value_heads', given.get('num_attention_heads'))
  sizes = ('hidden_size', 'num_attention_heads')
  if 'head_dim' in family.optional and all(_is_a(given.get(key), int) for key in sizes):
    given.setdefault('head_dim', given['hidden_size'] // given['num_attention_heads'])
  return given


def _mistakes(d: Mapping[str, Any], given: Mapping[str, Any], family: families.Family) -> list[str]:
  """Returns what is wrong with the fields, a phrase for each that is missing, wrong or unknown."""
  fields, fixed = families.FIELDS | family.fields, families.FIXED | family.fixed
  required = [key for key in families.FIELDS | families.SCALAR if key in fields]
  wrong = [f'{key} is missing' for key in required if key not in given]
  wrong += [
    f'{key} is missing (null means that there is none)'
    for key in families.SOFTCAPS
    if key in fields and key not in d
  ]
  known = fields.keys() | fixed.keys() | families.READ | families.IGNORED
  for key, value in given.items():
    if key in fields and not _is_a(value, fields[key][1]):
      wrong.append(f'{key} = {value!r} is not of type {fields[key][1].__name__}')
    elif key in fixed and value != fixed[key]:
      wrong.append(f'{key} = {value!r} is not supported (only {fixed[key]!r})')
    elif key not in known:
      wrong.append(
        f'{key} = {value!r} is not known, and may change what the model computes; delete it if it'
        ' does not'
      )
  return wrong


def _is_a(value: Any, kind: type) -> bool:
  return type(value) in ((int, float) if kind is float else (kind,))


def _rope(given: Mapping[str, Any], family: families.Family, source: object) -> dict[str, Any]:
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
  if kind not in families.ROPES:
    known = ', '.join(families.ROPES)
    raise ValueError(f'{source}: rope_type = {kind!r} is not supported (only {known})')
  numbers, lists = families.ROPES[kind]
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
    scaling = layers.Llama3Rope(**{ours: rope[key] for key, ours in families.LLAMA3.items()})
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


def _sliding_window(
  d: Mapping[str, Any], family: families.Family, source: object
) -> dict[str, Any]:
  """Returns the window, and the layers that attend globally in spite of it."""
  is_qwen = d['model_type'].startswith('qwen')
  num_layers, window = d['num_hidden_layers'], d.get('sliding_window')
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
  known = len(full) + num_sliding == num_layers and len(full) in supported
  if not known or (num_sliding and window is None):
    raise ValueError(
      f'{source}: layers of the kinds {kinds} are not supported with num_hidden_layers ='
      f' {num_layers}, sliding_window = {window} and model_type {d["model_type"]}'
    )
  return {'sliding_window': window, 'global_layers': full} if num_sliding else {}


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
  """Returns the config.json of this config, in the style of transformers 4.

  transformers 5 and vLLM read that style too.
  """
  family = families.FAMILIES[config.family]
  fields = families.FIELDS | family.fields
  d = {
    'architectures': [family.architecture],
    'model_type': config.family,
    'hidden_act': 'silu',
    'attention_dropout': 0.0,
    # None because the tokenizer's ids are in generation_config.json; transformers' defaults would
    # be 1 and 2.
    'bos_token_id': None,
    'eos_token_id': None,
    'pad_token_id': None,
    'torch_dtype': 'float32',
    'use_cache': True,
    **family.fixed,
    **{key: getattr(config, ours) for key, (ours, _) in fields.items()},
  }
  d |= _rope_to_hf(config) | _sliding_window_to_hf(config)
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


def _rope_to_hf(config: ModelConfig) -> dict[str, Any]:
  """Returns the fields of config.json for the rotary embedding."""
  d: dict[str, Any] = {'rope_theta': config.rope_theta, 'rope_scaling': None}
  scaling = config.rope_scaling
  if isinstance(scaling, layers.Llama3Rope):
    numbers = {key: getattr(scaling, ours) for key, ours in families.LLAMA3.items()}
    d['rope_scaling'] = {'rope_type': 'llama3'} | numbers
  elif scaling is not None:
    d['rope_scaling'] = {
      'rope_type': 'longrope',
      'type': 'longrope',
      'short_factor': list(scaling.short_factor),
      'long_factor': list(scaling.long_factor),
    }
    d['max_position_embeddings'] = scaling.max_length
    d['original_max_position_embeddings'] = scaling.original_max_length
  if config.rotary_fraction != 1.0:
    d['partial_rotary_factor'] = config.rotary_fraction
  if families.FAMILIES[config.family].has_local_theta:
    d['rope_local_base_freq'] = config.local_rope_theta
  return d


def _sliding_window_to_hf(config: ModelConfig) -> dict[str, Any]:
  """Returns the fields of config.json for the window, and the layers that have it."""
  windows = families.FAMILIES[config.family].windows
  if windows == 'none':
    return {}
  d: dict[str, Any] = {'sliding_window': config.sliding_window}
  full = config.global_layers
  if config.sliding_window is None:
    full = range(config.num_layers)
  if windows == 'some':
    kinds = ('sliding_attention', 'full_attention')
    d['layer_types'] = [kinds[layer in full] for layer in range(config.num_layers)]
  if config.family in ('qwen2', 'qwen3'):
    d['use_sliding_window'] = config.sliding_window is not None
    d['max_window_layers'] = len(full)
  return d
