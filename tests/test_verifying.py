"""Verifiers by tables of cases, and what no completion may do: raise, hang, do harm or pass."""

import fractions
import subprocess
import sys
import threading

import pytest

from imm_jax.rounds.experiment import make_task
from imm_jax.tasks import base, catalog
from imm_jax.verifying import choice, code, numbers, own, sandbox, worker
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / 'configs'))

import common


def data_set(dataset, **changes):
  return make_task('t', catalog.spec(dataset, train_source='unused.jsonl', test_source='', **changes))


def verdicts(dataset, gold, completion, **others):
  """Returns whether the strict, and whether the flexible reader takes the completion."""
  task = data_set(dataset, scoring='generate', stop=('\n\n', 'Question:'))
  example = base.make_example('t', 'q', gold, **others)
  strict = task.verify(example, completion)
  return strict, strict or task.verify_flexible(example, completion)


BOTH, LENIENT, NEITHER = (True, True), (False, True), (False, False)


@pytest.mark.parametrize(
  ('gold', 'completion', 'expected'),
  [
    ('42', '42', BOTH),
    ('42', ' 42.', BOTH),
    ('42', '42.0', BOTH),
    ('42', '**42**', BOTH),
    ('42', '43', NEITHER),
    ('42', '', NEITHER),
    ('42', 'forty-two', NEITHER),
    ('42', '42 apples', LENIENT),
    ('42', 'She has 40 + 2 = 42 apples', LENIENT),
    ('42', 'The answer is 42. There were 7 days.', BOTH),
    ('42', 'The answer is 7. No: the answer is 42!', BOTH),
    ('42', 'the ANSWER is: **42** apples for 3 people', BOTH),
    ('42', 'The answer is 40 + 2 = 42 since 6 * 7 is, too', BOTH),
    ('42', 'x is 42, the answer is left to you', LENIENT),
    ('42', '40 + 2 = <<40+2=42>>42\n#### 42', BOTH),
    ('42', '#### 41\n42', NEITHER),
    ('42', r'So \boxed{42} is it, in 3 steps', BOTH),
    ('1/2', r'\boxed{\frac{1}{2}}', BOTH),
    ('42', r'The answer is $\boxed{42}$', BOTH),
    ('1/2', r'\boxed{\dfrac{-1}{2}}', NEITHER),
    ('42', 'The answer is 42\n\nQuestion: what is 1 + 1?\nAnswer: 2', BOTH),
    ('42', '7\n\n42', NEITHER),
    ('42', 'So 42 of them.\n\nQuestion: What is 7 + 1?', LENIENT),
    ('42', 'The answer is\n\nQuestion: What is 42 + 1?\nAnswer:', NEITHER),
    ('1234', '1,234', BOTH),
    ('1234', '$1,234.00', BOTH),
    ('1234', r'\$1{,}234', BOTH),
    ('109200000', '109,200,000', BOTH),
    ('109200000', '109,200,001', NEITHER),
    ('23', '1,23', LENIENT),
    ('5', '$5', BOTH),
    ('5', '5.0', BOTH),
    ('5', '€5 each', LENIENT),
    ('-3', '-3', BOTH),
    ('-3', '\N{MINUS SIGN}3', BOTH),
    ('-3', '-$3', BOTH),
    ('-3', '$-3', BOTH),
    ('3', '-3', NEITHER),
    ('3', '10-3', LENIENT),
    ('0.5', '1/2', BOTH),
    ('0.5', '.5', BOTH),
    ('0.5', '1 / 2', BOTH),
    ('50', '50%', BOTH),
    ('50', r'50\%', BOTH),
    ('0.6666666667', '2/3', BOTH),
    ('3.33333', '10/3', BOTH),
    ('3.33333', '3.33', NEITHER),
    ('1000', '1e3', BOTH),
    ('0', '0', BOTH),
    ('0', '-0.0', BOTH),
    ('0', '0.0000001', NEITHER),
  ],
)
def test_numeric_verifier(gold, completion, expected):
  assert verdicts('gsm8k', gold, completion) == expected


