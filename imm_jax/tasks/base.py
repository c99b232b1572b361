"""What a task is, and what all families share: prompts, field checks, the guess baseline."""

import collections
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import difflib
import hashlib
import typing
from typing import Any, Literal, Protocol

Message = dict[str, str]
Prompt = str | list[Message]
Format = Literal['plain', 'chat']
Scoring = Literal['generate', 'likelihood']

AUTO: Any = None  # the default of a field that its family fills in from the other fields

_WANTED = {
  int: 'a whole number >= 0',
  str: 'a string',
  tuple: 'a list of non-empty strings',
  dict: 'a mapping',
}


@dataclasses.dataclass(frozen=True)
class Example:
  """One question and its gold answer; `id` depends on the task's name and on what is asked, on nothing else."""

  id: str
  question: str
  answer: str
  solution: str = ''  # worked text, where the data has one
  options: tuple[str, ...] = ()  # of a multiple-choice question
  metadata: Any = dataclasses.field(default=None, compare=False, repr=False)  # what the verifier needs


class Task(Protocol):
  """A task owns its data, its prompts and its verifier. Each family is a frozen dataclass whose fields are config keys."""

  @property
  def name(self) -> str: ...  # noqa: D102
  @property
  def scoring(self) -> Scoring: ...  # noqa: D102
  @property
  def stop(self) -> tuple[str, ...]: ...  # noqa: D102
  @property
  def max_new_tokens(self) -> int: ...  # noqa: D102
  @property
  def num_shots(self) -> int: ...  # noqa: D102
  @property
  def train(self) -> tuple[Example, ...]: ...  # noqa: D102
  @property
  def test(self) -> tuple[Example, ...]: ...  # noqa: D102
  @property
  def shots(self) -> tuple[Example, ...]: ...  # noqa: D102
  @property
  def num_dropped(self) -> int: ...  # noqa: D102

  def prompt(self, example: Example, shots: Sequence[Example] = ()) -> Prompt:
    """Returns the text, or the chat messages, that ask `example` after the solved `shots`."""
    ...

  def continuation(self, answer: str) -> str:
    """Returns `answer` as it follows the prompt."""
    ...

  def target(self, example: Example) -> str:
    """Returns the right text to follow the prompt: what a shot shows, and what training on real solutions takes."""
    ...

  def extract(self, completion: str) -> str:
    """Returns the answer that `completion` gives, in a canonical form; '' when it gives none."""
    ...

  def verify(self, example: Example, completion: str) -> bool:
    """Returns whether `completion` answers `example`. Never raises on what a model wrote, and takes bounded time."""
    ...


class Family:
  """What the families share. A family adds its fields, `split` as a cached property, and `verify`."""

  name: Any
  scoring: Any = 'generate'
  format: Any = 'plain'
  stop: Any = ()
  max_new_tokens: Any = 0
  split: Any

  def __post_init__(self) -> None:
    """Raises ValueError naming the field that has a wrong type or value."""
    check_fields(self)
    if getattr(self, 'train_source', None) == '':
      raise ValueError(f'tasks.{self.name}.train_source: is empty; give a .json, .jsonl or .csv file, or a hub id')

  @property
  def train(self) -> tuple[Example, ...]:
    """The questions to learn from. The first use of a split reads it, and raises ValueError or FileNotFoundError."""
    return self.split.train

  @property
  def test(self) -> tuple[Example, ...]:
    """The questions to measure on."""
    return self.split.test

  @property
  def shots(self) -> tuple[Example, ...]:
    """The few-shot examples, taken out of train."""
    return self.split.shots

  @property
  def num_dropped(self) -> int:
    """How many rows were left out as duplicates, or from train because test has them."""
    return self.split.num_dropped

  def prompt(self, example: Example, shots: Sequence[Example] = ()) -> Prompt:
    """Returns 'Question: ...\\nAnswer:' after the solved shots, or a user's turn after theirs, as `format` says."""
    if self.format == 'plain':
      solved = ''.join(f'Question: {shot.question}\nAnswer:{self.target(shot)}\n\n' for shot in shots)
      return f'{solved}Question: {example.question}\nAnswer:'
    messages = []
    for shot in shots:
      messages += [{'role': 'user', 'content': shot.question}, {'role': 'assistant', 'content': self.target(shot)}]
    return [*messages, {'role': 'user', 'content': example.question}]

  def continuation(self, answer: str) -> str:
    """Returns `answer` as it follows the prompt: after a space in plain text, bare in a chat turn."""
    return f' {answer}' if self.format == 'plain' else answer

  def target(self, example: Example) -> str:
    """Returns the right text to follow the prompt."""
    return self.continuation(example.answer)

  def extract(self, completion: str) -> str:
    """Returns the completion up to the first stop string, stripped."""
    text = completion.strip()
    ends = [text.find(string) for string in self.stop if string in text]
    return text[: min(ends, default=len(text))].strip()


def normalise(text: str) -> str:
  """Returns `text` case-folded and with single spaces: questions that are equal in this form are one question."""
  return ' '.join(text.casefold().split())


def make_example(task: str, question: str, answer: str, *, options: tuple[str, ...] = (), **others: Any) -> Example:
  """Returns the example, its id made from the task's name, the normalised question and the options."""
  question = question.strip()
  asked = normalise(' | '.join((question, *options)))
  digest = hashlib.sha1(asked.encode('utf-8', 'surrogatepass')).hexdigest()
  return Example(f'{task}/{digest[:12]}', question, answer, options=options, **others)


def guess_accuracy(task: Task, examples: Sequence[Example]) -> float:
  """Returns what guessing scores: always the commonest gold, or each option with equal chance.

  Raises ValueError when there are no examples.
  """
  if not examples:
    raise ValueError(f'tasks.{task.name}: no examples to guess on; choose a split that has some')
  if task.scoring == 'likelihood':
    return sum(1 / len(example.options) for example in examples) / len(examples)
  [(commonest, _)] = collections.Counter(example.answer for example in examples).most_common(1)
  return sum(task.verify(example, task.continuation(commonest)) for example in examples) / len(examples)


def check_fields(task: Any) -> None:
  """Turns lists into tuples and mappings into dicts. Raises ValueError naming the field that has a wrong type or value."""
  for field in dataclasses.fields(task):
    value: Any = getattr(task, field.name)
    kind: Any = typing.get_origin(field.type) or field.type
    if kind is Literal:
      allowed: Any = typing.get_args(field.type)
      good, wanted = value in allowed, f'one of {", ".join(allowed)}{nearest(value, allowed)}'
    else:
      wanted = _WANTED[kind]
      if kind is tuple and isinstance(value, list):
        value = tuple(value)
      if kind is dict and isinstance(value, Mapping):
        value = dict(value)
      good = _fits(value, kind)
    if not good:
      raise ValueError(f'tasks.{task.name}.{field.name}: {value!r} is not {wanted}')
    object.__setattr__(task, field.name, value)


def nearest(word: Any, allowed: Iterable[str]) -> str:
  """Returns '; did you mean ...?' with the names nearest to `word`, or ''."""
  close = difflib.get_close_matches(str(word), list(allowed), n=3)
  return f'; did you mean {" or ".join(close)}?' if close else ''


def _fits(value: Any, kind: Any) -> bool:
  if kind is int:
    return type(value) is int and value >= 0
  if kind is tuple:
    return isinstance(value, tuple) and all(isinstance(item, str) and item for item in value)
  return isinstance(value, kind)
