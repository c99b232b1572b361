"""Programs: which part of a completion is judged."""

from imm_jax.tasks import base
from imm_jax.verifying import code
import pytest
from tests.verifying.judging import data_set, DOUBLE


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