@pytest.mark.parametrize(
  ('gold', 'completion', 'expected'),
  [
    ('yes', 'Whales swim.\nThe answer is yes.', BOTH),
    ('yes', 'yes', BOTH),
    ('yes', ' yes.', BOTH),
    ('yes', '**yes**', BOTH),
    ('yes', 'Yes', BOTH),
    ('yes', 'Whales swim, so yes', LENIENT),
    ('yes', 'the answer is: Yes!', LENIENT),
    ('yes', 'yes and no', NEITHER),
    ('yes', 'The answer is yes. Whales swim.', BOTH),
    ('yes', 'The answer is yes; no', NEITHER),
    ('yes', 'The answer is yes, as well as no', NEITHER),
    ('yes', 'The answer is yes, as whales swim', BOTH),
    ('cat', 'The answer is cat for dog', NEITHER),
    ('__init__', 'init', NEITHER),
    ('__init__', 'The answer is __init__.', BOTH),
    ('caf\N{LATIN SMALL LETTER E WITH ACUTE}', 'cafe\N{COMBINING ACUTE ACCENT}', BOTH),
    ('yes', 'no. yes.\nthe answer is no.', NEITHER),
    ('yes', '', NEITHER),
    ('(A)', '(A)', BOTH),
    ('(A)', r'\boxed{(A)}', BOTH),
    ('(A)', 'A', LENIENT),
    ('(A)', '(B)', NEITHER),
    ('] ]', ' ]  ]', BOTH),
    ('] ]', '] ] ]', NEITHER),
  ],
)
def test_exact_verifier(gold, completion, expected):
  assert verdicts('bbh', gold, completion) == expected


@pytest.mark.parametrize(
  ('completion', 'expected'),
  [
    ('B', BOTH),
    (' (B)', BOTH),
    ('B) 8 km', BOTH),
    ('**B**', BOTH),
    ('So 8.\nThe answer is B.', BOTH),
    ('the answer is (B) 8 km', BOTH),
    (r'\boxed{B}', BOTH),
    ('8 km', LENIENT),
    ('the answer is 8 km.', LENIENT),
    ('I think that it is B', LENIENT),
    ('it is (B), since A is wrong', LENIENT),
    ('A', NEITHER),
    ('A B', LENIENT),
    ('A dog', NEITHER),
    ('But it is 9', NEITHER),
    ('the answer is C, not B', NEITHER),
    ('the answer is B - 7 km', NEITHER),
    ('B - 7 km', NEITHER),
    ('B. 8 km, since it is far', BOTH),
    ('B. Smith said so', LENIENT),
    ('not B', NEITHER),
    ('It must be anything but B', NEITHER),
    ('b', NEITHER),
    ('', NEITHER),
  ],
)
def test_choice_verifier(completion, expected):
  assert verdicts('aqua', 'B', completion, options=('7 km', '8 km', '9 km')) == expected


@pytest.mark.parametrize(
  ('gold', 'completion', 'expected'),
  [
    (r'\frac{1}{2}', r'\boxed{\frac{1}{2}}', BOTH),
    (r'\frac{1}{2}', r'So it is $\boxed{0.5}$.', BOTH),
    (r'\frac{1}{2}', r'\boxed{\dfrac12}', BOTH),
    (r'\frac{1}{2}', 'The answer is $1/2$.', BOTH),
    (r'\frac{1}{2}', r'\boxed{\frac{1}{3}}', NEITHER),
    (r'\frac{1}{2}', 'so we have $x = 0.5$ here', LENIENT),
    (r'\left( 3, \frac{\pi}{2} \right)', r'\boxed{(3, \frac{\pi}{2})}', BOTH),
    (r'\left( 3, \frac{\pi}{2} \right)', r'\boxed{(\frac{\pi}{2}, 3)}', NEITHER),
    ('x^2+2x+1', r'\boxed{(x+1)^2}', BOTH),
    ('x^2+2x+1', r'\boxed{(x+2)^2}', NEITHER),
    (r'\text{even}', r'\boxed{\text{even}}', BOTH),
    (r'\text{even}', 'The answer is even.', BOTH),
    (r'10\%', r'\boxed{10\%}', BOTH),
    ('11', '11', BOTH),
    ('11', '', NEITHER),
    ('11', '12', NEITHER),
  ],
)
def test_math_verifier(gold, completion, expected):
  assert verdicts('math', gold, completion) == expected


DOUBLE = {'prefix': '', 'tests': 'assert double(2) == 4\nassert double(0) == 0'}


