"""What runs of the tiny config leave, arm by arm, is what it was when the digests were written.

python tests/test_pinned.py writes them anew: do so only in a commit that says which number changes, and why.
"""

import hashlib
import json
import os
import pathlib
import sys

if __name__ == '__main__':
  sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
  import tests.conftest  # noqa: F401 - sets up the devices, as for the test

import imm_jax
from imm_jax.rounds import loop
import jax
import numpy as np
import pytest
from tests.conftest import load_config, ROOT

FILE = ROOT / 'tests' / 'golden' / 'pinned.json'
BASE = {
  'model.random.embed_dim': 32, 'model.random.mlp_dim': 64, 'optimizer.learning_rate': 3e-3,
  'sampler.num_slots': 1280, 'evaluate.tuned': False,
}  # fmt: skip
LEARN_ALL = {'merge.alpha': 1.0}
ARMS = {
  'imm': {'evaluate.tuned': True, 'evaluate.num_samples_per_prompt': 2},
  'vanilla': LEARN_ALL,
  'dare': {'merge.method': 'dare'},
  'lines': {'merge.method': 'lines', 'merge.alpha': 0.0},
  'layer_adaptive': {'merge.rule': 'layer_adaptive', 'finetune.num_epochs': 8, 'finetune.batch_size': 2},
  'search': {'merge.rule': 'search', 'merge.search_eps': 0.5},
  'single_merge': {'merge.alpha': {'schedule': 'step', 'start': 1.0, 'end': 0.5, 'rounds': 2}},
  'early_stop': LEARN_ALL | {'finetune.max_drift': 0.01},
  'accumulate': {'synthesize.data': 'accumulate'},
  'teacher': {'synthesize.teacher': '{teacher}'},
  'real_25': {'synthesize.real_fraction': 0.25},
  'real': LEARN_ALL | {'synthesize.real_fraction': 1.0},
  'lora': {'finetune.lora_rank': 4},
  'previous': {'merge.anchor': 'previous', 'finetune_from': 'base', 'sample_from': 'tuned'},
  'official': {
    'sampler.temperature': 0.0, 'synthesize.max_accepted_per_question': 3, 'synthesize.deduplicate': False,
  },
}  # fmt: skip


def machine():
  """What decides the last bits: the version of JAX, the instructions of the CPU and the number of its threads."""
  try:
    info = pathlib.Path('/proc/cpuinfo').read_text().split()
  except OSError:
    info = []
  features = [name for name in ('fma', 'avx2', 'avx512f', 'amx_tile') if name in info]
  return f'jax {jax.__version__}, {os.cpu_count()} x {"+".join(features)}'


def digest(value):
  return hashlib.sha256(value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def run(arm, path, teacher):
  """Returns the digests of an arm's samples, params and summary, a row a round."""
  config = load_config('tiny')
  task = config.tasks.id['sum'].to_dict()
  config.tasks.dev = {'diff': task | {'operation': 'diff'}}
  config.tasks.probe = {'digit_sum': task | {'operation': 'digit_sum'}}
  config.num_rounds = 2
  with config.ignore_type():
    config.update_from_flattened_dict(BASE | ARMS[arm])
  if config.synthesize.teacher:
    config.synthesize.teacher = teacher
  found = []
  for row in loop.run(config.to_dict(), path):
    number = row['round']
    params = jax.device_get(imm_jax.load(f'{path}@{number}').params)
    leaves = sorted((jax.tree_util.keystr(name), np.asarray(x)) for name, x in jax.tree.leaves_with_path(params))
    found.append(
      {
        'samples': digest([(s['question_id'], s['sample_index'], s['tokens'], s['reason']) for s in samples(path, number)]),
        'params': digest(b''.join(x.tobytes() for _, x in leaves)),
        'summary': digest({key: row[key] for key in row.keys() - {'secs', 'versions', 'devices'}}),
      }
    )
  return found


def samples(path, number):
  file = pathlib.Path(path) / 'rounds' / f'{number:04d}' / 'samples.jsonl'
  return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
  path = str(tmp_path_factory.mktemp('teacher') / 'run')
  run('vanilla', path, '')
  return f'{path}@1'


@pytest.mark.parametrize('arm', ARMS)
def test_a_run_leaves_what_it_left(arm, teacher, tmp_path):
  pinned = json.loads(FILE.read_text())
  if pinned['machine'] != machine():
    pytest.skip(f'the digests are of {pinned["machine"]}, this is {machine()}')
  assert run(arm, str(tmp_path / 'run'), teacher) == pinned['arms'][arm]


if __name__ == '__main__':
  import tempfile

  with tempfile.TemporaryDirectory() as directory:
    run('vanilla', f'{directory}/its_teacher', '')
    rows = {arm: run(arm, f'{directory}/{arm}', f'{directory}/its_teacher@1') for arm in ARMS}
  FILE.write_text(json.dumps({'machine': machine(), 'arms': rows}, indent=1) + '\n')
