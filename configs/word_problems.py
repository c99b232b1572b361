"""Word problems with a numeric answer, from files or the hub.

Use FILE:svamp, FILE:mawps, FILE:gsm8k or FILE:math.

Result: depends on the model; 135M parameters are too few for these. Hardware: any; a GPU for models
of 0.5B and more. Command:

  imm run --config=configs/word_problems.py:svamp --config.model.path=MODEL --workdir=runs/svamp

With one local file, of which 200 rows are held out, add:

  --config.tasks.id.svamp.train_source=SVAMP.json --config.tasks.id.svamp.test_source=
"""

import common

DATASETS = ('svamp', 'mawps', 'gsm8k', 'math')


def get_config(arg: str = 'svamp'):
  """Returns three rounds on the data set that `arg` names, with short arithmetic out of domain."""
  if arg not in DATASETS:
    raise ValueError(f'configs/word_problems.py:{arg}: the data sets are {", ".join(DATASETS)}')
  sums = {'min_terms': 2, 'max_terms': 2, 'min_digits': 1, 'max_digits': 2}
  return common.config(
    num_rounds=3,
    # Rows are computed whole, however little is in them.
    finetune={'max_length': {'gsm8k': 512, 'math': 1024}.get(arg, 128)},
    tasks={
      'id': {arg: common.dataset(arg)},
      'ood': {'chain_sum': common.reasoning_gym('chain_sum', sums)},
    },
    evaluate={'tuned': True},
  )
