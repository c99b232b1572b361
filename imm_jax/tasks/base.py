"""The base class of all tasks: prompts, splits, verdicts, and the baseline of guessing."""

import collections
from collections.abc import Callable, Sequence
import dataclasses
import hashlib
from typing import Any, cast, Literal

from imm_jax import verifying
from imm_jax.text import normalise

Message = dict[str, str]
Prompt = str | list[Message]
Format = Literal['plain', 'chat']
Scoring = Literal['generate', 'likelihood']
Normalize = Literal['sum', 'per_character']

AUTO: Any = None  # The default of a field that its family fills in from the other fields.


@dataclasses.dataclass(frozen=True)
class Example:
  """One question and its gold answer.

  `id` depends only on the task's name and on the question and its options.
  """

  id: str
  question: str
  answer: str
  solution: str = ''  # The worked solution, if the data has one.
  options: tuple[str, ...] = ()  # The options of a multiple-choice question.
  # Further data for the verifier.
  metadata: Any = dataclasses.field(default=None, compare=False, repr=False)

  @property
  def asked(self) -> str:
    """Returns a digest of the question and its options: the id without the task's name."""
    return self.id.rpartition('/')[2]


class Task:
  """A task owns its data, its prompts and its verifier.

  A family of tasks is a frozen dataclass derived from this one. A family's fields are config keys.
  It defines `split`, a splits.Split as a cached property, and overrides the methods in which it
  differs.
  """

  name: str
  scoring: Scoring = 'generate'
  format: Format = 'plain'
  separator: str = '\n\n'  # The text after a solved example in plain text.
  stop: tuple[str, ...] = ()
  max_new_tokens: int = 0
  normalize: Normalize = 'sum'  # How an option's log-probability is normalised.
  split: Any
  # As `verify`, but by a lenient reader; None without one.
  verify_flexible: Callable[[Example, str], bool] | None = None
  # Whether `verify` waits for child processes, and may be called from many threads.
  judges_in_children: bool = False

  def __post_init__(self) -> None:
    """Raises ValueError naming the field that is out of range."""
    for field in dataclasses.fields(cast(Any, self)):
      value = getattr(self, field.name)
      if field.type is int and value < 0:
        raise ValueError(f'tasks.{self.name}.{field.name}: {value} is negative')

  @property
  def train(self) -> tuple[Example, ...]:
    """The questions to train on.

    The first use of a split reads it, and raises ValueError or FileNotFoundError.
    """
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
    """The number of rows left out as duplicates, or from train because test has them."""
    return self.split.num_dropped

  def prompt(self, example: Example, shots: Sequence[Example] = ()) -> Prompt:
    """Returns the prompt that asks a question, after the solved shots.

    In plain format it is 'Question: ...\\nAnswer:', in a chat a user's turn, as `format` says.
    """
    if self.format == 'plain':
      solved = ''.join(
        f'Question: {shot.question}\nAnswer:{self.target(shot)}{self.separator}' for shot in shots
      )
      return f'{solved}Question: {example.question}\nAnswer:'
    messages = []
    for shot in shots:
      messages += [
        {'role': 'user', 'content': shot.question},
        {'role': 'assistant', 'content': self.target(shot)},
      ]
    return [*messages, {'role': 'user', 'content': example.question}]

  def continuation(self, answer: str) -> str:
    """Returns `answer` in the form that follows the prompt.

    In plain text it comes after a space, in a chat turn without one.
    """
    return f' {answer}' if self.format == 'plain' else answer

  def continuations(self, example: Example) -> tuple[str, ...]:
    """Returns each option in the form that follows the prompt, in the order of example.options."""
    return tuple(self.continuation(option) for option in example.options)

  def target(self, example: Example) -> str:
    """Returns the right text to follow the prompt.

    Shots show it, and training on real solutions uses it.
    """
    return self.continuation(example.answer)

  def extract(self, completion: str) -> str:
    """Returns the answer that `completion` gives, '' for none.

    It is the text before the first stop string, stripped.
    """
    text = completion.strip()
    ends = [text.find(string) for string in self.stop if string in text]
    return text[: min(ends, default=len(text))].strip()

  def verify(self, example: Example, completion: str) -> bool:
    """Returns whether `completion` gives the gold answer.

    It never raises on a model's text, and takes bounded time.
    """
    return self.extract(completion) == example.answer

  def judge(self, pairs: Sequence[tuple[Example, str]], *, flexible: bool = False) -> list[bool]:
    """Returns the verdicts of `verify`, or of `verify_flexible`, on (example, completion) pairs."""
    verify = self.verify_flexible if flexible else self.verify
    assert verify is not None
    if self.judges_in_children:
      return verifying.judge_all(verify, pairs)
    # Scorers may return numpy's bools.
    return [bool(verify(example, completion)) for example, completion in pairs]

  def check_verifier(self) -> None:
    """Checks that answers can be judged on this machine.

    Raises OSError or ValueError naming the missing part.
    """


def make_example(
  task: str, question: str, answer: str, *, options: tuple[str, ...] = (), **others: Any
) -> Example:
  """Returns the example with an id made from the task's name, the question and the options.

  The question is normalised before.
  """
  question = question.strip()
  asked = normalise(' | '.join((question, *options)))
  digest = hashlib.sha1(asked.encode('utf-8', 'surrogatepass')).hexdigest()
  return Example(f'{task}/{digest[:12]}', question, answer, options=options, **others)


def guess_accuracy(task: Task, examples: Sequence[Example]) -> float:
  """Returns the accuracy of guessing.

  Without options, the guess is always the most common gold answer; otherwise it is each option with
  equal chance. Raises ValueError when there are no examples.
  """
  if not examples:
    raise ValueError(f'tasks.{task.name}: no examples to guess on; choose a split that has some')
  if task.scoring == 'likelihood':
    return sum(1 / len(example.options) for example in examples) / len(examples)
  [(commonest, count)] = collections.Counter(example.answer for example in examples).most_common(1)
  if count == 1:  # All answers differ, as programs do: none is worth verifying on the others.
    return 1 / len(examples)
  return sum(task.judge([(example, task.continuation(commonest)) for example in examples])) / len(
    examples
  )
