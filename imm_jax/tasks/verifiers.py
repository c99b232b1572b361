r"""Verifiers: text functions that read the answer of a completion and compare it with the gold one.

An answer is stated after the last 'answer is' or '####', or in the last \boxed{}. The strict reader takes what is stated, or
a completion that is nothing but the answer; the flexible one takes what looks most like an answer. None raises on what a
model wrote, all take bounded time: text functions linear time, the others a child process with limits.
"""

from collections.abc import Callable
import dataclasses
from fractions import Fraction
import re
from typing import Literal

from imm_jax.tasks import base, children

Name = Literal['exact', 'numeric', 'math', 'choice', 'code']

MAX_CHARACTERS = 20_000  # of a completion, from its end: what is read for an answer
MAX_DIGITS = 60  # of a number; a longer one is no answer
MAX_MATH_CHARACTERS = 1000  # of a formula; a longer one is no answer
MAX_CODE_CHARACTERS = 100_000  # of a program; a longer one is wrong
TOLERANCE = Fraction(1, 10**6)  # relative, where gold or answer is not a whole number


@dataclasses.dataclass(frozen=True)
class Verifier:
  """How an answer is read and judged."""

  extract: Callable[[str], str]  # completion -> its answer in one form, '' for none
  verify: Callable[[base.Example, str], bool]  # strict
  flexible: Callable[[base.Example, str], bool] | None = None  # None where it would not differ


_MARKER = re.compile(r'answer is|####|\\?boxed\{', re.IGNORECASE)
_SUM = re.compile(r'(?:[\s0-9.,$£€%()+*/x×-]*=)+')  # the '5 + 3 =' of 'the answer is 5 + 3 = 8'


def stated(text: str) -> str | None:
  r"""Returns what stands after the last 'answer is' or '####' on its line, or in the last \boxed{}; None without any."""
  for marker in list(_MARKER.finditer(text[-MAX_CHARACTERS:]))[-1:]:
    rest = text[-MAX_CHARACTERS:][marker.end() :]
    if marker[0].endswith('{'):
      return _in_braces(rest)
    return rest.lstrip(': \n').partition('\n')[0].strip()
  return None


def _in_braces(text: str) -> str:
  """Returns `text` up to the brace that closes one before it, or whole."""
  depth = 1
  for i, character in enumerate(text):
    depth += {'{': 1, '}': -1}.get(character, 0)
    if depth == 0:
      return text[:i].strip()
  return text.strip()


# Exact.


def _tidy(text: str) -> str:
  """Returns `text` with single spaces, without quotes, asterisks and a full stop around it."""
  return ' '.join(text.split()).strip('*\'"` ').removesuffix('.').strip('*\'"` ')


def _loose(text: str) -> str:
  """Returns the letters, digits and signs of `text`, lowercase: '(A)' is 'a', 'Yes!' is 'yes'."""
  return ' '.join(base.normalise(text).strip('*\'"`.,;:!?()$ ').split())


def read_text(text: str) -> str:
  """Returns the stated answer, or the text where none is stated."""
  answer = stated(text)
  return _tidy(text[-MAX_CHARACTERS:] if answer is None else answer)


def _exact(example: base.Example, text: str) -> bool:
  return read_text(text) == _tidy(example.answer)


def _exact_flexible(example: base.Example, text: str) -> bool:
  """Takes another case and other punctuation, and the answer as the last word."""
  answer, gold = _loose(read_text(text)), _loose(example.answer)
  return answer == gold or (bool(gold) and _loose(answer.rpartition(' ')[2]) == gold)


# Numeric.

_NUMBER = re.compile(
  r"""(?<!\d)
  (?P<sign>(?<![\w)])-[$£€]?|[$£€]-?)?               # 10-3 has no -3
  (?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)
  (?:e(?P<exponent>[+-]?[0-9]+))?
  (?:\s?/\s?(?P<over>[0-9]+))?
  (?!\d)""",
  re.VERBOSE | re.IGNORECASE,
)
_FRACTION = re.compile(r'[dt]?frac\{(-?[0-9]+)\}\{([0-9]+)\}')


def read_number(text: str, *, strict: bool = False) -> Fraction | None:
  r"""Returns the first number of the stated answer, or the number that is the whole text; None when there is none.

  Not strict: else the last number. Reads 1,234, $5, -3, 5.0, 1e3, 1/2, \frac{1}{2}; a percent sign is a unit.
  """
  text = text[-MAX_CHARACTERS:].replace('\\', '').replace('{,}', ',').replace('\N{MINUS SIGN}', '-')
  text = _FRACTION.sub(r'\1/\2', text)
  if answer := stated(text):
    steps = _SUM.match(answer)
    if number := _NUMBER.search(answer, steps.end() if steps else 0):
      return _value(number)
  elif number := _NUMBER.fullmatch(_tidy(text).removesuffix('%').strip('* ')):
    return _value(number)
  numbers = [] if strict else list(_NUMBER.finditer(text))
  return _value(numbers[-1]) if numbers else None


