r"""Reads one number, exactly, as a Fraction: by a grammar over the tokens of a statement, never by a search in it.

  number   := [sign] (power | quantity) [times power] [scale]
  quantity := integer integer '/' integer | decimal ['/' decimal]     3 1/4, 3.5, 1/2, 1,234, 12 500, 4e6
  power    := '10' '^' [sign] integer
  times    := '*' | 'x'
  sign     := '-' | '+' | 'minus' | 'negative'
  scale    := 'hundred' | 'thousand' | 'million' | 'billion' | 'trillion'

LaTeX and Unicode are rewritten in this notation first: 3\frac14 is 3 1/4, 15{,}000 is 15,000, × is *. Around the
number may stand currency, percent, units and words. Of a sum the value behind the last '=' counts. A negation, two
numbers, 'or', a range, a bound or an unfinished sum is no number.
"""

from collections.abc import Sequence
from fractions import Fraction
import re
from typing import NamedTuple

from imm_jax.verifying import answers

MAX_DIGITS = 60  # A longer number, or a larger power of ten, is none.
TOLERANCE = Fraction(1, 10**6)  # Relative, where one of both is not whole.

_SCALES = {'hundred': 2, 'thousand': 3, 'million': 6, 'billion': 9, 'trillion': 12}

# How a number is written otherwise, and in the notation of the grammar.
_REWRITTEN = [
  (re.compile(pattern), replacement)
  for pattern, replacement in (
    (r'\\left|\\right|\\displaystyle|\\!|[`"“”]', ''),
    (r'\{,\}', ','),
    (r'\\[,;:> ]|~|[\u00a0\u2009\u202f]', ' '),
    (r'(?<=[0-9])\s*(?=\\[dtc]?frac|[½⅓⅔¼¾⅕⅛])', ' '),
    (r'\\[dtc]?frac\s*([0-9])\s*([0-9])', r'\1/\2 '),
    (r'\\[dtc]?frac\s*([0-9])\s*\{\s*([0-9.,]+)\s*\}', r'\1/\2 '),
    (r'\\[dtc]?frac\s*\{\s*(-?[0-9.,]+)\s*\}\s*([0-9])', r'\1/\2 '),
    (r'\\[dtc]?frac\s*\{\s*(-?[0-9.,]+)\s*\}\s*\{\s*([0-9.,]+)\s*\}', r'\1/\2 '),
    (r'\\(?:times|cdot|ast)(?![A-Za-z])|[×·⋅∙]', '*'),
    (r'\\approx|≈', ' about '),
    (r'\^\s*\\circ\b|\^\s*\{\s*\\circ\s*\}|\\degree\b|°', ' degrees'),
    (r'(?<=[A-Za-z])\^(?:-?[1-3]|\{-?[1-3]\})(?![0-9])', ''),  # cm^2 is a unit, as cm is.
    (r'\\%', '%'),
    (r'\b(?:US|CA|AU|HK|NZ|[CA])\\?\$|\\?\$|[€£¥₹]|\bRs\.', ''),
    (r'\\[()\[\]]|__', ''),
    (r'(?<=[0-9)}])\s*\*\*\s*(?=[0-9({+-])', '^'),  # A power in Python; other double stars are bold.
    (r'\*\*', ''),
    (r'[\N{MINUS SIGN}‐‑–]', '-'),
  )
]
_VULGAR = {'½': '1/2', '⅓': '1/3', '⅔': '2/3', '¼': '1/4', '¾': '3/4', '⅕': '1/5', '⅛': '1/8'}
_RAISED = str.maketrans('⁻⁰¹²³⁴⁵⁶⁷⁸⁹', '-0123456789')

