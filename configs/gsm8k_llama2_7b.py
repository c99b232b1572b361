"""Llama-2-7B, a base model, improves itself on GSM8K behind four solved examples; SVAMP and ARC are out of domain.

PLAN
Command, after hf download meta-llama/Llama-2-7b-hf --local-dir DIR:
imm run --config=configs/gsm8k_llama2_7b.py --config.model.path=DIR --workdir=runs/gsm8k
"""

import common
import gsm8k_qwen25_0p5b


def get_config(arg: str = 'llama2-7b'):
  """Returns three rounds of the whole training set, four samples a question; arg: an architecture of configs/models."""
  config = gsm8k_qwen25_0p5b.get_config(arg)
  config.tasks.id.gsm8k = common.dataset('gsm8k', test_size=0)  # in plain text: it has no chat template
  config.tasks.ood.svamp = common.dataset('svamp', test_size=0)
  return config
