"""Data sets of reasoning_gym that ask for a text, scored by their own scorers."""

from collections.abc import Iterable, Set
import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
from typing import Any

from imm_jax import text
from imm_jax.tasks import base, splits

DRAWS = 4  # The most draws per requested question, since draws repeat.
MAX_CHARACTERS = 10_000  # The longest completion; a longer one is wrong.

# Scorers that evaluate the model's text as Python code. They see it only when it has this form, in
# which it is harmless.
_FORMS = {
  'binary_matrix': r'[0-9\s]*',
  'countdown': r'(?!.*\*\*)[0-9\s+*/().-]{0,200}',
  'n_queens': r'[Q_\s]*',
  'puzzle24': r'(?!.*\*\*)[0-9\s+*/().-]{0,200}',
  'spiral_matrix': r'[0-9\s-]*',
  'string_insertion': r'[A-Z]*',
}
_RUNS_CODE = (
  'its scorer runs what the model wrote through sympy, which can execute any code and need not end'
)
_REFUSED = {
  'coin_flip': "its scorer gives '0' full credit for any probability",
  'composite': 'its parts have scorers of their own; make each a task',
  'game_of_life_halting': "its scorer gives any text without 'True' full credit for 'False'",
  'intermediate_integration': _RUNS_CODE,
  'polynomial_multiplication': _RUNS_CODE,
  'simple_integration': _RUNS_CODE,
}

# The first form takes endless time to expand; nan passes a tolerance test against any number.
_ABSURD = re.compile(r'[0-9.]e[+-]?[0-9]{4}|\bnan\b', re.IGNORECASE)

# These data sets iterate over sets of strings. They are equal in all processes only under one hash
# seed, so a child process makes them.
_HASH_ORDERED = ('isomorphic_strings', 'knight_swap', 'ransom_note', 'word_ladder')
_CHILD = """
import json, sys, reasoning_gym
name, params, sizes = json.load(sys.stdin)
sets = [reasoning_gym.create_dataset(name, seed=seed, size=size, **params) for seed, size in sizes]
entries = [[data[i] for i in range(len(data))] for data in sets]
json.dump(entries, sys.stdout)
"""


