r"""Reads one number, exactly, as a Fraction: by a grammar for all of a statement, never by a search in it.

A number is 1,234 or 12 500 or 15,\!000, 3.5, 1/2 or \frac{1}{2} or \frac12, 3 1/4 or 3\frac{1}{4},
4 \times 10^6 or 4e6, 2.5 million, each with a sign. Around it may stand currency, percent, units and words. Of a
sum the value behind the last '=' counts. A negation, two numbers, 'or', a range, a bound or an unfinished sum is
no number.
"""

from fractions import Fraction
import re

from imm_jax.verifying import answers

MAX_EXPONENT = 60  # Of ten; a larger or smaller number is none.
TOLERANCE = Fraction(1, 10**6)  # Relative, where one of both is not whole.

_SCALES = {'hundred': 2, 'thousand': 3, 'million': 6, 'billion': 9, 'trillion': 12}
_DECIMAL = (
  r'(?:(?>[0-9]{1,3}(?:,[0-9]{3}){1,15}|[0-9]{1,3}(?:[ ][0-9]{3}){1,15}|[0-9]{1,60})(?:\.[0-9]{1,60})?|\.[0-9]{1,60})'
)
_POWER = r'10\s?\^\s?(?:\{\s*(?P<%s>[-+]?[0-9]{1,4})\s*\}|\(?(?P<%s>[-+]?[0-9]{1,4})\)?)'
_NUMBER = re.compile(
  rf"""
  (?<![\w.^\\])(?<!\^\{{)
  (?P<sign>(?<![\w)]\s)(?<![\w)}}])[-+]\s?|(?:negative|minus)\s+)?          # 10-3 and 10 - 3 have no -3
  (?:
    {_POWER % ('bare', 'plain_bare')}
  |
    (?P<whole>(?:(?>[0-9]{{1,60}})\s?(?=\\frac)|(?>[0-9]{{1,60}})\s(?=[0-9]{{1,60}}\s?/))(?:\s)*)?
    (?:\\frac\s*(?:\{{\s*(?P<top>-?{_DECIMAL})\s*\}}|(?P<top1>[0-9]))\s*(?:\{{\s*(?P<under>{_DECIMAL})\s*\}}|(?P<under1>[0-9]))
    |(?P<digits>{_DECIMAL})(?:e(?P<exponent>[-+]?[0-9]{{1,4}}))?(?:\s?/\s?(?P<over>[0-9]{{1,60}}))?
    )
    (?:\s?[*x]\s?{_POWER % ('power', 'plain_power')})?
  )
  (?:[\s-](?P<scale>{'|'.join(_SCALES)})s?\b)?
  (?!\.?[0-9]|\s?\^|,[0-9]|\s?/\s?[0-9])""",
  re.VERBOSE | re.IGNORECASE,
)

# How a number is written without changing it, before it is read.
_PLAIN = (
  (re.compile(r'\\left|\\right|\\displaystyle|\\!|[`"“”]'), ''),
  (re.compile(r'\{,\}'), ','),
  (re.compile(r'\\[,;:> ]|~|[\u00a0\u2009\u202f]'), ' '),
  (re.compile(r'\\[dtc]frac'), r'\\frac'),
  (re.compile(r'\\(?:times|cdot|ast)(?![A-Za-z])|[×·⋅∙]'), '*'),
  (re.compile(r'\\approx|≈'), ' about '),
  (re.compile(r'\^\s*\\circ\b|\^\s*\{\s*\\circ\s*\}|\\degree\b|°'), ' degrees'),
  (re.compile(r'\\%'), '%'),
  (re.compile(r'\b(?:US|CA|AU|HK|NZ|[CA])\\?\$|\\?\$|[€£¥₹]|\bRs\.'), ''),
  (re.compile(r'\\[()\[\]]|__'), ''),
  (re.compile(r'(?<=[0-9)}])\s*\*\*\s*(?=[0-9({+-])'), '^'),  # a power in Python, and what else is bold
  (re.compile(r'\*\*'), ''),
  (re.compile(r'[\N{MINUS SIGN}‐‑–]'), '-'),
  (re.compile(r'(?<=[0-9])(?=[½⅓⅔¼¾⅕⅛])'), ' '),
)  # fmt: skip
_VULGAR = {'½': '1/2', '⅓': '1/3', '⅔': '2/3', '¼': '1/4', '¾': '3/4', '⅕': '1/5', '⅛': '1/8'}
_RAISED = str.maketrans('⁻⁰¹²³⁴⁵⁶⁷⁸⁹', '-0123456789')

_SENTENCE = re.compile(r'[.!?]+(?=\s+[^a-z\s]|\s*$)')

# What ends the part of a statement that has to be one number: an explanation, in which anything may stand but an
# alternative, or a relation, in which other numbers may stand but no calculation.
_EXPLAINS = re.compile(
  r'(?:because|since|as|so|which|where|when|given|thus|hence|therefore|that|not|rather|instead)\b', re.IGNORECASE
)
_RELATES = re.compile(r'(?:for|in|within|with|at|by|on|during|after|before|while|until|from)\b', re.IGNORECASE)
_BREAK = re.compile(rf'[,;:(\[](?![0-9])\s*|\s-+\s(?=[a-z])|\b(?={_EXPLAINS.pattern}|{_RELATES.pattern})', re.IGNORECASE)
_ALTERNATIVE = re.compile(r'\b(?:or|either|otherwise|alternatively|possibly)\b[^.;]{0,20}?[0-9]', re.IGNORECASE)
_CALCULATES = re.compile(r'[=+*÷^]|[0-9]\s?[-/]\s?[0-9]')

