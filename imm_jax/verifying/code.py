"""Judges an answer that is a program: it passes the tests of its question, in a sandbox."""

import ast
import builtins
from collections.abc import Iterator
import functools
import re
import textwrap

from imm_jax.verifying import sandbox

MAX_CHARACTERS = 100_000  # Of a program; a longer one is wrong.

_FENCE = re.compile(r'^([ \t]*+)(`{3,}+|~{3,}+)[ \t]*+([^\s`]*+)[^\n`]*+$', re.MULTILINE)
_PYTHON = re.compile(r'(?:\{?\.?(?:i?python|py)[\d.]*(?![a-z])\S*)?', re.IGNORECASE)  # ```python3, or no language
_FUTURE = re.compile(r'^from __future__ import (?:\([^)]*\)|[^\n(]*)$', re.MULTILINE)


def read(text: str, tests: str = '', prefix: str = '') -> str:
  """Returns the program that a text gives.

  Of several blocks it is the last one that is closed and defines what the tests need; else the last that defines it, closed
  or not; without any, the text before a fence that closes nothing, or the text. Blocks of other languages do not count.

  Args:
    text: a completion.
    tests: Python source that uses what the program has to define; '' takes any block.
    prefix: what the program may continue: then the last block may define nothing.
  """
  text = text[: 2 * MAX_CHARACTERS]
  blocks = list(_blocks(text))
  fence = _FENCE.search(text)
  before = text[: fence.start()].strip('\n') if fence else text.strip('\n')
  closed = [block for block, is_closed in blocks if is_closed]
  candidates = [*closed[::-1], *[block for block, is_closed in blocks[::-1] if not is_closed], before]
  needed = _needed(tests)
  for candidate in candidates:
    if candidate.strip() and all(_defines(candidate, name) for name in needed):
      return candidate
  found = [candidate for candidate in candidates if candidate.strip()]
  return found[0] if found and (prefix or blocks) else text.strip('\n')


def verify(prefix: str, tests: str, text: str) -> bool:
  """Returns whether the program of a text, behind `prefix`, passes the tests. Raises OSError where no sandbox can be had."""
  code = read(text, tests, prefix)
  if len(code) > MAX_CHARACTERS:
    return False
  future = ''.join(f'{line}\n' for line in _FUTURE.findall(code))  # It has to come first, before the prefix too.
  return sandbox.run_tests(f'{future}{prefix}{_FUTURE.sub("", code)}', tests) == 'correct'


def _blocks(text: str) -> Iterator[tuple[str, bool]]:
  """Yields the blocks of Python, or of no named language, and whether a fence closes them."""
  opened = None
  for fence in _FENCE.finditer(text):
    if opened is None:
      opened = fence
    elif fence[2][0] == opened[2][0] and len(fence[2]) >= len(opened[2]) and not fence[3]:
      if _PYTHON.fullmatch(opened[3]):
        yield _content(text, opened, fence.start()), True
      opened = None
    elif fence[3] and _PYTHON.fullmatch(fence[3]):  # The block before was never closed.
      if _PYTHON.fullmatch(opened[3]):
        yield _content(text, opened, fence.start()), False
      opened = fence
  if opened is not None and _PYTHON.fullmatch(opened[3]):
    yield _content(text, opened, len(text)), False


def _content(text: str, opening: re.Match[str], end: int) -> str:
  content = text[opening.end() + 1 : end]
  return textwrap.dedent(content) if opening[1] else content


def may_fail(tests: str) -> bool:
  """Returns whether tests check anything: not if they are empty, an import, or a list of texts that look like tests."""
  try:
    nodes = ast.walk(ast.parse(tests))
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return True
  return any(isinstance(node, ast.Assert | ast.Call | ast.Raise) for node in nodes)


@functools.lru_cache
def _needed(tests: str) -> frozenset[str]:
  """The names that tests use and do not define; none where they are no Python."""
  try:
    nodes = list(ast.walk(ast.parse(tests)))
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return frozenset()
  used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
  defined = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
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
  """Returns whether a line of code binds a name, as far as its text tells: a model's code is parsed in the sandbox only."""
  bound = rf'(?:(?:async[ \t]+)?def|class)[ \t]+{name}\b|{name}[ \t]*(?::[^=\n]+)?=(?!=)|(?:from|import)\b.*\b{name}\b'
  return re.search(rf'^[ \t]*(?:{bound})', code, re.MULTILINE) is not None
