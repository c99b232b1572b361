"""README and docs: what they link to is there, what they show runs, what they quote stands in the code."""

import ast
import re
import shlex
import subprocess
import sys

from docs import generate
from imm_jax import cli, lm, sharding, tasks
from imm_jax.formats.tokenizer import Tokenizer
from imm_jax.merging import recipe
from imm_jax.models import transformer
from imm_jax.models.config import ModelConfig
from imm_jax.rounds import experiment
import pytest
from tests.conftest import load_config, ROOT
import yaml

PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
_FENCE = re.compile(r'^```([^\n]*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_RUNS = ('merge', 'tasks')  # the commands whose examples run here, on what is in `directory`


def blocks(kind):
  """Returns the blocks of a kind, ready to be a test's parameters."""
  found = [(page.stem, *match) for page in PAGES for match in _FENCE.findall(page.read_text(encoding='utf-8'))]
  return [pytest.param(text, id=f'{stem}-{i}') for i, (stem, of, text) in enumerate(found) if of == kind]


def lines():
  """Returns each command of the shell blocks, without its comment, as words."""
  text = '\n'.join(block.values[0] for block in blocks('bash')).replace('\\\n', ' ')
  return [shlex.split(line, comments=True) for line in text.splitlines() if shlex.split(line, comments=True)]


def prose(page):
  return _FENCE.sub('', page.read_text(encoding='utf-8'))


def anchors(page):
  """Returns what a page's headings are called in links."""
  titles = re.findall(r'^#+ (.*)$', prose(page), re.MULTILINE)
  return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


@pytest.fixture(scope='module')
def models(tmp_path_factory):
  """A directory with the models that the examples name, of a token a character."""
  tokenizer = Tokenizer.from_characters(''.join(map(chr, [10, *range(32, 127)])))
  config = ModelConfig(
    family='llama', vocab_size=tokenizer.size, num_layers=2, embed_dim=32, mlp_dim=64, num_heads=4, num_kv_heads=4,
    head_dim=8, max_length=128, rope_theta=10_000.0, rms_norm_eps=1e-5, tie_embeddings=False,
  )  # fmt: skip
  path, mesh = tmp_path_factory.mktemp('models'), sharding.make_mesh()
  for seed, name in enumerate(('original', 'exported')):
    lm.LM(config, transformer.init_params(config, seed, mesh), tokenizer, mesh).save(str(path / name))
  return path


@pytest.fixture
def directory(models, tmp_path, monkeypatch):
  """Where an example runs: beside the models, a recipe, some rows and the configs."""
  for name in ('original', 'exported'):
    (tmp_path / name).symlink_to(models / name)
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  (tmp_path / 'recipe.yml').write_text(blocks('yaml')[0].values[0])
  rows = (f'{{"question": "{i} + {i}?", "answer": "{i} + {i} = {2 * i}\\n#### {2 * i}"}}\n' for i in range(9))
  (tmp_path / 'rows.jsonl').write_text(''.join(rows))
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', [str(ROOT / 'configs'), *sys.path])
  return tmp_path


def run(monkeypatch, capsys, *arguments):
  """Runs `imm ARGUMENTS`; returns the exit code and what was printed."""
  monkeypatch.setattr(sys, 'argv', ['imm', *arguments])
  try:
    cli.main()
    code = 0
  except SystemExit as stop:
    code = stop.code
  return code, ''.join(capsys.readouterr())


@pytest.mark.parametrize('name', generate.PAGES)
def test_tables_are_those_of_the_code(name):
  assert (ROOT / 'docs' / name).read_text(encoding='utf-8') == generate.page(name), 'run: python docs/generate.py'


def test_every_key_of_a_config_has_a_row():
  """Counted by running the config, where the table is made by reading it."""

  def leaves(section, prefix=''):
    for key, value in section.items():
      yield from leaves(value, f'{prefix}{key}.') if isinstance(value, dict) and value else [prefix + key]

  config = load_config('tiny').to_dict() | {'tasks': {'id': {}, 'ood': {}, 'dev': {}, 'probe': {}}}
  config['model']['random'] = {}
  table = re.findall(r'^\| `([\w.]+)`', generate.keys('config'), re.MULTILINE)
  assert sorted(table) == sorted(leaves(config))


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
  for target in re.findall(r'\]\(([^)\s]+)\)', prose(page)):
    if not target.startswith('https://'):
      name, _, anchor = target.partition('#')
      file = page.parent / name if name else page
      assert file.exists(), target
      assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize('code', blocks('python'))
def test_python_runs(directory, code):
  namespace = {}
  exec(compile(code, 'example', 'exec'), namespace)
  if 'get_config' in namespace:
    experiment.resolve(namespace['get_config']().to_dict())
  if 'verify' in namespace:
    example = tasks.Example('t/0', 'How much is 3 + 4?', '7')
    assert [namespace['verify'](example, text) for text in ('It is 7', 'It is 8')] == [True, False]


@pytest.mark.parametrize('text', blocks('yaml'))
def test_recipes_are_recipes(text):
  recipe.from_dict(yaml.safe_load(text))


@pytest.mark.parametrize('words', [words for words in lines() if words[0] == 'imm'], ids=' '.join)
def test_commands_are_understood(directory, monkeypatch, capsys, words):
  code, text = run(monkeypatch, capsys, *words[1:], '--help')  # which reads the config, and looks for its keys
  assert code == 0, text
  for word in words[2:]:
    name = re.match(r'--(?!config\.)(\w+)', word)
    assert not name or re.search(rf'--(\[no\])?{name[1]}\b', text), word


@pytest.mark.parametrize('words', [words for words in lines() if words[:2][-1] in _RUNS], ids=' '.join)
def test_small_commands_run(directory, monkeypatch, capsys, words):
  code, text = run(monkeypatch, capsys, *words[1:])
  assert code == 0, text


@pytest.mark.parametrize('words', [words for words in lines() if words[:2] == ['python', '-m']], ids=' '.join)
def test_launchers_print_what_they_would_do(words):
  if words[2] in ('launch.study', 'imm_jax.harness'):  # which run at once
    assert (ROOT / f'{words[2].replace(".", "/")}.py').exists()
    return
  done = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0 and 'imm run' in done.stdout, done.stderr


def test_make_has_the_targets():
  makefile = (ROOT / 'Makefile').read_text(encoding='utf-8')
  for words in lines():
    assert words[0] != 'make' or re.search(rf'^{words[1]}:', makefile, re.MULTILINE), words


def literals():
  """Returns all texts in the code, with an ellipsis for what is filled in."""
  found = []
  for path in [*(ROOT / 'imm_jax').rglob('*.py'), *(ROOT / 'launch').glob('*.py')]:
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
      if isinstance(node, ast.JoinedStr):
        found.append(''.join(v.value if isinstance(v, ast.Constant) else '…' for v in node.values))
      elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        found.append(node.value)
  return found


def test_messages_are_those_of_the_code():
  text = (ROOT / 'docs' / 'troubleshooting.md').read_text(encoding='utf-8')
  messages, known = re.findall(r'^\| `(.*?)` \|', text, re.MULTILINE), literals()
  assert len(messages) > 40
  for message in messages:
    pattern = re.compile('.*'.join(re.escape(part) for part in message.split('…')))
    assert any(pattern.search(literal) for literal in known), message
