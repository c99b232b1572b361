r"""Judges an answer that is a formula: equal as written, equal as a number, or equal to math-verify, in a child process."""

import re

from imm_jax.verifying import answers, numbers, worker

MAX_CHARACTERS = 1000  # Of a formula; a longer one is no answer.

_SEGMENT = re.compile(r'\$([^$]+)\$|\\\((.+?)\\\)')
_MIXED = re.compile(r'(?<![\w.,/^{}])([0-9]+)\s+([0-9]+)/([0-9]+)(?![\w/.])')
_IN_PLAIN = re.compile(
  r'\\(?:left|right|,|!|;| )|\\(?:text|mathrm|mbox)\{([^{}]*)\}|\$|\s(?![0-9])|(?<![0-9])\s|(?<=\\)[dt](?=frac)'
)
_END = re.compile(r'[.!](?=\s+[A-Z]|\s*$)')


def read(text: str) -> str:
  """Returns the stated formula, or the text where none is stated, in plain form; '' where it is too long to be one."""
  return plain(_formula(text)[1])


def verify(gold: str, text: str) -> bool:
  """Returns whether a text states the gold formula or one that is equal to it, or is one."""
  has_statement, answer = _formula(text)
  if not answer:
    return False
  if plain(answer) == plain(gold):
    return True
  gold_number, number = numbers.read_bare(gold), (numbers.read if has_statement else numbers.read_bare)(answer)
  if gold_number is not None and number is not None:
    if numbers.equal(gold_number, number):
      return True
    if '%' not in gold + answer:  # To math-verify 50 % is 1/2 too.
      return False
  return worker.same_formula(_MIXED.sub(r'\1\\frac{\2}{\3}', gold), _MIXED.sub(r'\1\\frac{\2}{\3}', answer)) == 'correct'


def verify_flexible(gold: str, text: str) -> bool:
  """Takes what math-verify finds at the end of a text."""
  tail = answers.own(text)[-MAX_CHARACTERS:]
  return bool(tail.strip()) and worker.same_formula(gold, tail, search=True) == 'correct'


def plain(formula: str) -> str:
  r"""Returns a formula without what does not change its meaning: spaces, dollars, \left, \text{}, the d of \dfrac."""
  return _IN_PLAIN.sub(r'\1', formula).rstrip('.')


def _formula(text: str) -> tuple[bool, str]:
  r"""Returns whether something is stated, and it, or the text: of 'The answer is $x^2$, since' the formula.

  It is '' for none, or for one that is too long.
  """
  found = answers.read(text, _of_statement, bare=lambda text: (False, text))
  has_statement, formula = found or (True, '')
  formula = formula.replace('**', '').strip('*_`"“” \n').removesuffix('.')
  return has_statement, formula.strip('$ ') if len(formula) <= MAX_CHARACTERS else ''


def _of_statement(statement: str) -> tuple[bool, str] | None:
  """Returns True and the one formula between dollars of a sentence, or else the sentence; None where it is empty."""
  segments = _SEGMENT.findall(statement)
  if len(segments) == 1:
    return True, segments[0][0] or segments[0][1]
  sentence = _END.split(statement, maxsplit=1)[0]
  return (True, sentence) if sentence else None
