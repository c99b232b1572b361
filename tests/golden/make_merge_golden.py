"""Writes golden/merge: tiny random models, recipes, and what mergekit 0.1.5 makes of them. Needs mergekit and torch.

python tests/golden/make_merge_golden.py
"""

import json
import os
import pathlib
import shutil
import tempfile

from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
import numpy as np
import safetensors.numpy
import yaml

OUT = pathlib.Path(__file__).parent / 'merge'
CONFIG = {
  'architectures': ['LlamaForCausalLM'], 'model_type': 'llama', 'hidden_size': 16, 'intermediate_size': 24,
  'num_hidden_layers': 3, 'num_attention_heads': 2, 'num_key_value_heads': 1, 'head_dim': 8, 'vocab_size': 32,
  'max_position_embeddings': 64, 'rms_norm_eps': 1e-5, 'rope_theta': 10000.0, 'hidden_act': 'silu',
  'tie_word_embeddings': False, 'torch_dtype': 'float32', 'bos_token_id': 1, 'eos_token_id': 2,
}  # fmt: skip

RECIPES = """
linear_not_normalized:
  merge_method: linear
  models:
  - {model: a, parameters: {weight: 0.7}}
  - {model: b, parameters: {weight: 0.6}}
  parameters: {normalize: false}
linear_gradient_and_filter:
  merge_method: linear
  models:
  - {model: base, parameters: {weight: [{filter: mlp, value: [0.0, 0.4, 1.0]}, {filter: norm, value: 0.9}, {value: 0.3}]}}
  - {model: a, parameters: {weight: [0.2, 0.8]}}
  - {model: b}
  parameters: {weight: 0.5}
linear_slices:
  merge_method: linear
  slices:
  - sources:
    - {model: base, layer_range: [0, 1], parameters: {weight: 0.1}}
    - {model: a, layer_range: [0, 1], parameters: {weight: 0.5}}
  - sources:
    - {model: base, layer_range: [1, 3], parameters: {weight: [0.25, 0.9]}}
    - {model: b, layer_range: [1, 3], parameters: {weight: 0.75}}
linear_bfloat16:
  merge_method: linear
  models:
  - {model: base, parameters: {weight: 0.5}}
  - {model: a, parameters: {weight: 0.5}}
  dtype: float32
  out_dtype: bfloat16
slerp_gradients:
  merge_method: slerp
  base_model: base
  models: [{model: base}, {model: b}]
  parameters:
    t: [{filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}, {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}, {value: 0.5}]
nuslerp_no_base:
  merge_method: nuslerp
  models: [{model: a, parameters: {weight: 0.2}}, {model: b, parameters: {weight: 0.6}}]
nuslerp_rows:
  merge_method: nuslerp
  base_model: base
  models: [{model: a, parameters: {weight: 0.2}}, {model: b, parameters: {weight: 0.6}}]
  parameters: {nuslerp_flatten: false, nuslerp_row_wise: true}
nuslerp_columns:
  merge_method: nuslerp
  base_model: base
  models: [{model: a, parameters: {weight: 0.2}}, {model: b, parameters: {weight: 0.6}}]
  parameters: {nuslerp_flatten: false}
multislerp:
  merge_method: multislerp
  models:
  - {model: base, parameters: {weight: 0.5}}
  - {model: a, parameters: {weight: 0.2}}
  - {model: b, parameters: {weight: 0.6}}
multislerp_base:
  merge_method: multislerp
  base_model: base
  models: [{model: a, parameters: {weight: 0.3}}, {model: b, parameters: {weight: 0.7}}]
ties_lambda_gradient:
  merge_method: ties
  base_model: base
  models:
  - {model: a, parameters: {weight: 0.7, density: [0.2, 0.9]}}
  - {model: b, parameters: {weight: 0.4}}
  - {model: base}
  parameters: {lambda: 0.6, normalize: false, density: 0.35, int8_mask: true}
breadcrumbs_ties:
  merge_method: breadcrumbs_ties
  base_model: base
  models:
  - {model: a, parameters: {weight: 0.7, density: 0.6, gamma: 0.05}}
  - {model: b, parameters: {weight: 0.4, density: 0.9}}
sce_topk:
  merge_method: sce
  base_model: base
  models: [{model: a}, {model: b}]
  parameters: {select_topk: 0.4}
model_stock_filter_wise:
  merge_method: model_stock
  base_model: base
  models: [{model: a}, {model: b}, {model: c}]
  parameters: {filter_wise: true}
karcher_three:
  merge_method: karcher
  models: [{model: a}, {model: b}, {model: c}]
  parameters: {max_iter: 6, tol: 0.0}
task_arithmetic_normalized:
  merge_method: task_arithmetic
  base_model: base
  models:
  - {model: a, parameters: {weight: 0.7}}
  - {model: b, parameters: {weight: [0.1, 0.5]}}
  - {model: c, parameters: {weight: 0.2}}
  parameters: {normalize: true, lambda: 0.9}
"""


def models():
  """Returns base and three models that moved 0.02, 0.2 and 0.1 of its size."""
  rng = np.random.default_rng(0)
  c = CONFIG
  heads, kv = c['num_attention_heads'] * c['head_dim'], c['num_key_value_heads'] * c['head_dim']
  d, f = c['hidden_size'], c['intermediate_size']
  shapes = {'model.embed_tokens.weight': (c['vocab_size'], d), 'lm_head.weight': (c['vocab_size'], d)}
  shapes['model.norm.weight'] = (d,)
  for layer in range(c['num_hidden_layers']):
    parts = {
      'self_attn.q_proj': (heads, d), 'self_attn.k_proj': (kv, d), 'self_attn.v_proj': (kv, d),
      'self_attn.o_proj': (d, heads), 'mlp.gate_proj': (f, d), 'mlp.up_proj': (f, d), 'mlp.down_proj': (d, f),
      'input_layernorm': (d,), 'post_attention_layernorm': (d,),
    }  # fmt: skip
    shapes |= {f'model.layers.{layer}.{name}.weight': shape for name, shape in parts.items()}
  noise = lambda: {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}  # noqa: E731
  base = {name: x + (1 if 'norm' in name else 0) for name, x in noise().items()}
  moved = {'base': base}
  for name, size in (('a', 0.02), ('b', 0.2), ('c', 0.1)):
    moved[name] = {key: (base[key] + np.float32(size) * x).astype(np.float32) for key, x in noise().items()}
  return moved


def main():
  """Writes the models, the recipes and mergekit's results."""
  shutil.rmtree(OUT, ignore_errors=True)
  OUT.mkdir()
  recipes = yaml.safe_load(RECIPES)
  with tempfile.TemporaryDirectory() as temporary:
    os.chdir(temporary)
    for name, tensors in models().items():
      pathlib.Path(name).mkdir()
      safetensors.numpy.save_file(tensors, f'{name}/model.safetensors', metadata={'format': 'pt'})
      pathlib.Path(name, 'config.json').write_text(json.dumps(CONFIG))
      shutil.copy(f'{name}/model.safetensors', OUT / f'input_{name}.safetensors')
    for name, recipe in recipes.items():
      config = MergeConfiguration.model_validate(recipe)
      run_merge(config, f'out_{name}', MergeOptions(cuda=False, copy_tokenizer=False, write_model_card=False))
      shutil.copy(f'out_{name}/model.safetensors', OUT / f'{name}.safetensors')
  (OUT / 'config.json').write_text(json.dumps(CONFIG, indent=1) + '\n')
  (OUT / 'recipes.yml').write_text(RECIPES.lstrip())


if __name__ == '__main__':
  main()
