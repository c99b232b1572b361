"""Tasks: prompts to the letter, verifiers by tables of cases, splits by their properties, errors by their one line."""

import dataclasses
import functools
import gzip
import json
import os
import re
import subprocess
import sys

from imm_jax import tasks
from imm_jax.rounds.experiment import make_task
from imm_jax.tasks import base, catalog, sources, splits, synthetic
from imm_jax.tasks.reasoning_gym import ReasoningGym
from imm_jax.tasks.synthetic import Synthetic
from imm_jax.verifying import answers, math, sandbox
import pytest
from tests.conftest import ROOT

DATA = ROOT.parent / 'shared' / 'data'
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f'needs the data sets in {DATA}')

ARITHMETIC = {'min_terms': 2, 'max_terms': 2, 'min_digits': 1, 'max_digits': 1}


def write(path, rows):
  path.write_text('\n'.join(json.dumps(row) for row in rows), encoding='utf-8')
  return str(path)


def sums(count):
  return [{'input': f'What is {i} + {i}?', 'target': 2.0 * i} for i in range(count)]


def data_set(dataset, source='unused.json', **changes):
  return make_task('t', catalog.spec(dataset, **{'train_source': str(source), 'test_source': '', 'test_size': 3, **changes}))


def mawps(path, rows, **changes):
  spec = {'train_source': write(path, rows), 'test_source': '', 'test_size': 3}
  return make_task('sums', catalog.spec('mawps', **spec | changes))


def custom(path, rows, **changes):
  spec = {'family': 'custom', 'verifier': 'exact', 'train_source': write(path, rows), 'test_size': 1}
  return make_task('mine', spec | changes)


def arc_row(question, options, answer):
  listed = ' '.join(f'Answer{i}: {option}' for i, option in enumerate(options, 1))
  ask = f'Please choose the correct answer to the question: {question}'
  return {'instruction': f'{ask}\n\n{listed}\n\nAnswer format: answer1/answer2', 'answer': answer}


@pytest.fixture(scope='module')
def gym():
  pytest.importorskip('reasoning_gym')
  return make_task(
    'chain',
    {
      'family': 'reasoning_gym',
      'dataset': 'chain_sum',
      'params': ARITHMETIC,
      'train_size': 60,
      'test_size': 40,
      'num_shots': 2,
    },
  )


# Verifiers; tables of cases are in tests/verifying.


def test_direct_answers_end_at_the_line():
  task = data_set('svamp')
  example = base.make_example('t', 'q', '8')
  assert task.verify(example, ' 8\nQuestion: 9') and not task.verify(example, ' 9\n8')


@pytest.mark.parametrize(
  ('completion', 'answer'),
  [('5.00', '5'), ('0.5', '1/2'), (' the answer is 2/4', '1/2'), ('1,000', '1000'), ('none', ''), ('1e99999', '')],
)
def test_extract_is_canonical(completion, answer):
  assert data_set('gsm8k').extract(completion) == answer


@pytest.mark.parametrize(
  ('completion', 'right'),
  [
    ('{gold}', True),
    (' {gold}\n', True),
    ('{gold}\n99', True),
    ('{gold}.0', True),
    ('{gold} apples', False),
    ('99\n{gold}', False),
    ('', False),
    ('nan', False),
    ('1e999999999', False),
    ('9**9**9**9', False),
    ('9' * 100_000, False),
    ('\x00\ud800', False),
  ],
)
def test_gym_verifier(gym, completion, right):
  example = gym.test[0]
  assert gym.verify(example, completion.format(gold=example.answer)) is right


@pytest.mark.parametrize('completion', ['exit()', '__import__("os").abort()', '9**9**9**9', '(9)' * 50, '1+' * 90])
def test_scorers_that_run_code_see_only_arithmetic(completion):
  pytest.importorskip('reasoning_gym')
  task = ReasoningGym('t', 'countdown', train_size=1, test_size=1, num_shots=0)
  assert task.verify(task.test[0], task.target(task.test[0]))
  assert not task.verify(task.test[0], completion)


def test_choice_and_synthetic_verifiers():
  choice = data_set('arc_easy')
  example = base.make_example('t', 'q', 'Dry palms', options=('Dry palms', 'Wet palms'))
  assert choice.verify(example, ' dry  palms') and not choice.verify(example, 'Wet palms')
  digit = Synthetic('t')
  assert digit.verify(digit.test[0], f'{digit.test[0].answer}\n') and not digit.verify(digit.test[0], '')


# Prompts.

SHOT = base.make_example('t', 'Two?', '2', solution='One and one.')
ASKED = base.make_example('t', ' Three? ', '3')


def test_plain_prompts():
  direct = data_set('svamp')
  assert direct.prompt(ASKED) == 'Question: Three?\nAnswer:'
  plain = base.make_example('t', 'Two?', '2')
  assert direct.prompt(ASKED, [plain, plain]) == 'Question: Two?\nAnswer: 2\n\n' * 2 + 'Question: Three?\nAnswer:'
  worked = data_set('gsm8k')
  assert worked.prompt(ASKED, [SHOT]) == (
    'Question: Two?\nAnswer: One and one.\nThe answer is 2.\n\nQuestion: Three?\nAnswer:'
  )
  assert (direct.stop, worked.stop) == (('\n',), ('\n\n', 'Question:'))


def test_chat_prompts():
  task = data_set('gsm8k', format='chat', instruction='Say it.')
  assert task.prompt(ASKED, [SHOT]) == [
    {'role': 'user', 'content': 'Two?\nSay it.'},
    {'role': 'assistant', 'content': 'One and one.\nThe answer is 2.'},
    {'role': 'user', 'content': 'Three?\nSay it.'},
  ]
  assert task.stop == ()


