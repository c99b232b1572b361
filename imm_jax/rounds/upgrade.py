"""Upgrades configs of earlier versions, and explains keys that are gone."""

from collections.abc import Mapping
import copy
from typing import Any

# Maps a section and key of version 0.1 to advice for the user. The section is '' for top-level keys
# and 'tasks' for the keys of any task.
GONE = {
  ('', 'compilation_cache'): 'is gone; set the environment variable JAX_COMPILATION_CACHE_DIR',
  ('', 'tensorboard'): "is now config.logger = 'tensorboard'",
  ('optimizer', 'keep_moments'): 'is now optimizer.keep_opt_state',
  ('profile', 'first_step'): 'is gone: the third step is the first that is traced',
}


def hint(where: str, key: str) -> str:
  """Returns what became of an unknown key, '' if no earlier version had it."""
  section = 'tasks' if where.startswith('tasks.') else where.removeprefix('config')
  found = GONE.get((section, key))
  return f': {found}' if found else ''


def upgrade(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a config that an earlier version may have written, with the keys of this version."""
  config = copy.deepcopy(dict(config))
  config.pop('compilation_cache', None)
  if config.pop('tensorboard', False):
    config['logger'] = config['logger'] or 'tensorboard'
  config.get('profile', {}).pop('first_step', None)
  optimizer = config.get('optimizer', {})
  if 'keep_moments' in optimizer:
    optimizer['keep_opt_state'] = optimizer.pop('keep_moments')
  return config