@pytest.mark.parametrize(
  ('completion', 'right'),
  [
    ('def double(x):\n  return 2 * x', True),
    ('\n```python\ndef double(x):\n  return 2 * x\n```\n', True),
    ('Here it is:\n```\ndef double(x):\n  return 2 * x\n```\nIt works.', True),
    ('```py\ndef double(x):\n  return 2 * x', True),
    ('import math\ndef double(x):\n  return int(math.pow(2, 1)) * x', True),
    ('print("hello")\ndef double(x):\n  return 2 * x', True),
    ('if __name__ == "__main__":\n  1 / 0\ndef double(x):\n  return 2 * x', True),
    ('def double(x):\n  return x', False),
    ('def double(x):\n  return 4', False),
    ('def triple(x):\n  return 3 * x', False),
    ('double = ', False),
    ('', False),
  ],
)
def test_code_verifier(completion, right):
  example = base.make_example('t', 'q', 'unused', metadata=DOUBLE)
  assert data_set('mbpp').verify(example, completion) is right and data_set('mbpp').verify_flexible is None


def test_the_prefix_of_code_may_be_continued_or_written_again():
  prompt = 'def double(x):\n  """Returns twice x."""\n'
  example = base.make_example('t', prompt, 'unused', metadata={**DOUBLE, 'prefix': prompt})
  task = data_set('humaneval')
  assert task.verify(example, '\n  return 2 * x\n\ndef other():') and not task.verify(example, '\n  return x\n')
  chat = data_set('humaneval', format='chat')
  assert chat.verify(example, f'```python\n{prompt}  return 2 * x\n```')
  assert chat.verify(example, '  return 2 * x\n```\n\nThis doubles x.')
  assert chat.verify(example, f'```python\nfrom __future__ import annotations\n\n{prompt}  return 2 * x\n```')


# What no completion may do: raise, hang or pass. Each in every verifier of text, or against the tests of a program.

TEXTS = {
  'empty': '',
  'a megabyte of one digit': '1' * 1_000_000,
  'a fraction of a megabyte': '1/' + '1' * 1_000_000,
  'commas': '1,' * 500_000 + 'x',
  'thousands': '1,111' * 200_000 + '٣',
  'foreign digits': '٣３³',
  'surrogates and nulls': '\x00\ud800\udfff',
  'backslashes': '\\' * 1_000_000,
  'open boxes': '\\boxed{' * 100_000,
  'nested braces': 'The answer is ' + '{' * 900,
  'nested roots': '\\boxed{' + '\\sqrt{' * 120 + '}' * 121,
  'markers': 'answer is' * 100_000,
  'equal signs': 'the answer is ' + '= ' * 500_000,
  'dollars': '$' * 1_000_000,
  'marks': '<<' * 500_000,
  'spaces': ' ' * 1_000_000 + 'x',
  'lines': '\n' * 1_000_000,
  'a tower of powers': '\\boxed{9^{9^{9^{9^{9}}}}}',
  'factorials': '\\boxed{((99999!)!)!}',
  'a sum without end': '\\boxed{\\sum_{n=1}^{10^{12}} \\frac{1}{n^{n}}}',
  'an exponent': '1e999999999',
  'a small exponent': '1e-999999999',
  'a division by zero': '1/0',
  'not a number': 'nan',
  'infinity': '\\boxed{\\infty}',
  'an emoji': '\N{PILE OF POO}' * 100_000,
  'right to left': '\u202e24 si rewsna eht',
  'format strings': '%s{0}{question}%n' * 1000,
  'code for a shell': '$(rm -rf .); `reboot`',
  'an answer behind spaces': 'answer' + ' ' * 19_000 + 'x',
  'sentences of nothing': 'The answer is 1 ' + '. ' * 9_900 + 'The answer is',
  'formulas that open': '\\boxed{' + '\\(' * 9_000 + '}',
  'denied boxes': 'not \\boxed{41} ' * 1_500,
  'code for sympy': '\\boxed{__import__("os").abort()}',
}


@pytest.mark.parametrize('dataset', ['gsm8k', 'bbh', 'aqua', 'math'])
@pytest.mark.parametrize('name', TEXTS)
def test_hostile_texts_are_wrong(dataset, name, monkeypatch):
  monkeypatch.setattr(worker, 'SECS', 1.0)
  gold, others = {'gsm8k': ('42', {}), 'bbh': ('yes', {}), 'math': ('42', {})}.get(dataset, ('B', {'options': ('7', '8')}))
  task = data_set(dataset, stop=())
  assert verdicts(dataset, gold, TEXTS[name], **others) == NEITHER
  assert isinstance(task.extract(TEXTS[name]), str)


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


def test_a_formula_that_hangs_is_an_error_and_the_next_has_its_verdict(monkeypatch):
  with monkeypatch.context() as short:
    short.setattr(worker, 'SECS', 0.5)
    assert worker.same_formula('42', '{' * 900) == 'error'
  assert worker.same_formula(r'\frac{1}{2}', '0.5') == 'correct'