def test_choice_prompts():
  task = data_set('arc_easy')
  shot = base.make_example('t', 'Sky?', 'blue', options=('blue', 'red'))
  assert task.prompt(shot, [shot]) == 'Question: Sky?\nAnswer: blue\n\nQuestion: Sky?\nAnswer:'
  assert task.continuations(shot) == (' blue', ' red')
  assert task.target(shot) == ' blue'


OPERATIONS = {  # of '375' and '408', and of '7' and '8'
  'sum': ('783', '5'),
  'diff': ('033', '1'),
  'digit_sum': ('773', '5'),
  'max': ('408', '8'),
  'min': ('375', '7'),
  'reverse': ('804573', '87'),
  'sort': ('034578', '78'),
}


@pytest.mark.parametrize('operation', OPERATIONS)
def test_synthetic(operation):
  task = make_task('t', {'family': 'synthetic', 'operation': operation, 'num_shots': 3})
  everything = (*task.train, *task.test, *task.shots)
  assert len({example.id for example in everything}) == 100
  assert (len(task.test), len(task.shots), task.num_dropped) == (20, 3, 0)
  for example in everything:
    assert len(task.target(example)) == len(OPERATIONS[operation][1]) and task.verify(example, task.target(example))
    assert set(task.prompt(example, task.shots) + task.target(example)) <= set(synthetic.CHARACTERS)
  shot, asked = task.shots[0], task.test[0]
  assert task.prompt(asked, [shot]) == f'{shot.question}{shot.answer}\n{asked.question}'
  assert task.prompt(asked) == asked.question
  answers = {example.question.replace(asked.question[1], '?'): example.answer for example in everything}
  assert answers['7?8='] == OPERATIONS[operation][1]


@pytest.mark.parametrize('operation', OPERATIONS)
def test_synthetic_numbers_of_three_digits(operation):
  sign, compute = synthetic._OPERATIONS[operation]
  assert compute('375', '408') == OPERATIONS[operation][0]
  task = make_task('t', {'family': 'synthetic', 'operation': operation, 'num_digits': 3, 'num_pairs': 50})
  assert (len(task.train), len(task.test)) == (30, 20)
  for example in (*task.train, *task.test):
    a, b = example.question.removesuffix('=').split(sign)
    assert len(a) == len(b) == 3 and example.answer == compute(a, b)


def test_synthetic_tasks_of_other_ranges_share_no_question():
  first, second = (Synthetic('t', num_digits=2, num_pairs=5000, first_pair=n) for n in (0, 5000))
  assert len(ids(first.train + first.test) | ids(second.train + second.test)) == 10_000
  other = Synthetic('t', num_digits=2, num_pairs=5000, seed=1)
  assert 2000 < len(ids(first.train + first.test) & ids(other.train + other.test)) < 3000


@pytest.mark.parametrize(
  'values, message',
  [
    ({'num_pairs': 101}, 'tasks.t.num_pairs: 101, and there are 100; raise num_digits'),
    ({'num_pairs': 50, 'first_pair': 90}, 'tasks.t.num_pairs: 50, and there are 10; raise num_digits'),
    ({'num_digits': 4}, 'tasks.t.num_digits: 4 is not 1, 2 or 3'),
  ],
)
def test_synthetic_has_no_more_pairs_than_there_are(values, message):
  with pytest.raises(ValueError, match=message):
    _ = Synthetic('t', **values).train


# Splits.


def ids(examples):
  return {example.id for example in examples}


def test_split_counts_what_it_drops():
  train = [base.make_example('t', q, '1') for q in ('a', 'b', ' A ', 'c', 'd  e', 'D e', 'f')]
  test = [base.make_example('t', q, '1') for q in ('b', 'B', 'g')]
  split = splits.make_split('t', train, test, seed=0, sizes=splits.Sizes(shots=1))
  assert split.num_dropped == 4  # A, D e and b of train, B of test
  assert len(split.train) == 3 and len(split.test) == 2 and len(split.shots) == 1
  assert not ids(split.train) & ids(split.test) and not ids(split.shots) & (ids(split.train) | ids(split.test))


def test_the_first_of_equal_questions_stays():
  train = [base.make_example('t', 'a', '1'), base.make_example('t', 'A', '2'), base.make_example('t', 'b', '3')]
  split = splits.make_split('t', train, None, seed=0, sizes=splits.Sizes(test=1))
  assert {'1', '3'} == {example.answer for example in (*split.train, *split.test)}


def test_a_question_with_two_golds_is_left_out_and_counted(tmp_path):
  rows = [{'input': f'{i}?', 'target': i} for i in range(4)] + [
    {'input': '0?', 'target': '0.0'},
    {'input': '1?', 'target': 7},
  ]
  task = mawps(tmp_path / 'a.jsonl', rows, test_size=1, num_shots=0)
  assert {example.answer for example in (*task.train, *task.test)} == {'0', '2', '3'} and task.num_dropped == 3


def test_equal_questions_with_other_options_are_two():
  one, two = (base.make_example('t', 'q', 'a', options=('a', other)) for other in 'bc')
  assert one.id != two.id


@pytest.mark.parametrize('seed', range(5))
def test_held_out_shown_and_trained_on_are_disjoint_whatever_the_caps(tmp_path, seed):
  task = mawps(tmp_path / 'a.jsonl', sums(50), test_size=10, train_size=20, num_shots=3, seed=seed)
  train, test, shots = ids(task.train), ids(task.test), ids(task.shots)
  assert (len(train), len(test), len(shots)) == (20, 10, 3)
  assert not train & test and not train & shots and not test & shots


def test_a_cap_on_test_lets_nothing_of_it_into_train(tmp_path):
  source = write(tmp_path / 'test.jsonl', sums(20))
  task = mawps(tmp_path / 'a.jsonl', sums(30), test_source=source, test_size=5, num_shots=2)
  shown_or_asked = ids(task.shots) | {base.make_example('sums', row['input'], row['target']).id for row in sums(20)}
  assert len(task.test) == 5 and len(task.train) == 30 - len(shown_or_asked)
  assert not ids(task.train) & shown_or_asked
  assert task.num_dropped == 20