_SENTENCE_END = re.compile(r'[.!?]+(?=\s+[^a-z\s]|\s*$)')
_TOKEN = re.compile(
  r"""
  \s*(?:
    (?P<number>(?:
        [0-9]{1,3}(?:,[0-9]{3})+(?![0-9])             # 1,234
      | [0-9]{1,3}(?:[ ][0-9]{3})+(?![0-9]|\s?/)      # 12 500, but 2 125/250 is a mixed number
      | [0-9]+
      )(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+(?!\w))?
    | (?<!\w)\.[0-9]+)
  | (?P<word>[^\W0-9]\w*(?:['’]\w+)*)
  | (?P<sign>\S))""",
  re.VERBOSE,
)


def _words(text: str) -> frozenset[str]:
  return frozenset(text.split())


# What ends the part of a statement that has to be one number: an explanation, in which anything may stand but an
# alternative, or a relation, in which other numbers may stand but no calculation.
_EXPLAINS = _words('because since as so which where when given thus hence therefore that not rather instead')
_RELATES = _words('for in within with at by on during after before while until from')
_ALTERNATIVES = _words('or nor either otherwise alternatively possibly')

# Words that make another number of the one they stand by, or none: on both sides of it, before it, behind it.
_CHANGES = _words("""
  no never neither nor or half halves dozen dozens wrong incorrect unknown unclear impossible undefined zero two three
  four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty
  thirty forty fifty sixty seventy eighty ninety hundred thousand million billion trillion""")
_CHANGES_BEFORE = _CHANGES | _words("""
  not either between from than least most above below under exceeds exceed twice thrice double triple times third
  quarter plus minus negative except but without unlike other if unless until greater less larger smaller fewer multiple
  multiples factor factors power powers square squares cube cubes root roots percent log product products difference
  differences ratio step part case question problem equation option""")
_CHANGES_BEHIND = _CHANGES | _words("""
  squared cubed factorial mod third thirds quarter quarters fourth fourths fifth fifths sixth sixths eighth eighths
  tenth tenths hundredth hundredths thousandth thousandths""")
_NOT = ("n't", 'n’t')
_UNIT_LETTERS = frozenset('mgslhtdLWVANJCF')  # Another letter behind a number is a variable, or a factor as in 5k.


class Token(NamedTuple):
  """A number without its sign, a word, or another character; `kind` is '' behind the last one."""

  kind: str
  text: str
  is_spaced: bool  # White space stands before it.


class Number(NamedTuple):
  """A number and the tokens that it was read from, tokens[start:end]."""

  value: Fraction
  start: int
  end: int


def read(statement: str) -> Fraction | None:
  """Returns the one number that a statement gives, whatever units and words are around it; None where it gives none."""
  text = _plain(statement)
  end = _SENTENCE_END.search(text)
  if end and '?' in end[0]:
    return None
  tokens = _tokens(text[: end.start()] if end else text)
  cut = _end_of_answer(tokens)
  if not _may_follow(tokens[cut:]):
    return None
  tokens = tokens[:cut]
  equals = [i for i, token in enumerate(tokens) if token.text == '=']
  if equals:
    if any(token.text.lower() == 'and' for token in tokens[equals[0] : equals[-1]]):  # 'x = 3 and y = 4'
      return None
    tokens = tokens[equals[-1] + 1 :]
  found = _first_number(tokens)
  if found is None or not _may_stand_before(tokens[: found.start]) or not _may_stand_behind(tokens[found.end :]):
    return None
  return found.value


def read_bare(text: str) -> Fraction | None:
  """Returns the number that a text is, with nothing but currency or percent around it; None where it is none."""
  tokens = _tokens(_plain(text).strip(' *()').removesuffix('.').removesuffix('%').strip(' *'))
  found = _first_number(tokens)
  return found.value if found and (found.start, found.end) == (0, len(tokens)) else None


def read_last(text: str) -> Fraction | None:
  """Returns the last number in a text, before a new question of the model's own: a guess. None where it has none."""
  tokens = _tokens(_plain(answers.own(text)))
  last, i = None, 0
  while i < len(tokens):
    found = _number(tokens, i) if tokens[i].kind == 'number' else None
    last, i = (found.value, found.end) if found else (last, i + 1)
  return last