# Numbers: what one statement gives, exactly; None where it gives no one number.

STATED_NUMBERS = [
  ('The answer to the question is 42.', '42'),
  ('The answer to 4 of them = 48. So the answer is 66.', '66'),
  ('The answer is 3 1/4.', '13/4'),
  ('\\boxed{3\\frac{1}{4}}', '13/4'),
  ('3 1/4', '13/4'),
  ('The answer is 1/4.', '1/4'),
  ('\\boxed{\\frac{1}{2}}', '1/2'),
  ('The answer is $4 \\times 10^6$.', '4000000'),
  ('The answer is 4*10^6 W', '4000000'),
  ('The answer is 2.5 million.', '2500000'),
  ('The answer is $\\frac12$.', '1/2'),
  ('The answer is 12 500.', '12500'),
  ('\\boxed{15,\\!000}', '15000'),
  ('The answer is 12 ÷ 4 = 3.', '3'),
  ('The answer is 3 apples + 4 apples = 7 apples.', '7'),
  ('The answer is n = 2 + 3 = 5.', '5'),
  ('The answer is not 5.', None),
  ('#### 3 or 4', None),
  ('The answer is 20 - 5.', None),
  ('The answer is 2^{10}.', None),
  ('The answer is $18 per day.', '18'),
  ('The answer is 40%.', '40'),
  ('The answer is 3 hours.', '3'),
  ('The answer is 5 cm^2.', '5'),
  ('The answer is 42 apples for 3 people', '42'),
  ('The answer is 20 - 5 = 15.', '15'),
  ('The answer is 72, in total, so he earns that.', '72'),
  ('The answer is 40 + 2 = 42 since 6 * 7 is, too', '42'),
  ('the ANSWER is: **42** apples for 3 people', '42'),
  ('The answer is 7. No: the answer is 42!', '42'),
  ('\\$1{,}234', '1234'),
  ('-$3', '-3'),
  ('$-3', '-3'),
  ('1,23', None),
  ('10-3', None),
  ('1e3', '1000'),
  ('.5', '1/2'),
  ('1 / 2', '1/2'),
  ('50%', '50'),
  ('50\\%', '50'),
  ('The answer is 3 and 4', None),
  ('The answer is 3 to 4.', None),
  ('The answer is between 3 and 4', None),
  ('The answer is 3-4', None),
  ('The answer is 5, not 6.', '5'),
  ('The answer is 3 hours and 20 minutes', None),
  ('The answer is 3 feet 4 inches', None),
  ('The answer is at least 5', None),
  ('The answer is 5π', None),
  ('The answer is 5\\sqrt{2}', None),
  ('The answer is 5x', None),
  ('The answer is 90^\\circ', '90'),
  ('The answer is 1.5e3', '1500'),
  ('The answer is 4 x 10^{-3}', '1/250'),
  ('The answer is 10^6', '1000000'),
  ('The answer is 4·10⁶', '4000000'),
  ('The answer is 4*10**6', '4000000'),
  ('The answer is negative 3', '-3'),
  ('The answer is 3½', '7/2'),
  ('The answer is ½', '1/2'),
  ('The answer is 5 cm²', '5'),
  ('The answer is 5²', None),
  ('The answer is 1 million', '1000000'),
  ('The answer is 5 and a half', None),
  ('The answer is x = 5', '5'),
  ('The answer is 5 since x = 3', '5'),
  ('The answer is 5 (since 3 + 2 = 5)', '5'),
  ('The answer is 3 bags with 4 apples = 12', None),
  ('The answer is 3/4 cup', '3/4'),
  ('**73**', '73'),
  ('The answer is **73**.', '73'),
  ('The final answer is $73$. I hope it is correct.', '73'),
  ('Final Answer: The final answer is $73$. I hope it is correct.', '73'),
  ('**Answer:** 73', '73'),
  ('## Final Answer\n\n73', '73'),
  ('The answer is:\n$$\n42\n$$', '42'),
  ('The answer is 5.\n\nQuestion: What is 2+2?\nAnswer: The answer is 4.', '5'),
  ('42\n\nQuestion: what is 1 + 1?\nAnswer: 2', '42'),
  ('#### 12\n\nTom has 3 apples\n#### 5', '12'),
  ('The answer is 12.\n\nUser: And 2 + 2?\nAssistant: The answer is 4', '12'),
  ("I don't think the answer is 5.", None),
  ('#### Step 1: Find it\n#### 42', '42'),
  ('The answer is 3:30 pm', None),
  ('The answer is (3, 4)', None),
  ('The answer is 1,234,567.89', '123456789/100'),
  ('The answer is 0.75 of a mile', '3/4'),
  ('The answer is Ann has 5 apples', '5'),
  ('The answer is twice 5', None),
  ('The answer is 2 or 3 or 4', None),
  ('The answer is 5 or so', None),
  ('The answer is $5.00', '5'),
  ('the answer is about 5', '5'),
  ('The answer is 5?', None),
  ('The answer is 12,500 km/h', '12500'),
  ('The answer is 3 × 4', None),
  ('The answer is 3 * 4 = 12', '12'),
  ('The answer is 6 = 2 * 3', None),
  ('The answer is ±5', None),
  ('The answer is \\pm 5', None),
  ('The answer is 5-year-old', '5'),
  ('The answer is 5/6/7', None),
  ('The answer is 1/0', None),
  ('The answer is $20 and $30', None),
  ('The answer is \\text{5 apples}', '5'),
  ('The answer is "5"', '5'),
  ('The answer is 20 minus 5', None),
  ('The answer is -5', '-5'),
  ('The answer is - 5', '-5'),
  ('The answer is 5 percent of 20', None),
  ('The answer is 50% of 20', None),
  ('The answer is 2 dozen', None),
  ('#### 1 000 000', '1000000'),
  ('#### $1,080', '1080'),
  ('The answer is 12 500 000 dollars', '12500000'),
  ('The answer is 3 thousand', '3000'),
  ('The answer is 16 2/3 %', '50/3'),
  ('The answer is 3-1/4', None),
  ('The answer is $\\dfrac{3}{4}$', '3/4'),
  ('The answer is -\\frac{3}{4}', '-3/4'),
  ('The answer is \\frac{-3}{4}', '-3/4'),
  ('The answer is 4\\cdot10^{-2}', '1/25'),
  ('The answer is $15\\,000$', '15000'),
  ('The answer is 5 = 5', '5'),
  ('The answer is 5.5.', '11/2'),
  ('The answer is 5 times 3', None),
  ('The answer is 5 plus 3', None),
  ('The answer is about -5', '-5'),
  ('The change is 20 degrees, so the answer is it is -20', '-20'),
  ('The answer is -(5)', None),
  ('The answer is x = 5 and y = 6', None),
  ('The answer is 5 hours twenty minutes', None),
  ('The answer is 2 125/250', '5/2'),
  ('The answer is 5 m', '5'),
  ('The answer is 5 K', None),
  ('The answer is that she ends up with 5', '5'),
  ('The answer is up to 5', None),
  ('The answer is 5,', '5'),
  ('The answer is 10^(-2)', '1/100'),
  ('The answer is x >= 6', None),
  ('\\boxed{x != 6}', None),
  ('The answer is 2x = 6', None),
  ('The answer is 2 + x = 6', None),
  ('\\boxed{\\frac{x}{2} = 6}', None),
  ('\\boxed{-x = 6}', None),
  ('The answer is f(2) = 6', '6'),
  ('The answer is 5 x 3 = 15', '15'),
  ('The answer is A = 3; B = 4', None),
  ('\\boxed{x = 1 \\text{ or } x = 2}', None),
  ('The answer is f(5)', None),
  ('The answer is sqrt 5', None),
  ('The answer is x*5', None),
  ('\\boxed{5*x}', None),
  ('The answer is *5*.', '5'),
  ('\\boxed{1/x}', None),
  ('The answer is $5/hour', '5'),
  ('\\boxed{5xy}', None),
  ('\\boxed{5t^2}', None),
  ('\\boxed{5 \\sin x}', None),
  ('The answer is 5cm', '5'),
  ('\\boxed{5\\text{ cm}^2}', '5'),
  ('\\boxed{5\\mathrm{~m}/\\mathrm{s}}', '5'),
  ('\\boxed{5!}', None),
  ('The answer is 5! = 120', '120'),
  ('The answer is 2 lakh', None),
  ('The answer is $2m', None),
  ('The answer is 2m dollars', None),
  ('The answer is 5 ninths', None),
  ('The answer is the 6th', None),
  ('The answer is 2 quintillion', None),
  ('The answer is 5 hundred thousand', '500000'),
  ('The answer is 5 divided by 2', None),
  ('The answer is 5 times the price', None),
  ('The answer is 5 times a week', '5'),
  ('The answer is 101 in base 2', None),
  ('The answer is divisible by 5', None),
  ('The answer is nearly 5', None),
  ('The answer is on page 5', None),
  ('The answer is the sum of the first 5 primes', None),
  ('The answer is a number with 5 digits', None),
  ('The answer is therefore Tom needs exactly 5', '5'),
  ('The answer is total cost: $5', '5'),
  ('The answer is 3 for Ann and 4 for Bob', None),
  ('The answer is 3 on Monday, 4 on Tuesday', None),
  ('The answer is 3 when x = 1 and 4 when x = 2', None),
  ('The answer is 3 when x = 1', '3'),
  ('The answer is 3 for every 4', None),
  ('The answer is 3 in 4', None),
  ('The answer is $60 in 3 days', '60'),
  ('The answer is 5 with a remainder of 2', None),
  ('The answer is 3/4 (0.75)', '3/4'),
  ('The answer is 2 * (3 + 4) = 14', '14'),
  ('The answer is 3/4 (0.7)', None),
  ('\\boxed{(12,500)}', None),
  ('\\boxed{\\frac{1}{-2}}', '-1/2'),
  ('The answer is 1 + 2 ≈ 3', '3'),
  ('#### 5. Conclusion', None),
  ('#### 3. Add them up\nIt is 7.\n#### 7', '7'),
  ('Answer:\n1. We add 2 and 3.\n2. We get 5.', None),
  ('The answer is 5. Wait, that is wrong.', None),
  ('The answer is 5. No, it should be 7.', None),
  ('The answer is 3 (wrong)', None),
  ("Tom's answer is 5, but he is wrong.", None),
  ('The answer is 5. Scratch that. The answer is 7.', '7'),
  ('The answer is 5. I miscounted. The answer is 7.', '7'),
  ('The answer is 5. So 7 is wrong.', '5'),
  ('\\boxed{5} is wrong.', None),
  ('\\boxed{5} or \\boxed{7}', None),
  ('First \\boxed{5}. Then it is \\boxed{7}', '7'),
  ('It is \\boxed{5}, not \\boxed{7}', '5'),
  ('The answer cannot be \\boxed{5}', None),
  ('If the answer were \\boxed{5}', None),
  ('Is it \\boxed{5}?', None),
  ("It's unlikely that the answer is 5", None),
  ('Some might say the answer is 5', None),
  ('2 + 3.\n### Question\nWhat is 3 + 4?\n### Answer\n7', None),
  ('2 + 3.\nHere is another problem: 3 + 4?\nThe answer is 7', None),
  ('2 + 3.\nQ2. 3 + 4?\nThe answer is 7', None),
  ('The answer is 5</s>Input: 3 + 4\nThe answer is 7', '5'),
  ('5<end_of_turn>', '5'),
  ('<think>It may be \\boxed{7}.</think><answer>5</answer>', '5'),
  ('<think>So the answer is 7.', None),
  ('The answer should be 5', '5'),
  ('Ans: 5', '5'),
  ('\\boxed 5', '5'),
  ('\\boxed{\\boxed{5}}', '5'),
]


