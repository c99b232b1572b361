"""The paper's setting: Qwen2.5-0.5B-Instruct improves itself on GSM8K; SVAMP and ARC are out of domain.

Result: not run yet. Hardware: a v5e-16 slice, or a GPU of 24 GB. Command, after hf download Qwen/Qwen2.5-0.5B-Instruct:
imm run --config=configs/gsm8k_qwen25_0p5b.py --config.model.path=DIR --workdir=runs/gsm8k
Without the weights: imm plan --config=configs/gsm8k_qwen25_0p5b.py --topology=v5e:4x4
"""

import pathlib

import common

MODELS = pathlib.Path(__file__).parent / 'models'  # config.json only, for imm plan


def get_config(arg: str = 'qwen2.5-0.5b'):
  """Returns three rounds of the whole training set, four samples a question; arg: an architecture of configs/models."""
  chat = {'format': 'chat', 'test_size': 0, 'max_new_tokens': 512}
  return common.config(
    num_rounds=3,
    model={'path': str(MODELS / arg), 'dtype': 'bfloat16', 'remat': 'full'},
    tasks={
      'id': {'gsm8k': common.dataset('gsm8k', **chat)},
      'ood': {'svamp': common.dataset('svamp', **chat), 'arc_challenge': common.dataset('arc_challenge', test_size=0)},
    },
    synthesize={'num_questions': 7473},
    sampler={'num_samples_per_prompt': 4, 'num_slots': 256},
    finetune={'num_epochs': 3, 'batch_size': 16, 'max_length': 2048},
    optimizer={'learning_rate': 2e-5},
    evaluate={'tuned': True},
  )
