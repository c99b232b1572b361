r"""The table of known data sets: columns, place on the hub, licence, sizes and verifier.

A row's `sample` is made up, in the columns of the hub: it shows the form of the data set's rows.
"""

from collections.abc import Callable, Sequence
import dataclasses
import re
import string
from typing import Any, Literal

from imm_jax import text
from imm_jax.tasks import sources
from imm_jax.verifying import answers


@dataclasses.dataclass(frozen=True)
class Parsed:
  """A row's question, whatever its columns were."""

  question: str
  answer: str  # The gold answer; with options, the right option's text.
  solution: str = ''  # The text that leads to the answer, or the program that is the answer.
  options: tuple[str, ...] = ()
  index: int = 0  # The index of the right option, as two options may have the same text.
  prefix: str = ''  # For code: the code in front of the completion.
  tests: str = ''  # For code: Python that raises when the code is wrong.
  row: sources.Row | None = None  # All columns, for a user's own verifier.


Form = tuple[tuple[str, ...], Callable[..., Parsed]]  # Columns, and a function of their values.


@dataclasses.dataclass(frozen=True)
class DataSet:
  """A row of the table."""

  forms: tuple[Form, ...]  # The possible forms of its rows; the first with all columns is taken.
  verifier: str
  train: str  # The source of a split; '' for a missing split.
  test: str
  sizes: tuple[int, int]  # The rows of train and test.
  licence: str
  sample: dict[str, Any]
  # The default scoring; data sets with options allow both.
  scoring: Literal['generate', 'likelihood'] = 'generate'
  frame: str = 'Question: {question}\nAnswer:'  # The template of a plain prompt.
  stop: tuple[str, ...] = ('\n',)  # The stop strings of a plain prompt.
  instruction: str = ''  # In a chat it says in which form to answer, if nothing else does.
  max_new_tokens: int = 16

  def parse(self, rows: Sequence[sources.Row], source: str) -> list[Parsed]:
    """Returns the questions of rows in one of the forms.

    Raises ValueError naming the row of `source` that has none of the forms.
    """
    fields, convert = next(
      (form for form in self.forms if all(rows[0].get(field) is not None for field in form[0])),
      self.forms[0],
    )
    parsed, hint = [], '; rows of your own: common.custom'
    for number, values in enumerate(sources.columns(source, rows, fields, hint), 1):
      try:
        parsed.append(convert(*values))
      # A column has another form than in this data set.
      except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f'{source}: row {number}: {error}{hint}') from error
    return parsed


# Functions that make a Parsed of a row's values.


def _gsm8k(question: str, answer: str) -> Parsed:
  if not isinstance(answer, str) or '####' not in answer:
    raise ValueError(f"its answer {answer!r} is no text that ends with '#### 7'")
  solution, _, gold = re.sub(r'<<.*?>>', '', answer).partition('####')
  return Parsed(question, gold, solution)


def _svamp(body: str, question: str, answer: Any) -> Parsed:
  body = body.strip()
  return Parsed(
    f'{body}{"" if body.endswith((".", "?", "!", ",")) else ","} {question}',
    sources.as_text('its answer', answer),
  )


def _direct(question: str, answer: Any) -> Parsed:
  return Parsed(question, sources.as_text('its answer', answer))


def _math(problem: str, solution: str, answer: str) -> Parsed:
  return Parsed(problem, answer, solution)


def _math_boxed(problem: str, solution: str) -> Parsed:
  return Parsed(problem, answers.stated(solution) or '', solution)


def _choice(question: str, options: Sequence[str], index: int, solution: str = '') -> Parsed:
  """Returns a multiple-choice question. Raises ValueError when no option has the index."""
  options = tuple(
    sources.as_text('option', option).strip() for option in sources.as_list('options', options)
  )
  if not 0 <= index < len(options) or len(options) < 2:
    raise ValueError(f'it has {len(options)} options and no answer among them')
  return Parsed(question, options[index], solution, options, index)


def _lettered(question: str, choices: dict[str, Any], label: Any) -> Parsed:
  labels, texts = (
    sources.as_list('label', choices['label']),
    sources.as_list('text', choices['text']),
  )
  if labels.count(label) != 1 or len(labels) != len(texts):
    raise ValueError(
      f'its answer {label!r} does not name one of its {len(texts)} options: their labels are'
      f' {labels}'
    )
  return _choice(question, texts, labels.index(label))


