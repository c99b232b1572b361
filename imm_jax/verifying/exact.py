"""Judges an answer that is a text: 'yes', '(A)', '] ]'."""

import re
import unicodedata

from imm_jax.text import normalise
from imm_jax.verifying import answers

# A reason, or a sentence that does not take the answer back.
_GOES_ON = re.compile(
  r'[,;]?\s(?i:because|since|so|which)\b|,\s(?i:as)\b(?!\swell)'
  r'|(?<=[a-z)]{2})[.!]\s+(?!(?:Yes|No|Not|But|Or|And|Wait|Actually|However|Maybe)\b)(?=[A-Z])'
)


def read(text: str) -> str:
  """Returns the stated answer, or the text where none is stated, without what surrounds it.

  It is '' where the answer is denied ('The answer is not yes').
  """
  return answers.read(text, lambda statement: _tidy(statement) or None, bare=_tidy) or ''


def verify(gold: str, text: str) -> bool:
  """Returns whether the text states the gold answer, or is it.

  Case does not count, nor a reason given after it.
  """
  if answers.undress(gold) != ' '.join(gold.split()) and gold not in text:  # __init__ is not init.
    return False
  answer = read(text)
  readings = answer, _tidy(_GOES_ON.split(answer, maxsplit=1)[0])
  gold = _tidy(gold).casefold()
  return bool(gold) and gold in [reading.casefold() for reading in readings]


def verify_flexible(gold: str, text: str) -> bool:
  """Takes other punctuation too, and the gold answer as the last word."""
  answer, gold = loose(read(text)), loose(gold)
  return bool(gold) and (answer == gold or loose(answer.rpartition(' ')[2]) == gold)


def loose(text: str) -> str:
  """Returns the letters, digits and signs of a text, in lower case.

  '(A)' becomes 'a', and 'Yes!' becomes 'yes'.
  """
  return ' '.join(normalise(text).strip('*\'"`.,;:!?()$ ').split())


def _tidy(text: str) -> str:
  return unicodedata.normalize('NFC', answers.undress(answers.undress(text).removesuffix('.')))