def test_examples_depend_on_seed_and_content_only(tmp_path):
  one, again = (mawps(tmp_path / 'a.jsonl', sums(40), seed=1) for _ in range(2))
  assert (one.train, one.test, one.shots) == (again.train, again.test, again.shots)
  reverse = mawps(tmp_path / 'b.jsonl', sums(40)[::-1], seed=1)
  assert ids(reverse.train) == ids(one.train) and ids(reverse.test) == ids(one.test) and reverse.shots == one.shots
  other = mawps(tmp_path / 'c.jsonl', sums(40), seed=2)
  assert ids(other.test) != ids(one.test) and other.shots != one.shots


def test_ids_are_stable():
  assert base.make_example('t', ' What  is\n1 + 1?', '2').id == base.make_example('t', 'what is 1 + 1?', '3').id
  assert base.make_example('t', 'what is 1 + 1?', '2').id == 't/89dbceba29c9'  # of sha1 'what is 1 + 1?'


def test_gym_draws_on_until_it_has_enough(gym):
  assert (len(gym.train), len(gym.test), len(gym.shots)) == (60, 40, 2)
  assert gym.num_dropped > 0  # single digits repeat
  assert not ids(gym.train) & ids(gym.test) and not ids(gym.shots) & (ids(gym.train) | ids(gym.test))
  again = ReasoningGym('chain', 'chain_sum', ARITHMETIC, train_size=60, test_size=40, num_shots=2)
  assert (again.train, again.test, again.shots) == (gym.train, gym.test, gym.shots)


def test_gym_train_is_of_the_train_seed_and_test_of_the_test_seed():
  import reasoning_gym

  task = ReasoningGym('t', 'products', train_size=5, test_size=4, train_seed=7, test_seed=1000, num_shots=2)
  asked = {}
  for seed in (7, 1000):
    data = reasoning_gym.create_dataset('products', seed=seed, size=30)
    asked[seed] = {data[i]['question'].strip() for i in range(30)}
  assert {example.question for example in task.train + task.shots} <= asked[7]
  assert {example.question for example in task.test} <= asked[1000]


def test_why_reasoning_gym_cannot_be_imported_is_told(monkeypatch):
  monkeypatch.setitem(sys.modules, 'reasoning_gym', None)
  message = r"tasks.t: reasoning_gym cannot be imported \(.*sys.modules\); pip install 'imm_jax\[gym\]'"
  with pytest.raises(ValueError, match=message):
    len(ReasoningGym('t', 'products', train_size=9, test_size=9).test)


def test_gym_shots_depend_on_the_train_seed_only():
  pytest.importorskip('reasoning_gym')
  options = [{}, {'train_size': 40}, {'test_seed': 500, 'test_size': 30}]
  sets = [ReasoningGym('t', 'products', **{'train_size': 9, 'test_size': 9, **changes}) for changes in options]
  assert sets[0].shots == sets[1].shots == sets[2].shots
  assert ReasoningGym('t', 'products', train_size=9, test_size=9, train_seed=3).shots != sets[0].shots
  for task in sets:
    assert len(task.shots) == 4 and not ids(task.shots) & (ids(task.train) | ids(task.test))
  assert ReasoningGym('t', 'products', train_size=9, test_size=9, num_shots=0).shots == ()


def test_gym_near_seeds_share_nothing():
  pytest.importorskip('reasoning_gym')
  task = ReasoningGym('t', 'products', train_size=50, test_size=50, train_seed=7, test_seed=8)
  assert not ids(task.train) & ids(task.test) and (len(task.train), len(task.test)) == (50, 50)


@pytest.mark.slow
def test_gym_questions_do_not_depend_on_the_hash_seed():
  pytest.importorskip('reasoning_gym')
  task = ReasoningGym('t', 'isomorphic_strings', train_size=1, test_size=5, num_shots=0)
  code = f'from imm_jax.tasks.reasoning_gym import ReasoningGym; print(*[example.id for example in {task!r}.test])'
  other = subprocess.run(
    [sys.executable, '-c', code], env=os.environ | {'PYTHONHASHSEED': '1'}, capture_output=True, check=True, text=True
  )
  assert other.stdout.split() == [example.id for example in task.test]


# Sources.

ROWS = [{'input': 'a\u2028b, "c"', 'target': '1'}, {'input': 'd', 'target': '2'}]


@pytest.mark.parametrize('suffix', ['', '.gz'])
@pytest.mark.parametrize(
  ('name', 'text'),
  [
    ('a.json', json.dumps(ROWS, indent=2)),
    ('a.json', '\n'.join(map(json.dumps, ROWS))),
    ('a.json', '\n'.join(json.dumps(row, indent=2) for row in ROWS)),
    ('a.json', json.dumps({'examples': ROWS}, indent=2) + '\n'),
    ('a.jsonl', '\n\n'.join(json.dumps(row, ensure_ascii=False) for row in ROWS) + '\n'),
    ('a.csv', '\ufeffinput,target\n"a\u2028b, ""c""",1\r\nd,2\n'),
  ],
)
def test_every_format_reads_the_same(tmp_path, name, text, suffix):
  path = tmp_path / (name + suffix)
  content = text.encode()
  path.write_bytes(gzip.compress(content) if suffix else content)
  assert sources.read_source(str(path)) == ROWS


