r"""Rewrites numbers in LaTeX, Unicode or Markdown in one notation, and cuts texts into tokens.

3\frac14 becomes 3 1/4, 15{,}000 becomes 15,000, × becomes *, ≈ becomes =, and 5! in a formula
becomes 5 factorial. Currency and bold are removed.
"""

from collections.abc import Sequence
import re
from typing import NamedTuple

from imm_jax.verifying import answers

_REWRITTEN = [
  (re.compile(pattern), replacement)
  for pattern, replacement in (
    (r'\\left|\\right|\\displaystyle|\\!|[`"“”]', ''),
    (r'(?<=[0-9)}])!(?=\s*(?:[$=+*/^-]|\\[)\]]))', ' factorial '),
    (r'\{,\}', ','),
    (r'\\[,;:> ]|~|[\u00a0\u2009\u202f]', ' '),
    (r'(?<=[0-9])\s*(?=\\[dtc]?frac|[½⅓⅔¼¾⅕⅛])', ' '),
    (r'\\[dtc]?frac\s*([0-9])\s*([0-9])', r'\1/\2 '),
    (r'\\[dtc]?frac\s*([0-9])\s*\{\s*(-?[0-9.,]+)\s*\}', r'\1/\2 '),
    (r'\\[dtc]?frac\s*\{\s*(-?[0-9.,]+)\s*\}\s*([0-9])', r'\1/\2 '),
    (r'\\[dtc]?frac\s*\{\s*(-?[0-9.,]+)\s*\}\s*\{\s*(-?[0-9.,]+)\s*\}', r'\1/\2 '),
    (r'\\(?:times|cdot|ast)(?![A-Za-z])|[×·⋅∙]', '*'),
    (r'\\approx(?![A-Za-z])|≈|==', '='),
    (r'\^\s*\\circ\b|\^\s*\{\s*\\circ\s*\}|\\degree\b|°', ' degrees'),
    (r'(?<=[A-Za-z])\^(?:-?[1-3]|\{-?[1-3]\})(?![0-9])', ''),  # cm^2 is a unit, as cm is.
    (r'(?<=[A-Za-z])/\s+(?=[A-Za-z])', '/'),  # m/ s of \mathrm{m}/\mathrm{s}
    (r'\\%', '%'),
    # '$2m' is not 2 metres.
    (r'(?<!\w)(\\?\$|[€£])\s?([0-9][0-9.,]*)\s?(?:m|bn?|t)\b(?!\$)', r'\2 million-or-so'),
    (r'\b(?:US|CA|AU|HK|NZ|[CA])\\?\$|\\?\$|[€£¥₹]|\bRs\.', ''),
    (r'\\[()\[\]]|__', ''),
    # A power in Python; other double stars are bold.
    (r'(?<=[0-9)}])\s*\*\*\s*(?=[0-9({+-])', '^'),
    (r'\*\*', ''),
    (r'(?<![\w)*])\*(?=\S)([^*\n]{1,99})(?<=\S)\*(?![\w(*])', r'\1'),  # *5* is italic.
    (r'[\N{MINUS SIGN}‐‑–]', '-'),
  )
]
_VULGAR = {'½': '1/2', '⅓': '1/3', '⅔': '2/3', '¼': '1/4', '¾': '3/4', '⅕': '1/5', '⅛': '1/8'}
_RAISED = str.maketrans('⁻⁰¹²³⁴⁵⁶⁷⁸⁹', '-0123456789')

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
  | (?P<sign>[<>!]=|=>|\S))""",
  re.VERBOSE,
)


class Token(NamedTuple):
  """A number without its sign, a word, or another sign.

  `kind` is '' before the first token and after the last.
  """

  kind: str
  text: str
  is_spaced: bool  # White space stands before it.

  @property
  def word(self) -> str:
    """The text in lower case."""
    return self.text.lower()


def plain(text: str) -> str:
  """Returns a text in the notation of the grammar."""
  text = answers.unwrap(text[-answers.MAX_CHARACTERS :], ' ')
  text = re.sub(r'(?<=\w)[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+', lambda raised: '^' + raised[0].translate(_RAISED), text)
  for pattern, replacement in _REWRITTEN:
    text = pattern.sub(replacement, text)
  for sign, fraction in _VULGAR.items():
    text = text.replace(sign, fraction)
  return text.strip()


def tokens(text: str) -> list[Token]:
  """Returns the tokens of a text in the notation of the grammar."""
  return [
    Token(match.lastgroup or '', match[0].strip(), match[0][0].isspace())
    for match in _TOKEN.finditer(text)
  ]


def at(tokens: Sequence[Token], i: int) -> Token:
  """Returns tokens[i], or an empty token where there is none."""
  return tokens[i] if 0 <= i < len(tokens) else Token('', '', True)