_INSTRUCTION = re.compile(
  r'Please choose the correct answer to the question:(.*?)\n\n(Answer1:.*)\n\nAnswer format:',
  re.DOTALL,
)


def _instruction(instruction: str, answer: str) -> Parsed:
  r"""Takes '...question: Q\n\nAnswer1: X Answer2: Y\n\nAnswer format: ...' and 'answer2'."""
  match = _INSTRUCTION.match(instruction)
  _, *parts = re.split(r'Answer(\d):', match[2] if match else '')
  texts = dict(zip(parts[::2], parts[1::2], strict=True))
  return _lettered(
    match[1] if match else instruction,
    {'label': list(texts), 'text': list(texts.values())},
    answer.removeprefix('answer'),
  )


def _aqua(question: str, options: Sequence[str], rationale: str, correct: str) -> Parsed:
  """Returns a question of AQuA.

  Raises ValueError when the options are not lettered in order: the letter would name another one.
  """
  texts = []
  for letter, option in zip(
    string.ascii_uppercase, sources.as_list('options', options), strict=False
  ):
    match = re.match(rf'\s*\(?{letter}\s*[).]', option)
    if match is None:
      raise ValueError(f"its option {option!r} does not begin with '{letter})'")
    texts.append(option[match.end() :])
  return _choice(question, texts, string.ascii_uppercase.index(correct.strip()), rationale)


def _logiqa(context: str, question: str, options: Sequence[str], index: int | str) -> Parsed:
  # int(1.9) would be 1.
  return _choice(f'{context.strip()} {question.strip()}', options, int(str(index)))


_TRUTH = {'true': 'yes', 'yes': 'yes', '1': 'yes', 'false': 'no', 'no': 'no', '0': 'no'}


def _strategyqa(question: str, answer: bool | int | str, facts: Sequence[str] | str) -> Parsed:
  gold = _TRUTH.get(str(answer).strip().lower())
  if gold is None:
    raise ValueError(f'its answer {answer!r} is neither true nor false')
  solution = facts if isinstance(facts, str) else ' '.join(facts)
  return Parsed(question, gold, solution, ('yes', 'no'))


def _mbpp(text: str, code: str, test_list: Sequence[str], setup: str | Sequence[str]) -> Parsed:
  setup = setup if isinstance(setup, str) else '\n'.join(setup)
  tests, code = '\n'.join(sources.as_list('test_list', test_list)), code.replace('\r', '')
  if not tests.strip():
    raise ValueError('it has no tests: every program would pass')
  return Parsed(f'{text}\nIt passes these tests:\n{tests}', code, code, tests=f'{setup}\n{tests}')


def _humaneval(prompt: str, solution: str, test: str, entry_point: str) -> Parsed:
  return Parsed(prompt, solution, solution, prefix=prompt, tests=f'{test}\ncheck({entry_point})\n')


_STATE = "Think step by step, and end with 'The answer is' and the "
_PARAGRAPH = ('\n\n', 'Question:')  # Worked solutions have several lines, but no empty one.
_WORKED: dict[str, Any] = {'stop': _PARAGRAPH, 'max_new_tokens': 256}
_CHOICES: Form = ('question', 'choices', 'answerKey'), _lettered
_CHOICE: dict[str, Any] = {
  'verifier': 'choice',
  'scoring': 'likelihood',
  'instruction': 'Answer with the letter of the right option.',
}
_WORD: dict[str, Any] = {'verifier': 'numeric', 'instruction': f'{_STATE}number.'}
_BLOCK = 'Answer with one block of Python code.'


def _arc(part: str, num_train: int, num_test: int) -> DataSet:
  return DataSet(
    forms=((('instruction', 'answer'), _instruction), _CHOICES),
    train=f'allenai/ai2_arc:ARC-{part}:train',
    test=f'allenai/ai2_arc:ARC-{part}:test',
    sizes=(num_train, num_test),
    licence='CC BY-SA 4.0',
    sample={
      'question': 'Which of these melts in the sun?',
      'choices': {'text': ['a stone', 'ice', 'glass', 'wood'], 'label': ['A', 'B', 'C', 'D']},
      'answerKey': 'B',
    },
    **_CHOICE,
  )


