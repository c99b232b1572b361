"""Words of messages: what may have been meant."""

from collections.abc import Iterable
import difflib
from typing import Any


def nearest(word: Any, allowed: Iterable[str]) -> str:
  """Returns '; did you mean ...?' with the names nearest to `word`, or ''."""
  close = difflib.get_close_matches(str(word), list(allowed), n=3)
  return f'; did you mean {" or ".join(close)}?' if close else ''
