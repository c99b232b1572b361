"""Llama-2-7B, a base model, improves itself on GSM8K with four-shot prompts.

SVAMP and ARC are out of domain.

Result: not run yet. Hardware: v5e:4x4, 16 chips of 15.75 GiB. Memory per chip: 10.00 GiB to
fine-tune, 10.79 to decode, and in addition 1.57 for each of original and round in float32. Time:
three rounds take at most 4.5 h, 72 chip-hours, if every completion has 256 tokens and a row of its
own; evaluation and compilation come on top. Cost: 86 $ at 1.20 $ per chip-hour, Google's list price
in us-central, checked against no live page.

These are estimates of the TPU compiler (libtpu 0.0.42.1) that no hardware has confirmed:

  imm plan --config=configs/gsm8k_llama2_7b.py --topology=v5e:4x4 --prompt_tokens=1024 \\
    --new_tokens=256

Commands:

  hf download meta-llama/Llama-2-7b-hf --local-dir DIR
  imm run --config=configs/gsm8k_llama2_7b.py --config.model.path=DIR --workdir=runs/gsm8k
"""

import common
import gsm8k_qwen25_0p5b


def get_config(arg: str = 'llama2-7b'):
  """Returns three rounds of the whole training set, four samples per question.

  arg: an architecture of configs/models.
  """
  config = gsm8k_qwen25_0p5b.get_config(arg)
  # It has no chat template
  plain = {name: common.dataset(name, test_size=0) for name in ('gsm8k', 'svamp')}
  config.update({'tasks': {'id': {'gsm8k': plain['gsm8k']}, 'ood': {'svamp': plain['svamp']}}})
  return config
