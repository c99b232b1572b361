"""`imm evaluate`: measures a model on the config's tasks, or on lm-eval's."""

from collections.abc import Mapping
import errno
import json
import os
from typing import Any

from imm_jax import extras
from imm_jax.cli import tables
from imm_jax.cli.flags import Flags


def main(flags: Flags) -> None:
  """Runs the command: all checks, then task after task; --out holds those that are done."""
  out = flags.string('out', None, 'JSON file to write the results to.')
  lm_eval_tasks = flags.names('lm_eval_tasks', "Tasks of lm-eval's, in place of the config's.")
  include = flags.string('lm_eval_include', '', "Directory with more of lm-eval's task files.")
  config = flags.parse_config()
  from imm_jax.rounds import loading, loop

  if out.value:
    _check_file(out.value)

  def write(results: Mapping[str, Any]) -> None:
    if out.value:
      _write(out.value, results)

  if not lm_eval_tasks.value:
    row = loop.evaluate_only(config, after_task=write)
    tables.results([row], config['model']['path'] or 'base')
    return
  extras.require('--lm_eval_tasks', 'eval', 'lm_eval')
  from imm_jax import harness

  harness.find_tasks(tuple(lm_eval_tasks.value), include.value)
  lm = loading.load_to_sample(config)
  num_rows = config['sampler']['num_slots']
  results = harness.evaluate(lm, lm_eval_tasks.value, include.value, num_rows)
  print(harness.table(results))
  write(results)


def _check_file(path: str) -> None:
  """Raises OSError when a file cannot be written; one that is there stays as it is."""
  if os.path.isdir(path):
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
  probe = f'{path}.tmp'
  try:
    with open(probe, 'w', encoding='utf-8'):
      pass
  except OSError as error:
    raise OSError(error.errno, error.strerror, path) from error
  os.remove(probe)


def _write(path: str, results: Mapping[str, Any]) -> None:
  from etils import epath

  from imm_jax import processes

  processes.write_text(epath.Path(path), json.dumps(results, indent=2, default=str))
