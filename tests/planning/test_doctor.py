"""The page before a run: all is named that a run needs, and the first thing to mend is an error."""

import collections

from imm_jax.planning import doctor
import pytest
from tests.rounds.test_loop import tiny


def test_a_page(tmp_path):
  page = dict(doctor.examine(tiny(), str(tmp_path / 'run')))
  assert list(page) == [
    'versions',
    'devices',
    'batch',
    'model',
    'mesh',
    'memory',
    'task sum',
    'task max',
    'sandbox',
    'workdir',
  ]
  assert page['devices'].startswith('8 x cpu in 1 processes')
  assert '80 train and 20 test' in page['task sum'] and 'GB free' in page['workdir']
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'changes, problem',
  [
    ({'mesh.fsdp': 3}, 'needs 3 devices and there are 8'),
    ({'model.path': '/nowhere'}, '/nowhere'),
    ({'model.path': '/nowhere@2'}, '/nowhere@2: there is no run in /nowhere'),
    ({'model.random.embed_dim': 2**17, 'model.random.num_layers': 500}, 'memory: .* take more devices'),
    ({'num_rounds': 10**9}, 'workdir: .* make room'),
  ],
)
def test_the_first_thing_to_mend(tmp_path, changes, problem):
  with pytest.raises((ValueError, OSError), match=problem):
    collections.deque(doctor.examine(tiny(**changes), str(tmp_path / 'run')))


def test_padding_is_told(tmp_path):
  page = dict(doctor.examine(tiny(**{'finetune.batch_size': 12, 'sampler.num_slots': 60}), str(tmp_path / 'run')))
  assert 'make finetune.batch_size a multiple of 8' in page['batch'] and 'sampler.num_slots a multiple of 8' in page['batch']
