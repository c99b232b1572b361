r"""Judges an answer that is a formula.

It is equal as written, equal as a number, or equal to math-verify, in a child process. math-verify
does not look at units, at the base of a number, and at whether braces or brackets hold a list:
formulas that differ in these are told apart before it is asked.
"""

import re

from imm_jax.verifying import answers, numbers, worker

MAX_CHARACTERS = 1000  # The longest formula; a longer one is no answer.

_SEGMENT = re.compile(r'(?<!\\)\$((?:[^$\\]|\\.)+)\$|\\\((.+?)\\\)')
_MIXED = re.compile(r'(?<![\w.,/^{}])([0-9]+)\s+([0-9]+)/([0-9]+)(?![\w/.])')
_NOTHING = re.compile(r'\\(?:left|right|!)|\\(?:text|mathrm|mbox)\{([^{}]*)\}|(?<=\\)[dt](?=frac)')
_SPACE = re.compile(r'\\[,; ]|\$|\s')
_NOT_IN_NUMBER = re.compile(r'(?<![0-9]) +| +(?![0-9])')
_END = re.compile(r'[.!](?=\s+[A-Z]|\s*$)')

_TEXT = re.compile(r'\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}')
_UNIT = re.compile(r'\\(?:text|mathrm|mbox)\s*\{(?!\s*(?:or|and)\b)([^{}]*)\}|(\\\$)')
_BASE = re.compile(r'(?<=[0-9])_\{?([0-9]+)\}?\s*$')
# A number after a word or a number, as in 'June 20' and '1 2'.
_NAMES_NUMBER = re.compile(
  r'(?<![\\A-Za-z])(?!and\b)[A-Za-z]{3,}[\s,]*[0-9]|(?<![\w^.])[0-9]+ +[0-9]'
)
_PROSE = re.compile(r'(?<![\\A-Za-z])(?!(?:sin|cos|tan|log|sqrt)\b)[A-Za-z]{3,}')
_OPEN_KIND = re.compile(
  r'[<>]|\\(?:pm|le|ge|in|cup|cap|setminus|infty|mathbb|emptyset)(?![a-z])|\\[lg]eq'
)
_KINDS_THAT_DIFFER = [
  {'one', 'several'},
  {'one', 'or'},
  {'one', 'tuple'},
  {'set', 'tuple'},
  {'or', 'tuple'},
]
_SEPARATOR = re.compile(r'(?P<bracket>\\?[(\[{}\])])|(?P<comma>[,;])|\b(?:or|and)\b')
_THOUSANDS = re.compile(r'(?<=[0-9]),(?=[0-9]{3}(?![0-9]))')


def read(text: str) -> str:
  """Returns the stated formula in plain form, or the text if none is stated.

  It is '' if it is too long to be a formula.
  """
  return plain(_formula(text)[1])


def verify(gold: str, text: str) -> bool:
  """Returns whether a text states the gold formula or one that is equal to it, or is one."""
  has_statement, answer = _formula(text)
  if not answer:
    return False
  if plain(answer) == plain(gold):
    return True
  if _differ(gold, answer):
    return False
  gold_number = numbers.read_bare(gold)
  number = (numbers.read_box if has_statement else numbers.read_bare)(answer)
  if gold_number is not None and number is not None:
    if numbers.equal(gold_number, number):
      return True
    if '%' not in gold + answer:  # To math-verify 50 % is 1/2 too.
      return False
  if _names_number(gold) != _names_number(answer):
    return False
  return (
    worker.same_formula(
      _MIXED.sub(r'\1\\frac{\2}{\3}', gold), _MIXED.sub(r'\1\\frac{\2}{\3}', answer)
    )
    == 'correct'
  )


def verify_flexible(gold: str, text: str) -> bool:
  """Also takes the formula that math-verify finds at the end of a text."""
  tail = answers.own(text)[-MAX_CHARACTERS:]
  return bool(tail.strip()) and worker.same_formula(gold, tail, search=True) == 'correct'