def stated(text: str) -> Fraction | None:
  """Returns the number that a text states, or is; None where it states none, or more than one."""
  return answers.read(text, read, read_bare)


def canonical(text: str) -> str | None:
  """Returns a gold number as whole digits where it is whole, else as written without commas; None when it is no number."""
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


def _plain(text: str) -> str:
  """Returns a text in the notation of the grammar."""
  text = answers.unwrap(text[-answers.MAX_CHARACTERS :], ' ')
  text = re.sub(r'(?<=\w)[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+', lambda raised: '^' + raised[0].translate(_RAISED), text)
  for pattern, replacement in _REWRITTEN:
    text = pattern.sub(replacement, text)
  for sign, fraction in _VULGAR.items():
    text = text.replace(sign, fraction)
  return text.strip()


def _tokens(text: str) -> list[Token]:
  return [Token(match.lastgroup or '', match[0].strip(), match[0][0].isspace()) for match in _TOKEN.finditer(text)]


def _at(tokens: Sequence[Token], i: int) -> Token:
  return tokens[i] if 0 <= i < len(tokens) else Token('', '', True)


# The rules of the grammar: each reads from tokens[i] on, and returns None where the tokens do not follow it.


def _first_number(tokens: Sequence[Token]) -> Number | None:
  first = next((i for i, token in enumerate(tokens) if token.kind == 'number'), None)
  return None if first is None else _number(tokens, first)


def _number(tokens: Sequence[Token], i: int) -> Number | None:
  """Reads a number that is no base or exponent, from its first digits on; its sign stands before them."""
  found = _power(tokens, i) or _quantity(tokens, i)
  if found is None:
    return None
  value, end = found
  if _at(tokens, end).text in ('*', 'x', 'X') and (power := _power(tokens, end + 1)):
    value, end = value * power[0], power[1]
  hyphen = _at(tokens, end).text == '-'
  scale = _at(tokens, end + hyphen).text.lower().removesuffix('s')
  if scale in _SCALES:
    value, end = value * 10 ** _SCALES[scale], end + hyphen + 1
  if '^' in (_at(tokens, i - 1).text, _at(tokens, end).text):
    return None
  start = _sign_start(tokens, i)
  is_negative = start < i and tokens[start].text != '+'
  return Number(-value if is_negative else value, start, end)


def _sign_start(tokens: Sequence[Token], i: int) -> int:
  """Returns where the sign of the number at tokens[i] stands, i where it has none."""
  sign, before = _at(tokens, i - 1), _at(tokens, i - 2)
  if sign.text.lower() in ('minus', 'negative'):
    return i - 1
  if sign.text not in ('-', '+') or before.kind == 'number' or before.text in (')', '}'):
    return i  # 10 - 3 is a calculation.
  is_glued = sign.is_spaced and not tokens[i].is_spaced
  return i if before.kind == 'word' and not is_glued else i - 1  # 'it is -3', but 'x-3' and 'the total - 3'.


def _power(tokens: Sequence[Token], i: int) -> tuple[Fraction, int] | None:
  """Reads a power of ten; returns its value, and the index behind it."""
  if (_at(tokens, i).text, _at(tokens, i + 1).text) != ('10', '^'):
    return None
  i += 2
  is_bracketed = _at(tokens, i).text in ('(', '{')
  i += is_bracketed
  sign = _at(tokens, i).text
  i += sign in ('-', '+')
  digits = _at(tokens, i).text
  if not digits.isdecimal() or len(digits) > 3 or int(digits) > MAX_DIGITS:
    return None
  if is_bracketed and _at(tokens, i + 1).text not in (')', '}'):
    return None
  return Fraction(10) ** (-int(digits) if sign == '-' else int(digits)), i + 1 + is_bracketed


