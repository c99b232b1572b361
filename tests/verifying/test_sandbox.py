"""What no program may do: pass, hang or do harm; and what it may."""

import subprocess
import sys
import threading

from imm_jax.verifying import sandbox, worker
import pytest
from tests.verifying.judging import DOUBLE

PROGRAMS = {
  'ends well': 'import sys; sys.exit(0)',
  'ends at once': 'import os; os._exit(0)',
  'raises SystemExit': 'raise SystemExit',
  'ends in the test': 'import os\ndef double(x):\n  os._exit(0)',
  'exits in the test': 'def double(x):\n  exit(0)',
  'loops': 'while True: pass',
  'loops in the test': 'def double(x):\n  while True: pass',
  'sleeps': 'import time; time.sleep(1000)',
  'does not mind signals': (
    'import signal\nfor i in range(1, 64):\n  try: signal.signal(i, signal.SIG_IGN)\n  except OSError: pass\nwhile 1: pass'
  ),
  'catches everything': 'while True:\n  try:\n    while True: pass\n  except BaseException: pass',
  'is a fork bomb': 'import os\nwhile True:\n  try: os.fork()\n  except OSError: pass',
  'is a thread bomb': 'import threading\nwhile True: threading.Thread(target=lambda: [None for _ in iter(int, 1)]).start()',
  'starts a process': 'import subprocess; subprocess.run(["sleep", "1000"])',
  'leaves its session': 'import os\nif os.fork() == 0:\n  os.setsid()\n  while True: pass',
  'has a huge integer': 'def double(x):\n  return 9 ** 9 ** 9 ** 9',
  'prints a huge integer': 'print(10 ** 10 ** 9)',
  'takes all memory': 'x = []\nwhile True: x.append(bytearray(10 ** 8))',
  'takes a little memory for long': 'x = [0]\nwhile True: x += x',
  'floods the output': 'while True: print("x" * 10 ** 6)',
  'floods the errors': 'import sys\nwhile True: sys.stderr.write("x" * 10 ** 6)',
  'fills the disk': 'i = 0\nwhile True:\n  i += 1\n  open(str(i), "wb").write(b"x" * 10 ** 6)',
  'opens all files': 'files = []\nwhile True: files.append(open("/dev/null"))',
  'recurs': 'def double(x):\n  return double(x)',
  'recurs deeper': 'import sys\nsys.setrecursionlimit(10 ** 9)\ndef double(x):\n  return double(x)',
  'is nested': '(' * 50_000 + ')' * 50_000,
  'is nested in unary signs': 'x = ' + '-' * 90_000 + '1',
  'is too long': '#' * 10_000_000,
  'has a surrogate': 'x = "\ud800"',
  'has a null': 'x = 1\x00',
  'crashes': 'import ctypes; ctypes.string_at(0)',
  'aborts': 'import os; os.abort()',
  'kills its group': 'import os; os.killpg(0, 9)',
  'kills its parent': 'import os; os.kill(os.getppid(), 9)',
  'kills all': 'import os; os.kill(-1, 9)',
  'reads its input': 'input()',
  'has another AssertionError': 'import builtins\nbuiltins.AssertionError = SystemExit\ndef double(x):\n  return x',
  'ends when an assertion fails': (
    'import sys\nsys.excepthook = lambda *a: __import__("os")._exit(0)\ndef double(x):\n  return x'
  ),
  'ends at exit': 'import atexit, os\natexit.register(os._exit, 0)\ndef double(x):\n  return x',
  'sends what it knows': (
    'import os\nfor fd in range(3, 64):\n  try: os.write(fd, b"x" * 32)\n  except OSError: pass\ndef double(x):\n  return x'
  ),
  'looks into the frames of its runner': (
    'import os, sys\ndef found():\n  frame = sys._getframe(1)\n  while frame:\n'
    '    yield from (str(value).encode() for value in [*frame.f_locals.values(), *frame.f_globals.values()])\n'
    '    frame = frame.f_back\nfor value in list(found()):\n  for fd in range(3, 64):\n'
    '    try: os.write(fd, value)\n    except OSError: pass\nos._exit(0)'
  ),
  'closes all files': 'import os; os.closerange(0, 64)',
  'raises in a destructor': 'class A:\n  def __del__(self): raise SystemExit\nA()\ndef double(x):\n  return x',
  'has a metaclass': 'class M(type):\n  def __call__(c, x):\n    while True: pass\nclass double(metaclass=M): pass',
}