@pytest.mark.parametrize(
  ('name', 'content', 'says'),
  [
    ('a.jsonl', b'', 'a.jsonl: has no rows'),
    ('a.json', b'[]', 'a.json: has no rows'),
    ('a.jsonl', b'{"a": 1}\n{"a": ', 'a.jsonl, line 2: broken JSON'),
    ('a.json', b'[{"a": 1},\n{"a" 2}]', 'a.json, line 2: broken JSON'),
    ('a.json', b'[1]', 'a.json, row 1: is int'),
    ('a.jsonl', b'{"a": 1}\n{"a": 2} {"a": 3}', 'a.jsonl, line 2: broken JSON'),
    ('a.jsonl', b'{"a": ' + b'[' * 200_000, 'a.jsonl, line 1: broken JSON'),
    ('a.jsonl', b'\xff\xfe', 'a.jsonl: not UTF-8'),
    ('a.jsonl.gz', b'no gzip', 'a.jsonl.gz: not a complete gzip file'),
    ('a.jsonl.gz', gzip.compress(b'{"a": 1}', mtime=0)[:-9], 'a.jsonl.gz: not a complete gzip file'),
    ('a.csv', b'a,b\n1\n', 'a.csv, line 2: has not the 2 fields'),
    ('a.csv', b'a,b\n1,2,3\n', 'a.csv, line 2: has not the 2 fields'),
    ('a.csv', b'q,a,a\n1,2,3\n', 'a.csv, line 1: two columns have one name'),
    ('a.txt', b'a', "a.txt': neither a .json"),
  ],
)
def test_broken_sources(tmp_path, name, content, says):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(ValueError) as error:
    sources.read_source(str(path))
  assert says in str(error.value) and '\n' not in str(error.value)


def test_a_field_may_be_long(tmp_path):
  path = tmp_path / 'a.csv'
  path.write_text('input,target\n' + 'x' * 140_000 + ',7\n')
  assert [len(row['input']) for row in sources.read_source(str(path))] == [140_000]


def test_a_missing_source(tmp_path):
  with pytest.raises(FileNotFoundError) as error:
    sources.read_source(str(tmp_path / 'no.jsonl'))
  assert str(error.value) == f'{tmp_path}/no.jsonl: no such file; check the path'


def test_rows_may_stand_under_examples(tmp_path):
  path = tmp_path / 'a.json'
  path.write_text(json.dumps({'canary': 'x', 'examples': ROWS}))
  assert sources.read_source(str(path)) == ROWS


MAKE_AND_READ = """
import json, sys
import tensorflow_datasets as tfds
from imm_jax.tasks import sources
texts, letters = tfds.features.Text(), tfds.features.ClassLabel(names=['A', 'B'])

class Mine(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    choices = tfds.features.Sequence({'text': texts, 'label': letters})
    features = tfds.features.FeaturesDict({'question': texts, 'choices': choices, 'answerKey': letters})
    return tfds.core.DatasetInfo(builder=self, features=features)

  def _split_generators(self, manager):
    return {'train': enumerate(json.loads(sys.argv[1]))}

  def _generate_examples(self):
    raise NotImplementedError

Mine(file_format='array_record').download_and_prepare()
print(json.dumps(sources.read_source('tfds:mine:train')))
assert 'tensorflow' not in sys.modules
"""


def test_tensorflow_datasets_are_read_without_tensorflow(tmp_path):
  pytest.importorskip('tensorflow_datasets')
  rows = [{'question': f'é{i}?', 'choices': {'text': ['a', 'b'], 'label': [0, 1]}, 'answerKey': i % 2} for i in range(3)]
  child = subprocess.run(
    [sys.executable, '-c', MAKE_AND_READ, json.dumps(rows)],
    env=os.environ | {'TFDS_DATA_DIR': str(tmp_path)},
    capture_output=True,
    text=True,
    check=True,
  )
  read = json.loads(child.stdout.splitlines()[-1])
  assert sorted(read, key=lambda row: row['question']) == rows
  arc = catalog.DATASETS['arc_easy'].parse(read, 'tfds')
  assert {question.question: question.answer for question in arc} == {'é0?': 'a', 'é1?': 'b', 'é2?': 'a'}


def test_a_tensorflow_dataset_that_is_not_there():
  with pytest.raises(ValueError, match='^tfds:none_such(:train)?: '):
    sources.read_source('tfds:none_such:train')


def test_the_hub_is_asked_for_config_and_split():
  pytest.importorskip('datasets')
  with pytest.raises(ValueError, match='^nobody/nothing:main:train: the hub does not give it .*'):
    sources.read_source('nobody/nothing:main:train')


def test_a_missing_field_names_those_there_are(tmp_path):
  with pytest.raises(
    ValueError, match=r"a.jsonl: row 1 has no field 'target', only input, goal; rows of your own: common.custom$"
  ):
    mawps(tmp_path / 'a.jsonl', [{'input': 'q', 'goal': 1}]).split  # noqa: B018
  with pytest.raises(ValueError, match=r"a.jsonl: row 2 has no field 'target', only input, target"):
    sources.columns('a.jsonl', [{'input': 'q', 'target': 0}, {'input': 'q', 'target': None}], ('input', 'target'))


def test_an_answer_that_is_no_number(tmp_path):
  with pytest.raises(ValueError, match=r"a.jsonl: row 1: the answer 'many' is not a number"):
    mawps(tmp_path / 'a.jsonl', [{'input': 'q', 'target': 'many'}]).split  # noqa: B018


def test_a_gsm8k_answer_that_is_a_bare_number(tmp_path):
  rows = write(tmp_path / 'a.jsonl', [{'question': 'q', 'answer': 7}])
  with pytest.raises(
    ValueError, match="row 1: its answer 7 is no text that ends with '#### 7'; rows of your own: common.custom"
  ):
    data_set('gsm8k', rows, test_size=1).split  # noqa: B018


