"""The phases of a round; more of them is tested through the rounds, in test_loop.py."""

from imm_jax import processes, sharding
from imm_jax.rounds import experiment, loading, loop
from imm_jax.rounds import round as phases
from imm_jax.rounds.run import Run
import pytest
from tests.rounds.test_loop import assert_same_run, read_lines, tiny


def sample(config, path):
  """Returns the samples of round 1, and the experiment."""
  with Run.open(config, str(path)) as run:
    state = run.resume()
    for round in run.rounds():
      if round.number == 1:
        return phases.sample(run, round, state), run.exp
      phases.evaluate(run, round, state.params)
      run.commit(round, state)


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
  loading.random_lm(exp, mesh).save(path)
  config = tiny(**{'synthesize.teacher': path, 'tasks.id.sum.num_shots': 1})
  config['tasks']['probe'] = {'long': config['tasks']['id']['sum'] | {'num_shots': 10, 'seed': 1, 'max_new_tokens': 9}}
  exp = experiment.resolve(config)
  lm = loading.random_lm(exp, mesh)
  with pytest.raises(ValueError, match=r'^question sum/\w+: its prompt has 10 tokens: with 2 new ones it exceeds .* 8$'):
    loading.check_lengths(exp, lm)
  config['synthesize']['teacher'] = ''
  loading.check_lengths(experiment.resolve(config), lm)


def test_nothing_is_learned_from_questions_that_any_test_asks(tmp_path):
  config = tiny(**{'sampler.num_samples_per_prompt': 1})
  config['tasks']['ood']['sum_again'] = config['tasks']['id']['sum'] | {'seed': 1, 'test_size': 50}  # the same 100 questions
  config['merge']['alpha'] = 1.0
  with pytest.raises(ValueError, match=r'none of \d+ completions was accepted'):
    sample(config, tmp_path)
  samples = read_lines(tmp_path / 'rounds' / '0001' / 'samples.jsonl')
  with Run.open(config, str(tmp_path)) as run:
    train, again = run.exp.id_tasks['sum'].train, run.exp.ood_tasks['sum_again'].test
  asked = {example.question for example in again}
  questions = [one['question'] for one in samples]
  assert questions == [example.question for example in train if example.question not in asked]
  assert 0 < len(questions) < len(train)


def test_greedy_samples_of_a_question_are_alike(tmp_path):
  settings = {'sampler.temperature': 0.0, 'sampler.num_samples_per_prompt': 3, 'model.random.seed': 1}
  with pytest.raises(ValueError, match='none of 240 completions was accepted'):
    sample(tiny(**settings), tmp_path)
  samples = read_lines(tmp_path / 'rounds' / '0001' / 'samples.jsonl')
  assert len(samples) == 3 * 80
  sampled = [[one[key] for key in ('question_id', 'text', 'tokens', 'logprob')] for one in samples]
  assert all(sampled[i] == sampled[i + 1] == sampled[i + 2] for i in range(0, len(sampled), 3))


TRAINED = {
  'plain': {},
  'adapters': {'finetune.lora_rank': 2, 'finetune.lora_alpha': 4.0},
  'to a drift': {'finetune.max_drift': 0.06, 'merge.alpha': 1.0},
}


@pytest.mark.parametrize('name', TRAINED)
def test_a_run_that_is_stopped_after_any_step_goes_on_to_the_same_bytes(name, tmp_path, monkeypatch):
  """Stops come while it trains, some right after a save, some between two."""
  config = tiny(**TRAINED[name], **{
    'num_rounds': 1, 'finetune.num_epochs': 6, 'finetune.batch_size': 1, 'checkpoint.every_steps': 3,
  })  # fmt: skip
  loop.run(config, str(tmp_path / 'whole'))
  steps = len(read_lines(tmp_path / 'whole' / 'metrics.jsonl')) - 2
  assert steps > 5
  asked, train = 0, phases.train

  def should_stop():
    nonlocal asked
    asked += 1
    return asked % 3 == 0

  def stoppable(*arguments):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(processes, 'should_stop', should_stop)
      return train(*arguments)

  monkeypatch.setattr(phases, 'train', stoppable)
  stops = 0
  while True:
    try:
      loop.run(config, str(tmp_path / 'stopped'))
      break
    except processes.Stopped:
      stops += 1
  assert stops >= steps // 3
  assert_same_run(str(tmp_path / 'whole'), str(tmp_path / 'stopped'))


def test_training_stops_at_the_first_step_that_drifts_as_far_as_it_may(tmp_path):
  """Its steps are those of a run without a limit, up to the first whose drift reaches it."""

  def steps(limit):
    config = tiny(**{
      'num_rounds': 1, 'finetune.num_epochs': 6, 'finetune.batch_size': 1, 'merge.alpha': 1.0,
      'finetune.max_drift': limit,
    })  # fmt: skip
    path = tmp_path / str(limit)
    drift = loop.run(config, str(path))[1]['finetune']['drift_norm']
    return [line for line in read_lines(path / 'metrics.jsonl') if 'step' in line], drift

  whole, _ = steps(1e3)
  drifts = [line['finetune/drift_norm'] for line in whole]
  last = 4
  assert drifts[: last + 1] == sorted(drifts[: last + 1]) and len(drifts) > last + 3
  limited, drift = steps((drifts[last - 1] + drifts[last]) / 2)
  assert limited == whole[: last + 1] and drift == drifts[last]
