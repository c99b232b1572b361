r"""Where a text states its answer: in a box, after '####', or after '(final) answer is' and its like.

A statement of a higher rank wins: a \boxed{} over '####', that over 'final answer', that over 'answer'. Of
several boxes the last one counts, as in the MATH data set. Of several other statements the first that can be
read counts, since models write on after their answer; a later one replaces it only after words that take the
first back ('Wait', 'No', 'mistake'). A new question that the model asks itself ends its answer.
"""

from collections.abc import Callable, Iterator
import re
from typing import TypeVar

T = TypeVar('T')

MAX_CHARACTERS = 20_000  # The end of a completion, which is searched for an answer.
MAX_STATEMENT_CHARACTERS = 1000

_BOX = re.compile(r'(?:\\boxed|\\fbox|(?<![\\\w])boxed)\s*\{')
_BRACE = re.compile(r'\\.|[{}]', re.DOTALL)  # An escaped brace is a character of the formula.
_HASHES = re.compile(r'(?<!#)####(?!#)[ \t]*(?=\S)(?![A-Za-z]{2,}\W+\w)')  # '#### Step 1: ...' is a heading.
_FLAGS = re.VERBOSE | re.IGNORECASE | re.MULTILINE
_MARKER = r"""
  (?:\b{name}
    [*_"\s]{{0,20}}(?:\b(?:to|of)\s(?:the|this|your)\s(?:question|problem)\s(?=is\b))?(?:\bis\b(?!n)|\bequals\b|:)
  |^[>\#*_ \t]*{name}[*_ \t]*$)                                                          # a heading, a line of its own
"""
_FINAL = re.compile(_MARKER.format(name=r'final\s+(?:numerical\s+)?answer'), _FLAGS)
_ANSWER = re.compile(_MARKER.format(name=r'(?:answer|(?:correct|right|best)\s+(?:option|choice))'), _FLAGS)
_MARKERS = (_HASHES, _FINAL, _ANSWER)

_DISPLAY = re.compile(r'(?:\$\$(.*?)\$\$|\\\[(.*?)\\\])', re.DOTALL)
# 'Final Answer: The final answer is $7$': the second marker states it.
_LEAD_IN = re.compile(r'[\s*_:,#"]*(?:(?:so|thus|hence|therefore|the|final|my|our|correct)\b[\s*_:,#"]*)*\Z', re.IGNORECASE)

_NEW_QUESTION = re.compile(
  r"""
  ^[ \t>*\#_\-]*                                                  # a line may begin with marks of Markdown
  (?:(?:(?:the\s+)?(?:next|new|another|follow-up)\s+)?
     (?:question|problem|exercise|example|puzzle|q|human|user|instruction)\s*\#?\d*\s*[*_]*\s*:
  |(?:question|problem|exercise|example|puzzle)\s+\#?\d+\b)      # Question 2
  |<\|[a-z_]+\|>|<start_of_turn>|\[INST\]                        # marks of chat templates
  """,
  _FLAGS,
)

_NOT = re.compile(r'\W*(?:not|never|no\s+longer|neither|nothing|anything\s+but|other\s+than)\b', re.IGNORECASE)
_DOUBT = r"""
  (?:n't|\bnot|\bcannot|\bnever)\s+
    (?:think|believe|say|mean|agree|claim|conclude|know|sure|certain|clear|true|correct|right|the\ case)
  |\b(?:wrong|false|incorrect|untrue|unclear|unknown|doubt|doubtful|whether|if|suppose|assume|assuming)
"""
# 'I do not think that the answer is 5': the clause before the marker takes the statement back.
_DENIED = re.compile(rf'(?:{_DOUBT})(?:\s+(?:that|if|whether))?(?:\s+(?:the|my|your|this|a))?(?:\s+\w+)?\s*\Z', _FLAGS)
_NOT_BOX = re.compile(r"(?:\bnot|n't)(?:\s+(?:be|equal|to|the|answer))*[\s$*(\\]*\Z", re.IGNORECASE)
_TAKEN_BACK = re.compile(
  r"""
  (?:^|[.!?]\s{1,5}|\n)\W{0,5}(?:no|wait|actually|hmm+|sorry|correction|oops|hold\ on|let\ me|let's|but\ wait|however)\b
  |\b(?:mistake|incorrect|wrong|re-?check|re-?calculat\w+|re-?consider\w*)\b
  """,
  re.VERBOSE | re.IGNORECASE,
)

