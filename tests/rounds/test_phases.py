"""The row of a round, and samples; the phases are tested through the rounds, in test_imm.py."""

import jax
import pytest

from imm_jax import sharding
from imm_jax.rounds import experiment, loop, phases
from tests.rounds.test_loop import tiny


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


def sample(exp):
  mesh = sharding.make_mesh()
  with jax.set_mesh(mesh):
    lm = loop.random_lm(exp, mesh)
    return phases.sample(exp, lm, lm, 1, jax.random.key(0), lambda name, compute: compute())


@pytest.mark.parametrize('task', ['id.sum', 'ood.max'])
def test_a_question_that_does_not_fit_ends_a_run_before_it_computes_anything(task, tmp_path):
  config = tiny(**{f'tasks.{task}.num_shots': 10, f'tasks.{task}.max_new_tokens': 5})  # 10 * 6 + 4 + 5 > 64 tokens
  name = task.partition('.')[2]
  with pytest.raises(ValueError, match=rf'^question {name}/\w+: its prompt has 64 tokens: with 5 new ones it exceeds'):
    loop.run(config, str(tmp_path / 'run'))
  assert not list(tmp_path.glob('run/rounds/*/*'))


def test_a_teachers_context_and_the_questions_that_only_a_search_asks(tmp_path):
  path = str(tmp_path / 'teacher')
  exp = experiment.resolve(tiny(**{'model.random.max_length': 8}))
  mesh = sharding.make_mesh()
  loop.random_lm(exp, mesh).save(path)
  config = tiny(**{'synthesize.teacher': path, 'tasks.id.sum.num_shots': 1})
  config['tasks']['probe'] = {'long': config['tasks']['id']['sum'] | {'num_shots': 10, 'seed': 1, 'max_new_tokens': 9}}
  exp = experiment.resolve(config)
  lm = loop.random_lm(exp, mesh)
  with pytest.raises(ValueError, match=r'^question sum/\w+: its prompt has 10 tokens: with 2 new ones it exceeds .* 8$'):
    phases.check_lengths(exp, lm)
  config['synthesize']['teacher'] = ''
  phases.check_lengths(experiment.resolve(config), lm)


def test_nothing_is_learned_from_questions_that_any_test_asks():
  config = tiny(**{'sampler.num_samples_per_prompt': 1})
  config['tasks']['ood']['sum_again'] = config['tasks']['id']['sum'] | {'seed': 1, 'test_size': 50}  # the same 100 questions
  exp = experiment.resolve(config)
  train, again = exp.id_tasks['sum'].train, exp.ood_tasks['sum_again'].test
  questions = [record['question'] for record in sample(exp)]
  assert questions == [e.question for e in train if e.question not in {e.question for e in again}]
  assert 0 < len(questions) < len(train)


def test_greedy_samples_of_a_question_are_alike():
  records = sample(experiment.resolve(tiny(**{'sampler.temperature': 0.0, 'sampler.num_samples_per_prompt': 3})))
  assert len(records) == 3 * 80
  sampled = [[record[key] for key in ('question_id', 'text', 'tokens', 'logprob')] for record in records]
  assert all(sampled[i] == sampled[i + 1] == sampled[i + 2] for i in range(0, len(sampled), 3))
