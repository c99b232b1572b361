"""What a task is, and what all families share: prompts, the guess baseline."""

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

AUTO: Any = None  # the default of a field that its family fills in from the other fields


@dataclasses.dataclass(frozen=True)
class Example:
  """One question and its gold answer; `id` depends on the task's name and on what is asked, on
  nothing else.
  """

  id: str
  question: str
  answer: str
  solution: str = ''  # worked text, where the data has one
  options: tuple[str, ...] = ()  # of a multiple-choice question
  # What the verifier needs
  metadata: Any = dataclasses.field(default=None, compare=False, repr=False)

  @property
  def asked(self) -> str:
    """Returns a digest of what is asked: the id without the task's name."""
    return self.id.rpartition('/')[2]


class Task:
  """A task owns its data, its prompts and its verifier.

  A family of tasks is a frozen dataclass on top of this one.

  A family's fields are config keys. It has `split`, a splits.Split as a cached property, and what
  differs from this.
  """

  name: str
  scoring: Scoring = 'generate'
  format: Format = 'plain'
  separator: str = '\n\n'  # what follows a solved example in plain text
  stop: tuple[str, ...] = ()
  max_new_tokens: int = 0
  normalize: Normalize = 'sum'  # of an option's log-probability
  split: Any
  # As `verify`, by a lenient reader, where there is one
  verify_flexible: Callable[[Example, str], bool] | None = None
  # Whether `verify` waits for child processes, and may be called from many threads
  judges_in_children: bool = False

  def __post_init__(self) -> None:
    """Raises ValueError naming the field that is out of range."""
    for field in dataclasses.fields(cast(Any, self)):
      value = getattr(self, field.name)
      if field.type is int and value < 0:
        raise ValueError(f'tasks.{self.name}.{field.name}: {value} is negative')

  @property
  def train(self) -> tuple[Example, ...]:
    """The questions to learn from.

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
    """How many rows were left out as duplicates, or from train because test has them."""
    return self.split.num_dropped

  def prompt(self, example: Example, shots: Sequence[Example] = ()) -> Prompt:
    """Returns 'Question: ...\\nAnswer:' after the solved shots, or a user's turn after theirs, as
    `format` says.
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
    """Returns `answer` as it follows the prompt: after a space in plain text, bare in a chat
    turn.
    """
    return f' {answer}' if self.format == 'plain' else answer

  def continuations(self, example: Example) -> tuple[str, ...]:
    """Returns each option as it follows the prompt, in the order of example.options."""
    return tuple(self.continuation(option) for option in example.options)

  def target(self, example: Example) -> str:
    """Returns the right text to follow the prompt: what a shot shows, and what training on real
    solutions takes.
    """
    return self.continuation(example.answer)

  def extract(self, completion: str) -> str:
    """Returns the answer that `completion` gives, '' for none: what stands before the first stop
    string, stripped.
    """
    text = completion.strip()
    ends = [text.find(string) for string in self.stop if string in text]
    return text[: min(ends, default=len(text))].strip()

  def verify(self, example: Example, completion: str) -> bool:
    """Returns whether `completion` gives the gold answer.

    Never raises on what a model wrote, and takes bounded time.
    """
    return self.extract(completion) == example.answer

  def judge(self, pairs: Sequence[tuple[Example, str]], *, flexible: bool = False) -> list[bool]:
    """Returns the verdicts of `verify`, or of `verify_flexible`, on (example, completion) pairs."""
    verify = self.verify_flexible if flexible else self.verify
    assert verify is not None
    if self.judges_in_children:
      return verifying.judge_all(verify, pairs)
    # Scorers may give numpy's.
    return [bool(verify(example, completion)) for example, completion in pairs]

  def check_verifier(self) -> None:
    """Raises OSError or ValueError when answers cannot be judged on this machine, and says what is
    missing.
    """


def make_example(
  task: str, question: str, answer: str, *, options: tuple[str, ...] = (), **others: Any
) -> Example:
  """Returns the example, its id made from the task's name, the normalised question and the
  options.
  """
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
  [(commonest, count)] = collections.Counter(example.answer for example in examples).most_common(1)
  if count == 1:  # such as programs: none is worth verifying on the others
    return 1 / len(examples)
  return sum(task.judge([(example, task.continuation(commonest)) for example in examples])) / len(
    examples
  )
