"""What a text is without case and spacing, and what a wrong name may have meant."""

from collections.abc import Iterable
import difflib
from typing import Any


def normalise(text: str) -> str:
  """Returns `text` case-folded and with single spaces: questions that are equal in this form are
  one question.
  """
  return ' '.join(text.casefold().split())


def nearest(word: Any, allowed: Iterable[str]) -> str:
  """Returns '; did you mean ...?' with the names nearest to `word`, or ''."""
  close = difflib.get_close_matches(str(word), list(allowed), n=3)
  return f'; did you mean {" or ".join(close)}?' if close else ''