def _competition(train: str, test: str, num_train: int, num_test: int) -> DataSet:
  return DataSet(
    forms=((('problem', 'solution', 'answer'), _math), (('problem', 'solution'), _math_boxed)),
    verifier='math',
    train=train,
    test=test,
    sizes=(num_train, num_test),
    licence='MIT',
    sample={
      'problem': 'What is $\\frac{1}{2} + \\frac{1}{4}$?',
      'solution': 'It is $\\boxed{\\frac{3}{4}}$.',
    },
    instruction='Think step by step, and put the answer in \\boxed{}.',
    stop=_PARAGRAPH,
    max_new_tokens=512,
  )


DATASETS: dict[str, DataSet] = {
  'gsm8k': DataSet(
    forms=((('question', 'answer'), _gsm8k),),
    train='openai/gsm8k:main:train',
    test='openai/gsm8k:main:test',
    sizes=(7473, 1319),
    licence='MIT',
    sample={
      'question': 'Ann has 3 apples and gets 4. How many has she?',
      'answer': '3 + 4 = <<3+4=7>>7 apples.\n#### 7',
    },
    **_WORD,
    **_WORKED,
  ),
  'math': _competition(
    'DigitalLearningGmbH/MATH-lighteval:default:train',
    'DigitalLearningGmbH/MATH-lighteval:default:test',
    7500,
    5000,
  ),
  'math500': _competition(
    'DigitalLearningGmbH/MATH-lighteval:default:train', 'HuggingFaceH4/MATH-500::test', 7500, 500
  ),
  'svamp': DataSet(
    forms=((('Body', 'Question', 'Answer'), _svamp),),
    train='ChilleD/SVAMP::train',
    test='ChilleD/SVAMP::test',
    sizes=(700, 300),
    licence='MIT',
    sample={
      'Body': 'Ann had 7 apples and ate 2',
      'Question': 'How many are left?',
      'Answer': '5.0',
    },
    **_WORD,
  ),
  'mawps': DataSet(
    forms=((('input', 'target'), _direct), (('question', 'result'), _direct)),
    train='MU-NLPC/Calc-mawps:default:train',
    test='MU-NLPC/Calc-mawps:default:test',
    sizes=(1089, 520),
    licence='MIT',
    sample={'question': 'Ann has 3 apples and gets 4. How many has she?', 'result': '7'},
    **_WORD,
  ),
  'aqua': DataSet(
    forms=((('question', 'options', 'rationale', 'correct'), _aqua),),
    verifier='choice',
    train='deepmind/aqua_rat:raw:train',
    test='deepmind/aqua_rat:raw:test',
    sizes=(97467, 254),
    licence='Apache-2.0',
    sample={
      'question': 'A train goes 60 km in 40 minutes. How far does it go in an hour?',
      'options': ['A)70 km', 'B)80 km', 'C)90 km', 'D)100 km', 'E)120 km'],
      'rationale': '60 / 40 x 60 = 90.',
      'correct': 'C',
    },
    instruction=f'{_STATE}letter of the right option.',
    **_WORKED,
  ),
  'arc_easy': _arc('Easy', 2251, 2376),
  'arc_challenge': _arc('Challenge', 1119, 1172),
  'strategyqa': DataSet(
    forms=((('question', 'answer', 'facts'), _strategyqa),),
    verifier='exact',
    train='ChilleD/StrategyQA::train',
    test='ChilleD/StrategyQA::test',
    sizes=(1603, 687),
    licence='MIT',
    sample={
      'question': 'Can a whale climb a tree?',
      'answer': False,
      'facts': 'Whales have no legs.',
    },
    instruction=f"{_STATE}word 'yes' or 'no'.",
    **_WORKED,
  ),
  'commonsenseqa': DataSet(
    forms=(_CHOICES,),
    train='tau/commonsense_qa:default:train',
    test='tau/commonsense_qa:default:validation',
    sizes=(9741, 1221),
    licence='MIT',
    sample={
      'question': 'Where do people keep milk cold?',
      'choices': {
        'label': ['A', 'B', 'C', 'D', 'E'],
        'text': ['shelf', 'oven', 'fridge', 'garden', 'bag'],
      },
      'answerKey': 'C',
    },
    **_CHOICE,
  ),
  'openbookqa': DataSet(
    forms=((('question_stem', 'choices', 'answerKey'), _lettered),),
    train='allenai/openbookqa:main:train',
    test='allenai/openbookqa:main:test',
    sizes=(4957, 500),
    licence='not stated on the hub',
    sample={
      'question_stem': 'A plant grows towards',
      'choices': {'text': ['light', 'noise', 'salt', 'iron'], 'label': ['A', 'B', 'C', 'D']},
      'answerKey': 'A',
    },
    **_CHOICE,
  ),
  'logiqa': DataSet(
    forms=(
      (('context', 'query', 'options', 'correct_option'), _logiqa),
      (('context', 'question', 'options', 'label'), _logiqa),
    ),
    train='lucasmccabe/logiqa@refs/convert/parquet:default:train',
    test='lucasmccabe/logiqa@refs/convert/parquet:default:test',
    sizes=(7376, 651),
    licence='not stated on the hub',
    sample={
      'context': 'All cats sleep. Tom is a cat.',
      'query': 'What follows?',
      'options': ['Tom barks.', 'Tom sleeps.', 'Tom eats.', 'Nothing.'],
      'correct_option': 1,
    },
    **_CHOICE,
  ),
  'bbh': DataSet(
    forms=((('input', 'target'), _direct),),
    verifier='exact',
    # This is one of its 27 tasks: each is a config on the hub.
    train='lukaemon/bbh:boolean_expressions:test',
    test='',
    sizes=(250, 0),
    licence='MIT',
    sample={'input': 'not ( True and False ) is', 'target': 'True'},
    instruction=f'{_STATE}answer.',
  ),
  'mbpp': DataSet(
    forms=(
      (('text', 'code', 'test_list', 'test_setup_code'), _mbpp),
      (('prompt', 'code', 'test_list', 'test_imports'), _mbpp),
    ),
    verifier='code',
    train='google-research-datasets/mbpp:full:train',
    test='google-research-datasets/mbpp:full:test',
    sizes=(374, 500),
    licence='CC BY 4.0',
    sample={
      'text': 'Write a function that doubles a number.',
      'code': 'def double(x):\n  return 2 * x',
      'test_list': ['assert double(2) == 4', 'assert double(0) == 0'],
      'test_setup_code': '',
    },
    stop=('\nQuestion:',),
    instruction=_BLOCK,
    max_new_tokens=256,
  ),
  'humaneval': DataSet(
    forms=((('prompt', 'canonical_solution', 'test', 'entry_point'), _humaneval),),
    verifier='code',
    train='',
    test='openai/openai_humaneval::test',
    sizes=(0, 164),
    licence='MIT',
    sample={
      'prompt': 'def double(x):\n  """Returns twice x."""\n',
      'canonical_solution': '  return 2 * x\n',
      'test': 'def check(candidate):\n  assert candidate(2) == 4\n',
      'entry_point': 'double',
    },
    frame='{question}',
    stop=('\ndef ', '\nclass ', '\nif ', '\nprint', '\n#', '\n```'),
    instruction=f'Complete this function. {_BLOCK}',
    max_new_tokens=384,
  ),
}


