r"""Judges an answer that is the letter of an option: one letter, with or without marks around it.

Two letters are no statement. Before a stated letter only words may come that leave it unchanged
('clearly option A', but not 'vitamin A'). A text without a statement is a letter when it begins
with it, and only the option's own text or a reason follows.
"""

from collections.abc import Sequence
import re
import string
from typing import NamedTuple

from imm_jax.verifying import answers, exact

# A letter counts where a bracket, a stop or a reason follows, or nothing: 'A dog' is no statement
# of A.
_REASON = (
  r'(?:(?:because|since|as(?!\s+well)|for|so|which|where|with|due|given|not|rather|instead|from|-|–|—)(?:\s|$)|and\s+not\b'
  r'|(?:is|as)\s+(?:the\s+)?(?:correct|right|best|answer)\b)'
)
_LETTER = rf'[(\[{{]?(?P<letter>[A-Z])(?:[)\]}}.:,;!]|\s*$|(?=\s+\()|(?=\s+{_REASON}))'
_NAMED = r'(?:(?:the\s+)?(?:correct\s+|right\s+)?(?i:option|choice|letter|answer)\s+(?:is\s+)?)?'
_FILLER = (
  r'(?i:(?:so|thus|hence|therefore|that|the|it|is|be|of|clearly|definitely|obviously|indeed|simply|just|only|correct'
  r'|right|best|final|option|choice|letter|answer)[\s,:]+)'
)
_STATED = re.compile(rf'{_FILLER}{{0,8}}{_LETTER}')
_BARE = re.compile(_NAMED + _LETTER)
# A last line such as 'Answer D', 'Hence (A) is the correct answer', 'D'.
_LAST_FILLER = (
  r'(?:(?:so|thus|hence|therefore|the|correct|right|best|answer|ans|option|choice|is|will|be)\b'
  r'|[\s,.:=>-])*'
)
_LAST_LINE = re.compile(
  rf'{_LAST_FILLER}[(\[]?(?P<letter>(?-i:[A-Z]))[)\].]*(?:\s+is\s+(?:the\s+)?(?:correct|right|best)?\s*(?:answer|option|choice)?)?[.!]?$',
  re.IGNORECASE,
)

# Another letter in a statement: '(B)', 'B)', 'or B', but not 'I think' or '5 N'.
_MENTION = re.compile(
  r'[(\[](?P<one>[A-Z])[)\]]'
  r"|(?<![\w'’.\\])(?<!\d )(?P<other>[A-Z])(?=[)\]:.,;!?]|\s*$|\s+(?:is|are|was|or|and)\b)"
)
_STARTS_LINE = re.compile(
  r'^\W*(?:(?:or|and)\s+)?(?P<one>(?P<other>[A-Z]))(?:[)\].:]|\W*$)', re.MULTILINE
)
_IS_DENIED = re.compile(
  r"\b(?:not|never|wrong|incorrect|false|than|unlike|instead|rather|eliminated?|out)\b|n't",
  re.IGNORECASE,
)
_GIVES_REASON = re.compile(r'\b(?:because|since|as(?! well)|given|due)\b', re.IGNORECASE)
# 'A is wrong', 'A: incorrect', 'A? B', but not 'A, not B'
_DENIES = re.compile(
  r'[\s,.:;)\]–—-]*(?:\?|(?:(?:is|was|looks|seems)\s+)(?:not|never|wrong|incorrect|false)\b|(?:wrong|incorrect|false|no)\b'
  r"|isn't|[+/&|*=^])",
  re.IGNORECASE,
)
_ALONE = re.compile(
  r"""[(\[](?P<one>[A-Z])[)\]]|(?<![\w'\\])(?P<other>[A-Z])(?![\w'])(?=\s*(?:$|[^\w\s(]|or\b|and\b))""",
  re.MULTILINE,
)
_NOT_BEFORE = re.compile(
  r"(?:\b(?:not|but|except|never|than)|n't)\s+(?:be\s+|option\s+)?\Z", re.IGNORECASE
)


