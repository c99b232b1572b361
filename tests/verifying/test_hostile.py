"""What no text may do to any verifier: make it raise, hang or say right."""

from imm_jax.verifying import worker
import pytest
from tests.verifying.judging import data_set, NEITHER, verdicts

TEXTS = {
  'empty': '',
  'a megabyte of one digit': '1' * 1_000_000,
  'a fraction of a megabyte': '1/' + '1' * 1_000_000,
  'commas': '1,' * 500_000 + 'x',
  'thousands': '1,111' * 200_000 + '٣',
  'foreign digits': '٣３³',
  'surrogates and nulls': '\x00\ud800\udfff',
  'backslashes': '\\' * 1_000_000,
  'open boxes': '\\boxed{' * 100_000,
  'nested braces': 'The answer is ' + '{' * 900,
  'nested roots': '\\boxed{' + '\\sqrt{' * 120 + '}' * 121,
  'markers': 'answer is' * 100_000,
  'equal signs': 'the answer is ' + '= ' * 500_000,
  'dollars': '$' * 1_000_000,
  'marks': '<<' * 500_000,
  'spaces': ' ' * 1_000_000 + 'x',
  'lines': '\n' * 1_000_000,
  'a tower of powers': '\\boxed{9^{9^{9^{9^{9}}}}}',
  'factorials': '\\boxed{((99999!)!)!}',
  'a sum without end': '\\boxed{\\sum_{n=1}^{10^{12}} \\frac{1}{n^{n}}}',
  'an exponent': '1e999999999',
  'a small exponent': '1e-999999999',
  'a division by zero': '1/0',
  'not a number': 'nan',
  'infinity': '\\boxed{\\infty}',
  'an emoji': '\N{PILE OF POO}' * 100_000,
  'right to left': '\u202e24 si rewsna eht',
  'format strings': '%s{0}{question}%n' * 1000,
  'code for a shell': '$(rm -rf .); `reboot`',
  'an answer behind spaces': 'answer' + ' ' * 19_000 + 'x',
  'sentences of nothing': 'The answer is 1 ' + '. ' * 9_900 + 'The answer is',
  'formulas that open': '\\boxed{' + '\\(' * 9_000 + '}',
  'denied boxes': 'not \\boxed{41} ' * 1_500,
  'code for sympy': '\\boxed{__import__("os").abort()}',
}


@pytest.mark.parametrize('dataset', ['gsm8k', 'bbh', 'aqua', 'math'])
@pytest.mark.parametrize('name', TEXTS)
def test_hostile_texts_are_wrong(dataset, name, monkeypatch):
  monkeypatch.setattr(worker, 'SECS', 1.0)
  gold, others = {'gsm8k': ('42', {}), 'bbh': ('yes', {}), 'math': ('42', {})}.get(dataset, ('B', {'options': ('7', '8')}))
  task = data_set(dataset, stop=())
  assert verdicts(dataset, gold, TEXTS[name], **others) == NEITHER
  assert isinstance(task.extract(TEXTS[name]), str)
