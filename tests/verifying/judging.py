"""Verdicts on a completion, for the tests of verifiers."""

from imm_jax.rounds.experiment import make_task
from imm_jax.tasks import base, catalog


def data_set(dataset, **changes):
  return make_task('t', catalog.spec(dataset, train_source='unused.jsonl', test_source='', **changes))


def verdicts(dataset, gold, completion, **others):
  """Returns whether the strict, and whether the flexible reader takes the completion."""
  task = data_set(dataset, scoring='generate', stop=('\n\n', 'Question:'))
  example = base.make_example('t', 'q', gold, **others)
  strict = task.verify(example, completion)
  return strict, strict or task.verify_flexible(example, completion)


BOTH, LENIENT, NEITHER = (True, True), (False, True), (False, False)


DOUBLE = {'prefix': '', 'tests': 'assert double(2) == 4\nassert double(0) == 0'}
