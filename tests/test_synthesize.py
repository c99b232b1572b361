"""What is accepted, and the reason for everything that is not."""

import pytest

from imm_jax import synthesize
from imm_jax.sampler import Completion
from imm_jax.tasks import Example

EXAMPLES = [Example('t/a', '1+1', '2'), Example('t/b', '2+2', '4')]


def completion(text, finish_reason='stop', num_tokens=2):
  return Completion(text, list(range(num_tokens)), [-0.5] * num_tokens, finish_reason)


def accept(*samples, cap=2, max_length=10):
  return synthesize.accept(
    EXAMPLES[: len(samples)],
    samples,
    lambda example, text: example.answer in text,
    prompts=[[1, 2, 3]] * len(samples),
    max_length=max_length,
    max_accepted_per_question=cap,
  )


def test_each_completion_has_a_verdict_and_a_reason():
  first = [
    completion('2'), completion(' 2 '), completion('3'), completion('it is 2', 'length'), completion('so 2'),
    completion('again 2'), completion('2'),
  ]  # fmt: skip
  records = accept(first, [completion('4', num_tokens=9), completion('is 4')])
  reasons = ['', 'duplicate', 'wrong', 'truncated', '', 'enough', 'duplicate', 'too_long', '']
  assert [record['reason'] for record in records] == reasons
  assert [record['accepted'] for record in records] == [not reason for reason in reasons]
  assert [record['right'] for record in records] == [reason != 'wrong' for reason in reasons]
  assert [(record['question_id'], record['sample_index']) for record in records][:1] == [('t/a', 0)]
  assert records[0]['logprob'] == -1.0 and records[0]['tokens'] == [0, 1]


def test_a_question_gives_no_more_than_its_share():
  records = accept([completion(f'{i} 2') for i in range(5)], cap=3)
  assert sum(record['accepted'] for record in records) == 3


def test_the_summary_counts():
  records = accept([completion('2'), completion('2'), completion('3'), completion('2x')], cap=1)
  assert synthesize.summary(records) == {
    'num_samples': 4, 'right_rate': 0.75, 'acceptance_rate': 0.25, 'num_accepted': 1
  }  # fmt: skip


def test_nothing_accepted_is_an_error_that_says_what_to_do():
  with pytest.raises(ValueError, match='none of 1 completions was accepted.*take an easier task, more questions'):
    synthesize.summary(accept([completion('3')]))
