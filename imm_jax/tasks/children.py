"""What must not run in this process: formulas that math-verify compares, and the programs of a model with their tests.

Both run in child processes that import neither jax nor this package, with limits, and are killed when their time is over.
"""

from collections.abc import Sequence
import dataclasses
import functools
import json
import os
import pathlib
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from typing import Literal

Verdict = Literal['correct', 'incorrect', 'error']  # error: no verdict before a limit

MATH_SECS = 10.0  # of wall time for a comparison; a usual one takes 0.02

_HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a program may take. The wall time is for programs that wait; it is long, since a busy machine must not matter."""

  cpu_secs: int = 5
  wall_secs: float = 20.0
  memory_bytes: int = 2**30  # of address space
  file_bytes: int = 2**20  # of a file, and of all files that it writes


LIMITS = Limits()


def run_tests(program: str, tests: str, limits: Limits = LIMITS) -> Verdict:
  """Returns whether `tests` raise nothing after `program`, both Python source, in a sandbox; see sandbox.py.

  The proof is a random token, which is handed to the sandbox together with the source and which it hands back after the last
  test: a program that exits early, with whatever code, has not passed.
  """
  request = json.dumps({'program': program, 'tests': tests, **dataclasses.asdict(limits)}).encode()
  token = secrets.token_bytes(32)
  ours, theirs = socket.socketpair()
  with ours, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
    with theirs:
      child = _start('sandbox.py', str(theirs.fileno()), stdin=subprocess.DEVNULL, cwd=directory, fds=[theirs.fileno()])
    try:
      ours.settimeout(limits.wall_secs)
      ours.sendall(struct.pack('!Q', len(request)) + request + token)
      return 'correct' if ours.recv(len(token)) == token else 'incorrect'
    except TimeoutError:
      return 'error'
    except OSError:  # it has died, and closed the other end
      return 'incorrect'
    finally:
      _kill(child)


def same_formula(gold: str, text: str, *, search: bool = False) -> Verdict:
  """Returns whether math-verify finds `text`, or with `search` a formula in it, equal to the formula `gold`."""
  return _math_worker().ask(json.dumps([gold, text, search]), MATH_SECS)


class _MathWorker:
  """A process that compares formulas, started when it is first asked, and again after one that it did not survive."""

  def __init__(self):
    self._child: subprocess.Popen[bytes] | None = None

  def ask(self, request: str, secs: float) -> Verdict:
    """Returns the verdict on a line of JSON; 'error' when there is none after `secs`, and the process is killed."""
    if self._child is None:
      self._child = _start('math_worker.py', stdin=subprocess.PIPE, stdout=subprocess.PIPE)
      self._reply(60.0)  # its imports
    reply = b''
    if self._child is not None:
      assert self._child.stdin is not None
      try:
        self._child.stdin.write(request.encode() + b'\n')
        self._child.stdin.flush()
        reply = self._reply(secs)
      except BrokenPipeError:
        self._end()
    verdicts: dict[bytes, Verdict] = {b'correct\n': 'correct', b'incorrect\n': 'incorrect'}
    return verdicts.get(reply, 'error')

  def _reply(self, secs: float) -> bytes:
    """Returns its next line, or b'' when it has died or is killed."""
    assert self._child is not None and self._child.stdout is not None
    line = b''
    if select.select([self._child.stdout], [], [], secs)[0]:
      line = self._child.stdout.readline()
    if not line:
      self._end()
    return line

  def _end(self) -> None:
    assert self._child is not None and self._child.stdin is not None and self._child.stdout is not None
    _kill(self._child)
    self._child.stdout.close()
    self._child = None


@functools.cache
def _math_worker() -> _MathWorker:
  return _MathWorker()


def _start(
  script: str, *arguments: str, stdin: int, stdout: int = subprocess.DEVNULL, cwd: str | None = None, fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
  """Starts a script of this directory in a session of its own, with no environment, and the open files `fds`."""
  site = [] if script == 'math_worker.py' else ['-S']
  return subprocess.Popen(
    [sys.executable, '-I', '-B', *site, str(_HERE / script), *arguments],
    stdin=stdin,
    stdout=stdout,
    stderr=subprocess.DEVNULL,
    cwd=cwd,
    env={},
    pass_fds=fds,
    start_new_session=True,
  )


def _kill(child: subprocess.Popen[bytes]) -> None:
  """Kills a child with all of its process group, and waits for it."""
  os.killpg(child.pid, signal.SIGKILL)  # it is not waited for yet, so the group is there
  child.wait()
