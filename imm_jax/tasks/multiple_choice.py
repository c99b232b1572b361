"""Multiple choice by the likelihood of each option: ARC, from local files or the hub."""

import dataclasses
import re
from typing import Any

from imm_jax.tasks import base, sources

_INSTRUCTION = re.compile(
  r'Please choose the correct answer to the question:(.*?)\n\n(Answer1:.*)\n\nAnswer format:', re.DOTALL
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultipleChoice(sources.FromSources):
  """Questions with options; the model's answer is the option it finds likeliest after 'Question: ...\\nAnswer:'."""

  normalize: base.Normalize = 'sum'

  scoring = 'likelihood'

  def verify(self, example: base.Example, completion: str) -> bool:
    """Returns whether `completion` is the right option's text."""
    return base.normalise(completion) == base.normalise(example.answer)

  def read(self, source: str) -> list[base.Example]:
    """Returns the questions of a source."""
    rows = sources.read_source(source)
    if 'instruction' in rows[0]:
      parsed = [_from_instruction(*row) for row in sources.columns(source, rows, ('instruction', 'answer'))]
    else:
      parsed = [_from_choices(*row) for row in sources.columns(source, rows, ('question', 'choices', 'answerKey'))]
    examples = []
    for number, (question, options, label) in enumerate(parsed, 1):
      if label not in options or len(options) < 2:
        raise ValueError(f'{source}: row {number} has no option for its answer {label!r}; is it in the format of ARC?')
      texts = tuple(options.values())
      examples.append(base.make_example(self.name, question, options[label], options=texts))
    return examples


def _from_instruction(instruction: str, answer: str) -> tuple[str, dict[str, str], str]:
  """Returns (question, {label: option}, label of the right one) of '...question: Q\\n\\nAnswer1: X Answer2: Y\\n\\n...'."""
  match = _INSTRUCTION.match(instruction)
  if match is None:
    return instruction, {}, answer
  _, *parts = re.split(r'(Answer\d):', match[2])
  options = {label.lower(): text.strip() for label, text in zip(parts[::2], parts[1::2], strict=True)}
  return match[1], options, answer


def _from_choices(question: str, choices: dict[str, Any], answer: str) -> tuple[str, dict[str, str], str]:
  """Returns the same of a row of allenai/ai2_arc, where choices is {'text': [...], 'label': [...]}."""
  return question, dict(zip(choices['label'], choices['text'], strict=True)), answer
