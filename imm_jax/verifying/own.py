"""Finds and calls a user's own verifier, MODULE:FUNCTION.

It is imported from Python's path or the config's directory.
"""

from collections.abc import Callable
import functools
import importlib
import math
from typing import Any


@functools.cache
def find(name: str) -> Callable[[Any, str], Any]:
  """Returns the function.

  Raises ValueError when the module cannot be imported, or lacks the function.
  """
  module, _, attribute = name.partition(':')
  try:
    function = getattr(importlib.import_module(module), attribute)
  except Exception as error:  # The module is the user's: it may raise anything.
    raise ValueError(
      f"{name!r} is not 'MODULE:FUNCTION' that can be imported ({type(error).__name__}: {error})"
    ) from error
  if not callable(function):
    raise ValueError(f'{name!r} is no function')
  return function


def verify(name: str, threshold: float, example: Any, text: str) -> bool:
  """Returns whether the function returns True, or a reward above the threshold.

  Raises ValueError naming the function and the question, when it raises or returns neither a bool
  nor a number in [0, 1].
  """
  where = f'verifier {name}: on the question {example.id}'
  try:
    reward = find(name)(example, text)
  except Exception as error:  # The function is the user's: it may raise anything.
    raise ValueError(
      f'{where} it raises {type(error).__name__}: {" ".join(str(error).split())}'
    ) from error
  try:
    value = float(reward)
  except (TypeError, ValueError):
    value = math.nan
  if not 0 <= value <= 1:
    raise ValueError(
      f'{where} it returns {reward!r}; return True or False, or a reward from 0 to 1'
    )
  return value > threshold
