"""Normalises texts for comparison, and suggests names for a misspelt one."""

from collections.abc import Iterable
import difflib
from typing import Any


def normalise(text: str) -> str:
  """Returns `text` case-folded and with single spaces.

  Questions that are equal in this form count as one question.
  """
  return ' '.join(text.casefold().split())


def nearest(word: Any, allowed: Iterable[str]) -> str:
  """Returns '; did you mean ...?' with the names nearest to `word`, or ''."""
  close = difflib.get_close_matches(str(word), list(allowed), n=3)
  return f'; did you mean {" or ".join(close)}?' if close else ''