LIMITS = sandbox.Limits(cpu_secs=1, wall_secs=2.0, memory_bytes=2**28)


@pytest.mark.parametrize('name', PROGRAMS)
def test_hostile_programs_do_not_pass(name):
  assert sandbox.run_tests(PROGRAMS[name], DOUBLE['tests'], LIMITS) in ('incorrect', 'error')


ALLOWED = [  # statement, and what it must raise; each in a process with no business there
  ('os.fork()', 'PermissionError'),
  ('subprocess.run(["true"])', 'PermissionError'),
  ('os.execv("/bin/true", ["true"])', 'PermissionError'),
  ('os.kill(os.getppid(), 0)', 'PermissionError'),
  ('socket.socket()', 'PermissionError'),
  ('threading.Thread(target=print).start()', 'RuntimeError'),
  ('open("big", "wb").write(bytes(2 ** 21))', 'OSError'),
  ('open("/proc/%d/environ" % os.getppid()).read()', 'OSError'),
  ('resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (200, 200))', 'PermissionError'),
  ('os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)', 'PermissionError'),
  ('open("/usr/file", "w")', 'OSError'),
  ('os.mkdir("/dev/directory")', 'OSError'),
]


@pytest.mark.parametrize(('statement', 'error'), ALLOWED)
def test_what_a_sandbox_does_not_permit(statement, error):
  imports = 'import os, resource, socket, subprocess, threading'
  program = f'{imports}\ntry:\n  {statement}\n  raised = None\nexcept {error} as e:\n  raised = e'
  assert sandbox.run_tests(program, 'assert raised') == 'correct'


def test_a_sandbox_has_a_directory_of_its_own_and_no_environment(tmp_path, monkeypatch):
  monkeypatch.setenv('SECRET', 'x')
  assert sandbox.run_tests('import os\nopen("a", "w").write("x")', 'assert os.listdir(".") == ["a"]') == 'correct'
  assert sandbox.run_tests('import os', 'assert "SECRET" not in os.environ and "HOME" not in os.environ') == 'correct'


NAMESPACES = (
  subprocess.run(['unshare', '--user', '--map-root-user', '--net', '--mount', 'true'], check=False).returncode == 0
)


@pytest.mark.skipif(not NAMESPACES, reason='needs user namespaces')
def test_a_sandbox_writes_nothing_elsewhere(tmp_path):
  program = f'try:\n  open({str(tmp_path / "a")!r}, "w")\n  raised = None\nexcept OSError as e:\n  raised = e'
  assert sandbox.run_tests(program, 'assert raised') == 'correct' and not list(tmp_path.iterdir())


def test_a_program_is_a_module():
  program = 'from __future__ import annotations\nimport dataclasses\n@dataclasses.dataclass\nclass N:\n  rest: "N" = None\n'
  assert sandbox.run_tests(program, 'assert N(N()).rest == N()') == 'correct'


def test_a_python_that_does_not_start_is_an_error(monkeypatch, tmp_path):
  broken = tmp_path / 'python'
  broken.write_text('#!/bin/sh\nexit 127\n')
  broken.chmod(0o755)
  sandbox.check()
  monkeypatch.setattr(sys, 'executable', str(broken))
  with pytest.raises(OSError, match='no program can be started'):
    sandbox.run_tests('x = 1', 'assert x == 1')
  monkeypatch.setattr(worker, '_local', threading.local())
  with pytest.raises(OSError, match='does not start'):
    worker.same_formula('1', '2')