@pytest.mark.parametrize(('text', 'value'), STATED_NUMBERS)
def test_stated_numbers(text, value):
  assert numbers.stated(text) == (None if value is None else fractions.Fraction(value))


LETTERS = [
  ('The answer is A because the car moves.', 'A'),
  ('The answer is A; B is wrong.', 'A'),
  ('The answer is option A.', 'A'),
  ('The answer is $A$.', 'A'),
  ('\\boxed{\\text{A}}', 'A'),
  ('The answer is “A”.', 'A'),
  ('The answer is A, B or C.', ''),
  ('A, B or C', ''),
  ('The correct option is C.', 'C'),
  ('The answer is not A.', ''),
  ('The answer is either A or B', ''),
  ('The answer is A and B', ''),
  ('The answer is A (the car)', 'A'),
  ('P(A or B) is 0.2\nA', 'A'),
  ('The answer is A?', ''),
  ('The answer is A dog', ''),
  ('The answer is I', 'I'),
  ('\\boxed{\\textbf{(A) } 12}', 'A'),
  ('The answer is A.\n\nQuestion: Why?\nAnswer: B', 'A'),
  ('So it is 5.\nAnswer D', 'D'),
  ('So it is 5.\nHence (A) is the correct answer', 'A'),
  ("The answer isn't A", ''),
  ('I do not think the answer is A', ''),
  ('The answer is (A) (B)', ''),
  ('The answer is A, possibly B', ''),
  ('The answer is (A) the car or (B) the tree', ''),
  ('The answer is A as well as B', ''),
  ('The answer is A, since B is a tree', 'A'),
  ('The answer is A and not B', 'A'),
  ('A) the car\nB) the tree\nC) the stone', ''),
  ('A) is wrong because it moves.\nB) is right.', ''),
  ('A: incorrect', ''),
  ('A\nB is wrong.', 'A'),
  ('A\n\nExplanation: cars move. B is a tree.', 'A'),
  ('The answer is A. No, B.', ''),
  ('The answer is A. Actually, it is B.', ''),
  ('The answer is vitamin A', ''),
  ('The answer is perhaps A', ''),
  ('The answer is clearly option A', 'A'),
  ('A is right because it moves', 'A'),
  ('#### Option A', 'A'),
  ('The answer is A!', 'A'),
]


