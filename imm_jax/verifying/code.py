"""Judges an answer that is a program: it passes the tests of its question, in a sandbox."""

import ast
import builtins
from collections.abc import Iterator
import functools
import re
import textwrap

from imm_jax.verifying import sandbox

MAX_CHARACTERS = 100_000  # The longest program; a longer one is wrong.

_FENCE = re.compile(r'^([ \t]*+)(`{3,}+|~{3,}+)[ \t]*+([^\s`]*+)[^\n`]*+$', re.MULTILINE)
# The language of a Python block: ```python3, or none.
_PYTHON = re.compile(r'(?:\{?\.?(?:i?python|py)[\d.]*(?![a-z])\S*)?', re.IGNORECASE)
# An end token of a chat template, on the closing fence.
_END_MARK = re.compile(r'(?<=```)(?:<\|[a-z_]+\|>|</s>|<eos>|<end_of_turn>)')
# The lines that have to stay in front of a program: comments, and imports of __future__.
_HEAD = re.compile(
  r'(?:[ \t]*(?:#[^\n]*)?\n|from __future__ import (?:\([^)]*\)|[^\n(]*)(?:\n|\Z))*+'
)
_DEFINED = re.compile(
  r'^(?:(?:async[ \t]+)?def|class|import)[ \t]+(\w+)|^from[ \t]+\S+[ \t]+import[ \t]+(.+)',
  re.MULTILINE,
)


def read(text: str, tests: str = '', prefix: str = '') -> str:
  """Returns the program that a text gives.

  Of several blocks it is the last one that is closed and defines the names that the tests need,
  after earlier blocks that define names it uses; else the last that defines them, closed or not;
  else all closed blocks, if they define them together. Without any block it is the text before a
  fence that closes nothing, or the text. Blocks of other languages do not count.

  Args:
    text: a completion.
    tests: Python source that uses the names the program has to define; '' takes any block.
    prefix: code that the program may continue: then the last block may define nothing.
  """
  text = _END_MARK.sub('', text[: 2 * MAX_CHARACTERS].removeprefix('\ufeff'))
  blocks = list(_blocks(text))
  fences = list(_FENCE.finditer(text))
  before = text[: fences[0].start()].strip('\n') if fences else text.strip('\n')
  if prefix and len(fences) == 1 and not fences[0][3] and before[:1].isspace():
    return before  # The rest of a function, and the fence that ends its block.
  closed = [block for block, is_closed in blocks if is_closed]
  needed = _needed(tests)
  for i in reversed(range(len(closed))):
    if all(_defines(closed[i], name) for name in needed) and closed[i].strip():
      return _with_helpers(closed[:i], closed[i])
  opened = [block for block, is_closed in blocks[::-1] if not is_closed]
  candidates = [*opened, *(['\n'.join(closed)] if needed else closed[::-1]), before]
  for candidate in candidates:
    if candidate.strip() and all(_defines(candidate, name) for name in needed):
      return candidate
  candidates = [*closed[::-1], *opened, before]
  found = [candidate for candidate in candidates if candidate.strip()]
  return found[0] if found and (prefix or blocks) else text.strip('\n')


def verify(prefix: str, tests: str, text: str) -> bool:
  """Returns whether the program of a text, after `prefix`, passes the tests.

  Raises OSError if the sandbox does not work here.
  """
  code = read(text, tests, prefix)
  if len(code) > MAX_CHARACTERS:
    return False
  head = _HEAD.match(code)
  # Imports of __future__ have to come first, before the prefix too.
  split = head.end() if head and prefix else 0
  return sandbox.run_tests(f'{code[:split]}{prefix}{code[split:]}', tests) == 'correct'


def _blocks(text: str) -> Iterator[tuple[str, bool]]:
  """Yields the blocks of Python, or of no named language, and whether a fence closes them."""
  opened = None
  for fence in _FENCE.finditer(text):
    if opened is None:
      opened = fence
    elif fence[2][0] == opened[2][0] and len(fence[2]) >= len(opened[2]) and not fence[3]:
      if len(fence[1]) > len(opened[1]):  # A fence in a docstring.
        continue
      if _PYTHON.fullmatch(opened[3]):
        yield _content(text, opened, fence.start()), True
      opened = None
    elif fence[3] and _PYTHON.fullmatch(fence[3]):  # The block before was never closed.
      if _PYTHON.fullmatch(opened[3]):
        yield _content(text, opened, fence.start()), False
      opened = fence
  if opened is not None and _PYTHON.fullmatch(opened[3]):
    yield _content(text, opened, len(text)), False


def _with_helpers(earlier: list[str], block: str) -> str:
  """Returns a block after the earlier blocks that define names it uses but does not define."""
  parts, used, defined = [block], _words(block), _names(block)
  for other in reversed(earlier):
    names = _names(other)
    if names & used - defined:
      parts.append(other)
      used |= _words(other)
      defined |= names
  return '\n'.join(parts[::-1])


def _words(text: str) -> set[str]:
  return set(re.findall(r'\w+', text))


def _names(code: str) -> set[str]:
  """The names of functions, classes and imports."""
  return _words(' '.join(' '.join(names) for names in _DEFINED.findall(code)))


def _content(text: str, opening: re.Match[str], end: int) -> str:
  content = text[opening.end() + 1 : end]
  return textwrap.dedent(content) if opening[1] else content


def may_fail(tests: str) -> bool:
  """Returns whether tests check anything.

  They do not if they are empty, an import, or a list of texts that look like tests.
  """
  try:
    nodes = ast.walk(ast.parse(tests))
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return True
  return any(isinstance(node, ast.Assert | ast.Call | ast.Raise) for node in nodes)


@functools.lru_cache
def _needed(tests: str) -> frozenset[str]:
  """The names that tests use and do not define; none if the tests are not Python."""
  try:
    nodes = list(ast.walk(ast.parse(tests)))
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return frozenset()
  used = {
    node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
  }
  defined = {
    node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
  }
  for node in nodes:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
      defined.add(node.name)
    elif isinstance(node, ast.arg):
      defined.add(node.arg)
    elif isinstance(node, ast.Import | ast.ImportFrom):
      defined |= {(alias.asname or alias.name).partition('.')[0] for alias in node.names}
    elif isinstance(node, ast.ExceptHandler) and node.name:
      defined.add(node.name)
  return frozenset(used - defined - set(dir(builtins)) - {'__name__'})


def _defines(code: str, name: str) -> bool:
  """Returns whether a line of code binds a name, as far as its text shows.

  A model's code is parsed only in the sandbox.
  """
  defined = rf'(?:(?:async[ \t]+)?def|class)[ \t]+{name}\b'
  assigned = rf'(?:\w+,[ \t]*)*{name}(?:,[ \t]*\w+)*[ \t]*(?::[^=\n]+)?=(?!=)'
  imported = rf'(?:from|import)\b.*\b{name}\b'
  return re.search(rf'^[ \t]*(?:{defined}|{assigned}|{imported})', code, re.MULTILINE) is not None
