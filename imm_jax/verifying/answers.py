r"""Finds where a text states its answer: in a box, after '####', or after '(final) answer is'.

A statement of a higher rank wins: a \boxed{} over '####', that over 'final answer', that over
'answer'. Of several boxes the last one counts, as in the MATH data set. Of several other statements
the first that can be read counts, since models write on after their answer; a later one replaces it
only after words that take the first back ('Wait', 'No', 'mistake'). An answer that is taken back
and not replaced is none. Thoughts between <think> and </think> are not read, and a new question
that the model asks itself ends its answer.
"""

from collections.abc import Callable, Iterator, Sequence
import re
from typing import NamedTuple, TypeVar

T = TypeVar('T')

MAX_CHARACTERS = 20_000  # The end of a completion, which is searched for an answer.
MAX_STATEMENT_CHARACTERS = 1000

_BOX = re.compile(r'(?:\\boxed|\\fbox|(?<![\\\w])boxed)\s*\{|\\boxed[ \t]+(?P<bare>[^\s{}$\\]+)')
_BRACE = re.compile(r'\\.|[{}]', re.DOTALL)  # An escaped brace is a character of the formula.
_FLAGS = re.VERBOSE | re.IGNORECASE | re.MULTILINE
# '#### Step 1: ...' and '#### 5. Conclusion' are headings.
_HASHES = re.compile(
  r'(?<!\#)\#\#\#\#(?!\#)[ \t]*(?=\S)(?!(?!option|choice)[a-z]{2,}\W+\w)(?!\d+[.)]\s+[a-z])', _FLAGS
)
_LIST = re.compile(r'1[.)]\s+\S.*\n\W*2[.)]\s', re.DOTALL)  # 'Answer:\n1. We add.\n2. We get 5.'
_MARKER = r"""
  (?:\b{name}
    [*_"\s]{{0,20}}(?:\b(?:to|of)\s(?:the|this|your)\s(?:question|problem)\s(?=is\b))?
    (?:\bis\b(?!n)|\bequals\b|\b(?:should|must|will|has\sto)\sbe\b|:)
  |^[>\#*_ \t]*{name}[*_ \t]*$)                       # a heading, a line of its own
"""
_FINAL = re.compile(_MARKER.format(name=r'final\s+(?:numerical\s+)?answer'), _FLAGS)
_ANSWER = re.compile(
  _MARKER.format(name=r'(?:answer|ans\b|(?:correct|right|best)\s+(?:option|choice))'), _FLAGS
)
_MARKERS = (_HASHES, _FINAL, _ANSWER)

_DISPLAY = re.compile(r'(?:\$\$(.*?)\$\$|\\\[(.*?)\\\])', re.DOTALL)
# 'Final Answer: The final answer is $7$': the second marker states it.
_LEAD_IN = re.compile(
  r'[\s*_:,#"]*(?:(?:so|thus|hence|therefore|the|final|my|our|correct)\b[\s*_:,#"]*)*\Z',
  re.IGNORECASE,
)

_NEW_QUESTION = re.compile(
  r"""
  ^[ \t>*\#_\-]*                                       # a line may begin with marks of Markdown
  (?:(?:question|problem|exercise|example|puzzle|task|input|q|human|user|instruction)
     \s?[(\#]?\d*\)?[ \t]*[*_]*[ \t]*(?:[:.)]|$)       # Question 2: or Q. or a heading
  |(?:question|problem|exercise|example|puzzle)\s+\#?\d+\b
  |(?:[\w']++[ ]){0,4}(?:next|new|another|follow-up|bonus|practice|similar)
     \s(?:question|problem|exercise|example|puzzle)\b)
  |<\|[a-z_]+\|>|<(?:start|end)_of_turn>|\[/?INST\]|</s>|<eos>    # marks of chat templates
  """,
  _FLAGS,
)

