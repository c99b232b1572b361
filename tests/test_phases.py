"""The row of a round; the phases themselves are tested through the rounds, in test_imm.py."""

from imm_jax import phases


def test_a_row_is_flat_metrics_by_phase_and_task():
  entry = phases.Entry(1)
  with entry.phase('merge'):
    pass
  entry.values |= {
    'id': {'sum': {'accuracy': 0.5, 'pass@4': 0.75, 'low': 0.1}},
    'tuned_ood': {'max': {'accuracy': 0.25}},
    'sample': {'num_samples': 8},
    'merge': {'method': 'linear', 'alpha': 0.5},
  }
  assert entry.scalars() == {
    'eval/sum/accuracy': 0.5, 'eval/sum/pass@4': 0.75, 'eval_tuned/max/accuracy': 0.25, 'sample/num_samples': 8,
    'merge/alpha': 0.5, 'merge/secs': entry.values['secs']['merge'],
  }  # fmt: skip
