"""Splits questions into train, test and few-shot examples.

The choice depends on the seed and the content, not on the order.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import hashlib
from typing import NamedTuple

from imm_jax.tasks.base import Example


@dataclasses.dataclass(frozen=True)
class Split:
  """Distinct questions: none of `test` is in `train`, none of `shots` in either."""

  train: tuple[Example, ...]
  test: tuple[Example, ...]
  shots: tuple[Example, ...]
  num_dropped: int  # Rows left out as duplicates, or from train because test has them.


class Sizes(NamedTuple):
  """The most questions of each kind; 0 takes all of train and test, and no shots."""

  train: int = 0
  test: int = 0
  shots: int = 0


def make_split(
  name: str,
  train: Sequence[Example] | None,
  test: Sequence[Example] | None,
  *,
  seed: int,
  sizes: Sizes,
  shots: Sequence[Example] | None = None,
  gold: Callable[[Example], str] | None = None,
) -> Split:
  """Returns distinct examples: shots from train, test without them, train without either.

  Which rows are chosen depends on `seed` and on the questions, not on their order. The shots do not
  depend on test: the same prompts are measured on any test set.

  Args:
    name: the name of the task, for errors.
    train: rows as read, repetitions included; None for a task that is only measured.
    test: rows as read; None holds out `sizes.test` rows of train, which never has a row of test.
    seed: chooses the rows.
    sizes: how many to keep.
    shots: the few-shot examples, in place of some from train; distinct, and among its rows.
    gold: returns the text that decides whether an answer is right; a question whose rows differ in
      it is left out. None keeps the first row.

  Raises:
    ValueError: train or test is empty after that.
  """
  rows = (shots or ()) if train is None else train
  pool = _distinct(rows, gold)
  if shots is None:
    shots = sorted(pool, key=_rank(seed))[: sizes.shots]
  pool = _without(pool, shots)
  if test is None:
    asked = _choose(pool, sizes.test, seed)
  else:
    asked = _without(_distinct(test, gold), shots)
  rest = _without(pool, asked)
  kept_test = _choose(asked, sizes.test or len(asked), seed)
  if not kept_test:
    raise ValueError(
      f'tasks.{name}: the test split is empty; give a test_source that has rows, or a test_size > 0'
    )
  if train is not None and not rest:
    raise ValueError(
      f'tasks.{name}: the train split is empty: of {len(train)} rows {len(shots)} are few-shot'
      ' examples and test or other rows ask the rest; give more, or lower num_shots or test_size'
    )
  kept_train = _choose(rest, sizes.train or len(rest), seed)
  dropped = len(rows) + len(test or ()) - len(rest) - len(shots) - len(asked)
  return Split(tuple(kept_train), tuple(kept_test), tuple(shots), dropped)


def _rank(seed: int) -> Callable[[Example], str]:
  # The task's name is left out, so that two tasks on one file hold out the same rows.
  return lambda example: hashlib.sha1(f'{seed}/{example.asked}'.encode()).hexdigest()


def _choose(examples: Sequence[Example], size: int, seed: int) -> list[Example]:
  """Returns `size` of the examples, in their order."""
  ids = {example.id for example in sorted(examples, key=_rank(seed))[:size]}
  return [example for example in examples if example.id in ids]


def _without(examples: Sequence[Example], others: Iterable[Example]) -> list[Example]:
  ids = {example.id for example in others}
  return [example for example in examples if example.id not in ids]


def _distinct(examples: Iterable[Example], gold: Callable[[Example], str] | None) -> list[Example]:
  first: dict[str, Example] = {}
  contradicted = set()
  for example in examples:
    known = first.setdefault(example.id, example)
    if gold is not None and gold(known) != gold(example):
      contradicted.add(example.id)
  return [example for example in first.values() if example.id not in contradicted]