_NOT = re.compile(
  r'\W*(?:not|never|no\s+longer|neither|nothing|anything\s+but|other\s+than)\b', re.IGNORECASE
)
_DOUBT = r"""
  (?:n't|\bnot|\bcannot|\bnever)\s+
    (?:think|believe|say|mean|agree|claim|conclude|know|sure|certain|clear|true|correct|right
      |the\ case)
  |\b(?:wrong|false|incorrect|untrue|unclear|unknown|doubt|doubtful|whether|if|unless|suppose|assume|assuming|unlikely
      |possible|possibly|perhaps|maybe|nobody(?:\s\w+)?|no\sone(?:\s\w+)?
      |(?:may|might|could|would)\s(?:say|think|guess|believe|claim|argue))
"""
# 'I do not think that the answer is 5': the clause before the marker takes the statement back.
_DENIED = re.compile(
  rf'(?:{_DOUBT})(?:\s+(?:that|if|whether))?(?:\s+(?:the|my|your|this|a))?(?:\s+\w+)?\s*\Z', _FLAGS
)
_NOT_BOX = re.compile(
  r"""
  (?:(?:\bnot|n't|\bcannot|\bnever)(?:\s+(?:be|equal|to|the|answer))*
  |\b(?:if|unless|whether|suppose|assume|assuming)(?:\s+[\w']+){0,3}\s*=?)[\s$*(\\]*\Z""",
  _FLAGS,
)
_ASKED = re.compile(r'[\s$*)\\}]{0,9}\?')
_JOINED = re.compile(r'(?=[^.!?\n]*(?:\b(?:or|and)\b|[,;/&]))[^.!?\n]{0,25}\Z', re.IGNORECASE)
# Before a later statement: words that make it replace an earlier one.
_TAKEN_BACK = re.compile(
  r"""
  (?:^|[.!?]\s{1,5}|\n)\W{0,5}
    (?:no|wait|actually|hmm+|sorry|correction|oops|oh|scratch\ that|my\ bad|hold\ on|let\ me|let's
      |but\ wait|however)\b
  |\b(?:mistake|incorrect|wrong|re-?check|re-?calculat\w+|re-?consider\w*|forgot|(?:an?|my)\ error
      |mis(?:count|calculat|read|add|took|underst|interpret)\w*)\b
  """,
  re.VERBOSE | re.IGNORECASE,
)
# Words that reject an answer, whether another follows or not: soon after it, or anywhere after it.
_REJECTED = re.compile(
  r"""
  \b(?:this|that|it|which|he|she|they|(?:the|my)\ (?:answer|above))(?:\ (?:answer|result))?
    (?:'s|\ (?:is|was|are|were|seems))
    \ (?:actually\ |clearly\ )?
    (?:wrong|incorrect|false|not\ (?:correct|right|true)|an?\ (?:mistake|error))\b
  |\((?:wrong|incorrect|false)\)
  """,
  re.VERBOSE | re.IGNORECASE,
)
_REJECTED_CHARACTERS = 100
_REPLACED = re.compile(
  r"""
  (?:[.!?]\s{1,5}|\n)\W{0,5}
    (?:no|wait|actually|hmm+|sorry|correction|oops|scratch\ that)\b[\s,.:;!—-]{0,9}
    (?:(?:it|that|this|the\ (?:(?:correct|right)\ )?answer)\ (?:is|should|must|was)\b
      |make\ (?:it|that)\b
      |[$(]?\d|(?-i:[A-Z])(?![\w']))
  """,
  re.VERBOSE | re.IGNORECASE,
)
_BOX_REJECTED = re.compile(
  r'[\s$*)\\]{0,9}(?:is|was)\s(?:wrong|incorrect|not\s(?:correct|right|the))\b', re.IGNORECASE
)

_DRESS = re.compile(r'\*\*|__|\\[()]|[$"`“”]')
_TEXT = re.compile(
  r'\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|emph|boldsymbol|bm|operatorname)\s*\{([^{}]*)\}'
)


class Box(NamedTuple):
  """A box at text[start:end], and what it holds."""

  start: int
  end: int
  content: str


class Statement(NamedTuple):
  """The text that follows a marker at `start`; '' if it is denied.

  `inside` is a place after its first character.
  """

  start: int
  inside: int
  text: str


def own(text: str) -> str:
  """Returns the end of a text that holds its own answer.

  Thoughts are removed, and so is a new question of the model's own with all that follows it.
  """
  _, closing, after = text.rpartition('</think>')
  text = (after if closing else text).partition('<think>')[0][-MAX_CHARACTERS:]
  text = text.replace('<answer>', '\nAnswer: ').replace('</answer>', '\n')
  for marker in _NEW_QUESTION.finditer(text):
    before = text[: marker.start()].strip()
    if before and not before.endswith(':'):  # A model may repeat the question before it answers.
      return before
  return text


def read(
  text: str,
  reader: Callable[[str], T | None],
  bare: Callable[[str], T | None],
  boxed: Callable[[str], T | None] | None = None,
) -> T | None:
  """Returns the answer that a text states, or is; None if it gives none.

  Args:
    text: a completion.
    reader: a statement -> an answer, or None if it holds none.
    bare: a text without any statement -> the answer that it is, or None.
    boxed: the content of a box -> an answer, or None if it holds none; `reader` by default.
  """
  text = own(text)
  boxes = list(_boxes(text))
  if boxes:
    content = _boxed_answer(text, boxes)
    return (boxed or reader)(content) if content else None
  has_statement = False
  start = 0
  for marker in _MARKERS:
    statements = [statement for statement in _statements(text, marker) if statement.start >= start]
    has_statement |= bool(statements)
    chosen, answer = _first_that_stays(text, statements, reader)
    if answer is not None:
      return answer
    if chosen is not None:  # A lower rank may hold what replaces it, not what stands before it.
      start = chosen.start
  return None if has_statement else bare(text)


