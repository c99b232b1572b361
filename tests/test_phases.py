"""The row of a round, and greedy samples; the phases are tested through the rounds, in test_imm.py."""

import jax

from imm_jax import experiment, imm, phases, sharding
from tests.test_imm import tiny


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


def test_greedy_samples_of_a_question_are_alike():
  exp = experiment.resolve(tiny(**{'sampler.temperature': 0.0, 'sampler.num_samples_per_prompt': 3}))
  mesh = sharding.make_mesh()
  with jax.set_mesh(mesh):
    lm = imm.random_lm(exp, mesh)
    records = phases.sample(exp, lm, lm, 1, jax.random.key(0), lambda name, compute: compute())
  assert len(records) == 3 * 80
  sampled = [[record[key] for key in ('question_id', 'text', 'tokens', 'logprob')] for record in records]
  assert all(sampled[i] == sampled[i + 1] == sampled[i + 2] for i in range(0, len(sampled), 3))
