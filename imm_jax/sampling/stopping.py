"""Where a completion ends: at an end token, or where the first stop string is complete.

Both are a function of the completion's tokens and the stop strings alone. The number of tokens
decoded between two looks at a row has no influence.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from imm_jax.formats.tokenizer import Tokenizer

# Incomplete characters decode to this, such as the first byte of one whose others are still to
# come.
_BROKEN = '\ufffd'
# Special tokens have no text. If a stop string names one, it is marked by a character that no text
# contains: a lone surrogate.
_FIRST_MARK = 0xD800


class Ending(NamedTuple):
  """Where a completion ends."""

  num_tokens: int  # The number of tokens it keeps, including the one that ended it.
  text: str  # Their text before the first stop string.


class Stopping:
  """The end tokens of a model, and stop strings.

  A special token in a stop string means that token, or its name spelt by others.
  """

  def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]):
    """Prepares to look for the strings of `stop` in what `tokenizer` decodes."""
    self._tokenizer = tokenizer
    self._stop = tuple(stop)
    self.end_tokens = tokenizer.ending(stop)
    special = tokenizer.special_tokens
    named = [token for token, name in special.items() if any(name in string for string in stop)]
    named.sort(key=lambda token: len(special[token]), reverse=True)  # A name may be in another.
    self._marks = {token: chr(_FIRST_MARK + i) for i, token in enumerate(named)}
    marked = list(stop)
    for token, mark in self._marks.items():
      marked = [string.replace(special[token], mark) for string in marked]
    self._strings = tuple(dict.fromkeys((*stop, *marked)))
    self._longest = max(map(len, self._strings), default=0)

  def mask(self, vocab_size: int) -> np.ndarray:
    """Returns [vocab_size] bool: the tokens that end a row wherever they are.

    The row's text need not be decoded for them.
    """
    mask = np.zeros(vocab_size, bool)
    if self._stop:
      mask[: self._tokenizer.size] = self._tokenizer.tokens_containing(self._stop)
    mask[list(self.end_tokens)] = True
    return mask

  def find(self, tokens: Sequence[int], seen: int = 0) -> Ending | None:
    """Returns where a completion ends, None if it does not.

    It ends with the first token that is an end token, or that completes a stop string in the text
    so far. Its text is cut at the earliest start of a stop string that is complete then.

    Args:
      tokens: the completion's token ids.
      seen: the number of leading tokens that are known not to end it, from an earlier look.
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
    """Returns whether the tokens after the first `seen` may complete a stop string.

    Only the tail of the row is decoded. It begins early enough for the longest string, and for one
    character more, because some decoders drop a space at the beginning. If the tail's bytes do not
    form whole characters, it does not show how the whole row decodes.
    """
    start = seen
    missing = self._longest + 1  # Characters in front of the unseen tokens.
    while start and missing:
      start -= 1
      missing -= tokens[start] in self._tokenizer.tokens_with_text
    tail = self._text(tokens[start:], whole=False)
    return _BROKEN in tail or any(string in tail for string in self._strings)

  def _text(self, tokens: Sequence[int], whole: bool = True) -> str:
    """Returns the text in which stop strings are looked for.

    whole: without the replacement characters at its end, which may become a character yet.
    """
    text = self._tokenizer.decode(tokens)
    places = [i for i, token in enumerate(tokens) if token in self._marks]
    for i in reversed(places):
      start = len(self._tokenizer.decode(tokens[:i]))
      text = text[:start] + self._marks[tokens[i]] + text[start:]
    return text.rstrip(_BROKEN) if whole else text

  def _without_marks(self, text: str) -> str:
    return text.translate({ord(mark): None for mark in self._marks.values()})
