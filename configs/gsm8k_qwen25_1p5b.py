"""The setting of gsm8k_qwen25_0p5b.py with Qwen2.5-1.5B-Instruct.

PLAN
Command, after hf download Qwen/Qwen2.5-1.5B-Instruct --local-dir DIR:
imm run --config=configs/gsm8k_qwen25_1p5b.py --config.model.path=DIR --workdir=runs/gsm8k
"""

import gsm8k_qwen25_0p5b


def get_config(arg: str = 'qwen2.5-1.5b'):
  """Returns three rounds of the whole training set, four samples a question; arg: an architecture of configs/models."""
  return gsm8k_qwen25_0p5b.get_config(arg)
