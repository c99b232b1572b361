"""Configs of version 0.1: their keys are named in errors, and their workdirs are read."""

from imm_jax.rounds import experiment
from imm_jax.rounds.upgrade import GONE, upgrade
import pytest
from tests.rounds.test_loop import tiny

OLD = {'tensorboard': True, 'compilation_cache': '/tmp/x', 'optimizer.keep_moments': True, 'profile.first_step': 10}


def old_config(keys=tuple(OLD)):
  config = tiny()
  for key in keys:
    section, _, name = key.rpartition('.')
    (config[section] if section else config)[name] = OLD[key]
  if 'optimizer.keep_moments' in keys:
    del config['optimizer']['keep_opt_state']
  return config


def test_an_old_config_is_todays():
  found = upgrade(old_config())
  assert found == tiny(**{'logger': 'tensorboard', 'optimizer.keep_opt_state': True})
  assert upgrade(found) == found


@pytest.mark.parametrize('section, key', GONE)
def test_an_old_key_is_named_with_what_became_of_it(section, key):
  name = '.'.join(part for part in (section, key) if part)
  with pytest.raises(ValueError) as error:
    experiment.resolve(old_config([name]))
  assert str(error.value).endswith(f'{key}: {GONE[section, key]}')
