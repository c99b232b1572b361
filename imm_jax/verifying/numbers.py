r"""Reads one number from a statement, exactly, as a Fraction.

It parses the tokens of the statement by a grammar, and never searches in it:

  number   := [sign] (power | quantity) [times power] [scale]
  quantity := integer integer '/' integer | decimal ['/' decimal]   3 1/4, 1/2, 1,234, 12 500, 4e6
  power    := '10' '^' [sign] integer
  times    := '*' | 'x'
  sign     := '-' | '+' | 'minus' | 'negative'
  scale    := 'hundred' | 'thousand' | 'million' | 'billion' | 'trillion'     one or more

notation.py rewrites LaTeX and Unicode in this notation first. Around the number may be currency,
percent, units and words; see around.py. Of a sum the value after the last '=' counts. A negation,
two numbers, 'or', a range, a bound or an unfinished sum is no number.
"""

from collections.abc import Sequence
from fractions import Fraction
import re
from typing import NamedTuple

from imm_jax.verifying import answers, around, notation
from imm_jax.verifying.notation import at, Token

MAX_DIGITS = 60  # A longer number, or a larger power of ten, is none.
TOLERANCE = Fraction(1, 10**6)  # Relative, unless both numbers are whole.

_SCALES = {'hundred': 2, 'thousand': 3, 'million': 6, 'billion': 9, 'trillion': 12}

_SENTENCE_END = re.compile(r'[.!?]+(?=\s+[^a-z\s]|\s*$)')


class Number(NamedTuple):
  """A number and the tokens that it was read from, tokens[start:end]."""

  value: Fraction
  start: int
  end: int


def read(statement: str) -> Fraction | None:
  """Returns the one number that a statement gives, whatever units and words are around it.

  It is None if the statement gives none.
  """
  text = notation.plain(statement)
  end = _SENTENCE_END.search(text)
  if end and '?' in end[0]:
    return None
  tokens = notation.tokens(text[: end.start()] if end else text)
  cut = around.end_of_answer(tokens)
  tokens, tail = tokens[:cut], tokens[cut:]
  equals = [i for i, token in enumerate(tokens) if token.text == '=']
  if equals:
    # 'x = 3 and y = 4'
    if any(token.word in ('and', 'or') for token in tokens[equals[0] : equals[-1]]):
      return None
    if not around.may_equal(tokens[: equals[0]]):
      return None
    tokens = tokens[equals[-1] + 1 :]
  found = _first_number(tokens)
  if found is None or not (around.may_follow(tail) or _is_again(found.value, tail)):
    return None
  if not around.may_stand_before(tokens[: found.start]) or not around.may_stand_behind(
    tokens[found.end :]
  ):
    return None
  return found.value


def read_box(content: str) -> Fraction | None:
  """Returns the one number that a box holds. In a formula 5! is a factorial."""
  return read(f'${content}$')


def read_bare(text: str) -> Fraction | None:
  """Returns the number that a text is, with only currency, brackets or percent around it.

  It is None if the text is something else.
  """
  tokens = notation.tokens(notation.plain(text))
  found = _first_number(tokens)
  if found is None:
    return None
  before, behind = tokens[: found.start], tokens[found.end :]
  is_alone = all(token.text in ('(', '*') for token in before) and all(
    token.text in tuple(')*%.') for token in behind
  )
  return found.value if is_alone else None


def read_last(text: str) -> Fraction | None:
  """Returns the last number in a text, before a new question of the model's own: a guess.

  None where it has none.
  """
  tokens = notation.tokens(notation.plain(answers.own(text)))
  last, i = None, 0
  while i < len(tokens):
    found = _number(tokens, i) if tokens[i].kind == 'number' else None
    last, i = (found.value, found.end) if found else (last, i + 1)
  return last


def stated(text: str) -> Fraction | None:
  """Returns the number that a text states, or is; None if it states none, or more than one."""
  return answers.read(text, read, read_bare, read_box)


def canonical(text: str) -> str | None:
  """Returns a gold number in one form, None if the text is not a number.

  A whole number is written as digits, another as in the text without commas.
  """
  value = read_bare(text)
  if value is None:
    return None
  return str(value) if value.denominator == 1 else text.strip().replace(',', '')


def equal(gold: Fraction | None, number: Fraction | None) -> bool:
  """Returns whether two numbers are equal: whole ones exactly, others within TOLERANCE."""
  if number is None or gold is None:
    return False
  if number.denominator == gold.denominator == 1:
    return number == gold
  return abs(number - gold) <= TOLERANCE * max(abs(gold), abs(number))