def spec(name: str, **overrides: Any) -> dict[str, Any]:
  """Returns the config section that makes a task of a data set, with the given keys overridden.

  Raises ValueError when the data set is unknown.
  """
  if name not in DATASETS:
    near = text.nearest(name, DATASETS) or f'; they are {", ".join(DATASETS)}'
    raise ValueError(f'{name!r} is no data set of the catalog{near}')
  row = DATASETS[name]
  chat = overrides.get('format') == 'chat'
  return {
    'family': 'dataset',
    'dataset': name,  # which columns the rows have
    # A .json, .jsonl or .csv file, OWNER/NAME:CONFIG:SPLIT of the hub, or tfds:NAME:SPLIT
    'train_source': row.train,
    'test_source': row.test,  # '' holds out test_size rows of train_source
    'shots_source': '',  # the shots are its first rows; '' takes them out of train_source
    'train_size': 0,  # questions; 0 takes all
    'test_size': 200,
    'num_shots': 4 if row.train and not chat and row.scoring == 'generate' else 0,
    'seed': 0,  # chooses shots, held-out questions, and those kept under a size
    # 'exact', 'numeric', 'math', 'choice', 'code', or 'MODULE:FUNCTION' of your own
    'verifier': row.verifier,
    'reward_threshold': 0.5,  # a reward of MODULE:FUNCTION above it is right
    'scoring': row.scoring,  # or 'likelihood': the likeliest option
    'normalize': 'sum',  # or 'per_character': how an option's log-probability is measured
    'format': 'plain',  # or 'chat': the model's chat template
    'frame': row.frame,  # of a plain prompt
    'instruction': row.instruction if chat else '',  # under a question in a chat
    'stop': () if chat else row.stop,  # of a chat: the model's own end
    'max_new_tokens': row.max_new_tokens,
  } | overrides
