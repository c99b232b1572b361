"""What is accepted, and the reason for everything that is not."""

import dataclasses

from imm_jax.formats.tokenizer import Tokenizer
from imm_jax.rounds import synthesize
from imm_jax.rounds.experiment import make_task
from imm_jax.sampling.sampler import Completion
from imm_jax.tasks import catalog, Example
from imm_jax.tasks.synthetic import CHARACTERS, Synthetic
import numpy as np
import pytest

EXAMPLES = [Example('t/a', '1+1', '2'), Example('t/b', '2+2', '4')]


def completion(text, finish_reason='stop', num_tokens=2):
  return Completion(text, list(range(num_tokens)), [-0.5] * num_tokens, [0.25] * num_tokens, finish_reason)


def settings(max_accepted=2, deduplicate=True):
  return synthesize.SynthesizeConfig(
    num_questions=0, max_accepted_per_question=max_accepted, questions_per_chunk=1, deduplicate=deduplicate,
    data='replace', teacher='', real_fraction=0.0,
  )  # fmt: skip


def accept(*samples, cap=2, max_length=10):
  return synthesize.accept(
    EXAMPLES[: len(samples)],
    samples,
    [[example.answer in sample.text for sample in row] for example, row in zip(EXAMPLES, samples, strict=False)],
    prompts=[[1, 2, 3]] * len(samples),
    config=settings(cap),
    max_length=max_length,
  )


def test_each_completion_has_a_verdict_and_a_reason():
  first = [
    completion('2'), completion(' 2 '), completion('3'), completion('it is 2', 'length'), completion('so 2'),
    completion('again 2'), completion('2'),
  ]  # fmt: skip
  records = accept(first, [completion('4', num_tokens=9), completion('is 4')])
  reasons = ['', 'duplicate', 'wrong', 'truncated', '', 'enough', 'duplicate', 'too_long', '']
  assert [record.reason for record in records] == reasons
  assert [record.accepted for record in records] == [not reason for reason in reasons]
  assert [record.right for record in records] == [reason != 'wrong' for reason in reasons]
  assert [(record.question_id, record.sample_index) for record in records][:1] == [('t/a', 0)]
  assert records[0].logprob == -1.0 and records[0].entropy == 0.5 and records[0].tokens == [0, 1]


def test_a_question_gives_no_more_than_its_share():
  records = accept([completion(f'{i} 2') for i in range(5)], cap=3)
  assert sum(record.accepted for record in records) == 3


def test_copies_are_kept_when_asked_up_to_the_share():
  config = settings(3, deduplicate=False)
  samples = [[completion('2')] * 4]
  records = synthesize.accept(EXAMPLES[:1], samples, [[True] * 4], prompts=[[1]], config=config, max_length=9)
  assert [record.reason for record in records] == ['', '', '', 'enough']


def test_the_summary_counts():
  records = accept([completion('2'), completion('2'), completion('3'), completion('2x')], cap=1)
  assert synthesize.summary(records) == {
    'num_samples': 4, 'right_rate': 0.75, 'acceptance_rate': 0.25, 'num_accepted': 1
  }  # fmt: skip


def test_nothing_accepted_is_an_error_that_says_what_to_do():
  with pytest.raises(ValueError, match=r'none of 1 completions was accepted \(1 wrong\).*more questions'):
    synthesize.summary(accept([completion('3')]))


def test_a_solution_has_the_tokens_that_a_sample_would_have():
  tokenizer, task = Tokenizer.from_characters(CHARACTERS), Synthetic('sum')
  example = task.train[0]
  real = synthesize.solution(task, example, tokenizer)
  assert real == Completion(example.answer, tokenizer.encode(f'{example.answer}\n'), [], [], 'stop')
  assert task.verify(example, real.text)


def test_a_solution_ends_as_its_format_does():
  tokenizer = Tokenizer.from_characters('\n .ST7aehinorsw')
  end = tokenizer.end_id
  example = Example('t/a', 'How?', '7', solution='So 7')
  plain = make_task('t', catalog.spec('gsm8k', train_source='none.json'))
  worked = ' So 7\nThe answer is 7.'
  for task, text, ending in (
    (plain, worked, tokenizer.encode('\n\n')),
    (dataclasses.replace(plain, stop=('.\n',)), worked[:-1], tokenizer.encode('.\n')),
    (dataclasses.replace(plain, format='chat', stop=('\n\n',)), worked[1:], [end]),
    (dataclasses.replace(plain, stop=()), worked, [end]),
  ):
    real = synthesize.solution(task, example, tokenizer)
    assert (real.text, real.tokens) == (text, tokenizer.encode(text) + ending)


def test_a_solution_in_a_chat_ends_as_the_turns_of_its_template_do():
  tokenizer = Tokenizer.from_characters('\n .ST7aehinorsw')
  tokenizer.turn_end = 3  # what the template writes behind an answer
  task = dataclasses.replace(make_task('t', catalog.spec('gsm8k', train_source='none.json')), format='chat', stop=())
  real = synthesize.solution(task, Example('t/a', 'How?', '7', solution='So 7'), tokenizer)
  assert real.tokens == [*tokenizer.encode('So 7\nThe answer is 7.'), 3]


def records_of(num, right=True):
  samples = [[completion(example.answer if right else '?')] for example in (EXAMPLES * num)[:num]]
  examples = [dataclasses.replace(example, id=f't/{i}') for i, example in enumerate((EXAMPLES * num)[:num])]
  return synthesize.accept(examples, samples, [[right]] * num, prompts=[[1]] * num, config=settings(1), max_length=9)


@pytest.mark.parametrize('fraction', [0.1, 0.25, 0.5, 0.9, 1])
def test_real_solutions_take_the_place_of_their_share_of_samples(fraction):
  sampled, solutions = records_of(20) + records_of(3, right=False), records_of(30)
  mixed = synthesize.mix(sampled if fraction < 1 else [], solutions, fraction, np.random.default_rng(0))
  real = [record for record in mixed if record.real]
  accepted = [record for record in mixed if record.accepted]
  assert len(accepted) == (20 if fraction < 1 else 30)
  assert len(real) == round(fraction * len(accepted)) == len({record.question_id for record in real})
  assert all(record.accepted and record.logprob is None and record.entropy is None for record in real)
  assert len([r for r in mixed if r.reason == 'replaced']) == (len(real) if fraction < 1 else 0)
  assert mixed == synthesize.mix(sampled if fraction < 1 else [], solutions, fraction, np.random.default_rng(0))
  summary = synthesize.summary(mixed)
  assert (summary['num_accepted'], summary['num_real']) == (len(accepted), len(real))
  assert summary['num_samples'] == (23 if fraction < 1 else 0)
  assert summary.get('acceptance_rate') == (20 / 23 if fraction < 1 else None)


def test_more_real_ones_than_questions_come_again():
  mixed = synthesize.mix(records_of(8), records_of(2), 0.75, np.random.default_rng(0))
  assert sorted(record.question_id for record in mixed if record.real) == ['t/0'] * 3 + ['t/1'] * 3


def test_no_solution_to_learn_from_is_an_error():
  with pytest.raises(ValueError, match='none of 2 solutions is right and fits a row'):
    synthesize.mix(records_of(8), records_of(2, right=False), 0.5, np.random.default_rng(0))
