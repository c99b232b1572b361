"""Verifiers: functions that read the answer of a completion and judge it.

Programs are judged in a sandbox.

The strict reader takes a stated answer, or a completion that is nothing but the answer; in doubt
nothing is stated. The flexible reader takes the text that looks most like an answer. None raises on
a model's text, and all take bounded time.
"""

from collections.abc import Callable, Sequence
import concurrent.futures
import dataclasses
import functools
import os
from typing import Any, Protocol

from imm_jax.text import nearest
from imm_jax.verifying import choice, code, exact, math, numbers, own, sandbox, worker


class Example(Protocol):
  """The parts of a question that a verifier may read."""

  @property
  def answer(self) -> str:
    """The gold answer."""
    ...

  @property
  def options(self) -> tuple[str, ...]:
    """The texts of the options of a multiple-choice question."""
    ...

  @property
  def metadata(self) -> Any:
    """Further data for the verifier: for code, its prefix and its tests."""
    ...


Verify = Callable[[Any, str], bool]  # (Example, completion) -> whether it is right.


@dataclasses.dataclass(frozen=True)
class Verifier:
  """How an answer is read and judged."""

  extract: Callable[[str], str]  # Completion -> its answer in one form, '' for none.
  verify: Verify  # The strict reader.
  flexible: Verify | None = None  # The flexible reader; None if it would not differ.
  check: Callable[[], Any] | None = None  # Raises OSError if its child processes do not work here.


def _number_text(text: str) -> str:
  number = numbers.stated(text)
  return '' if number is None else str(number)


def _last_number(example: Example, text: str) -> bool:
  number = numbers.stated(text)
  last = numbers.read_last(text) if number is None else number
  return numbers.equal(numbers.read_bare(example.answer), last)


VERIFIERS: dict[str, Verifier] = {
  'exact': Verifier(
    exact.read,
    lambda example, text: exact.verify(example.answer, text),
    lambda example, text: exact.verify_flexible(example.answer, text),
  ),
  'numeric': Verifier(
    _number_text,
    lambda example, text: numbers.equal(numbers.read_bare(example.answer), numbers.stated(text)),
    _last_number,
  ),
  'math': Verifier(
    math.read,
    lambda example, text: math.verify(example.answer, text),
    lambda example, text: math.verify_flexible(example.answer, text),
    worker.check,
  ),
  'choice': Verifier(
    choice.read,
    lambda example, text: choice.verify(example.answer, example.options, text),
    lambda example, text: choice.verify_flexible(example.answer, example.options, text),
  ),
  'code': Verifier(
    code.read,
    lambda example, text: code.verify(example.metadata['prefix'], example.metadata['tests'], text),
    check=sandbox.check,
  ),
}


def find(name: str, reward_threshold: float) -> Verifier:
  """Returns the verifier named by a key of VERIFIERS or by 'MODULE:FUNCTION'.

  The function's reward counts as right above the threshold. Raises ValueError for an unknown
  verifier.
  """
  if name in VERIFIERS:
    return VERIFIERS[name]
  if ':' not in name:
    raise ValueError(
      f'{name!r} is not one of {", ".join(VERIFIERS)}, nor'
      f" 'MODULE:FUNCTION'{nearest(name, VERIFIERS)}"
    )
  own.find(name)
  return Verifier(exact.read, functools.partial(own.verify, name, reward_threshold))


def judge_all(verify: Verify, pairs: Sequence[tuple[Any, str]]) -> list[bool]:
  """Returns the verdicts on (example, completion) pairs, one thread per core at a time.

  It is for verifiers that wait for child processes.
  """
  return list(_threads().map(lambda pair: verify(*pair), pairs))


@functools.cache
def _threads() -> concurrent.futures.ThreadPoolExecutor:
  """The threads that wait for child processes.

  Each keeps a process of math-verify, so the threads are kept too.
  """
  return concurrent.futures.ThreadPoolExecutor(os.cpu_count())