@dataclasses.dataclass(frozen=True)
class ReasoningGym(base.Task):
  """Questions that reasoning_gym generates.

  Its question i of seed s is its question 0 of seed s + i.
  """

  name: str
  dataset: str  # A data set's name in reasoning_gym.
  # The parameters of that data set, without seed and size.
  params: dict[str, Any] = dataclasses.field(default_factory=dict)
  train_size: int = 1000  # Questions; fewer if the data set lacks distinct ones.
  test_size: int = 200  # Questions.
  train_seed: int = 0  # Also chooses shots.
  test_seed: int = 1_000_000  # Has to be far from train_seed, or they draw the same questions.
  num_shots: int = 4
  format: base.Format = 'plain'
  stop: tuple[str, ...] = base.AUTO  # Plain: a line; chat: only the model's own end.
  max_new_tokens: int = 16

  def __post_init__(self) -> None:
    """Fills in `stop`. Raises ValueError naming the field that is out of range."""
    if self.stop is base.AUTO:
      object.__setattr__(self, 'stop', () if self.format == 'chat' else ('\n',))
    super().__post_init__()
    for field in ('train_size', 'test_size'):
      if not getattr(self, field):
        raise ValueError(f'tasks.{self.name}.{field}: 0 questions; give at least 1')

  @functools.cached_property
  def split(self) -> splits.Split:
    """The questions.

    Raises ValueError when dataset or params are unknown, or the answers do not fit the format.
    """
    train_entries, test_entries = self._entries()
    # The shots come first, so that they do not depend on train_size and test.
    train_entries = iter(train_entries)
    shots = self._draw(train_entries, self.num_shots, set())
    shown = {example.id for example in shots}
    test = self._draw(test_entries, self.test_size, shown)
    train = self._draw(train_entries, self.train_size, shown | {example.id for example in test})
    distinct = list({example.id: example for example in shots}.values())
    return splits.make_split(
      self.name,
      [*shots, *train],
      test,
      seed=self.train_seed,
      sizes=splits.Sizes(),
      shots=distinct,
    )

  def verify(self, example: base.Example, completion: str) -> bool:
    """Returns whether the completion is the gold answer or gets full credit from the scorer.

    The scorer is the data set's own.
    """
    text = self.extract(completion)
    if text == example.answer:
      return True
    if len(text) > MAX_CHARACTERS or _ABSURD.search(text) or not self._form.fullmatch(text):
      return False
    try:
      return self._scorer.score_answer(text, example.metadata) >= 1.0
    # Scorers are third-party code, and several raise on text that they cannot parse.
    except Exception:
      return False

  def extract(self, completion: str) -> str:
    """Returns the completion up to the first stop string.

    In plain format it is also limited to its first line.
    """
    text = super().extract(completion)
    return text.partition('\n')[0].strip() if self.format == 'plain' else text

  @functools.cached_property
  def _form(self) -> re.Pattern[str]:
    return re.compile(_FORMS.get(self.dataset, '.*'), re.DOTALL)

  @functools.cached_property
  def _scorer(self) -> Any:
    return self._create(0, 1)

  def _create(self, seed: int, size: int) -> Any:
    try:
      import reasoning_gym  # pylint: disable=g-import-not-at-top
      from reasoning_gym.factory import DATASETS  # pylint: disable=g-import-not-at-top
    except ImportError as error:
      message = (
        f"tasks.{self.name}: reasoning_gym cannot be imported ({error}); pip install 'imm_jax[gym]'"
      )
      raise ValueError(message) from error
    where = f'tasks.{self.name}'
    if self.dataset in _REFUSED:
      raise ValueError(
        f'{where}.dataset: {self.dataset!r} is not supported: {_REFUSED[self.dataset]}'
      )
    if self.dataset not in DATASETS:
      near = text.nearest(self.dataset, DATASETS)
      raise ValueError(f'{where}.dataset: reasoning_gym has no data set {self.dataset!r}{near}')
    known = {field.name for field in dataclasses.fields(DATASETS[self.dataset][1])} - {
      'seed',
      'size',
    }
    for key in self.params:
      if key not in known:
        near = text.nearest(key, known) or f'; it has {", ".join(sorted(known))}'
        raise ValueError(f'{where}.params.{key}: not a param of {self.dataset!r}{near}')
    try:
      return reasoning_gym.create_dataset(self.dataset, seed=seed, size=size, **self.params)
    except (AssertionError, TypeError, ValueError) as error:
      raise ValueError(
        f'{where}.params: {self.dataset!r} refuses {self.params}: {error}'
      ) from error

  def _entries(self) -> list[Iterable[dict[str, Any]]]:
    """Returns the entries that train and test are drawn from."""
    sizes = [
      (self.train_seed, DRAWS * (self.train_size + self.num_shots)),
      (self.test_seed, DRAWS * self.test_size),
    ]
    sets = [self._create(seed, size) for seed, size in sizes]
    if self.dataset not in _HASH_ORDERED:
      return [map(data.__getitem__, range(len(data))) for data in sets]
    child = subprocess.run(
      [sys.executable, '-W', 'ignore', '-c', _CHILD],
      input=json.dumps((self.dataset, self.params, sizes)),
      text=True,
      env=os.environ | {'PYTHONHASHSEED': '0'},
      stdout=subprocess.PIPE,
      check=True,
    )
    return json.loads(child.stdout)

  def _draw(
    self, entries: Iterable[dict[str, Any]], size: int, taken: Set[str]
  ) -> list[base.Example]:
    """Returns the first entries as examples, up to `size` distinct ones that are not in `taken`."""
    examples, ids = [], set()
    for entry in entries if size else ():
      question, answer = entry['question'], entry['answer']
      if not isinstance(answer, str):
        raise ValueError(
          f'tasks.{self.name}.dataset: {self.dataset!r} gives no text as the gold answer; choose'
          ' another'
        )
      if self.format == 'plain' and '\n' in answer.strip():
        raise ValueError(
          f'tasks.{self.name}.format: {self.dataset!r} has answers of several lines; use'
          " format='chat'"
        )
      example = base.make_example(self.name, question, answer.strip(), metadata=entry)
      examples.append(example)
      if example.id not in taken:
        ids.add(example.id)
      if len(ids) == size:
        break
    return examples