# Words before a number that make another one of it, or none.
_CHANGES = re.compile(
  r"""\b(?:not|no|never|neither|nor|or|either|between|from|than|least|most|above|below|under|exceeds?|up\ to|half|twice|
  thrice|double|triple|times|third|quarter|plus|minus|negative|except|but|without|unlike|other|if|unless|until|wrong|
  incorrect|unknown|unclear|impossible|undefined|greater|less|larger|smaller|fewer|multiples?|factors?|powers?|
  squares?|cubes?|roots?|percent|log|products?|differences?|ratio|two|three|four|five|six|seven|eight|nine|ten|
  eleven|twelve|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million|billion|dozen|step|part|case|question|problem|equation|option)\b|n't""",
  re.VERBOSE | re.IGNORECASE,
)
_BEFORE = re.compile(r"[A-Za-z\s:,'’({\[.*_-]*")
# A letter may be raised (cm^2); a single x, n or k is a variable or a factor.
_AFTER = re.compile(
  r"""(?!\s?[xyznkibKMB](?![A-Za-z]))(?!\s*(?:squared|cubed|factorial|tenth|hundredth|thousandth|half|halves|thirds|fourths|
  fifths|sixths|eighths|mod)\b)(?!.*\b(?:or|nor|wrong|incorrect|and\s+(?:a|one)\s+\w+)\b)
  (?:[A-Za-zµ\s%'’.)\]}_*]|[-/](?=[A-Za-z])|(?<=[A-Za-z])\^\{?-?[1-3]\}?)*""",
  re.VERBOSE | re.IGNORECASE,
)


def read(statement: str) -> Fraction | None:
  """Returns the one number that a statement gives, whatever units and words are around it; None where it gives none."""
  text = _plain(statement)
  end = _SENTENCE.search(text)
  if end and '?' in end[0]:
    return None
  sentence = text[: end.start()] if end else text
  first = _NUMBER.search(sentence)
  if first is None:
    return None
  cut = _BREAK.search(sentence, first.end())
  head, tail = (sentence[: cut.start()], sentence[cut.end() :]) if cut else (sentence, '')
  if cut and not _may_follow(cut, tail):
    return None
  head = head.rpartition('=')[2]
  number = _NUMBER.search(head)
  if number is None or _CHANGES.search(head, 0, number.start()) or not _BEFORE.fullmatch(head, 0, number.start()):
    return None
  return _value(number) if _AFTER.fullmatch(head, number.end()) else None


def read_bare(text: str) -> Fraction | None:
  """Returns the number that a text is, with nothing but currency or percent around it; None where it is none."""
  number = _NUMBER.fullmatch(_plain(text).strip(' *()').removesuffix('.').removesuffix('%').strip(' *'))
  return _value(number) if number else None


def read_last(text: str) -> Fraction | None:
  """Returns the last number in a text, None where it has none: a guess."""
  numbers = list(_NUMBER.finditer(_plain(text)))
  return _value(numbers[-1]) if numbers else None


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
  text = answers.unwrap(text[-answers.MAX_CHARACTERS :], ' ')
  for pattern, replacement in _PLAIN:
    text = pattern.sub(replacement, text)
  for sign, fraction in _VULGAR.items():
    text = text.replace(sign, fraction)
  return re.sub(r'(?<=\w)[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+', lambda raised: '^' + raised[0].translate(_RAISED), text).strip()


def _may_follow(cut: re.Match[str], tail: str) -> bool:
  """Returns whether what follows the number leaves it the only answer."""
  if _ALTERNATIVE.search(cut[0] + tail) or re.match(r'\s*(?:or|nor)\b', tail, re.IGNORECASE):
    return False
  if _RELATES.match(tail):
    return not _CALCULATES.search(tail)
  if _EXPLAINS.match(tail):
    return True
  if cut[0].lstrip()[:1] in (';', ':', '('):
    return not re.match(r'[-+\s]*[.0-9]', tail)
  return not re.search(r'[0-9]', tail)


def _value(number: re.Match[str]) -> Fraction | None:
  exponent = int(number['bare'] or number['plain_bare'] or number['power'] or number['plain_power'] or 0)
  exponent += int(number['exponent'] or 0) + _SCALES.get((number['scale'] or '').lower(), 0)
  if abs(exponent) > MAX_EXPONENT:
    return None
  if number['bare'] or number['plain_bare']:
    value = Fraction(1)
  else:
    top = _decimal(number['digits'] or number['top'] or number['top1'])
    under = _decimal(number['over'] or number['under'] or number['under1'] or '1')
    if under == 0:
      return None
    value = top / under
    if number['whole']:
      if not 0 < value < 1 or value == top:  # '3 5/4' is no mixed number.
        return None
      value += int(number['whole'])
  value *= Fraction(10) ** exponent
  sign = number['sign'] or ''
  return -value if sign[:1] == '-' or sign[:1].lower() in 'nm' and sign else value


def _decimal(text: str) -> Fraction:
  return Fraction(text.replace(',', '').replace(' ', ''))
