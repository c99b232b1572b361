"""Runs every switch of the loop in seconds: a tiny model on tasks made in code.

The model has two layers and random weights.

Result: none of interest, as the model starts from noise. Hardware: a laptop CPU, under a minute.
Command: imm run --config=configs/tiny.py --workdir=runs/tiny
"""

import common

from imm_jax.tasks.synthetic import CHARACTERS

RANDOM = {
  'seed': 0,
  'characters': CHARACTERS,  # one token each, and an end token
  'num_layers': 2,
  'embed_dim': 64,
  'mlp_dim': 128,
  'num_heads': 8,
  'num_kv_heads': 8,
  'head_dim': 8,
  'max_length': 64,  # tokens
}


def get_config(arg: str = ''):
  """Returns two rounds on sums of digits, with comparisons out of domain."""
  del arg
  return common.config(
    model={'random': RANDOM},
    tasks={
      'id': {'sum': common.synthetic('sum')},
      'ood': {'max': common.synthetic('max'), 'min': common.synthetic('min')},
    },
    sampler={'num_samples_per_prompt': 16, 'temperature': 1.0},
    finetune={'max_length': 32, 'batch_size': 8},
    optimizer={'learning_rate': 1e-3},
    evaluate={'tuned': True},
  )
