"""The families of models: what their config.json may say, and the ModelConfig it stands for."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Family:
  """The properties that set a model_type apart."""

  architecture: str
  optional: tuple[str, ...] = ()  # Sizes that its config.json may leave out.
  windows: str = 'none'  # Which layers may have a sliding window: 'none', 'all', or 'some'.
  flags: dict[str, Any] = dataclasses.field(default_factory=dict)  # Fields of ModelConfig.
  fields: dict[str, tuple[str, type]] = dataclasses.field(default_factory=dict)  # Adds to FIELDS.
  fixed: dict[str, Any] = dataclasses.field(default_factory=dict)  # Overrides FIXED.
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
SCALAR = {'query_pre_attn_scalar': ('query_scalar', int)}
_LOGIT_SOFTCAP = {'final_logit_softcapping': ('logit_softcap', float)}
SOFTCAPS = {'attn_logit_softcapping': ('attention_softcap', float)} | _LOGIT_SOFTCAP

FAMILIES = {
  'llama': Family('LlamaForCausalLM', ('num_key_value_heads', 'head_dim')),
  'mistral': Family('MistralForCausalLM', ('head_dim',), windows='all'),
  'qwen2': Family('Qwen2ForCausalLM', ('head_dim',), windows='some', flags={'qkv_bias': True}),
  'qwen3': Family('Qwen3ForCausalLM', windows='some', flags={'qk_norm': 'head'}),
  'gemma2': Family(
    'Gemma2ForCausalLM',
    windows='some',
    flags=_GEMMA,
    fields=SCALAR | SOFTCAPS,
    fixed=_GELU,
    ties=True,
  ),
  'gemma3_text': Family(
      'Gemma3ForCausalLM', windows='some', flags=_GEMMA | {'qk_norm': 'head'},
      fields=SCALAR | _LOGIT_SOFTCAP,
      fixed=_GELU | {'attn_logit_softcapping': None}, ties=True, global_theta=1_000_000.0,
      has_local_theta=True,
  ),
  'olmo2': Family(
    'Olmo2ForCausalLM',
    ('num_key_value_heads', 'head_dim'),
    flags={'norms': 'after', 'qk_norm': 'all'},
  ),
  'phi3': Family('Phi3ForCausalLM', ('num_key_value_heads', 'head_dim'), windows='all'),
}  # fmt: skip

# The fields of config.json that are a field of ModelConfig, and their type.
FIELDS = {
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
FIXED = {
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
READ = {
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
IGNORED = {
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
LLAMA3 = {
  'factor': 'factor',
  'low_freq_factor': 'low_freq_factor',
  'high_freq_factor': 'high_freq_factor',
  'original_max_position_embeddings': 'original_max_length',
}
# rope_type -> its numbers and its lists, apart from rope_theta and partial_rotary_factor.
ROPES = {
  'default': ((), ()),
  'llama3': (tuple(LLAMA3), ()),
  'longrope': (('original_max_position_embeddings',), ('short_factor', 'long_factor')),
}
