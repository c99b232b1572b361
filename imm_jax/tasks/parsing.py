"""The rows of known data sets: a function for each form of row, from its columns to a Parsed."""

from collections.abc import Sequence
import dataclasses
import re
import string
from typing import Any

from imm_jax.tasks import sources
from imm_jax.verifying import answers


@dataclasses.dataclass(frozen=True)
class Parsed:
  """A row's question, whatever its columns were."""

  question: str
  answer: str  # The gold answer; with options, the right option's text.
  solution: str = ''  # The text that leads to the answer, or the program that is the answer.
  options: tuple[str, ...] = ()
  index: int = 0  # The index of the right option, as two options may have the same text.
  prefix: str = ''  # For code: the code in front of the completion.
  tests: str = ''  # For code: Python that raises when the code is wrong.
  row: sources.Row | None = None  # All columns, for a user's own verifier.


def gsm8k(question: str, answer: str) -> Parsed:
  """Takes a solution that ends with '#### 7'; its <<calculator>> notes are removed."""
  if not isinstance(answer, str) or '####' not in answer:
    raise ValueError(f"its answer {answer!r} is no text that ends with '#### 7'")
  solution, _, gold = re.sub(r'<<.*?>>', '', answer).partition('####')
  return Parsed(question, gold, solution)


def svamp(body: str, question: str, answer: Any) -> Parsed:
  """Takes the story and the question apart, and joins them."""
  body = body.strip()
  return Parsed(
    f'{body}{"" if body.endswith((".", "?", "!", ",")) else ","} {question}',
    sources.as_text('its answer', answer),
  )


def direct(question: str, answer: Any) -> Parsed:
  """Takes a question and its answer."""
  return Parsed(question, sources.as_text('its answer', answer))


def math(problem: str, solution: str, answer: str) -> Parsed:
  """Takes a problem whose answer has a column of its own."""
  return Parsed(problem, answer, solution)


def math_boxed(problem: str, solution: str) -> Parsed:
  """Takes a problem whose answer is the box of its solution."""
  return Parsed(problem, answers.stated(solution) or '', solution)


def choice(question: str, options: Sequence[str], index: int, solution: str = '') -> Parsed:
  """Returns a multiple-choice question. Raises ValueError when no option has the index."""
  options = tuple(
    sources.as_text('option', option).strip() for option in sources.as_list('options', options)
  )
  if not 0 <= index < len(options) or len(options) < 2:
    raise ValueError(f'it has {len(options)} options and no answer among them')
  return Parsed(question, options[index], solution, options, index)


def lettered(question: str, choices: dict[str, Any], label: Any) -> Parsed:
  """Takes choices as {'label': [...], 'text': [...]}, and the label of the right one."""
  labels, texts = (
    sources.as_list('label', choices['label']),
    sources.as_list('text', choices['text']),
  )
  if labels.count(label) != 1 or len(labels) != len(texts):
    raise ValueError(
      f'its answer {label!r} does not name one of its {len(texts)} options: their labels are'
      f' {labels}'
    )
  return choice(question, texts, labels.index(label))


_INSTRUCTION = re.compile(
  r'Please choose the correct answer to the question:(.*?)\n\n(Answer1:.*)\n\nAnswer format:',
  re.DOTALL,
)


def instruction(instruction: str, answer: str) -> Parsed:
  r"""Takes '...question: Q\n\nAnswer1: X Answer2: Y\n\nAnswer format: ...' and 'answer2'."""
  match = _INSTRUCTION.match(instruction)
  _, *parts = re.split(r'Answer(\d):', match[2] if match else '')
  texts = dict(zip(parts[::2], parts[1::2], strict=True))
  return lettered(
    match[1] if match else instruction,
    {'label': list(texts), 'text': list(texts.values())},
    answer.removeprefix('answer'),
  )


def aqua(question: str, options: Sequence[str], rationale: str, correct: str) -> Parsed:
  """Returns a question of AQuA.

  Raises ValueError when the options are not lettered in order: the letter would name another one.
  """
  texts = []
  for letter, option in zip(
    string.ascii_uppercase, sources.as_list('options', options), strict=False
  ):
    match = re.match(rf'\s*\(?{letter}\s*[).]', option)
    if match is None:
      raise ValueError(f"its option {option!r} does not begin with '{letter})'")
    texts.append(option[match.end() :])
  return choice(question, texts, string.ascii_uppercase.index(correct.strip()), rationale)


def logiqa(context: str, question: str, options: Sequence[str], index: int | str) -> Parsed:
  """Takes the context and the question apart, and the index of the right option."""
  # int(1.9) would be 1.
  return choice(f'{context.strip()} {question.strip()}', options, int(str(index)))


_TRUTH = {'true': 'yes', 'yes': 'yes', '1': 'yes', 'false': 'no', 'no': 'no', '0': 'no'}


def strategyqa(question: str, answer: bool | int | str, facts: Sequence[str] | str) -> Parsed:
  """Takes a truth value, whichever way it is written, and the facts that lead to it."""
  gold = _TRUTH.get(str(answer).strip().lower())
  if gold is None:
    raise ValueError(f'its answer {answer!r} is neither true nor false')
  solution = facts if isinstance(facts, str) else ' '.join(facts)
  return Parsed(question, gold, solution, ('yes', 'no'))


def mbpp(text: str, code: str, test_list: Sequence[str], setup: str | Sequence[str]) -> Parsed:
  """Takes a task in words, and asserts as tests."""
  setup = setup if isinstance(setup, str) else '\n'.join(setup)
  tests, code = '\n'.join(sources.as_list('test_list', test_list)), code.replace('\r', '')
  if not tests.strip():
    raise ValueError('it has no tests: every program would pass')
  return Parsed(f'{text}\nIt passes these tests:\n{tests}', code, code, tests=f'{setup}\n{tests}')


def humaneval(prompt: str, solution: str, test: str, entry_point: str) -> Parsed:
  """Takes the head of a function to complete, and a test function that takes it."""
  return Parsed(prompt, solution, solution, prefix=prompt, tests=f'{test}\ncheck({entry_point})\n')
