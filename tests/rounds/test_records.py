"""What is written is read back, and so is what earlier versions wrote."""

from imm_jax.rounds.records import Answer, RoundSummary, Sample

SAMPLE = Sample(
  question_id='sum/0', question='1+1=', gold='2', sample_index=3, text='2', tokens=[2, 0], prompt_tokens=[1, 10, 1, 12],
  logprob=-0.5, entropy=0.25, finish_reason='stop', right=True, reason='',
)  # fmt: skip


def test_a_sample_is_what_its_line_says():
  line = SAMPLE.to_json()
  assert Sample.from_json(line) == SAMPLE and line['accepted'] and 'real' not in line
  assert SAMPLE.task == 'sum'
  del line['prompt_tokens']  # an earlier version had none
  assert Sample.from_json(line).prompt_tokens == []


def test_an_answer_is_what_its_line_says():
  answer = Answer('merged', 'sum', 'sum/0', '1+1=', '3', '2', right=False)
  assert Answer.from_json(answer.to_json()) == answer


def test_a_summary_is_what_its_row_says():
  summary = RoundSummary(1, sample={'num_samples': 8}, id={'sum': {'accuracy': 0.5}})
  row = summary.to_json()
  assert RoundSummary.from_json(row | {'analysis': {}}) == summary
  assert 'tuned_id' not in row and row['round'] == 1 and row['versions']['imm_jax']


def test_a_summary_is_flat_metrics_by_phase_and_task():
  summary = RoundSummary(1)
  with summary.phase('merge'):
    pass
  summary.id = {'sum': {'accuracy': 0.5, 'pass@4': 0.75, 'low': 0.1}}
  summary.tuned_ood = {'max': {'accuracy': 0.25}}
  summary.sample = {'num_samples': 8}
  summary.merge = {'method': 'linear', 'alpha': 0.5}
  assert summary.scalars() == {
    'eval/sum/accuracy': 0.5, 'eval/sum/pass@4': 0.75, 'eval_tuned/max/accuracy': 0.25, 'sample/num_samples': 8,
    'merge/alpha': 0.5, 'merge/secs': summary.secs['merge'],
  }  # fmt: skip
