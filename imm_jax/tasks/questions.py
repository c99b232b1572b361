"""Tasks whose questions are rows of files, the hub or TensorFlow Datasets.

They are data sets of the catalog, or a user's own.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import re
import string
from typing import Any, ClassVar

from imm_jax import text, verifying
from imm_jax.tasks import base, catalog, sources, splits
from imm_jax.tasks.parsing import Parsed
from imm_jax.verifying import code, numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions(base.Task):
  """The common part of both families, which add `read`."""

  name: str
  verifier: str  # A key of verifying.VERIFIERS, or a user's own MODULE:FUNCTION.
  # See sources.read_source; '' for a task that is only measured.
  train_source: str
  test_source: str = ''  # '' holds out test_size rows of train.
  # The few-shot examples are its first num_shots rows; '' takes them out of train by seed.
  shots_source: str = ''
  train_size: int = 0  # The most questions of train; 0 takes all.
  test_size: int = 0  # The most questions of test; 0 takes all.
  reward_threshold: float = 0.5  # A reward of MODULE:FUNCTION above it counts as right.
  num_shots: int = 0
  seed: int = 0  # Chooses shots, held-out questions, and those kept under a cap.
  # Or 'likelihood': the answer is the option that the model finds most likely.
  scoring: base.Scoring = 'generate'
  normalize: base.Normalize = 'sum'
  format: base.Format = 'plain'
  frame: str = 'Question: {question}\nAnswer:'  # The template of a plain prompt.
  instruction: str = ''  # The text under a question in a chat.
  stop: tuple[str, ...] = ('\n',)
  max_new_tokens: int = 16

  read: ClassVar[Callable[[str], list[base.Example]]]  # Source -> its questions, a method.

  def __post_init__(self) -> None:
    """Raises ValueError naming the field that is out of range."""
    super().__post_init__()
    try:
      verifying.find(self.verifier, self.reward_threshold)
    except ValueError as error:
      raise ValueError(f'tasks.{self.name}.verifier: {error}') from error
    if not 0 <= self.reward_threshold < 1:
      raise ValueError(
        f'tasks.{self.name}.reward_threshold: {self.reward_threshold} is not in [0, 1)'
      )
    if not self.train_source and (
      not self.test_source or (self.num_shots and not self.shots_source)
    ):
      raise ValueError(
        f'tasks.{self.name}.train_source: is empty; give a .json, .jsonl or .csv file, a hub id'
        " 'owner/name:config:split' or 'tfds:name:split' (without it, a task with a test_source is"
        ' only measured, with shots of a shots_source)'
      )

  @functools.cached_property
  def split(self) -> splits.Split:
    """The questions. Raises ValueError or FileNotFoundError, see sources.read_source."""
    shots = self.read(self.shots_source)[: self.num_shots] if self.shots_source else None
    return splits.make_split(
      self.name,
      [*(shots or ()), *self.read(self.train_source)] if self.train_source else None,
      self.read(self.test_source) if self.test_source else None,
      seed=self.seed,
      sizes=splits.Sizes(self.train_size, self.test_size, self.num_shots),
      shots=shots,
      gold=self._gold if self.verifier in verifying.VERIFIERS else None,
    )

  def _gold(self, example: base.Example) -> str:
    """The text that decides whether an answer is right.

    For code it is the tests, which many programs pass.
    """
    return example.metadata['tests'] if self.verifier == 'code' else example.answer

  def prompt(self, example: base.Example, shots: Sequence[base.Example] = ()) -> base.Prompt:
    """Returns the solved shots and the question.

    They are framed, or turns of a chat with the instruction under each question.
    """
    if self.format == 'plain':
      solved = ''.join(f'{self._framed(shot)}{self.target(shot)}{self.separator}' for shot in shots)
      return f'{solved}{self._framed(example)}'
    turns = super().prompt(example, shots)
    assert not isinstance(turns, str)
    ending = f'\n{self.instruction}' if self.instruction else ''
    return [
      turn | {'content': turn['content'] + ending} if turn['role'] == 'user' else turn
      for turn in turns
    ]

  def _framed(self, example: base.Example) -> str:
    return self.frame.replace('{question}', example.question)

  def target(self, example: base.Example) -> str:
    """Returns the right text to follow the prompt.

    It is the worked solution and 'The answer is' the answer, or one of them, or the code as a
    block.
    """
    if self.verifier == 'code':
      program = example.solution.strip('\n')
      whole = example.metadata['prefix'] == '' or self.format == 'chat'
      return f'\n```python\n{example.metadata["prefix"]}{program}\n```' if whole else f'\n{program}'
    if not example.solution or self.scoring == 'likelihood':
      return self.continuation(example.answer)
    if self.verifier == 'math' and 'boxed{' in example.solution:
      return self.continuation(example.solution)
    return self.continuation(f'{example.solution}\nThe answer is {example.answer}.')

  def until_stop(self, completion: str) -> str:
    """Returns a completion up to the first stop string; code keeps its indentation."""
    text = completion if self.verifier == 'code' else completion.strip()
    return text[
      : min((text.find(string) for string in self.stop if string in text), default=len(text))
    ]

  def extract(self, completion: str) -> str:
    """Returns the answer in the verifier's one form, '' when there is none."""
    return self._verifier.extract(self.until_stop(completion))

  def verify(self, example: base.Example, completion: str) -> bool:
    """Returns whether the completion states the gold answer.

    With options, that is the text of the right one.
    """
    if self.scoring == 'likelihood':
      return text.normalise(completion) == text.normalise(example.answer)
    return self._verifier.verify(example, self.until_stop(completion))

  @functools.cached_property
  def _verifier(self) -> verifying.Verifier:
    return verifying.find(self.verifier, self.reward_threshold)

  @property
  def judges_in_children(self) -> bool:
    """Whether a child process gives the verdicts."""
    return self.scoring == 'generate' and self._verifier.check is not None

  def check_verifier(self) -> None:
    """Raises OSError when the verifier's child process does not work on this machine."""
    if self.scoring == 'generate' and self._verifier.check is not None:
      self._verifier.check()

  @functools.cached_property
  def verify_flexible(self) -> Any:
    """A `verify` that takes the text that looks most like an answer, stated or not.

    It is None if it would not differ from `verify`.
    """
    flexible = self._verifier.flexible
    if flexible is None or self.scoring == 'likelihood':
      return None
    return lambda example, completion: flexible(example, self.until_stop(completion))

  def example(self, where: str, parsed: Parsed) -> base.Example:
    """Returns a row as an example.

    Raises ValueError, naming the place `where`, when verifier or scoring can't take the row.
    """
    question, answer = parsed.question, parsed.answer.strip()
    for index, option in enumerate(parsed.options):
      if not option.strip():
        raise ValueError(
          f'{where}: option {index} of {len(parsed.options)} has no text; write one, or leave the'
          ' row out'
        )
    if self.scoring == 'likelihood':
      if not parsed.options:
        raise ValueError(f"{where}: has no options; use scoring='generate'")
    elif self.verifier == 'choice':
      letters = string.ascii_uppercase[: len(parsed.options)]
      if not letters or len(parsed.options) > len(letters):
        raise ValueError(f'{where}: has {len(parsed.options)} options to letter; give 1 to 26')
      listed = '\n'.join(
        f'({letter}) {option}' for letter, option in zip(letters, parsed.options, strict=True)
      )
      question, answer = f'{question.strip()}\n{listed}', letters[parsed.index]
    elif self.verifier == 'numeric':
      number = numbers.canonical(answer)
      if number is None:
        raise ValueError(f'{where}: the answer {answer!r} is not a number')
      answer = number
    elif self.verifier == 'code' and not code.may_fail(parsed.tests):
      raise ValueError(
        f'{where}: has no tests: {parsed.tests!r:.80} checks nothing, every program would pass'
      )
    if not answer:
      raise ValueError(f'{where}: has no answer')
    solution = (
      parsed.solution
      if self.verifier == 'code'
      else re.sub(r'\n\s*\n', '\n', parsed.solution.strip())
    )
    metadata = (
      {'prefix': parsed.prefix, 'tests': parsed.tests} if self.verifier == 'code' else parsed.row
    )
    return base.make_example(
      self.name, question, answer, options=parsed.options, solution=solution, metadata=metadata
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Known(Questions):
  """Questions of a data set of catalog.DATASETS, which knows its columns."""

  dataset: str

  def __post_init__(self) -> None:
    """Raises ValueError naming the field that is out of range."""
    if self.dataset not in catalog.DATASETS:
      near = (
        text.nearest(self.dataset, catalog.DATASETS) or f'; they are {", ".join(catalog.DATASETS)}'
      )
      raise ValueError(
        f'tasks.{self.name}.dataset: {self.dataset!r} is no data set of the catalog{near}'
      )
    super().__post_init__()

  def read(self, source: str) -> list[base.Example]:
    """Returns the questions of a source."""
    parsed = catalog.DATASETS[self.dataset].parse(sources.read_source(source), source)
    return [self.example(f'{source}: row {number}', row) for number, row in enumerate(parsed, 1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Custom(Questions):
  """A user's own rows: their columns, and how questions and verdicts are made from them."""

  question: str = '{question}'  # A template of the columns.
  # The column with the answer. With options, it is the right one's text, letter or number from 0;
  # for code, a solution.
  answer: str = 'answer'
  solution: str = ''  # The column with worked text, if the rows have one.
  options: str = ''  # The column with the list of options, if the rows have one.
  # The column with Python that raises when code is wrong, a text or a list of statements.
  tests: str = ''

  def __post_init__(self) -> None:
    """Raises ValueError naming the field that is out of range."""
    super().__post_init__()
    for field, needed in (('options', 'choice'), ('tests', 'code')):
      if self.verifier == needed and not getattr(self, field):
        raise ValueError(
          f'tasks.{self.name}.{field}: is empty; name the column, which the verifier {needed!r}'
          ' needs'
        )
    if self.solution and '\n' in self.stop:
      raise ValueError(
        f"tasks.{self.name}.stop: a line's end would cut worked solutions; use ['\\n\\n']"
      )
    if not self._asked:
      raise ValueError(f'tasks.{self.name}.question: {self.question!r} names no {{column}}')

  @functools.cached_property
  def _asked(self) -> list[str]:
    """The columns that the question is made from."""
    try:
      return [field for _, field, _, _ in string.Formatter().parse(self.question) if field]
    except ValueError as error:
      raise ValueError(
        f'tasks.{self.name}.question: {error}: {self.question!r}; a brace itself is {{{{ or }}}}'
      ) from error

  def read(self, source: str) -> list[base.Example]:
    """Returns the questions of a source."""
    rows = sources.read_source(source)
    sources.columns(
      source,
      rows,
      [*self._asked, self.answer, *filter(None, (self.solution, self.options, self.tests))],
    )
    numbered = [(f'{source}: row {number}', row) for number, row in enumerate(rows, 1)]
    return [self.example(where, self._parse(where, row)) for where, row in numbered]

  def _parse(self, where: str, row: sources.Row) -> Parsed:
    answer, options, index = sources.as_text(f'{where}: {self.answer}', row[self.answer]), (), 0
    if self.options:
      listed = sources.as_list(f'{where}: {self.options}', row[self.options])
      options = tuple(sources.as_text(f'{where}: {self.options}', option) for option in listed)
      index = self._index(where, answer, options)
      answer = options[index]
    solution = str(row[self.solution]) if self.solution else ''
    return Parsed(
      self.question.format_map(row),
      answer,
      answer if self.verifier == 'code' else solution,
      options,
      index,
      tests=_statements(f'{where}: {self.tests}', row[self.tests]) if self.tests else '',
      row=row,
    )

  def _index(self, where: str, answer: str, options: Sequence[str]) -> int:
    """Returns the index of the option that the answer names by text, letter or number from 0.

    Raises ValueError when it names none, or two with the same text.
    """
    if options.count(answer) == 1:
      return options.index(answer)
    if answer in options:
      raise ValueError(
        f'{where}: the answer {answer!r} is the text of two options; give its letter or number'
      )
    index = -1
    if answer.isdecimal():
      index = int(answer)
    elif len(answer) == 1:
      index = string.ascii_uppercase.find(answer)
    if not 0 <= index < len(options):
      raise ValueError(
        f'{where}: the answer {answer!r} is no option, nor the letter or number of one'
      )
    return index


def _statements(where: str, tests: str | Sequence[str]) -> str:
  """Returns the tests of a row as Python.

  They are a text or a list of statements, which a .csv file holds as JSON.
  """
  if isinstance(tests, str) and not tests.lstrip().startswith('['):
    return tests
  return '\n'.join(sources.as_list(where, tests))