@pytest.mark.parametrize(('text', 'letter'), LETTERS)
def test_stated_letters(text, letter):
  assert choice.read(text) == letter


@pytest.mark.parametrize('letter', 'ABC')
@pytest.mark.parametrize('text', ['So {}', 'it is ({}), since 9 is odd', '{} dog', '{} it is', 'Maybe {}.'])
def test_flexible_accuracy_does_not_depend_on_the_letter(letter, text):
  expected = text not in ('{} dog', '{} it is')
  assert choice.verify_flexible(letter, ('7 km', '8 km', '9 km'), text.format(letter)) == expected


ONE = 'def f():\n  return 1\n'


@pytest.mark.parametrize(
  'text',
  [
    f'```bash\npip install x\n```\nThen:\n```python\n{ONE}```\n',
    f'```python3\n{ONE}```',
    f'``` Python \n{ONE}```',
    f'~~~py\n{ONE}~~~',
    f'{ONE}```\nIt returns one.',
    f'```python\ndef f():\n  return 2\n```\nNo:\n```python\n{ONE}```',
    f'```python\n{ONE}```\nUse it:\n```python\nprint(f())\n```',
    f'```\n{ONE}```\nwhich prints\n```\n1\n```',
    f'```python\n{ONE}```<|im_end|>',
    f'\ufeff{ONE}',
  ],
)
def test_the_last_block_that_defines_what_the_tests_need(text):
  assert code.read(text, 'assert f() == 1').strip() == ONE.strip()