def plain(formula: str) -> str:
  r"""Returns a formula without parts that do not change its meaning.

  They are spaces, dollars, \left, \text{}, and the d of \dfrac. A space between digits stays: 1\ 2
  is not 12.
  """
  formula = _SPACE.sub(' ', _NOTHING.sub(r'\1', formula)).replace(r'\varnothing', r'\emptyset')
  return _NOT_IN_NUMBER.sub('', formula).rstrip('.')


def _formula(text: str) -> tuple[bool, str]:
  r"""Returns whether something is stated, and the statement or the text.

  Of 'The answer is $x^2$, since' it is the formula. It is '' for none, or for one that is too long.
  """
  found = answers.read(text, _of_statement, bare=_of_bare, boxed=lambda content: (True, content))
  has_statement, formula = found or (True, '')
  formula = formula.replace('**', '').strip('*_`"“” \n').removesuffix('.')
  return has_statement, formula.strip('$ ') if len(formula) <= MAX_CHARACTERS else ''


def _of_statement(statement: str) -> tuple[bool, str] | None:
  """Returns True and the one formula between dollars of a sentence, or else the sentence.

  It returns None without either. The words that may surround a number may surround a formula: the
  sentence with 7 in place of the formula has to state 7.
  """
  segments = list(_SEGMENT.finditer(statement))
  if segments:
    first = segments[0]
    behind = _SEGMENT.sub('8', statement[first.end() :])
    if numbers.read(f'{statement[: first.start()]}7{behind}') == 7:
      return True, first[1] or first[2]
    return None
  sentence = _END.split(statement, maxsplit=1)[0]
  return (True, sentence) if sentence else None


def _of_bare(text: str) -> tuple[bool, str] | None:
  """Returns False and a text that is one formula, or words without one.

  It returns None for prose about formulas.
  """
  formula = text.strip().removesuffix('.').strip('*_`"“”$ \n')
  is_prose = _PROSE.search(_TEXT.sub('', formula)) and not all(
    c.isalpha() or c.isspace() for c in formula
  )
  return None if is_prose or _SEGMENT.search(formula) else (False, formula)


def _differ(gold: str, answer: str) -> bool:
  """Returns whether two formulas differ in a respect that math-verify overlooks.

  These are base, unit, and the number of answers.
  """
  if _BASE.findall(gold) != _BASE.findall(answer) or not _same_unit(gold, answer):
    return True
  return {_kind(gold), _kind(answer)} in _KINDS_THAT_DIFFER


def _names_number(formula: str) -> bool:
  """Returns whether a number has a word or a number before it.

  To math-verify June 20 is 20, and 1 2 is 12.
  """
  return _NAMES_NUMBER.search(_spaced(formula)) is not None


def _spaced(formula: str) -> str:
  return _SPACE.sub(' ', _TEXT.sub(r' \1 ', formula).replace(r'\!', '')).strip(' .')


def _kind(formula: str) -> str:
  r"""Returns how many answers a formula gives, and in which form.

  It is 'set' for \{1,2\}, 'tuple' for (1,2), 'several' for 1,2, 'or' for '1 or 2', 'one', or '' if
  it is open.
  """
  formula = _spaced(formula)
  if _OPEN_KIND.search(formula):
    return ''
  depth = inside = 0
  outside = ''
  for match in _SEPARATOR.finditer(formula):
    if match['bracket']:
      depth += 1 if match['bracket'][-1] in '([{' else -1
    elif depth:
      inside += match['comma'] is not None
    elif not _THOUSANDS.match(formula, match.start()):
      outside = 'or' if match['comma'] is None else outside or 'several'
  if outside:
    return outside
  start = formula.removeprefix('\\left').lstrip()[:2]
  if start == '\\{':
    return 'set'
  return 'tuple' if inside and start[:1] in ('(', '[') else 'one'


def _same_unit(gold: str, answer: str) -> bool:
  """Returns whether the units of two formulas can be the same.

  They can if one formula has none, or if one unit abbreviates the other.
  """
  units = []
  for formula in (gold, answer):
    if not any(character.isdigit() for character in formula):
      return True
    words = ''.join('dollars' if dollar else text for text, dollar in _UNIT.findall(formula))
    units.append(''.join(character for character in words.lower() if character.isalpha()))
  short, long = sorted(units, key=len)
  rest = iter(long)
  return not short or (short[0] == long[0] and all(character in rest for character in short))
