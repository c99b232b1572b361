"""A controlled comparison in minutes: gains in domain, losses out of domain, and how to limit them.

A model of 1.1M parameters, one token per character, first learns seven families of questions on the
digits of two numbers from their solutions, to be half-competent at each (the arm `base`). The other
arms continue from there: in each round the model answers questions of one family, `sum`, none of
which the base has seen, and trains on its right answers. The six others are out of domain.

Expected: docs/results.md; vanilla ends 32 points above the base in domain and 17 below out of it,
imm 18 above and 1 below.
Hardware: 2 CPU cores, 1 GB. Minutes: 2 for the base and 1 for most arms, per seed.
Command: make testbed, or

  python -m launch.study --config=configs/testbed.py --base=base --arms=vanilla,imm \\
    --seeds=0,1,2,3,4 --workdir=runs/testbed
"""

import common

from imm_jax.tasks.synthetic import CHARACTERS

RANDOM = {
  'seed': 0,
  'characters': CHARACTERS,
  'num_layers': 6,
  'embed_dim': 128,
  'mlp_dim': 320,
  'num_heads': 4,
  'num_kv_heads': 4,
  'head_dim': 32,
  'max_length': 64,
}

NUM_ROUNDS = 4

# operation: digits of a number, questions that the base learns from.
FAMILIES = {
  'sum': (2, 1200),
  'diff': (2, 2600),
  'digit_sum': (2, 300),
  'max': (3, 550),
  'min': (3, 550),
  'reverse': (3, 280),
  'sort': (3, 280),
}

ARMS = {
  'base': {
    'num_rounds': 1,
    'synthesize.real_fraction': 1.0,
    'finetune.batch_size': 32,
    'finetune.num_epochs': 12,
    'optimizer.learning_rate': 2e-3,
    'merge.alpha': 1.0,
  },
  'vanilla': {'merge.alpha': 1.0},  # plain self-improvement
  # IMM on samples of vanilla's last round.
  'distill': {'synthesize.teacher': f'{{workdir}}/vanilla/seed{{seed}}@{NUM_ROUNDS}'},
  'imm': {},
  'imm_70': {'merge.alpha': 0.7},  # to set beside search, which drifts farther than imm
  'dare': {'merge.method': 'dare'},
  'lines': {'merge.method': 'lines', 'merge.alpha': 0.0},  # as near to the base as it can be
  'layer_adaptive': {'merge.rule': 'layer_adaptive'},
  'layer_adaptive_shuffled': {'merge.rule': 'layer_adaptive_shuffled'},
  'search': {'merge.rule': 'search', 'merge.search_eps': 0.02},
  'single_merge': {
    'merge.alpha': {'schedule': 'step', 'start': 1.0, 'end': 0.5, 'rounds': NUM_ROUNDS}
  },
  # Both drift as far as imm. early_stop reaches that drift some 15 steps into round 1, and takes no
  # step afterwards.
  'early_stop': {'merge.alpha': 1.0, 'finetune.max_drift': 0.017},
  'low_lr': {'merge.alpha': 1.0, 'optimizer.learning_rate': 9e-5},
  'real': {'merge.alpha': 1.0, 'synthesize.real_fraction': 1.0},  # fine-tuning on solutions
  'real_10': {'synthesize.real_fraction': 0.1},
  'real_25': {'synthesize.real_fraction': 0.25},
  'real_50': {'synthesize.real_fraction': 0.5},
  'accumulate': {'synthesize.data': 'accumulate'},
  'official': {  # greedy samples, three equal ones a question, as the authors' scripts have it
    'sampler.temperature': 0.0,
    'sampler.num_samples_per_prompt': 3,
    'synthesize.max_accepted_per_question': 3,
    'synthesize.deduplicate': False,
  },
}


def task(operation: str, first_pair: int = 0, train_size: int = 0, test_size: int = 500) -> dict:
  """Returns a task of a family, by default with the questions that the base learns from."""
  num_digits, num_train = FAMILIES[operation]
  return common.synthetic(
    operation,
    num_digits=num_digits,
    num_pairs=(train_size or num_train) + test_size,
    first_pair=first_pair,
    test_size=test_size,
    max_new_tokens=2 * num_digits + 1,  # all digits, reversed or sorted, and what ends them
  )


def get_config(arg: str = 'imm'):
  """Returns the config of an arm."""
  if arg not in ARMS:
    raise ValueError(f'{arg!r} is no arm; the arms are {", ".join(ARMS)}')
  # These questions come after those of the base.
  in_domain = {'sum': task('sum', first_pair=2500, train_size=2000, test_size=1000)}
  others = [operation for operation in FAMILIES if operation != 'sum']
  c = common.config(
    num_rounds=NUM_ROUNDS,
    model={'random': RANDOM, 'remat': 'none'},
    tasks={
      'id': in_domain,
      'ood': {operation: task(operation) for operation in others},
      # For 'search': questions after those above.
      'dev': {'sum_dev': task('sum', first_pair=9000, train_size=1, test_size=300)},
      'probe': {
        f'{operation}_probe': task(operation, first_pair=9000, train_size=1, test_size=100)
        for operation in others
      },
    },
    synthesize={'questions_per_chunk': 2000},
    sampler={'num_samples_per_prompt': 4, 'temperature': 1.0, 'num_slots': 256},
    finetune={'max_length': 64, 'batch_size': 16, 'num_epochs': 4},
    optimizer={'learning_rate': 5e-4},
    checkpoint={'every_steps': 0},
  )
  with c.ignore_type():
    c.update_from_flattened_dict(ARMS[arg] | {'model.random.seed': c.get_ref('seed')})
  if arg == 'base':
    c.tasks = {
      'id': {operation: task(operation) for operation in FAMILIES},
      'ood': {},
      'dev': {},
      'probe': {},
    }
  return c
