"""Arithmetic on, and rearranging of, the digits of two numbers, made in code.

The tasks are for small models with one token per character.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import operator
from typing import Literal

import numpy as np

from imm_jax.tasks import base, splits

CHARACTERS = '0123456789+-<>=\n*~^'  # All characters of prompts and targets.


def _numeric(compute: Callable[[int, int], int]) -> Callable[[str, str], str]:
  """Returns the operation on numerals of one width, and modulo that width."""
  return lambda a, b: f'{compute(int(a), int(b)) % 10 ** len(a):0{len(a)}}'


def _each_digit(a: str, b: str) -> str:
  return ''.join(str((int(x) + int(y)) % 10) for x, y in zip(a, b, strict=True))


_OPERATIONS: dict[str, tuple[str, Callable[[str, str], str]]] = {
  'sum': ('+', _numeric(operator.add)),
  'diff': ('-', _numeric(lambda a, b: abs(a - b))),
  'digit_sum': ('*', _each_digit),
  'max': ('>', max),
  'min': ('<', min),
  'reverse': ('~', lambda a, b: (a + b)[::-1]),
  'sort': ('^', lambda a, b: ''.join(sorted(a + b))),
}


@dataclasses.dataclass(frozen=True)
class Synthetic(base.Task):
  """Questions such as '37+85=' -> '22', for pairs of numbers of `num_digits` digits.

  The prompt is the question itself, with one line per shot.
  """

  name: str
  # 'sum' is modulo the width, 'diff' is the absolute difference, 'digit_sum' adds digit by digit
  # without carries; 'reverse' and 'sort' take all digits.
  operation: Literal['sum', 'diff', 'digit_sum', 'max', 'min', 'reverse', 'sort'] = 'sum'
  num_digits: int = 1  # Digits of each number, with leading zeros; at most 3.
  num_pairs: int = 0  # Pairs to take of all 100, 10,000, ..., shuffled by seed; 0 takes all.
  first_pair: int = 0  # The first of these pairs; tasks with disjoint ranges share no question.
  test_size: int = 20  # Pairs held out.
  num_shots: int = 0
  seed: int = 0  # Chooses pairs, test and shots.
  max_new_tokens: int = 2  # The answer and its end.
  format = 'plain'
  separator = '\n'
  stop = ('\n',)

  def __post_init__(self) -> None:
    """Raises ValueError naming the field that is out of range."""
    super().__post_init__()
    if self.num_digits not in (1, 2, 3):
      raise ValueError(f'tasks.{self.name}.num_digits: {self.num_digits} is not 1, 2 or 3')

  @functools.cached_property
  def split(self) -> splits.Split:
    """The pairs. Raises ValueError when they are too few, or test and shots take all."""
    sign, compute = _OPERATIONS[self.operation]
    order = np.random.default_rng(self.seed).permutation(100**self.num_digits)
    chosen = order[self.first_pair :][: self.num_pairs or None]
    if len(chosen) < self.num_pairs:
      raise ValueError(
        f'tasks.{self.name}.num_pairs: {self.num_pairs}, and there are {len(chosen)}; raise'
        ' num_digits'
      )
    digits = [f'{n:0{2 * self.num_digits}}' for n in chosen]
    pairs = [(text[: self.num_digits], text[self.num_digits :]) for text in digits]
    examples = [base.make_example(self.name, f'{a}{sign}{b}=', compute(a, b)) for a, b in pairs]
    sizes = splits.Sizes(test=self.test_size, shots=self.num_shots)
    return splits.make_split(self.name, examples, None, seed=self.seed, sizes=sizes)

  def prompt(self, example: base.Example, shots: Sequence[base.Example] = ()) -> str:
    """Returns the question after one solved line per shot."""
    return (
      ''.join(f'{shot.question}{shot.answer}{self.separator}' for shot in shots) + example.question
    )

  def continuation(self, answer: str) -> str:
    """Returns `answer` itself."""
    return answer
