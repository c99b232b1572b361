"""Writes the tables in the docs that are made from the code: python docs/generate.py.

tests/test_docs.py compares them with the code. A table replaces the text between <!-- NAME --> and
<!-- end --> in a page; the rest of the page is written by hand.
"""

import ast
from collections.abc import Iterator
import io
import pathlib
import re
import tokenize

from imm_jax.merging import METHODS
from imm_jax.tasks import catalog

ROOT = pathlib.Path(__file__).parent.parent
PAGES = ('configs.md', 'merging.md', 'tasks.md')
_BLOCK = re.compile(r'(<!-- (\w+) -->\n).*?(<!-- end -->)', re.DOTALL)


def page(name: str) -> str:
  """Returns docs/NAME with its tables as the code has them."""
  text = (ROOT / 'docs' / name).read_text(encoding='utf-8')
  return _BLOCK.sub(lambda block: f'{block[1]}{table(block[2])}\n{block[3]}', text)


def table(name: str) -> str:
  """Returns the table of that name: 'methods', 'catalog', or a function of configs/common.py."""
  return {'methods': methods, 'catalog': data_sets}.get(name, lambda: keys(name))()


def keys(function: str) -> str:
  """Returns the keys that a function of configs/common.py writes, with default, type and comment."""
  path = ROOT / ('imm_jax/tasks/catalog.py' if function == 'dataset' else 'configs/common.py')
  source = path.read_text(encoding='utf-8')
  comments = _comments(source)
  name = 'spec' if function == 'dataset' else function
  [found] = [
    node
    for node in ast.parse(source).body
    if isinstance(node, ast.FunctionDef) and node.name == name
  ]
  written = next(
    node for node in ast.walk(found) if isinstance(node, ast.Dict) and len(node.keys) > 1
  )
  rows = [
    (f'`{key}`', *_value(value), comments.get(line, '')) for key, value, line in _leaves(written)
  ]
  return _rows(('key', 'default', 'type', ''), rows)


def _comments(source: str) -> dict[int, str]:
  """Returns the comment on each line of a source, or in the lines above it, by the line's number."""
  lines = source.split('\n')
  comments: dict[int, str] = {}
  above: list[str] = []
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type != tokenize.COMMENT:
      continue
    row = token.start[0]
    text = token.string.removeprefix('#').strip()
    if lines[row - 1].strip() != token.string:  # Behind code.
      comments[row] = text
      continue
    above.append(text)
    if not lines[row].lstrip().startswith('#'):
      comments[row + 1] = ' '.join(above)
      above = []
  return comments


def _leaves(node: ast.Dict, prefix: str = '') -> Iterator[tuple[str, ast.expr, int]]:
  """Yields (key, value, line) of a dict's keys; those of a section are SECTION.KEY."""
  for key, value in zip(node.keys, node.values, strict=True):
    assert isinstance(key, ast.Constant) and value.end_lineno
    if isinstance(value, ast.Dict) and value.keys:
      yield from _leaves(value, f'{prefix}{key.value}.')
    else:
      yield f'{prefix}{key.value}', value, value.end_lineno


def _value(node: ast.expr) -> tuple[str, str]:
  """Returns a default as code, and its type; what is computed has neither."""
  try:
    value = ast.literal_eval(node)
  except ValueError:
    return '', ''
  return f'`{ast.unparse(node)}`', type(value).__name__


def methods() -> str:
  """Returns the merge methods: what each takes, and where it comes from."""
  rows = []
  for name, row in METHODS.items():
    parameters = ', '.join(
      f'`{key}`' if value is None else f'`{key}={value}`' for key, value in row.parameters.items()
    )
    least, most = row.num_models
    models = f'{least}' if least == most else f'{least} or more'
    pieces = 'pieces' if row.in_pieces else 'whole'
    source = row.reference.removeprefix('https://').replace('arxiv.org/abs/', 'arXiv ')
    source = 'mergekit 0.1.5' if 'mergekit' in source else source
    rows.append(
      (f'`{name}`', row.base, models, parameters, row.alpha, pieces, f'[{source}]({row.reference})')
    )
  return _rows(
    ('method', 'base', 'models', 'parameters', 'alpha sets', 'merged in', 'source'), rows
  )


def data_sets() -> str:
  """Returns the data sets of the catalog."""
  rows = []
  for name, row in catalog.DATASETS.items():
    sources = ', '.join(f'`{source}`' for source in (row.train, row.test) if source)
    rows.append(
      (f'`{name}`', *map(str, row.sizes), row.verifier, row.scoring, row.licence, sources)
    )
  return _rows(
    ('name', 'train', 'test', 'verifier', 'scoring', 'licence', 'where the hub has it'), rows
  )


def _rows(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
  lines = [head, ('---',) * len(head), *rows]
  return '\n'.join(
    '| ' + ' | '.join(cell.replace('|', '\\|') for cell in line) + ' |' for line in lines
  )


def main() -> None:
  """Writes the pages."""
  for name in PAGES:
    (ROOT / 'docs' / name).write_text(page(name), encoding='utf-8')


if __name__ == '__main__':
  main()
