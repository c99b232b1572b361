"""SmolLM2-135M-Instruct improves itself on arithmetic, by several arms.

Out of domain are choices, short reasoning and text.

Result: docs/results.md. Hardware: 2 CPU cores, 6 GB, 3 GB of disk per run. Minutes: 6 per round
when nothing else runs. Command:

  python -m launch.study --config=configs/smollm2.py \\
    --arms=vanilla,imm,dare,layer_adaptive,search --seeds=0,1,2 --workdir=runs/smollm2 \\
    -- --config.evaluate.text_source=FILE

FILE is a text. Files in place of the hub's are also given after `--`, as
--config.tasks.ood.arc_easy.test_source=FILE.

Out of domain are tasks on which this model is above guess level, except ARC-Challenge, where it is
not with these prompts. Of BIG-Bench Hard it is above on none of the twenty tasks tried
(docs/results.md).
"""

import common
import quickstart
import testbed

ARMS = {name: testbed.ARMS[name] for name in ('vanilla', 'imm', 'dare', 'layer_adaptive', 'search')}


def get_config(arg: str = 'imm'):
  """Returns the config of an arm: three rounds of the quickstart's."""
  if arg not in ARMS:
    raise ValueError(f'{arg!r} is no arm; the arms are {", ".join(ARMS)}')
  c = quickstart.get_config()
  tasks = c.to_dict()['tasks']
  arithmetic = tasks['id']['basic_arithmetic']
  # With two terms there are so few questions that a tenth of them would be in the test.
  dev = arithmetic | {
    'params': arithmetic['params'] | {'min_terms': 3},
    'train_size': 20,
    'test_size': 100,
    'test_seed': 9_000_000,
  }
  # Four-shot: without examples, a model may gain just by learning the form that follows 'Answer:',
  # whatever it was trained on.
  easy = common.dataset('arc_easy', test_size=150, num_shots=4)
  challenge = common.dataset('arc_challenge', test_size=150, num_shots=4, normalize='per_character')
  probe = easy | {
    'train_source': 'allenai/ai2_arc:ARC-Easy:validation',
    'test_source': '',
    'test_size': 60,
  }
  with c.ignore_type():
    c.tasks = {
      'id': {'arithmetic': arithmetic},
      'ood': {'arc_easy': easy, 'arc_challenge': challenge} | tasks['ood'],
      'dev': {'arithmetic_dev': dev},
      'probe': {'arc_easy_probe': probe},
    }
    c.update_from_flattened_dict({'num_rounds': 3, 'evaluate.tuned': False, **ARMS[arg]})
  return c
