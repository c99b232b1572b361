"""Sums and comparisons of single digits, made in code: for a tiny model with one token a character."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Literal

from imm_jax.tasks import base, splits

CHARACTERS = '0123456789+-<>=\n'  # all that a prompt or a target can have

_OPERATIONS = {
  'sum': ('+', lambda a, b: (a + b) % 10),
  'diff': ('-', lambda a, b: abs(a - b)),
  'max': ('>', max),
  'min': ('<', min),
}


@dataclasses.dataclass(frozen=True)
class Synthetic(base.Task):
  """'3+4=' -> '7' for all 100 pairs of digits. The prompt is the question itself, one line a shot."""

  name: str
  operation: Literal['sum', 'diff', 'max', 'min'] = 'sum'  # sum modulo 10, absolute difference
  test_size: int = 20  # pairs held out, of 100
  num_shots: int = 0
  seed: int = 0  # chooses test and shots
  max_new_tokens: int = 2  # the answer and what ends it
  format = 'plain'
  separator = '\n'
  stop = ('\n',)

  @functools.cached_property
  def split(self) -> splits.Split:
    """The pairs. Raises ValueError when test and shots take all of them."""
    sign, compute = _OPERATIONS[self.operation]
    pairs = [(a, b) for a in range(10) for b in range(10)]
    examples = [base.make_example(self.name, f'{a}{sign}{b}=', str(compute(a, b))) for a, b in pairs]
    return splits.make_split(self.name, examples, None, num_shots=self.num_shots, seed=self.seed, test_size=self.test_size)

  def prompt(self, example: base.Example, shots: Sequence[base.Example] = ()) -> str:
    """Returns the question after one solved line a shot."""
    return ''.join(f'{shot.question}{shot.answer}{self.separator}' for shot in shots) + example.question

  def continuation(self, answer: str) -> str:
    """Returns `answer` itself."""
    return answer
