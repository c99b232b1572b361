"""Where a completion ends: at an end token of the model, or at the first stop string that is complete.

Both are a function of the completion's tokens and the stop strings alone. How many tokens are decoded between two looks
at a row is no part of it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from imm_jax.formats.tokenizer import Tokenizer

# Bytes that are no whole character, such as the first ones of a character whose others are still to come, decode to this.
_BROKEN = '\ufffd'
# Special tokens have no text. Those that stop strings name are marked by characters that no text has: lone surrogates.
_FIRST_MARK = 0xD800


class Ending(NamedTuple):
  """Where a completion ends."""

  num_tokens: int  # How many tokens it keeps, the one that ended it included.
  text: str  # Their text before the first stop string.


class Stopping:
  """The end tokens of a model, and stop strings. A special token in a stop string means that token, or its text."""

  def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]):
    """Prepares to look for the strings of `stop` in what `tokenizer` decodes."""
    self._tokenizer = tokenizer
    self._stop = tuple(stop)
    self.end_tokens = tokenizer.ending(stop)
    named = [
      (token, text)
      for token, text in tokenizer.special_tokens.items()
      if any(text in s for s in stop)
    ]
    named.sort(key=lambda item: len(item[1]), reverse=True)  # One may be a part of another.
    self._marks = {token: chr(_FIRST_MARK + i) for i, (token, _) in enumerate(named)}
    marked = list(stop)
    for token, text in named:
      marked = [string.replace(text, self._marks[token]) for string in marked]
    self._strings = tuple(dict.fromkeys((*stop, *marked)))
    self._longest = max(map(len, self._strings), default=0)

  def mask(self, vocab_size: int) -> np.ndarray:
    """Returns [vocab_size] bool, the tokens that end a row wherever they are: they need no look at its text."""
    mask = np.zeros(vocab_size, bool)
    if self._stop:
      mask[: self._tokenizer.size] = self._tokenizer.tokens_containing(self._stop)
    mask[list(self.end_tokens)] = True
    return mask

  def find(self, tokens: Sequence[int], seen: int = 0) -> Ending | None:
    """Returns where a completion ends, None where it does not.

    It ends with the first token that is an end token, or with which a stop string is complete in the text so far. Its
    text is cut where the first of the stop strings that are complete then begins.

    Args:
      tokens: the completion's token ids.
      seen: so many of them were looked at before, and do not end it.
    """
    end = next((i + 1 for i in range(seen, len(tokens)) if tokens[i] in self.end_tokens), None)
    tokens = tokens[:end]
    if self._strings and self._may_complete(tokens, seen):
      for n in range(seen + 1, len(tokens) + 1):
        text = self._text(tokens[:n])
        starts = [text.find(string) for string in self._strings if string in text]
        if starts:
          return Ending(n, self._without_marks(text[: min(starts)]))
    return Ending(end, self._tokenizer.decode(tokens)) if end else None

  def _may_complete(self, tokens: Sequence[int], seen: int) -> bool:
    """Returns whether the tokens behind the first `seen` may complete a stop string, from the text of the row's tail.

    The tail begins so early that the longest string fits behind its first character, which does not count, since some
    decoders drop a space there. Where bytes are no character, the tail does not say what the whole row's text is.
    """
    start = seen
    missing = self._longest + 1  # Characters in front of the unseen tokens.
    while start and missing:
      start -= 1
      missing -= tokens[start] in self._tokenizer.tokens_with_text
    tail = self._text(tokens[start:], whole=False)
    return _BROKEN in tail or any(string in tail for string in self._strings)

  def _text(self, tokens: Sequence[int], whole: bool = True) -> str:
    """Returns the text in which stop strings are looked for: `whole` is without an unfinished character at the end."""
    text = self._tokenizer.decode(tokens)
    for i in reversed(range(len(tokens))) if self._marks else ():
      if tokens[i] in self._marks:
        place = len(self._tokenizer.decode(tokens[:i]))
        text = text[:place] + self._marks[tokens[i]] + text[place:]
    return text.rstrip(_BROKEN) if whole else text

  def _without_marks(self, text: str) -> str:
    return text.translate({ord(mark): None for mark in self._marks.values()})
