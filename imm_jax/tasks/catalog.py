r"""The table of known data sets: columns, place on the hub, licence, sizes and verifier.

A row's `sample` is made up, in the columns of the hub: it shows the form of the data set's rows.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, Literal

from imm_jax import text
from imm_jax.tasks import parsing, sources
from imm_jax.tasks.parsing import Parsed

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


_STATE = "Think step by step, and end with 'The answer is' and the "
_PARAGRAPH = ('\n\n', 'Question:')  # Worked solutions have several lines, but no empty one.
_WORKED: dict[str, Any] = {'stop': _PARAGRAPH, 'max_new_tokens': 256}
_CHOICES: Form = ('question', 'choices', 'answerKey'), parsing.lettered
_CHOICE: dict[str, Any] = {
  'verifier': 'choice',
  'scoring': 'likelihood',
  'instruction': 'Answer with the letter of the right option.',
}
_WORD: dict[str, Any] = {'verifier': 'numeric', 'instruction': f'{_STATE}number.'}
_BLOCK = 'Answer with one block of Python code.'


def _arc(part: str, num_train: int, num_test: int) -> DataSet:
  return DataSet(
    forms=((('instruction', 'answer'), parsing.instruction), _CHOICES),
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
    forms=(
      (('problem', 'solution', 'answer'), parsing.math),
      (('problem', 'solution'), parsing.math_boxed),
    ),
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
    forms=((('question', 'answer'), parsing.gsm8k),),
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
    forms=((('Body', 'Question', 'Answer'), parsing.svamp),),
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
    forms=((('input', 'target'), parsing.direct), (('question', 'result'), parsing.direct)),
    train='MU-NLPC/Calc-mawps:default:train',
    test='MU-NLPC/Calc-mawps:default:test',
    sizes=(1089, 520),
    licence='MIT',
    sample={'question': 'Ann has 3 apples and gets 4. How many has she?', 'result': '7'},
    **_WORD,
  ),
  'aqua': DataSet(
    forms=((('question', 'options', 'rationale', 'correct'), parsing.aqua),),
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
    forms=((('question', 'answer', 'facts'), parsing.strategyqa),),
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
    forms=((('question_stem', 'choices', 'answerKey'), parsing.lettered),),
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
      (('context', 'query', 'options', 'correct_option'), parsing.logiqa),
      (('context', 'question', 'options', 'label'), parsing.logiqa),
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
    forms=((('input', 'target'), parsing.direct),),
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
      (('text', 'code', 'test_list', 'test_setup_code'), parsing.mbpp),
      (('prompt', 'code', 'test_list', 'test_imports'), parsing.mbpp),
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
    forms=((('prompt', 'canonical_solution', 'test', 'entry_point'), parsing.humaneval),),
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