def _value(match: re.Match[str]) -> Fraction | None:
  exponent, over = match['exponent'] or '0', match['over'] or '1'
  if len(match[0]) > MAX_DIGITS or abs(int(exponent)) > MAX_DIGITS or int(over) == 0:
    return None
  value = Fraction(match['digits'].replace(',', '')) * Fraction(10) ** int(exponent) / int(over)
  return -value if '-' in (match['sign'] or '') else value


def canonical_number(text: str) -> str | None:
  """Returns a gold number as whole digits where it is whole, else as written without commas; None when it is no number."""
  match = _NUMBER.fullmatch(text.strip())
  value = match and _value(match)
  if value is None:
    return None
  return str(value) if value.denominator == 1 else text.strip().replace(',', '')


def _equal(gold: Fraction | None, number: Fraction | None) -> bool:
  """Returns whether two numbers are equal: whole ones exactly, others within TOLERANCE."""
  if number is None or gold is None:
    return False
  if number.denominator == gold.denominator == 1:
    return number == gold
  return abs(number - gold) <= TOLERANCE * max(abs(number), abs(gold))


def _number_text(text: str) -> str:
  number = read_number(text, strict=True)
  return '' if number is None else str(number)


# Choice.

_LETTER = re.compile(r'[*(\[]*([A-Z])(?:[)\].:,*]|\s*$)')
_LETTERS = re.compile(r'\(([A-Z])\)|(?<![\w\'])([B-HJ-Z])(?![\w\'])')  # A and I are words too


def read_letter(text: str) -> str:
  """Returns the letter with which the stated answer, or the text, begins: of 'B', '(B)', 'B) 7 km', '**B**'; '' for none."""
  answer = stated(text)
  match = _LETTER.match((text[-MAX_CHARACTERS:] if answer is None else answer).strip())
  return match[1] if match else ''


def _choice(example: base.Example, text: str) -> bool:
  return read_letter(text) == example.answer


def _choice_flexible(example: base.Example, text: str) -> bool:
  """Takes the right option's text, or the last letter that stands alone."""
  if letter := read_letter(text):
    return letter == example.answer
  right = example.options[ord(example.answer) - ord('A')]
  if _loose(read_text(text)) == _loose(right):
    return True
  letters = list(_LETTERS.finditer(text[-MAX_CHARACTERS:]))
  return bool(letters) and (letters[-1][1] or letters[-1][2]) == example.answer


# Mathematics.

_IN_PLAIN = re.compile(r'\\(?:left|right|,|!|;| )|\\(?:text|mathrm|mbox)\{([^{}]*)\}|[\s$]|(?<=\\)[dt](?=frac)')


def plain_formula(text: str) -> str:
  r"""Returns a formula without what does not change its meaning: spaces, dollars, \left, \text{}, the d of \dfrac."""
  return _IN_PLAIN.sub(r'\1', text).rstrip('.')


def read_formula(text: str) -> str:
  """Returns the stated answer, or the text where none is stated; '' where it is too long to be one."""
  answer = stated(text)
  answer = text.strip() if answer is None else answer
  return plain_formula(answer) if len(answer) <= MAX_MATH_CHARACTERS else ''


def _math(example: base.Example, text: str) -> bool:
  answer = stated(text)
  answer = text.strip() if answer is None else answer.rstrip('.')
  if plain_formula(answer[:MAX_MATH_CHARACTERS]) == plain_formula(example.answer):
    return True
  return 0 < len(answer) <= MAX_MATH_CHARACTERS and children.same_formula(example.answer, answer) == 'correct'


def _math_flexible(example: base.Example, text: str) -> bool:
  """Takes what math-verify finds at the end of the text."""
  tail = text[-MAX_MATH_CHARACTERS:]
  return bool(tail.strip()) and children.same_formula(example.answer, tail, search=True) == 'correct'


# Code.

_BLOCK = re.compile(r'```(?:python|py)?[^\S\n]*\n(.*?)(?:```|\Z)', re.DOTALL | re.IGNORECASE)


def read_code(text: str) -> str:
  """Returns the first fenced block, or the text."""
  block = _BLOCK.search(text)
  return block[1] if block else text.strip('\n')


def _code(example: base.Example, text: str) -> bool:
  code = read_code(text)
  if len(code) > MAX_CODE_CHARACTERS:
    return False
  return children.run_tests(f'{example.metadata["prefix"]}{code}', example.metadata['tests']) == 'correct'


VERIFIERS: dict[str, Verifier] = {
  'exact': Verifier(read_text, _exact, _exact_flexible),
  'numeric': Verifier(
    _number_text,
    lambda example, text: _equal(read_number(example.answer), read_number(text, strict=True)),
    lambda example, text: _equal(read_number(example.answer), read_number(text)),
  ),
  'math': Verifier(read_formula, _math, _math_flexible),
  'choice': Verifier(read_letter, _choice, _choice_flexible),
  'code': Verifier(read_code, _code),
}