def _first_that_stays(
  text: str, statements: Sequence[Statement], reader: Callable[[str], T | None]
) -> tuple[Statement | None, T | None]:
  """Returns the first statement that can be read, or the one that replaces it, and its answer.

  The answer is None where it is taken back and nothing replaces it.
  """
  chosen = answer = None
  is_taken_back = is_rejected = False
  for i, statement in enumerate(statements):
    value = reader(statement.text) if statement.text and (chosen is None or is_taken_back) else None
    if value is not None:
      chosen, answer = statement, value
      is_taken_back = is_rejected = False
    if chosen is not None:
      end = statements[i + 1].start if i + 1 < len(statements) else len(text)
      is_rejected |= chosen is statement and _is_rejected(text, statement.inside, end)
      is_taken_back |= is_rejected or _TAKEN_BACK.search(text, statement.start, end) is not None
  return chosen, None if is_rejected else answer


def _is_rejected(text: str, start: int, end: int) -> bool:
  """Returns whether the answer before text[start:end] is taken back there."""
  soon = min(end, start + _REJECTED_CHARACTERS)
  return bool(_REJECTED.search(text, start, soon) or _REPLACED.search(text, start, end))


def stated(solution: str) -> str | None:
  """Returns the answer that a worked solution of the data states, None if it states none.

  It is the content of its last box, or its statement.
  """
  boxes = list(_boxes(solution))
  return (
    boxes[-1].content
    if boxes
    else read(solution, lambda statement: statement or None, bare=lambda text: None)
  )


def unwrap(text: str, around: str = '') -> str:
  r"""Returns a text with \text{}, \mathrm{} and similar commands replaced by their content.

  `around` is put in front of the content.
  """
  for _ in range(3):  # They may be nested.
    text = _TEXT.sub(rf'{around}\1', text)
  return text


def undress(text: str) -> str:
  r"""Returns a statement without the marks around an answer.

  They are bold, quotes, dollars, \text{} and backticks.
  """
  text = _DRESS.sub('', unwrap(text)).replace('\\ ', ' ')
  return ' '.join(text.split()).strip("*_'‘’ ")


def _boxes(text: str) -> Iterator[Box]:
  """Yields the boxes that are closed and hold something; a box in a box is part of it."""
  matches = list(_BOX.finditer(text))
  if not matches:
    return
  opened: list[int] = []
  closed = {}  # The place after an opening brace -> the place of the brace that closes it.
  for brace in _BRACE.finditer(text):
    if brace[0] == '{':
      opened.append(brace.end())
    elif brace[0] == '}' and opened:
      closed[opened.pop()] = brace.start()
  end = 0
  for match in matches:
    if match.start() < end or (match['bare'] is None and match.end() not in closed):
      continue
    end = match.end() if match['bare'] else closed[match.end()] + 1
    content = match['bare'].rstrip('.,;:') if match['bare'] else text[match.end() : end - 1].strip()
    inner = _BOX.match(content)
    if inner and content.find('}') == len(content) - 1:  # A box that holds nothing but a box.
      content = content[inner.end() : -1].strip()
    if content:
      yield Box(match.start(), end, content if len(content) <= MAX_STATEMENT_CHARACTERS else '')


def _boxed_answer(text: str, boxes: Sequence[Box]) -> str:
  """Returns the content of the last box that is not denied.

  It is '' if that is taken back, or is one of several answers.
  """
  kept, denied = [], set()
  for box in boxes:
    before = text[max(0, box.start - 100) : box.start].rpartition('\n')[2]
    if _NOT_BOX.search(before) or _ASKED.match(text, box.end):
      denied.add(box.content)
    else:
      kept.append(box)
  if not kept or kept[-1].content in denied:
    return ''
  last = kept[-1]
  is_one_of_two = (
    len(kept) > 1
    and kept[-2].content != last.content
    and _JOINED.match(text[kept[-2].end : last.start])
  )
  is_rejected = _is_rejected(text, last.end, len(text)) or _BOX_REJECTED.match(text, last.end)
  return '' if is_one_of_two or is_rejected else last.content


def _statements(text: str, marker: re.Pattern[str]) -> Iterator[Statement]:
  """Yields the text after each marker on its line, or in a displayed formula."""
  markers = list(marker.finditer(text))
  for i, match in enumerate(markers):
    following = markers[i + 1].start() if i + 1 < len(markers) else len(text)
    if following < len(text) and _LEAD_IN.match(text, match.end(), following):
      continue
    behind = text[match.end() : match.end() + MAX_STATEMENT_CHARACTERS]
    rest = behind.lstrip(':= \t\n')
    inside = match.end() + len(behind) - len(rest) + 1
    # '**Answer:** 7': the marker's own bold ends here.
    rest = re.sub(r'\A(?:\*\*|__)\s+', '', rest)
    display = _DISPLAY.match(rest)
    statement = (
      ' '.join((display[1] or display[2] or '').split())
      if display
      else rest.partition('\n')[0].strip()
    )
    clause = re.split(r'[,;:.!?\n]', text[max(0, match.start() - 100) : match.start()])[-1]
    is_none = _NOT.match(statement) or _DENIED.search(clause) or _LIST.match(rest)
    yield Statement(match.start(), inside, '' if is_none else statement)
