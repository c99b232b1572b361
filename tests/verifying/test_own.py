"""Verifiers of a user's own."""

import sys

from imm_jax.rounds.experiment import make_task
from imm_jax.verifying import own
import pytest
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / 'configs'))

import common

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
