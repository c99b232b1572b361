"""The paper's setting: Qwen2.5-0.5B-Instruct improves itself on GSM8K.

SVAMP and ARC are out of domain.

Result: not run yet. Hardware: v5e:2x4, 8 chips of 15.75 GiB. Memory per chip: 2.43 GiB to
fine-tune, 0.86 to decode, and in addition 0.23 for each of original and round in float32. Time:
three rounds take at most 1.1 h, 9 chip-hours, if every completion has 512 tokens and a row of its
own; evaluation and compilation come on top. Cost: 11 $ at 1.20 $ per chip-hour, Google's list price
in us-central, checked against no live page.

These are estimates of the TPU compiler (libtpu 0.0.42.1) that no hardware has confirmed:

  imm plan --config=configs/gsm8k_qwen25_0p5b.py --topology=v5e:2x4

Or a GPU: params, their gradient and moments are 10 GB, activations come on top; 24 GB should do
(not tried).

Commands:

  hf download Qwen/Qwen2.5-0.5B-Instruct --local-dir DIR
  imm run --config=configs/gsm8k_qwen25_0p5b.py --config.model.path=DIR --workdir=runs/gsm8k

The model, data set, learning rate and epochs are those of the paper's authors' scripts. The
sampling is ours, at 0.7 from a chat prompt; for theirs see docs/configs.md, "Baselines".
"""

import pathlib

import common

MODELS = pathlib.Path(__file__).parent / 'models'  # config.json only, for imm plan


def get_config(arg: str = 'qwen2.5-0.5b'):
  """Returns three rounds of the whole training set, four samples per question.

  arg: an architecture of configs/models.
  """
  chat = {'format': 'chat', 'test_size': 0, 'max_new_tokens': 512}
  return common.config(
    num_rounds=3,
    model={'path': str(MODELS / arg), 'dtype': 'bfloat16', 'remat': 'full'},
    tasks={
      'id': {'gsm8k': common.dataset('gsm8k', **chat)},
      'ood': {
        'svamp': common.dataset('svamp', **chat),
        'arc_challenge': common.dataset('arc_challenge', test_size=0),
      },
    },
    synthesize={'num_questions': 7473},
    sampler={'num_samples_per_prompt': 4, 'num_slots': 256},
    finetune={'num_epochs': 3, 'batch_size': 16, 'max_length': 2048},
    optimizer={'learning_rate': 2e-5},
    evaluate={'tuned': True},
  )