@pytest.mark.parametrize(
  'text, tests',
  [
    ('```python\nimport math\n```\n```python\ndef f():\n  return math.floor(1.5)\n```', 'assert f() == 1'),
    ('```python\ndef g():\n  return 1\n```\nand\n```python\ndef f():\n  return g()\n```', 'assert f() == 1'),
    ('```python\ndef f():\n  return 1\n```\nand\n```python\ndef g():\n  return 2\n```', 'assert f() + g() == 3'),
    ('```python\nf, g = (lambda: 1), (lambda: 2)\n```\nso\n```python\nprint(f())\n```', 'assert f() == 1'),
    ('```python\ndef f():\n  """Example:\n\n  ```\n  f()\n  ```\n  """\n  return 1\n```', 'assert f() == 1'),
    ('```python\nS = """\nfrom __future__ import annotations\n"""\ndef f(): return S.count("a")\n```', 'assert f() == 2'),
  ],
)  # fmt: skip
def test_a_program_in_parts_is_read_whole(text, tests):
  assert code.verify('', tests, text)


@pytest.mark.parametrize(
  'text',
  [
    '```' + 'a' * 60_000 + '`',
    ''.join(f'```python\ndef g{i}(): g{i + 1}\n```\n' for i in range(3_000)) + '```python\ndef f(): g1, g2999\n```',
    'a,' * 90_000,
    '\n#' * 90_000,
    '`' * 100_000 + 'a`',
    '```python\n' + 'import ' * 25_000 + '\n```',
  ],
  ids=len,
)
def test_fences_and_lines_without_end_are_read(text):
  assert isinstance(code.read(text, 'assert f() == 1'), str)


OWN = """
def right(example, text): return example.answer in text
def half(example, text): return 0.5
def most(example, text): return 0.75
def much(example, text): return 2
def none(example, text): return None
def raises(example, text): return {}[text]
def column(example, text): return text == example.metadata['other']
"""


@pytest.fixture
def own_task(tmp_path, monkeypatch):
  (tmp_path / 'own_verifiers.py').write_text(OWN)
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.delitem(sys.modules, 'own_verifiers', raising=False)
  own.find.cache_clear()
  for name in ('train', 'test'):
    (tmp_path / f'{name}.jsonl').write_text(f'{{"question": "{name}?", "answer": "7", "other": "x"}}\n')
  sources = {'train_source': str(tmp_path / 'train.jsonl'), 'test_source': str(tmp_path / 'test.jsonl'), 'num_shots': 0}
  return lambda function, **keys: make_task('t', common.custom(f'own_verifiers:{function}', stop=(), **sources, **keys))


