"""Word problems with a numeric answer, from files or the hub: FILE:svamp, FILE:mawps or FILE:gsm8k.

Result: depends on the model; 135M parameters are too few for these. Hardware: any; a GPU for models of 0.5B and more.
Command: imm run --config=configs/word_problems.py:svamp --config.model.path=MODEL --workdir=runs/svamp
With one local file, of which 200 rows are held out: --config.tasks.id.svamp.train_source=SVAMP.json
--config.tasks.id.svamp.test_source=
"""

import common

# Where the hub has each; a local file replaces it by --config.tasks.id.NAME.train_source=FILE.
SOURCES = {
  'svamp': {'train_source': 'ChilleD/SVAMP::train', 'test_source': 'ChilleD/SVAMP::test'},
  'mawps': {'train_source': '', 'test_source': ''},
  'gsm8k': {'train_source': 'openai/gsm8k:main:train', 'test_source': 'openai/gsm8k:main:test'},
}


def get_config(arg: str = 'svamp'):
  """Returns three rounds on the data set that `arg` names, with short arithmetic out of domain."""
  if arg not in SOURCES:
    raise ValueError(f'configs/word_problems.py:{arg}: the data sets are {", ".join(SOURCES)}')
  answer = {'max_new_tokens': 256, 'stop': ('\n\n', 'Question:')} if arg == 'gsm8k' else {}
  sums = {'min_terms': 2, 'max_terms': 2, 'min_digits': 1, 'max_digits': 2}
  return common.config(
    num_rounds=3,
    finetune={'max_length': 512 if arg == 'gsm8k' else 128},  # rows are computed whole, however little is in them
    tasks={
      'id': {arg: common.word_problems(arg, **SOURCES[arg], **answer)},
      'ood': {'chain_sum': common.reasoning_gym('chain_sum', sums)},
    },
    evaluate={'tuned': True},
  )