def test_arc_rows_of_files_and_of_the_hub(tmp_path):
  local = [arc_row('Sky?', ['blue', 'dark red'], 'answer2'), arc_row('Sea?', ['x', 'y', 'z'], 'answer1')]
  hub = [
    {'question': 'Sky?', 'choices': {'text': ['blue', 'dark red'], 'label': ['A', 'B']}, 'answerKey': 'B'},
    {'question': 'Sea?', 'choices': {'text': ['x', 'y', 'z'], 'label': ['1', '2', '3']}, 'answerKey': '1'},
  ]
  one, two = (
    data_set('arc_easy', write(tmp_path / name, rows), test_size=1) for name, rows in (('a.jsonl', local), ('b.jsonl', hub))
  )
  assert (one.train, one.test) == (two.train, two.test)
  assert {example.question: example.answer for example in (*one.train, *one.test)} == {'Sky?': 'dark red', 'Sea?': 'x'}
  assert tasks.guess_accuracy(one, (*one.train, *one.test)) == pytest.approx((1 / 2 + 1 / 3) / 2)
  bad = write(tmp_path / 'c.jsonl', [arc_row('Sky?', ['blue', 'red'], 'answer3')])
  with pytest.raises(ValueError, match="c.jsonl: row 1: its answer '3' does not name one of its 2 options"):
    data_set('arc_easy', bad, test_size=1).split  # noqa: B018


# Configs.

SVAMP = catalog.spec('svamp')
CUSTOM = {'family': 'custom', 'verifier': 'exact', 'train_source': 'a.jsonl'}


@pytest.mark.parametrize(
  ('spec', 'says'),
  [
    ({}, 'tasks.t.family: is missing; the families are custom, dataset, reasoning_gym, synthetic'),
    ({'family': 'data_set'}, "tasks.t.family: 'data_set' is unknown; did you mean dataset?"),
    ({'family': ['synthetic']}, 'tasks.t.family: '),
    ({'family': 'synthetic', 'num_shot': 1}, 'tasks.t.num_shot: no such key; did you mean num_shots?'),
    ({'family': 'synthetic', 'name': 'u'}, 'tasks.t.name: no such key'),
    ({'family': 'synthetic', 'seed': 'x'}, "tasks.t.seed: 'x' is not a whole number"),
    ({'family': 'synthetic', 'seed': True}, 'tasks.t.seed: True is not a whole number'),
    ({'family': 'synthetic', 'seed': -1}, 'tasks.t.seed: -1 is negative'),
    (
      {'family': 'synthetic', 'operation': 'som'},
      "tasks.t.operation: 'som' is not one of sum, diff, digit_sum, max, min, reverse, sort; did you mean sum?",
    ),
    (
      {'family': 'dataset', 'verifier': 'exact', 'dataset': 'bbh'},
      'tasks.t.train_source: is missing; write it in the config',
    ),
    (SVAMP | {'train_source': 3}, 'tasks.t.train_source: 3 is not a string'),
    (SVAMP | {'train_source': '', 'test_source': ''}, 'tasks.t.train_source: is empty; give a .json'),
    (SVAMP | {'train_source': ''}, 'tasks.t.train_source: is empty; give a .json'),  # its shots would be of test
    (SVAMP | {'verifier': 'text'}, "tasks.t.verifier: 'text' is not one of exact, numeric, math, choice, code"),
    (SVAMP | {'dataset': 'svmap'}, "tasks.t.dataset: 'svmap' is no data set of the catalog; did you mean svamp or mawps?"),
    (CUSTOM | {'verifier': 'choice'}, "tasks.t.options: is empty; name the column, which the verifier 'choice' needs"),
    (CUSTOM | {'verifier': 'code'}, "tasks.t.tests: is empty; name the column, which the verifier 'code' needs"),
    (CUSTOM | {'solution': 's'}, "tasks.t.stop: a line's end would cut worked solutions; use ['\\n\\n']"),
    (CUSTOM | {'question': 'q'}, "tasks.t.question: 'q' names no {column}"),
    (CUSTOM | {'question': '{q'}, "tasks.t.question: expected '}' before end of string: '{q'; a brace itself is {{ or }}"),
    ({'family': 'reasoning_gym', 'dataset': 'x', 'stop': '\n'}, "tasks.t.stop: '\\n' is not a list of non-empty strings"),
    ({'family': 'reasoning_gym', 'dataset': 'x', 'stop': ['']}, "tasks.t.stop: ('',) is not a list of non-empty strings"),
    ({'family': 'reasoning_gym', 'dataset': 'x', 'params': 3}, 'tasks.t.params: 3 is not a mapping'),
    ({'family': 'reasoning_gym', 'dataset': 'x', 'format': 'html'}, "tasks.t.format: 'html' is not one of plain, chat"),
    ({'family': 'reasoning_gym', 'dataset': 'x', 'test_size': 0}, 'tasks.t.test_size: 0 questions; give at least 1'),
  ],
)
def test_a_wrong_key_or_value_is_named(spec, says):
  with pytest.raises(ValueError) as error:
    make_task('t', spec)
  assert str(error.value).startswith(says) and '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('spec', 'says'),
  [
    ({'dataset': 'chain_sums'}, "tasks.t.dataset: reasoning_gym has no data set 'chain_sums'; did you mean chain_sum"),
    (
      {'dataset': 'chain_sum', 'params': {'min_term': 2}},
      'tasks.t.params.min_term: not a param of .*did you mean min_terms',
    ),
    ({'dataset': 'chain_sum', 'params': {'seed': 2}}, "tasks.t.params.seed: not a param of 'chain_sum'; it has "),
    ({'dataset': 'chain_sum', 'params': {'min_terms': 0}}, "tasks.t.params: 'chain_sum' refuses .* must be positive"),
    ({'dataset': 'chain_sum', 'params': {'min_terms': 'x'}}, "tasks.t.params: 'chain_sum' refuses "),
    ({'dataset': 'simple_integration'}, "tasks.t.dataset: 'simple_integration' is not supported: its scorer runs"),
    ({'dataset': 'rush_hour'}, "tasks.t.dataset: 'rush_hour' gives no text as the gold answer"),
    ({'dataset': 'n_queens'}, "tasks.t.format: 'n_queens' has answers of several lines; use format='chat'"),
    (
      {'dataset': 'count_bits', 'params': {'min_n': 1, 'max_n': 3}, 'test_size': 3},
      'tasks.t: the train split is empty: ',
    ),
  ],
)
def test_gym_errors(spec, says):
  pytest.importorskip('reasoning_gym')
  task = make_task('t', {'family': 'reasoning_gym', 'train_size': 1, 'test_size': 1, 'num_shots': 0} | spec)
  with pytest.raises(ValueError, match=f'^{says}'):
    task.split  # noqa: B018


