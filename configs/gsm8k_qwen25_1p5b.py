"""The setting of gsm8k_qwen25_0p5b.py with Qwen2.5-1.5B-Instruct.

Result: not run yet. Hardware: v5e:2x4, 8 chips of 15.75 GiB. Memory per chip: 5.75 GiB to
fine-tune, 1.78 to decode, and in addition 0.72 for each of original and round in float32. Time:
three rounds take at most 2.5 h, 20 chip-hours, if every completion has 512 tokens and a row of its
own; evaluation and compilation come on top. Cost: 24 $ at 1.20 $ per chip-hour, Google's list price
in us-central, checked against no live page.

These are estimates of the TPU compiler (libtpu 0.0.42.1) that no hardware has confirmed:

  imm plan --config=configs/gsm8k_qwen25_1p5b.py --topology=v5e:2x4

Commands:

  hf download Qwen/Qwen2.5-1.5B-Instruct --local-dir DIR
  imm run --config=configs/gsm8k_qwen25_1p5b.py --config.model.path=DIR --workdir=runs/gsm8k
"""

import gsm8k_qwen25_0p5b


def get_config(arg: str = 'qwen2.5-1.5b'):
  """Returns three rounds of the whole training set, four samples per question.

  arg: an architecture of configs/models.
  """
  return gsm8k_qwen25_0p5b.get_config(arg)