class Letter(NamedTuple):
  """A letter that a text gives, '' for none, and the text after it.

  It also says whether the text is the letter, or states it.
  """

  letter: str = ''
  behind: str = ''
  is_bare: bool = False


def read(text: str) -> str:
  """Returns the letter that a text states, or begins with, '' for none.

  It is B of 'The answer is (B) 7 km', 'B) 7 km', 'The correct option is B', '**B**'.
  """
  return _read(text).letter


def verify(gold: str, options: Sequence[str], text: str) -> bool:
  """Returns whether a text states the gold letter, or is it.

  The text of another option must not follow the letter.
  """
  found = _read(text)
  if found.letter != gold or _contradicts(found, options):
    return False
  own = exact.loose(_texts(options)[gold])
  said = exact.loose(found.behind)
  is_reason = re.match(rf'[\s,.;:]*(?:\(|{_REASON})', found.behind)
  return (
    not found.is_bare
    or not said
    or is_reason is not None
    or re.match(rf'{re.escape(own)}(?!\w)', said) is not None
  )


def verify_flexible(gold: str, options: Sequence[str], text: str) -> bool:
  """Takes the gold option's text too, and the last letter of an option that stands alone."""
  texts = _texts(options)
  found = _read(text)
  if found.letter:
    return found.letter == gold and not _contradicts(found, options)
  if exact.loose(exact.read(text)) == exact.loose(texts[gold]):
    return True
  text = answers.undress(answers.own(text))
  letters = [match for match in _ALONE.finditer(text) if (match['one'] or match['other']) in texts]
  if not letters:
    return False
  last = letters[-1]
  is_denied = _NOT_BEFORE.search(text, max(0, last.start() - 30), last.start()) or _DENIES.match(
    text, last.end()
  )
  return (last['one'] or last['other']) == gold and not is_denied


def _texts(options: Sequence[str]) -> dict[str, str]:
  return dict(zip(string.ascii_uppercase, options, strict=False))


def _contradicts(found: Letter, options: Sequence[str]) -> bool:
  """Returns whether the text of another option follows the letter."""
  texts = {letter: exact.loose(text) for letter, text in _texts(options).items()}
  said = exact.loose(found.behind.lstrip(' -–—'))
  return said in texts.values() and said != texts.get(found.letter)


def _read(text: str) -> Letter:
  return answers.read(text, _read_statement, _read_bare) or Letter()


def _read_statement(statement: str) -> Letter | None:
  statement = answers.undress(statement)
  match = _STATED.match(statement)
  return match and _letter(match, statement)


def _read_bare(text: str) -> Letter | None:
  """Returns the letter that a text begins with, or that its last line is."""
  first, _, rest = text.strip().partition('\n')
  first = answers.undress(first)
  match = _BARE.match(first)
  if match is None:
    last = answers.undress(text.strip().rpartition('\n')[2])
    match = _LAST_LINE.match(last)
    return match and _letter(match, last, is_bare=True)
  found = _letter(match, first, is_bare=True)
  return found and (None if _names_another(_STARTS_LINE, found.letter, rest) else found)


def _letter(match: re.Match[str], text: str, is_bare: bool = False) -> Letter | None:
  behind = text[match.end('letter') :].lstrip(')]}"\'')
  if _DENIES.match(behind) or _names_another(_MENTION, match['letter'], behind):
    return None
  return Letter(match['letter'], behind, is_bare)


def _names_another(mention: re.Pattern[str], letter: str, behind: str) -> bool:
  """Returns whether another letter follows one.

  It does not count if its clause denies it, or if a reason has begun before it.
  """
  for match in mention.finditer(behind):
    if (match['one'] or match['other']) in (letter, 'I'):
      continue
    clause = re.split(r'[,;:.\n]|\s[-–—]\s', behind[max(0, match.start() - 100) : match.start()])[
      -1
    ]
    clause += re.split(r'[,;.\n]', behind[match.end() : match.end() + 100])[0]
    if not _IS_DENIED.search(clause) and not _GIVES_REASON.search(behind, 0, match.start()):
      return True
  return False
