"""Word problems with a number for an answer: GSM8K, SVAMP and MAWPS, from local files or the hub."""

import dataclasses
from fractions import Fraction
import re
from typing import Any, Literal

from imm_jax.tasks import base, sources

MAX_CHARACTERS = 20_000  # of a completion, from its end: what is read for an answer
MAX_DIGITS = 60  # of a number; a longer one is no answer
TOLERANCE = Fraction(1, 10**6)  # relative, where gold or answer is not a whole number


def _gsm8k(question: str, answer: str) -> tuple[str, str, str]:
  solution, _, gold = re.sub(r'<<.*?>>', '', answer).partition('####')
  return question, gold, re.sub(r'\n\s*\n', '\n', solution.strip())


def _svamp(body: str, question: str, answer: Any) -> tuple[str, str, str]:
  body = body.strip()
  return f'{body}{"" if body.endswith((".", "?", "!", ",")) else ","} {question}', str(answer), ''


def _mawps(question: str, answer: Any) -> tuple[str, str, str]:
  return question, str(answer), ''


# dataset -> (fields of a row, how they become question, gold and solution)
COLUMNS = {
  'gsm8k': (('question', 'answer'), _gsm8k),
  'svamp': (('Body', 'Question', 'Answer'), _svamp),
  'mawps': (('input', 'target'), _mawps),
}

_NUMBER = re.compile(
  r"""(?<!\d)
  (?P<sign>(?<![\w)])-[$£€]?|[$£€]-?)?               # 10-3 has no -3
  (?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)
  (?:e(?P<exponent>[+-]?[0-9]+))?
  (?:\s?/\s?(?P<over>[0-9]+))?
  (?!\d)""",
  re.VERBOSE | re.IGNORECASE,
)
_FRACTION = re.compile(r'[dt]?frac\{(-?[0-9]+)\}\{([0-9]+)\}')
_MARKER = re.compile(r'answer is|####|boxed\{', re.IGNORECASE)
_SUM = re.compile(r'(?:[\s0-9.,$£€%()+*/x×-]*=)+')  # the '5 + 3 =' of 'the answer is 5 + 3 = 8'


def read_number(text: str) -> Fraction | None:
  """Returns the number after the last 'answer is', '####' or '\\boxed{', else the last number; None when there is none.

  Reads 1,234, $5, -3, 5.0, 1e3, 1/2, \\frac{1}{2}; a percent sign is a unit. Time is linear in at most MAX_CHARACTERS.
  """
  text = text[-MAX_CHARACTERS:].replace('\\', '').replace('{,}', ',').replace('\N{MINUS SIGN}', '-')
  text = _FRACTION.sub(r'\1/\2', text)
  for marker in list(_MARKER.finditer(text))[-1:]:
    line = text[marker.end() :].lstrip(': \n').partition('\n')[0]
    steps = _SUM.match(line)
    if number := _NUMBER.search(line, steps.end() if steps else 0):
      return _value(number)
  numbers = list(_NUMBER.finditer(text))
  return _value(numbers[-1]) if numbers else None


def _value(match: re.Match[str]) -> Fraction | None:
  exponent, over = match['exponent'] or '0', match['over'] or '1'
  if len(match[0]) > MAX_DIGITS or abs(int(exponent)) > MAX_DIGITS or int(over) == 0:
    return None
  value = Fraction(match['digits'].replace(',', '')) * Fraction(10) ** int(exponent) / int(over)
  return -value if '-' in (match['sign'] or '') else value


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordProblems(sources.FromSources):
  """Word problems, verified by the number in the completion."""

  dataset: Literal['gsm8k', 'svamp', 'mawps']  # which fields the rows have, see COLUMNS
  num_shots: int = 4
  stop: tuple[str, ...] = base.AUTO  # plain: a line, for worked solutions a paragraph; chat: only the model's own end
  max_new_tokens: int = 256

  def __post_init__(self) -> None:
    """Fills in `stop`."""
    if self.stop is base.AUTO:
      direct, worked = ('\n',), ('\n\n', 'Question:')
      stop = () if self.format == 'chat' else worked if self.dataset == 'gsm8k' else direct
      object.__setattr__(self, 'stop', stop)
    super().__post_init__()

  def target(self, example: base.Example) -> str:
    """Returns the number, or the worked solution and 'The answer is' it where the data has one."""
    worked = f'{example.solution}\nThe answer is {example.answer}.'
    return self.continuation(worked if example.solution else example.answer)

  def extract(self, completion: str) -> str:
    """Returns the number in the completion, up to the first stop string, as '7' or '1/2'; '' when there is none."""
    number = read_number(super().extract(completion))
    return '' if number is None else str(number)

  def verify(self, example: base.Example, completion: str) -> bool:
    """Returns whether the number in the completion is the gold one: whole numbers exactly, others within TOLERANCE."""
    answer = self.extract(completion)
    gold = read_number(example.answer)
    if not answer or gold is None:
      return False
    number = Fraction(answer)
    if number.denominator == gold.denominator == 1:
      return number == gold
    return abs(number - gold) <= TOLERANCE * max(abs(number), abs(gold))

  def read(self, source: str) -> list[base.Example]:
    """Returns the questions of a source."""
    fields, convert = COLUMNS[self.dataset]
    examples = []
    for number, row in enumerate(sources.columns(source, sources.read_source(source), fields), 1):
      question, gold, solution = convert(*row)
      match = _NUMBER.fullmatch(gold.strip())
      value = match and _value(match)
      if value is None:
        raise ValueError(f'{source}: the answer {gold.strip()!r} in row {number} is not a number; is it {self.dataset}?')
      answer = str(value) if value.denominator == 1 else gold.strip().replace(',', '')
      examples.append(base.make_example(self.name, question, answer, solution=solution))
    return examples