# The rules of the grammar: each reads from tokens[i] on, and returns None where the tokens do not
# follow it.


def _first_number(tokens: Sequence[Token]) -> Number | None:
  first = next((i for i, token in enumerate(tokens) if token.kind == 'number'), None)
  # (12,500) is a pair.
  if first is None or (',' in tokens[first].text and at(tokens, first - 1).text in ('(', '[')):
    return None
  return _number(tokens, first)


def _is_again(value: Fraction, tail: Sequence[Token]) -> bool:
  """Returns whether the tail after a number is the same number, written otherwise: '3/4 (0.75)'."""
  found = _first_number(tail)
  if found is None:
    return False
  others = [*tail[: found.start], *tail[found.end :]]
  return equal(value, found.value) and all(token.text in ('(', ')') for token in others)


def _number(tokens: Sequence[Token], i: int) -> Number | None:
  """Reads a number that is no base or exponent, from its first digits on.

  Its sign comes before them.
  """
  found = _power(tokens, i) or _quantity(tokens, i)
  if found is None:
    return None
  value, end = found
  if at(tokens, end).text in ('*', 'x', 'X') and (power := _power(tokens, end + 1)):
    value, end = value * power[0], power[1]
  hyphen = at(tokens, end).text == '-'
  while (
    scale := at(tokens, end + hyphen).word.removesuffix('s')
  ) in _SCALES and value < 10**MAX_DIGITS:
    value, end, hyphen = value * 10 ** _SCALES[scale], end + hyphen + 1, False
  if '^' in (at(tokens, i - 1).text, at(tokens, end).text):
    return None
  start = _sign_start(tokens, i)
  is_negative = start < i and tokens[start].text != '+'
  return Number(-value if is_negative else value, start, end)


def _sign_start(tokens: Sequence[Token], i: int) -> int:
  """Returns the index of the sign of the number at tokens[i], i if it has none."""
  sign, before = at(tokens, i - 1), at(tokens, i - 2)
  if sign.word in ('minus', 'negative'):
    return i - 1
  if sign.text not in ('-', '+') or before.kind == 'number' or before.text in (')', '}'):
    return i  # 10 - 3 is a calculation.
  is_glued = sign.is_spaced and not tokens[i].is_spaced
  # 'it is -3', but 'x-3' and 'the total - 3'.
  return i if before.kind == 'word' and not is_glued else i - 1


def _power(tokens: Sequence[Token], i: int) -> tuple[Fraction, int] | None:
  """Reads a power of ten; returns its value, and the index after it."""
  if (at(tokens, i).text, at(tokens, i + 1).text) != ('10', '^'):
    return None
  i += 2
  is_bracketed = at(tokens, i).text in ('(', '{')
  i += is_bracketed
  sign = at(tokens, i).text
  i += sign in ('-', '+')
  digits = at(tokens, i).text
  if not digits.isdecimal() or len(digits) > 3 or int(digits) > MAX_DIGITS:
    return None
  if is_bracketed and at(tokens, i + 1).text not in (')', '}'):
    return None
  return Fraction(10) ** (-int(digits) if sign == '-' else int(digits)), i + 1 + is_bracketed


def _quantity(tokens: Sequence[Token], i: int) -> tuple[Fraction, int] | None:
  """Reads a decimal, a fraction or a mixed number; returns its value, and the index after it."""
  whole, under = Fraction(0), Fraction(1)
  is_mixed = (
    tokens[i].text.isdecimal()
    and at(tokens, i + 1).text.isdecimal()
    and at(tokens, i + 2).text == '/'
  )
  if is_mixed:
    whole, i = _decimal(tokens[i].text), i + 1
  top, end = _decimal(tokens[i].text), i + 1
  if at(tokens, end).text == '/':
    is_negative = at(tokens, end + 1).text == '-' and not at(tokens, end + 2).is_spaced
    if at(tokens, end + 1 + is_negative).kind == 'number':
      under, end = _decimal(tokens[end + 1 + is_negative].text), end + 2 + is_negative
      under = under if under is None or not is_negative else -under
  if whole is None or top is None or not under:
    return None
  if is_mixed and not 0 < top < under:  # '3 5/4' is no mixed number.
    return None
  return whole + top / under, end


def _decimal(digits: str) -> Fraction | None:
  exponent = digits.lower().partition('e')[2]
  if len(digits) > MAX_DIGITS or len(exponent) > 3 or abs(int(exponent or 0)) > MAX_DIGITS:
    return None
  return Fraction(digits.replace(',', '').replace(' ', ''))
