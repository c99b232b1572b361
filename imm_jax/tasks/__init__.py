"""Tasks: questions, the prompts that ask them and the verifiers of their answers. One file a family."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from imm_jax.tasks.base import Example, guess_accuracy, Message, nearest, Prompt, Task
from imm_jax.tasks.multiple_choice import MultipleChoice
from imm_jax.tasks.reasoning_gym import ReasoningGym
from imm_jax.tasks.sources import read_source
from imm_jax.tasks.splits import Split
from imm_jax.tasks.synthetic import Synthetic
from imm_jax.tasks.word_problems import WordProblems

__all__ = [
  'FAMILIES',
  'Example',
  'Message',
  'MultipleChoice',
  'Prompt',
  'ReasoningGym',
  'Split',
  'Synthetic',
  'Task',
  'WordProblems',
  'guess_accuracy',
  'make',
  'read_source',
]

FAMILIES = {
  'multiple_choice': MultipleChoice,
  'reasoning_gym': ReasoningGym,
  'synthetic': Synthetic,
  'word_problems': WordProblems,
}


def make(name: str, spec: Mapping[str, Any]) -> Task:
  """Returns the task that a config describes. Its data are read on first use.

  Args:
    name: of the task; it is part of the examples' ids.
    spec: 'family', a key of FAMILIES, and that family's fields.

  Raises:
    ValueError: a key is unknown, missing or of a wrong type; the message names it as tasks.NAME.KEY.
  """
  values = dict(spec)
  family = values.pop('family', None)
  if not isinstance(family, str) or family not in FAMILIES:
    problem = 'is missing' if family is None else f'{family!r} is unknown{nearest(family, FAMILIES)}'
    raise ValueError(f'tasks.{name}.family: {problem}; the families are {", ".join(FAMILIES)}')
  fields = {field.name: field for field in dataclasses.fields(FAMILIES[family]) if field.name != 'name'}
  for key in values:
    if key not in fields:
      raise ValueError(f'tasks.{name}.{key}: no such key{nearest(key, fields)}; {family} has {", ".join(fields)}')
  for key, field in fields.items():
    if key not in values and field.default is field.default_factory is dataclasses.MISSING:
      raise ValueError(f'tasks.{name}.{key}: is missing; {family} needs it')
  return FAMILIES[family](name=name, **values)
