r"""Judges an answer that is the letter of an option: one letter, dressed as it comes. Two letters are no statement."""

from collections.abc import Sequence
import re
import string

from imm_jax.verifying import answers, exact

# A letter counts where a bracket, a colon or a reason follows, or nothing: 'A dog' is no statement of A.
_REASON = r'(?:because|since|as|for|so|which|where|with|due|given|not|rather|instead|from|-|–|—)'
_LETTER = rf'[(\[{{]?(?P<letter>[A-Z])(?:[)\]}}.:,;]|\s*$|(?=\s+\()|(?=\s+{_REASON}(?:\s|$)))'
_NAMED = r'(?:(?:the\s+)?(?:correct\s+|right\s+)?(?i:option|choice|letter|answer)\s+(?:is\s+)?)?'
_DENIES = r"(?:not|no|never|neither|nor|either|or|both|between|except|but|if|than|wrong|un\w+)\b|\w*n't"
_STATED = re.compile(rf"(?:(?!{_DENIES})[a-z']+[\s,:]+){{0,6}}{_NAMED}{_LETTER}")
_BARE = re.compile(_NAMED + _LETTER)
# A last line such as 'Answer D', 'Hence (A) is the correct answer', 'D'.
_FILLER = r'(?:(?:so|thus|hence|therefore|the|correct|right|best|answer|ans|option|choice|is|will|be)\b|[\s,.:=>-])*'
_LAST_LINE = re.compile(
  rf'{_FILLER}[(\[]?(?P<letter>(?-i:[A-Z]))[)\].]*(?:\s+is\s+(?:the\s+)?(?:correct|right|best)?\s*(?:answer|option|choice)?)?[.!]?$',
  re.IGNORECASE,
)
_ANOTHER = re.compile(  # 'A, B or C', but not 'A, B is wrong' or 'A, I think'
  r"[\s,]*(?:(?:or|and|nor|to)\b|[,/&])\s*(?:either\s+|option\s+)?[(\[]?[A-Z](?![a-zA-Z'])(?!\s(?!or\b|and\b)[a-z])"
)
_ALONE = re.compile(r"[(\[]([A-Z])[)\]]|(?<![\w'\\])([A-Z])(?![\w'])(?=\s*(?:$|[^\w\s(]|or\b|and\b))", re.MULTILINE)


def read(text: str) -> str:
  """Returns the letter that a text states, or begins with, '' for none.

  It is B of 'The answer is (B) 7 km', 'B) 7 km', 'The correct option is B', '**B**'.
  """
  return _read(text)[0]


def verify(gold: str, options: Sequence[str], text: str) -> bool:
  """Returns whether a text states the gold letter, and does not put the text of another option behind it."""
  letter, behind = _read(text)
  texts = dict(zip(string.ascii_uppercase, map(exact.loose, options), strict=False))
  contradicts = exact.loose(behind) in texts.values() and exact.loose(behind) != texts[gold]
  return letter == gold and not contradicts


def verify_flexible(gold: str, options: Sequence[str], text: str) -> bool:
  """Takes the gold option's text too, and the last letter of an option that stands alone."""
  if letter := read(text):
    return letter == gold
  texts = dict(zip(string.ascii_uppercase, options, strict=False))
  if exact.loose(exact.read(text)) == exact.loose(texts[gold]):
    return True
  letters = [bracketed or bare for bracketed, bare in _ALONE.findall(answers.undress(answers.own(text)))]
  letters = [letter for letter in letters if letter in texts]
  return bool(letters) and letters[-1] == gold


def _read(text: str) -> tuple[str, str]:
  """Returns the letter that a text gives, '' for none, and what stands behind it."""
  return answers.read(text, lambda statement: _match(_STATED, statement), _read_bare) or ('', '')


def _read_bare(text: str) -> tuple[str, str] | None:
  return _match(_BARE, text) or _match(_LAST_LINE, text.strip().rpartition('\n')[2])


def _match(form: re.Pattern[str], text: str) -> tuple[str, str] | None:
  text = answers.undress(text)
  match = form.match(text)
  if match is None:
    return None
  behind = text[match.end('letter') :].lstrip(')]}"\'')
  return None if _ANOTHER.match(behind) or behind[:1] == '?' else (match['letter'], behind)
