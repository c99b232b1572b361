"""Compares formulas with math-verify, in child processes that are killed when their time is over.

A process for each thread that asks; it imports neither jax nor this package.
"""

import functools
import json
import pathlib
import select
import subprocess
import sys
import tempfile
import threading
from typing import Literal

Verdict = Literal['correct', 'incorrect', 'error']  # error: no verdict before a limit

SECS = 10.0  # Of wall time for a comparison; a usual one takes 0.02.
START_SECS = 60.0

_SCRIPT = pathlib.Path(__file__).with_name('math_worker.py')
_local = threading.local()


def same_formula(gold: str, text: str, *, search: bool = False) -> Verdict:
  """Returns whether math-verify finds `text` equal to the formula `gold`.

  With `search`, a formula in `text` may be the equal one. Raises OSError, with the child process's
  message, when it cannot start: no verdict is better than a wrong one.
  """
  if not hasattr(_local, 'worker'):
    _local.worker = _Worker()
  return _local.worker.ask(gold, text, search)


@functools.cache
def check() -> None:
  """Raises OSError when math-verify cannot be used here."""
  worker = _Worker()  # One that ends here: the threads that judge have their own.
  for text, verdict in (('0.5', 'correct'), ('0.4', 'incorrect')):
    if worker.ask(r'\frac{1}{2}', text) != verdict:
      raise OSError(
        f'math-verify: {text} is not judged {verdict!r} for 1/2; install math-verify>=0.8 again'
      )
  worker.end()


class _Worker:
  """A process that compares formulas.

  It is started at the first question, and again after a question that it did not survive.
  """

  def __init__(self):
    self._child: subprocess.Popen[bytes] | None = None

  def ask(self, gold: str, text: str, search: bool = False) -> Verdict:
    """Returns the verdict; 'error' when there is none in time, and the process is killed."""
    child = self._child or self._start()
    assert child.stdin is not None
    reply = b''
    try:
      child.stdin.write(json.dumps([gold, text, search]).encode() + b'\n')
      reply = self._reply(child, SECS)
    except BrokenPipeError:
      pass
    if not reply:
      self.end()
    verdicts: dict[bytes, Verdict] = {b'correct\n': 'correct', b'incorrect\n': 'incorrect'}
    return verdicts.get(reply, 'error')

  def end(self) -> None:
    """Ends the process; the next question starts another."""
    child, self._child = self._child, None
    if child is not None:
      child.kill()
      with child:  # closes its pipes, and waits for it
        pass

  def _start(self) -> subprocess.Popen[bytes]:
    with tempfile.TemporaryFile() as errors:
      command = [sys.executable, '-I', '-B', str(_SCRIPT)]
      self._child = subprocess.Popen(
        command,
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env={},
        start_new_session=True,
      )
      if self._reply(self._child, START_SECS) != b'ready\n':
        self.end()
        errors.seek(0)
        said = errors.read().decode(errors='replace').strip().splitlines() or ['nothing']
        raise OSError(
          f'math-verify: its process does not start with {sys.executable}, which says: {said[-1]}'
        )
      return self._child

  def _reply(self, child: subprocess.Popen[bytes], secs: float) -> bytes:
    """Returns the process's next line, b'' if none comes in time."""
    assert child.stdout is not None
    return child.stdout.readline() if select.select([child.stdout], [], [], secs)[0] else b''