def _quantity(tokens: Sequence[Token], i: int) -> tuple[Fraction, int] | None:
  """Reads a decimal, a fraction or a mixed number; returns its value, and the index behind it."""
  whole, under = Fraction(0), Fraction(1)
  is_mixed = tokens[i].text.isdecimal() and _at(tokens, i + 1).text.isdecimal() and _at(tokens, i + 2).text == '/'
  if is_mixed:
    whole, i = _decimal(tokens[i].text), i + 1
  top, end = _decimal(tokens[i].text), i + 1
  if _at(tokens, end).text == '/' and _at(tokens, end + 1).kind == 'number':
    under, end = _decimal(tokens[end + 1].text), end + 2
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


# What may stand around the number.


def _end_of_answer(tokens: Sequence[Token]) -> int:
  """Returns where an explanation, a relation or an aside begins behind the first number."""
  first = next((i for i, token in enumerate(tokens) if token.kind == 'number'), len(tokens))
  for i in range(first + 1, len(tokens)):
    token, following = tokens[i], _at(tokens, i + 1)
    if token.text.lower() in _EXPLAINS | _RELATES:
      return i
    is_in_number = following.kind == 'number' and not following.is_spaced  # 1,23 and 3:30 and 10^(6)
    if token.text in (',', ';', ':', '(', '[') and not is_in_number and tokens[i - 1].text != '^':
      return i
    if token.text == '-' and token.is_spaced and following.is_spaced and following.kind == 'word':
      return i
  return len(tokens)


def _may_follow(tail: Sequence[Token]) -> bool:
  """Returns whether what stands behind the answer leaves it the only one."""
  if not tail:
    return True
  numbers = [i for i, token in enumerate(tail) if token.kind == 'number']
  alternatives = [i for i, token in enumerate(tail) if token.text.lower() in _ALTERNATIVES]
  if alternatives and (alternatives[0] == 1 or max(numbers, default=0) > alternatives[0]):
    return False
  lead = tail[0] if tail[0].kind == 'word' else _at(tail, 1)  # ', so it is 7'
  if lead.text.lower() in _RELATES:
    return not _calculates(tail)
  if lead.text.lower() in _EXPLAINS or not numbers:
    return True
  return tail[0].text in (';', ':', '(') and lead.kind == 'word'


def _calculates(tokens: Sequence[Token]) -> bool:
  for i, token in enumerate(tokens):
    is_between_numbers = _at(tokens, i - 1).kind == _at(tokens, i + 1).kind == 'number'
    if token.text in ('=', '+', '*', '÷', '^') or (token.text in ('-', '/') and is_between_numbers):
      return True
  return False


def _may_stand_before(tokens: Sequence[Token]) -> bool:
  for i, token in enumerate(tokens):
    if token.kind == 'word':
      word, following = token.text.lower(), _at(tokens, i + 1).text.lower()
      if word in _CHANGES_BEFORE or word.endswith(_NOT) or (word, following) == ('up', 'to'):
        return False
    elif token.text == '-':
      if _at(tokens, i + 1).kind != 'word':
        return False
    elif token.text not in tuple(":,'’({[.*_"):
      return False
  return True


def _may_stand_behind(tokens: Sequence[Token]) -> bool:
  for i, token in enumerate(tokens):
    following = _at(tokens, i + 1)
    if token.kind == 'word':
      if not _is_unit(token, is_first=i == 0, following=following.text.lower()):
        return False
    elif token.text in ('-', '/'):
      if following.kind != 'word' or following.is_spaced:
        return False
    elif token.text not in tuple("%'’.)]}*"):
      return False
  return True


def _is_unit(token: Token, is_first: bool, following: str) -> bool:
  """Returns whether a word behind a number leaves it as it is."""
  word = token.text.lower()
  if word in _CHANGES_BEHIND or word.endswith(_NOT) or any(character.isdigit() for character in word):
    return False
  if word == 'and' and following in ('a', 'an', 'one'):  # 'and a half'
    return False
  is_variable = is_first and len(word) == 1 and token.text not in _UNIT_LETTERS
  return not is_variable or (token.is_spaced and token.text == 'a')