@pytest.mark.parametrize(
  'function, text, keys, right',
  [
    ('right', 'it is 7', {}, True), ('right', 'it is 8', {}, False), ('column', 'x', {}, True), ('half', '', {}, False),
    ('most', '', {}, True), ('most', '', {'reward_threshold': 0.75}, False), ('half', '', {'reward_threshold': 0.4}, True),
  ],
)  # fmt: skip
def test_a_verifier_of_ones_own_judges(own_task, function, text, keys, right):
  task = own_task(function, **keys)
  assert task.judge([(task.test[0], text)]) == [right] and task.verify_flexible is None


@pytest.mark.parametrize(
  'function, says', [('much', 'returns 2'), ('none', 'returns None'), ('raises', "raises KeyError: 'z'")]
)
def test_a_verifier_of_ones_own_that_fails_is_named_with_its_question(own_task, function, says):
  task = own_task(function)
  with pytest.raises(ValueError, match=f'own_verifiers:{function}: on the question {task.test[0].id} it {says}'):
    task.verify(task.test[0], 'z')


def test_a_verifier_that_is_not_there_is_named_at_once(own_task):
  with pytest.raises(ValueError, match="tasks.t.verifier: 'own_verifiers:no' is not 'MODULE:FUNCTION'"):
    own_task('no')
  with pytest.raises(ValueError, match="tasks.t.verifier: 'numberic' is not one of .*did you mean numeric"):
    make_task('t', common.custom('numberic', train_source='none.jsonl'))


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


@pytest.mark.parametrize(
  'gold, answer, equal',
  [
    (r'\frac{1}{2^{90}}', r'\boxed{\frac{1}{2^{80}}}', False), ('0.0000002', r'\boxed{0.0000004}', False),
    ('73', 'The answer is **73**.', True), ('73', 'The final answer is $73$. I hope it is correct.', True),
    ('31/4', 'The answer is 3 1/4.', False),
    ('3', 'The answer is $3$ or 4.', False), ('3', 'The answer is at most $3$', False), ('3', 'The answer is -$3$', False),
    ('x^2', 'The answer is 2$x^2$', False), ('x^2', 'The answer is $x^2$ + 1', False),
    ('x^2', 'It is either $x^2$ or 0', False),
    ('x^2', 'The answer is the value $x^2$, since $x > 0$.', True), ('3', 'The answer is $3$ apples', True),
    ('12', r'\boxed{1\ 2}', False), ('12', r'\boxed{1\text{ }2}', False), ('12500', r'\boxed{12\,500}', True),
    ('5', r'\boxed{5!}', False), ('n!', r'\boxed{n!}', True), ('120', r'\boxed{5!}', True),
    ('5', 'The answer is $5!$', False),
    ('2', r'\boxed{x=1 \text{ or } x=2}', False), ('(1,2)', r'\boxed{x=1 \text{ or } x=2}', False),
    ('2,400', r'\boxed{2\text{ and }400}', False), ('1,2', r'\boxed{1 \text{ and } 2}', True),
    ('(12,500)', r'\boxed{12500}', False), ('12500', r'\boxed{(12,500)}', False), ('12500', r'\boxed{12,\!500}', True),
    (r'\{1,2\}', r'\boxed{(1,2)}', False), (r'\{1,2\}', r'\boxed{1,2}', True), ('101_2', r'\boxed{101_3}', False),
    ('101', r'\boxed{101_2}', False), ('101_2', r'\boxed{101_{2}}', True), (r'5\text{ km}', r'\boxed{5\text{ cm}}', False),
    (r'5\text{ hours}', r'\boxed{5\text{ h}}', True), (r'\$5', r'\boxed{5\text{ cents}}', False),
    ('5', r'\boxed{5\text{ cm}}', True), ('20', r'\boxed{\text{June 20}}', False), ('3', 'We have 3 of them', False),
    ('3', 'Let $x = 3$. Then we compute $x+1$.', False), ('x+1', '$x+1$', True),
    (r'\emptyset', r'\boxed{\varnothing}', True),
    ('(1,2)', r'\boxed{1 < x < 2}', True), ('1 < x < 2', r'\boxed{(1,2)}', True),
  ],
)  # fmt: skip
def test_formulas_are_equal_both_ways_or_not(gold, answer, equal):
  assert verdicts('math', gold, answer)[0] is equal
