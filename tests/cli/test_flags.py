"""Flags: files of them count as the command line, and only one module knows the libraries that read them."""

import json

from imm_jax.cli.flags import Flags
import pytest
from tests.cli.test_cli import fails, imm, TINY  # noqa: F401 - fixtures
from tests.conftest import ROOT
from tests.test_layout import imports, modules


@pytest.fixture
def flag_file(tmp_path):
  """Returns a function that writes a file of flags, and returns the flag that names it."""

  def write(*lines, name='flags.txt'):
    (tmp_path / name).write_text('# of a test\n' + '\n'.join(lines) + '\n')
    return f'--flagfile={tmp_path}/{name}'

  return write


def parse_config(*arguments):
  return Flags('imm test', arguments).parse_config()


def test_a_flag_file_may_hold_the_config_and_its_overrides(flag_file):
  config = parse_config(flag_file(TINY, '--config.merge.alpha=0.25', '--noconfig.evaluate.tuned'), '--config.seed=7')
  assert (config['merge']['alpha'], config['evaluate']['tuned'], config['seed']) == (0.25, False, 7)
  inner = flag_file('--config.seed=8')
  assert parse_config(TINY, flag_file('--config.num_rounds=5', inner, name='outer.txt'))['seed'] == 8


def test_the_last_one_counts_in_whatever_order(flag_file):
  assert parse_config(TINY, '--config.seed=1', flag_file('--config.seed=2'))['seed'] == 2
  assert parse_config(TINY, flag_file('--config.seed=2'), '--config.seed', '1')['seed'] == 1
  assert parse_config('--config.seed=3', TINY)['seed'] == 3
  assert parse_config('--config', f'{ROOT}/configs/tiny.py')['seed'] == 0


@pytest.mark.parametrize(
  'line, says',
  [
    ('--config.merge.alfa=0.3', 'imm: config.merge.alfa: no such key; did you mean alpha?'),
    (
      '--merge.alpha=0.3',
      'imm: --merge.alpha: no such flag; a key of the config is --config.merge.alpha',
    ),
    ('--config.merge.alpha=2', 'imm: merge.alpha: 2.0 is not in [0, 1]'),
    (
      '--config.num_rounds=two',
      "imm: flag --config.num_rounds=two: invalid literal for int() with base 10: 'two'",
    ),
    ('--workdri=x', 'imm: --workdri: no such flag; did you mean workdir?; see imm doctor --help'),
    ('--config=nowhere.py', 'imm: --config: nowhere.py: no such file; give the file'),
  ],
)
def test_what_a_flag_file_holds_is_checked_as_the_command_line_is(fails, flag_file, tmp_path, line, says):  # noqa: F811
  command = ['doctor', TINY, f'--workdir={tmp_path}/run']
  assert fails(*command, line).startswith(says)
  assert fails(*command, flag_file(line)).startswith(says)


def test_a_flag_file_of_a_command_without_config(imm, fails, flag_file, tmp_path):  # noqa: F811
  assert 'nowhere.txt' in fails('tasks', f'--flagfile={tmp_path}/nowhere.txt')
  (tmp_path / 'rows.json').write_text(json.dumps([{'question': f'{i}?', 'answer': f'#### {i}'} for i in range(9)]))
  code, out, _ = imm('tasks', flag_file('--show=2', f'--source={tmp_path}/rows.json'), 'gsm8k')
  assert code == 0 and out.count('--- gold') == 2


def test_a_config_is_run_once(tmp_path):
  (tmp_path / 'once.py').write_text(f"""
import ml_collections
with open({str(tmp_path / 'runs')!r}, 'a') as file:
  file.write('x')
def get_config(arg='none'):
  return ml_collections.ConfigDict({{'arg': arg, 'x': 1}})
""")
  assert parse_config(f'--config={tmp_path}/once.py:some:thing', '--config.x=-1') == {
    'arg': 'some:thing',
    'x': -1,
  }
  assert parse_config(f'--config={tmp_path}/once.py', '--config.x', '-1') == {
    'arg': 'none',
    'x': -1,
  }
  assert (tmp_path / 'runs').read_text() == 'xx'


def test_one_module_reads_flags():
  for path, _ in modules():
    libraries = {name.split('.')[0] for name in imports(path)} & {
      'absl',
      'ml_collections',
      'ctypes',
      'gc',
    }
    allowed = {
      'flags.py': {'absl', 'ml_collections'},
      'inside.py': {'ctypes'},
    }  # inside.py sets up a sandbox.
    assert libraries <= allowed.get(path.name, set()), path