def test_splits_that_come_out_empty(tmp_path):
  with pytest.raises(ValueError, match='^tasks.sums: the test split is empty; give a test_source that has rows, or'):
    mawps(tmp_path / 'a.jsonl', sums(5), test_size=0).split  # noqa: B018
  for shots, says in ((3, 'train split is empty: of 5 rows 3 are few-shot examples'), (9, 'test split is empty')):
    with pytest.raises(ValueError, match=f'^tasks.sums: the {says}'):
      mawps(tmp_path / 'a.jsonl', sums(5), num_shots=shots).split  # noqa: B018


def test_every_field_can_be_written_as_json():
  for family, cls in tasks.FAMILIES.items():
    given = {'dataset': 'svamp', 'train_source': 'a.jsonl', 'verifier': 'numeric'}
    names = [field.name for field in dataclasses.fields(cls)]
    spec = {key: given[key] for key in given if key in names}
    task = make_task('t', {'family': family} | spec)
    written = {key: getattr(task, key) for key in names if key != 'name'}
    assert make_task('t', {'family': family} | json.loads(json.dumps(written))) == task


@pytest.mark.parametrize('name', catalog.DATASETS)
def test_rows_of_the_hub_make_tasks(tmp_path, name):
  row = catalog.DATASETS[name]
  path = write(tmp_path / 'a.jsonl', [row.sample])
  task = make_task('t', catalog.spec(name, train_source='', test_source=path, num_shots=0))
  [example] = task.test
  assert task.train == () and example.question and example.answer
  assert task.verify(example, task.target(example))
  assert 'None' not in task.prompt(example, [example])
  chat = make_task('t', catalog.spec(name, train_source='', test_source=path, num_shots=0, format='chat'))
  [turn] = chat.prompt(chat.test[0])
  assert turn['content'].startswith(example.question) and chat.verify(chat.test[0], chat.target(chat.test[0]))


@pytest.mark.parametrize('name', [name for name, row in catalog.DATASETS.items() if row.verifier in ('choice', 'exact')])
@pytest.mark.parametrize('scoring', ['generate', 'likelihood'])
def test_choices_are_asked_by_letter_or_by_likelihood(tmp_path, name, scoring):
  path = write(tmp_path / 'a.jsonl', [catalog.DATASETS[name].sample])
  task = make_task('t', catalog.spec(name, train_source='', test_source=path, num_shots=0, scoring=scoring))
  if name == 'bbh' and scoring == 'likelihood':
    with pytest.raises(ValueError, match='row 1: has no options'):
      task.split  # noqa: B018
    return
  [example] = task.test
  assert task.verify(example, task.target(example))
  lettered = scoring == 'generate' and catalog.DATASETS[name].verifier == 'choice'
  assert ('(B) ' in example.question) is lettered and (example.answer in 'ABCDE') is lettered


# Rows of one's own.

ROWS_OF_MINE = [{'q': f'What is {{}}, {i}?', 'a': f'x{i}', 'why': f'because {i}', 'o': [f'x{i}', 'y']} for i in range(6)]


def test_custom_rows(tmp_path):
  changes = {
    'question': 'Say: {q}',
    'answer': 'a',
    'solution': 'why',
    'num_shots': 1,
    'frame': '<{question}>',
    'stop': ['\n\n'],
  }
  task = custom(tmp_path / 'a.jsonl', ROWS_OF_MINE, **changes)
  [example], [shot] = task.test, task.shots
  number = shot.answer[1:]
  assert example.question.startswith('Say: What is {}, ')
  assert task.prompt(example, task.shots) == (
    f'<Say: What is {{}}, {number}?> because {number}\nThe answer is x{number}.\n\n<{example.question}>'
  )
  assert task.verify(example, task.target(example)) and not task.verify(example, task.target(shot))


@pytest.mark.parametrize('answer', ['x', 'A', '0'])
def test_custom_options_are_named_by_text_letter_or_number(tmp_path, answer):
  rows = [{'question': f'{i}?', 'answer': answer, 'o': ['x', 'y']} for i in range(3)]
  task = custom(tmp_path / 'a.jsonl', rows, verifier='choice', options='o')
  assert task.test[0].answer == 'A' and task.test[0].question.endswith('?\n(A) x\n(B) y')
  likeliest = custom(tmp_path / 'a.jsonl', rows, verifier='choice', options='o', scoring='likelihood')
  assert likeliest.test[0].answer == 'x' and likeliest.continuations(likeliest.test[0]) == (' x', ' y')


def test_options_with_one_text_keep_their_places(tmp_path):
  options = ['8 km', '9 km', '8 km']
  by_letter = custom(
    tmp_path / 'a.jsonl',
    [{'question': f'{i}?', 'o': options, 'answer': 'C'} for i in range(3)],
    verifier='choice',
    options='o',
  )
  assert {example.answer for example in (*by_letter.train, *by_letter.test)} == {'C'}
  with pytest.raises(ValueError, match="row 1: the answer '8 km' is the text of two options"):
    _ = custom(
      tmp_path / 'a.jsonl', [{'question': '?', 'o': options, 'answer': '8 km'}], verifier='choice', options='o'
    ).test


