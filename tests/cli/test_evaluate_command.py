"""`imm evaluate`: all is checked before anything is computed, and what is measured is not lost."""

import json

from imm_jax import evaluate
from imm_jax.rounds import loading
import pytest
from tests.cli.test_cli import fails, imm, SMALL, TINY  # noqa: F401 - fixtures
from tests.conftest import ROOT

CONFIG = f"""
import sys
sys.path.insert(0, {str(ROOT / 'configs')!r})
import common, tiny

def get_config():
  config = tiny.get_config()
  config.tasks.ood = {{'sums': common.custom(
      'numeric', question='{{q}}', answer='a', num_shots=0, frame='{{question}}=', max_new_tokens=4,
      train_source='ROWS', test_size=5)}}
  return config
"""


@pytest.fixture
def config(tmp_path):
  """The flag of a config whose last task reads rows.json."""
  (tmp_path / 'own.py').write_text(CONFIG.replace('ROWS', f'{tmp_path}/rows.json'))
  return f'--config={tmp_path}/own.py'


@pytest.fixture
def nothing_is_loaded(monkeypatch):
  def load_model(*unused):
    raise AssertionError('a model is loaded before all is checked')

  monkeypatch.setattr(loading, 'load_model', load_model)


def write_rows(path, question):
  path.write_text(json.dumps([{'q': f'{i}+{question}', 'a': '1'} for i in range(9)]))


def test_a_missing_file_of_the_last_task_is_found_first(nothing_is_loaded, fails, config, tmp_path):  # noqa: F811
  assert f'{tmp_path}/rows.json' in fails('evaluate', config)
  write_rows(tmp_path / 'rows.json', '1')
  (tmp_path / 'rows.json').write_text('[{"q": "1+1"}]')
  assert 'rows.json' in fails('evaluate', config)


def test_a_prompt_that_is_too_long_is_found_first_and_named(nothing_is_loaded, fails, config, tmp_path):  # noqa: F811
  write_rows(tmp_path / 'rows.json', '+'.join(map(str, range(40))))
  line = fails('evaluate', config)
  assert line.startswith('imm: question sums/') and 'with 4 new ones it exceeds the context of 64' in line


def test_the_length_of_a_prompt_is_that_with_its_longest_option(config, tmp_path):
  class Tokenizer:
    encode = staticmethod(list)
    encode_prompt = staticmethod(list)

  class Task:
    scoring, max_new_tokens, shots, test = 'likelihood', 0, (), ()
    prompt = staticmethod(lambda example, shots: example.question)
    continuations = staticmethod(lambda example: example.options)

  class Question:
    id, question, options = 'q/1', '12345', ('ab', 'abcd')

  task = Task()
  task.test = (Question(),)
  evaluate.check_lengths(Tokenizer(), 8, task, task.test)
  with pytest.raises(
    ValueError,
    match='question q/1: its prompt has 5 tokens: with 3 new ones it exceeds the context of 7',
  ):
    evaluate.check_lengths(Tokenizer(), 7, task, task.test)


@pytest.mark.parametrize('name', ['nowhere/row.json', '.'])
def test_where_the_results_go_is_checked_first(nothing_is_loaded, fails, tmp_path, name):  # noqa: F811
  line = fails('evaluate', TINY, f'--out={tmp_path}/{name}')
  assert line.startswith(f'imm: {tmp_path}/{name}: ')
  assert not list(tmp_path.iterdir())


def test_a_wrong_task_of_lm_evals_is_found_first(nothing_is_loaded, fails, tmp_path, monkeypatch):  # noqa: F811
  pytest.importorskip('lm_eval')
  line = fails('evaluate', TINY, '--lm_eval_tasks=x', f'--lm_eval_include={tmp_path}/nowhere')
  assert line == f'imm: {tmp_path}/nowhere: no such directory of task files'


def test_an_error_in_a_later_task_loses_no_result(fails, imm, monkeypatch, tmp_path):  # noqa: F811
  out = tmp_path / 'row.json'
  out.write_text('{"an": "older one"}')
  measure, seen = evaluate.evaluate, []

  def failing(model, params, tokenizer, tasks, *others, **keywords):
    seen.append(json.loads(out.read_text()))
    if 'min' in tasks:
      raise OSError('the disk is gone')
    return measure(model, params, tokenizer, tasks, *others, **keywords)

  monkeypatch.setattr(evaluate, 'evaluate', failing)
  assert fails('evaluate', TINY, *SMALL, f'--out={out}') == 'imm: the disk is gone'
  row = json.loads(out.read_text())
  assert seen[0] == {'an': 'older one'} and list(seen[1]['id']) == ['sum'] and not seen[1]['ood']
  assert list(row['ood']) == ['max'] and not list(tmp_path.glob('*.tmp'))
  monkeypatch.setattr(evaluate, 'evaluate', measure)
  code, _, errors = imm('evaluate', TINY, *SMALL, f'--out={out}')
  whole = json.loads(out.read_text())
  assert code == 0 and whole['id'] == row['id'] and list(whole['ood']) == ['max', 'min']
  assert f'ID sum: {100 * row["id"]["sum"]["accuracy"]:.1f} % right' in errors