_DRESS = re.compile(r'\*\*|__|\\[()]|[$"`“”]')
_TEXT = re.compile(
  r'\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|emph|boldsymbol|bm|operatorname)\s*\{([^{}]*)\}'
)


def own(text: str) -> str:
  """Returns the end of a text, without a new question of the model's own and what follows it."""
  text = text[-MAX_CHARACTERS:]
  for marker in _NEW_QUESTION.finditer(text):
    before = text[: marker.start()].strip()
    if before and not before.endswith(':'):  # A model may repeat the question before it answers.
      return before
  return text


def read(text: str, reader: Callable[[str], T | None], bare: Callable[[str], T | None]) -> T | None:
  """Returns the answer that a text states, or is; None where it gives none.

  Args:
    text: a completion, or a worked solution of the data.
    reader: what is stated -> an answer, or None where it is none.
    bare: a text without any statement -> the answer that it is, or None.
  """
  text = own(text)
  boxes = list(_boxes(text))
  if boxes:
    return reader(boxes[-1])
  has_statement = False
  for marker in _MARKERS:
    found = list(_statements(text, marker))
    has_statement |= bool(found)
    readable = [(start, answer) for start, stated in found if (answer := reader(stated)) is not None]
    if readable:
      last_start, answer = readable[0]
      for start, later in readable[1:]:
        if _TAKEN_BACK.search(text, last_start, start):
          last_start, answer = start, later
      return answer
  return None if has_statement else bare(text)


def stated(text: str) -> str | None:
  """Returns what a text states as its answer, None where it states nothing."""
  return read(text, lambda statement: statement or None, bare=lambda text: None)


def unwrap(text: str, around: str = '') -> str:
  r"""Returns a text with what stands in \text{}, \mathrm{} and their like in place of them, between two `around`."""
  for _ in range(3):  # They may be nested.
    text = _TEXT.sub(rf'{around}\1{around}', text)
  return text


def undress(text: str) -> str:
  r"""Returns a statement without what surrounds an answer: bold, quotes, dollars, \text{}, backticks."""
  text = _DRESS.sub('', unwrap(text)).replace('\\ ', ' ')
  return ' '.join(text.split()).strip("*_'‘’ ")


def _boxes(text: str) -> Iterator[str]:
  """Yields what stands in each box that is closed and not empty; '' where it is denied, or too long.

  A box in a box is part of it.
  """
  starts = [match.end() for match in _BOX.finditer(text)]
  if not starts:
    return
  opened: list[int] = []
  closed = {}  # The place behind an opening brace -> the place of the brace that closes it.
  for brace in _BRACE.finditer(text):
    if brace[0] == '{':
      opened.append(brace.end())
    elif brace[0] == '}' and opened:
      closed[opened.pop()] = brace.start()
  end = 0
  for start in starts:
    if start >= end and start in closed:
      end = closed[start]
      content = text[start:end].strip()
      before = text[max(0, start - 100) : text.rfind('box', 0, start)].rpartition('\n')[2]
      if content:
        yield '' if _NOT_BOX.search(before) or len(content) > MAX_STATEMENT_CHARACTERS else content


def _statements(text: str, marker: re.Pattern[str]) -> Iterator[tuple[int, str]]:
  """Yields (where it starts, what follows the marker on its line, or in a displayed formula); '' where it is denied."""
  markers = list(marker.finditer(text))
  for i, match in enumerate(markers):
    following = markers[i + 1].start() if i + 1 < len(markers) else len(text)
    if following < len(text) and _LEAD_IN.match(text, match.end(), following):
      continue
    rest = text[match.end() : match.end() + MAX_STATEMENT_CHARACTERS].lstrip(':= \t\n')
    rest = re.sub(r'\A(?:\*\*|__)\s+', '', rest)  # '**Answer:** 7': the marker's own bold ends here.
    display = _DISPLAY.match(rest)
    statement = ' '.join((display[1] or display[2] or '').split()) if display else rest.partition('\n')[0].strip()
    clause = re.split(r'[,;:.!?\n]', text[max(0, match.start() - 100) : match.start()])[-1]
    yield match.start(), '' if _NOT.match(statement) or _DENIED.search(clause) else statement