@pytest.mark.parametrize(
  ('options', 'says'),
  [
    (['yes', ' ', 'no'], 'option 1 of 3 has no text'),
    ("['3', '4']", 'o: .* is no list'),
    (['yes', None], 'o: None is neither a text nor a number'),
    (['yes', ['no']], "o: .'no'. is neither a text nor a number"),
  ],
)
def test_options_that_are_none_name_their_row(tmp_path, options, says):
  with pytest.raises(ValueError, match=f'row 1: {says}'):
    _ = custom(tmp_path / 'a.jsonl', [{'question': '?', 'o': options, 'answer': '0'}], verifier='choice', options='o').test


def test_a_csv_file_holds_options_as_json(tmp_path):
  task = custom(
    tmp_path / 'a.jsonl',
    [{'question': f'{i}?', 'o': '["3", "4"]', 'answer': 'B'} for i in range(3)],
    verifier='choice',
    options='o',
  )
  assert task.test[0].options == ('3', '4')


def test_custom_code(tmp_path):
  rows = [{'question': f'{i}?', 'answer': f'def f():\n  return {i}', 't': [f'assert f() == {i}']} for i in range(3)]
  task = custom(tmp_path / 'a.jsonl', rows, verifier='code', tests='t', stop=())
  assert task.verify(task.test[0], task.target(task.test[0])) and not task.verify(task.test[0], task.target(task.train[0]))


@pytest.mark.parametrize(
  'cell, says',
  [
    ('["assert f() == 1"]', None), ('assert f() == 1', None), ("['assert f() == 1']", 'is no list'), ('', 'checks nothing'),
    ('[]', 'checks nothing'), ('["import math"]', 'checks nothing'),
  ],
)  # fmt: skip
def test_a_csv_file_holds_tests_as_text_or_json(tmp_path, cell, says):
  rows = [{'question': f'{i}?', 'answer': 'def f():\n  return 1', 't': cell} for i in range(2)]
  task = custom(tmp_path / 'a.jsonl', rows, verifier='code', tests='t', stop=())
  if says is None:
    assert task.verify(task.test[0], 'def f():\n  return 1') and not task.verify(task.test[0], 'def f():\n  return 2')
  else:
    with pytest.raises(ValueError, match=says):
      task.split  # noqa: B018


@pytest.mark.parametrize(
  'name, change, says',
  [
    ('strategyqa', {'answer': 'maybe'}, 'neither true nor false'),
    ('aqua', {'options': ['B)y', 'A)x']}, "does not begin with 'A)'"),
    ('aqua', {'options': ['f(x)=2', 'g(x)=3']}, "does not begin with 'A)'"),
    ('arc_easy', {'choices': {'label': ['A', 'A'], 'text': ['x', 'y']}, 'answerKey': 'A'}, 'does not name one of'),
    ('arc_easy', {'choices': {'label': ['A', 'B'], 'text': ['x', 'y', 'z']}}, 'does not name one of'),
    ('arc_easy', {'choices': {'label': ['A', 'B'], 'text': ['x', None]}}, 'option: None is neither'),
    ('logiqa', {'correct_option': 1.9}, 'invalid literal'),
    ('mbpp', {'test_list': []}, 'has no tests'),
  ],
)
def test_rows_that_have_no_sure_gold_are_named(tmp_path, name, change, says):
  path = write(tmp_path / 'a.jsonl', [catalog.DATASETS[name].sample | change])
  with pytest.raises(ValueError, match='row 1: ') as error:
    make_task('t', catalog.spec(name, train_source='', test_source=path, num_shots=0)).split  # noqa: B018
  assert says in str(error.value)


@pytest.mark.parametrize(
  'answer, gold', [(True, 'yes'), ('no', 'no'), ('False', 'no'), ('true', 'yes'), (0, 'no'), ('1', 'yes')]
)
def test_truth_is_read_however_it_is_written(tmp_path, answer, gold):
  path = write(tmp_path / 'a.jsonl', [catalog.DATASETS['strategyqa'].sample | {'answer': answer}])
  assert make_task('t', catalog.spec('strategyqa', train_source='', test_source=path, num_shots=0)).test[0].answer == gold


@pytest.mark.parametrize('line', ['Problem: it is this.', 'Example 1: 2 + 3.'])
def test_a_worked_solution_is_read_to_its_end(tmp_path, line):
  row = {'problem': 'What is 2 + 3?', 'solution': f'We add.\n{line}\nSo it is \\boxed 5.'}
  task = data_set('math', train_source='', test_source=write(tmp_path / 'a.jsonl', [row]), num_shots=0)
  assert task.test[0].answer == '5'


@pytest.mark.parametrize(
  ('rows', 'changes', 'says'),
  [
    ([{'question': 'q'}], {}, "a.jsonl: row 1 has no field 'answer', only question"),
    ([{'question': 'q', 'answer': 'C', 'o': ['x', 'y']}], {'options': 'o'}, "a.jsonl: row 1: the answer 'C' is no option"),
    ([{'question': 'q', 'answer': ' '}], {}, 'a.jsonl: row 1: has no answer'),
    ([{'question': 'q', 'answer': 'x'}], {'verifier': 'numeric'}, "a.jsonl: row 1: the answer 'x' is not a number"),
  ],
)
def test_custom_rows_that_do_not_fit(tmp_path, rows, changes, says):
  with pytest.raises(ValueError) as error:
    custom(tmp_path / 'a.jsonl', rows, **changes).split  # noqa: B018
  assert says in str(error.value)


