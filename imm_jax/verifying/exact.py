"""Judges an answer that is a text: 'yes', '(A)', '] ]'."""

import re

from imm_jax.text import normalise
from imm_jax.verifying import answers

_GOES_ON = re.compile(r'[,;]?\s(?:because|since|as|so|for|which)\b|;\s', re.IGNORECASE)


def read(text: str) -> str:
  """Returns the stated answer, or the text where none is stated, without what surrounds it.

  It is '' where the answer is denied ('The answer is not yes').
  """
  return answers.read(text, lambda statement: _tidy(statement) or None, bare=_tidy) or ''


def verify(gold: str, text: str) -> bool:
  """Returns whether the text states the gold answer, or is it. Case does not count, nor a reason given behind it."""
  answer, gold = read(text).casefold(), _tidy(gold).casefold()
  return bool(gold) and gold in (answer, _GOES_ON.split(answer, maxsplit=1)[0])


def verify_flexible(gold: str, text: str) -> bool:
  """Takes other punctuation too, and the gold answer as the last word."""
  answer, gold = loose(read(text)), loose(gold)
  return bool(gold) and (answer == gold or loose(answer.rpartition(' ')[2]) == gold)


def loose(text: str) -> str:
  """Returns the letters, digits and signs of a text, in lower case: '(A)' is 'a', 'Yes!' is 'yes'."""
  return ' '.join(normalise(text).strip('*\'"`.,;:!?()$ ').split())


def _tidy(text: str) -> str:
  return answers.undress(answers.undress(text).removesuffix('.'))