def test_shots_of_a_file_are_its_first_and_in_no_split(tmp_path):
  shots = write(tmp_path / 'shots.jsonl', sums(40)[30:])
  test = write(tmp_path / 'test.jsonl', sums(33)[20:])
  task = mawps(tmp_path / 'a.jsonl', sums(25), test_source=test, shots_source=shots, num_shots=2, test_size=0)
  assert [shot.question for shot in task.shots] == ['What is 30 + 30?', 'What is 31 + 31?']
  assert (len(task.train), len(task.test), task.num_dropped) == (20, 11, 7)  # 5 of train, 2 of test
  assert not ids(task.shots) & (ids(task.train) | ids(task.test))
  measured = mawps(tmp_path / 'a.jsonl', sums(1), train_source='', test_source=test, shots_source=shots, num_shots=2)
  assert measured.shots == task.shots and measured.train == ()


# The guess baseline.


def test_guessing_takes_the_commonest_gold(tmp_path):
  task = mawps(tmp_path / 'a.jsonl', [{'input': str(i), 'target': 7 if i % 4 else i} for i in range(1, 41)], num_shots=0)
  assert tasks.guess_accuracy(task, [*task.train, *task.test]) == 30 / 40
  with pytest.raises(ValueError, match='^tasks.sums: no examples'):
    tasks.guess_accuracy(task, [])


# The real data sets.


@needs_data
@pytest.mark.parametrize(
  ('dataset', 'train', 'test', 'num_train', 'num_test'),
  [
    ('gsm8k', 'gsm8k/train.jsonl', 'gsm8k/test.jsonl', 7469, 1319),
    ('svamp', 'svamp/SVAMP.json', '', 796, 200),
    ('mawps', 'mawps_parts/multiarith.jsonl', '', 376, 200),
  ],
)
def test_word_problem_files(dataset, train, test, num_train, num_test):
  test_source = str(DATA / test) if test else ''
  size = 0 if test else 200
  task = data_set(dataset, DATA / train, test_source=test_source, test_size=size)
  assert (len(task.train), len(task.test)) == (num_train, num_test)
  assert all(task.verify(example, task.target(example)) for example in (*task.train[:500], *task.test))
  assert not any('<<' in example.solution or '\n\n' in example.solution for example in task.train)
  assert 0 < tasks.guess_accuracy(task, task.test) < 0.1


@needs_data
@pytest.mark.parametrize(
  ('dataset', 'file', 'num_rows'),
  [
    ('aqua', 'aqua/dev.json', 254),
    ('aqua', 'aqua/test.json', 254),
    ('strategyqa', 'strategyqa/train.json', 2061),
    ('strategyqa', 'strategyqa/dev.json', 229),
    ('math500', 'math500/test.jsonl', 500),
    ('math', 'math_part/train_part.jsonl', 3682),
    ('mbpp', 'mbpp/mbpp.test.jsonl', 500),
    ('humaneval', 'humaneval/HumanEval.jsonl.gz', 164),
  ],
)
def test_files_of_the_data_sets(dataset, file, num_rows):
  task = data_set(dataset, DATA / file, test_size=50)
  assert len(task.train) + len(task.test) + len(task.shots) + task.num_dropped == num_rows
  assert all(task.verify(example, task.target(example)) for example in task.test)
  assert not task.verify(task.test[0], task.target(task.test[1])) or task.test[0].answer == task.test[1].answer


@needs_data
@pytest.mark.parametrize('path', sorted((DATA / 'bbh').glob('*.json')), ids=lambda path: path.stem)
def test_bbh_files(path):
  task = data_set('bbh', path, test_size=50)
  assert len(task.test) == 50 and all(task.verify(example, task.target(example)) for example in (*task.train, *task.test))


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize(
  ('dataset', 'file'), [('mbpp', 'mbpp/mbpp.test.jsonl'), ('humaneval', 'humaneval/HumanEval.jsonl.gz')]
)
def test_all_solutions_pass_their_tests(dataset, file, monkeypatch):
  # One of MBPP's solutions computes for 4 to 9 seconds: on a slow machine longer than what a model's may take.
  patient = functools.partial(sandbox.run_tests, limits=sandbox.Limits(cpu_secs=120, wall_secs=300.0))
  monkeypatch.setattr(sandbox, 'run_tests', patient)
  task = data_set(dataset, DATA / file, test_size=1)
  failed = [e.question for e in (*task.train, *task.test, *task.shots) if not task.verify(e, task.target(e))]
  assert failed == []


@needs_data
@pytest.mark.parametrize(
  ('file', 'num_rows', 'num_go_on'), [('math500/test.jsonl', 500, 1), ('math_part/train_part.jsonl', 3682, 5)]
)
def test_every_solution_of_math_states_the_answer_of_its_row(file, num_rows, num_go_on):
  rows = sources.read_source(str(DATA / file))
  assert len(rows) == num_rows
  assert [r for r in rows if math.plain(answers.stated(r['solution'])) != math.plain(r['answer'])] == []
  # In some prose about an answer comes behind the box.
  assert sum(bool(re.search('answer is', r['solution'].rpartition('boxed{')[2])) for r in rows) == num_go_on


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize('file', ['math500/test.jsonl', 'math_part/train_part.jsonl'])
def test_all_solutions_state_their_answers(file):
  task = data_set('math', DATA / file, test_size=1)
  examples = (*task.train, *task.test, *task.shots)
  assert sum(task.verify(example, task.target(example)) for example in examples) >= 0.995 * len(examples)


@needs_data
@pytest.mark.parametrize(('part', 'rows'), [('easy', (2251, 2376)), ('challenge', (1119, 1172))])
def test_arc_files(part, rows):
  source, test_source = (str(DATA / 'arc' / f'{part}_{split}.json') for split in ('train', 'test'))
  task = data_set(f'arc_{part}', source, test_source=test_source, test_size=0)
  assert len(task.train) + len(task.test) + task.num_dropped == sum(rows)
  assert all(example.answer in example.options and all(example.options) for example in task.test)
  assert tasks.guess_accuracy(task, task.test) == pytest.approx(0.25, abs=0.001)
