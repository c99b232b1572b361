"""Runs side by side: pairs by question, intervals that hold what they should, the front, and which runs are one arm."""

import json
import random

from imm_jax.evaluate import wilson
from imm_jax.reports import compare, statistics
from imm_jax.reports.compare import Arm
from imm_jax.rounds.records import BASE, Sample, State
from imm_jax.rounds.workdir import Workdir
import numpy as np
import pytest

TASKS = {'id': {'sum': 30}, 'ood': {'max': 40, 'min': 20}}  # and how many questions
CONFIG = {
  'seed': 0,
  'num_rounds': 2,
  'model': {'path': 'models/small'},
  'synthesize': {'teacher': ''},
  'merge': {'method': 'linear', 'alpha': 0.5},
}


def make_run(
  path, seed=0, num_rounds=2, text='1+1=', tasks=TASKS, tuned=True, shuffled=False, analysis=None, nll_nats=0, **changes
):
  """Makes the workdir of a run whose answers are drawn by the seed; `text` is whatever a model or the data wrote."""
  workdir, rng = Workdir(path), random.Random(seed)
  workdir.open(CONFIG | {'seed': seed, 'num_rounds': num_rounds} | changes)
  for round_ in range(num_rounds + 1):
    row, records = {'round': round_, 'secs': {'sample': 2.0, 'evaluate': 1.0}}, []
    row |= {'versions': {'jax': '1'}, 'devices': '1 x cpu'}
    for which in ('tuned', 'merged') if tuned and round_ else ('merged',):
      if nll_nats:
        row['tuned_text' if which == 'tuned' else 'text'] = {'nll_nats': nll_nats + 0.001 * round_}
      for domain, sizes in tasks.items():
        results = row['tuned_' + domain if which == 'tuned' else domain] = {}
        for task, n in sizes.items():
          right = [rng.random() < 0.5 for _ in range(n)]
          low, high = wilson(sum(right), n)
          results[task] = {'accuracy': sum(right) / n, 'low': low, 'high': high, 'n': n, 'guess': 0.2}
          fixed = {'params': which, 'task': task, 'question': text, 'gold': text, 'answer': text}
          records += [fixed | {'id': f'{task}/{i}', 'right': ok} for i, ok in enumerate(right)]
    if shuffled:
      rng.shuffle(records)
    if round_:
      samples = [
        Sample(
          question_id='sum/0', question=text, gold=text, sample_index=i, text=text, tokens=[1, 2], prompt_tokens=[3],
          logprob=-0.5, entropy=0.5, finish_reason='stop', right=reason != 'wrong', reason=reason,
        )
        for i, reason in enumerate(('', 'wrong', 'wrong', 'wrong', 'truncated'))
      ]  # fmt: skip
      workdir.write_lines(round_, 'samples.jsonl', [sample.to_json() for sample in samples])
      row['sample'] = {'num_samples': 5, 'right_rate': 0.4, 'acceptance_rate': 0.2, 'num_accepted': 1}
      row['finetune'] = {'steps': 3, 'tokens': 12, 'loss_nats': 0.25}
      row['merge'] = {'method': 'linear', 'alpha': 0.5, 'drift_norm': 1e-3}
    workdir.write_lines(round_, 'evaluations.jsonl', records)
    workdir.finish(row)
    if analysis:
      found = analysis if round_ else {'importance': {'nll_rise': [2.0, 1.0]}}
      (path / 'rounds' / f'{round_:04d}' / 'analysis.json').write_text(json.dumps(found))
  return str(path)


@pytest.fixture
def arm(tmp_path):
  return Arm('a', [compare.read(make_run(tmp_path / 'run'))])


def test_one_tasks_interval_is_wilsons_and_a_mean_is_narrower(arm):
  row = arm.runs[0].rows[1].ood
  single = [arm.accuracy(State(1, 'merged'), 'ood', [task]) for task in row]
  for interval, result in zip(single, row.values(), strict=True):
    np.testing.assert_allclose(interval, [result['accuracy'], result['low'], result['high']])
  both = arm.accuracy(State(1, 'merged'), 'ood', list(row))
  np.testing.assert_allclose(both.mean, np.mean([result['accuracy'] for result in row.values()]))
  assert both.high - both.low < min(interval.high - interval.low for interval in single)


def test_an_arms_accuracy_is_the_mean_of_its_runs(tmp_path):
  runs = [compare.read(make_run(tmp_path / str(seed), seed)) for seed in range(3)]
  means = [Arm('', [run]).accuracy(State(2, 'tuned'), 'ood', ['max', 'min']).mean for run in runs]
  np.testing.assert_allclose(Arm('', runs).accuracy(State(2, 'tuned'), 'ood', ['max', 'min']).mean, np.mean(means))


def test_what_is_won_less_what_is_lost_is_the_change(arm):
  for state in arm.states:
    for domain, tasks in TASKS.items():
      won, lost = arm.transitions(state, list(tasks))
      change = arm.accuracy(state, domain, list(tasks)).mean - arm.accuracy(BASE, domain, list(tasks)).mean
      np.testing.assert_allclose(won - lost, change, atol=1e-12)
      difference = compare.difference((arm, state), (arm, BASE), list(tasks))
      np.testing.assert_allclose(difference.mean, change, atol=1e-6)
      assert difference.low <= difference.mean <= difference.high
  assert arm.transitions(BASE, ['sum']) == (0, 0)


def test_questions_are_paired_by_id(tmp_path):
  one, other = (Arm('', [compare.read(make_run(tmp_path / str(s), shuffled=s))]) for s in (False, True))
  assert compare.difference((one, BASE), (other, BASE), ['sum']) == (0, 0, 0)
  fewer = Arm('', [compare.read(make_run(tmp_path / 'fewer', tasks={'id': {'sum': 10}, 'ood': {}}))])
  assert compare.difference((one, BASE), (fewer, BASE), ['sum']).mean == 0  # the same draws, on the first 10


def test_runs_are_paired_by_their_seeds(tmp_path):
  a, b = ({seed: compare.read(make_run(tmp_path / f'{name}{seed}', seed)) for seed in range(4)} for name in 'ab')

  def difference(of_a, of_b):
    one, other = Arm('', [a[seed] for seed in of_a]), Arm('', [b[seed] for seed in of_b])
    return compare.difference((one, State(2, 'tuned')), (other, State(2, 'merged')), ['max', 'min'])

  assert difference([0, 1, 2], [1, 3, 2]) == difference([2, 1], [1, 2])
  alone = difference([0, 1], [2, 3])  # no seed in both: means over runs
  np.testing.assert_allclose(alone.mean, np.mean([difference([0], [2]).mean, difference([1], [3]).mean]))


def test_a_run_is_no_second_seed(tmp_path):
  path = make_run(tmp_path / 'imm')
  with pytest.raises(ValueError, match='one config and seed; report them one by one'):
    compare.group([compare.read(path), compare.read(path)])


def test_arms_are_a_table_of_changes_over_their_seeds(tmp_path):
  paths = [make_run(tmp_path / f'imm/seed{seed}', seed) for seed in range(2)]
  paths.append(make_run(tmp_path / 'vanilla/seed0', merge={'alpha': 1.0}))
  arms = compare.group([compare.read(path) for path in paths])
  lines = [[cell.strip() for cell in line.strip('|').split('|')] for line in compare.table(arms).splitlines()]
  assert lines[0] == ['arm', 'ID', 'OOD', 'drift', 'seeds'] and lines[1] == ['---'] * 5
  accuracies = [[run.rows[i].id['sum']['accuracy'] for i in (0, -1)] for run in arms[0].runs]
  assert lines[2][1] == f'{50 * sum(before for before, _ in accuracies):.1f}' and lines[2][4] == '2'
  mean, low, high = (100 * x for x in compare.difference((arms[0], arms[0].states[-1]), (arms[0], BASE), ['sum']))
  assert lines[3][:2] == ['imm, points', f'{mean:+.1f} [{low:+.1f}, {high:+.1f}]'] and lines[3][3:] == ['1.0e-03', '2']
  assert lines[4][0] == 'vanilla, points' and lines[4][4] == '1'


def test_a_measured_text_is_a_column_of_the_table(tmp_path):
  arms = compare.group([compare.read(make_run(tmp_path / 'imm', nll_nats=3.25))])
  lines = [[cell.strip() for cell in line.strip('|').split('|')] for line in compare.table(arms).splitlines()]
  assert [lines[i][3] for i in (0, 2, 3)] == ['text', '3.250 nats', '+0.002']


def answers(rng, shape, share=0.5):
  return (rng.random(shape) < share).astype(np.float32)


def test_bootstrap_of_no_difference_is_0_and_of_the_largest_1():
  np.testing.assert_array_equal(statistics.paired_bootstrap([np.zeros((3, 50)), np.zeros((3, 20))]), (0, 0, 0))
  np.testing.assert_allclose(statistics.paired_bootstrap([np.ones((3, 50)), np.ones((3, 20))]), (1, 1, 1))


def test_bootstrap_agrees_with_the_normal_approximation_and_is_antisymmetric():
  rng = np.random.default_rng(0)
  x = answers(rng, (1, 900), 0.6) - answers(rng, (1, 900), 0.5)
  found, spread = statistics.paired_bootstrap([x]), 1.96 * np.std(x) / np.sqrt(900)
  np.testing.assert_allclose(found, (np.mean(x), np.mean(x) - spread, np.mean(x) + spread), atol=0.15 * spread)
  mirrored = statistics.paired_bootstrap([-x])
  np.testing.assert_allclose(found, (-mirrored.mean, -mirrored.high, -mirrored.low), atol=1e-6)


def test_pairing_makes_the_interval_narrower():
  rng = np.random.default_rng(0)
  a = answers(rng, (1, 300))
  b = np.where(rng.random((1, 300)) < 0.05, 1 - a, a)  # as a, but for 1 in 20
  paired, apart = (statistics.paired_bootstrap([a - x]) for x in (b, rng.permutation(b, axis=1)))
  assert paired.high - paired.low < 0.5 * (apart.high - apart.low)


@pytest.mark.parametrize('num_seeds', [2, 3, 5, 10])
def test_bootstrap_of_few_seeds_holds_the_truth_as_often_as_it_says(num_seeds):
  rng = np.random.default_rng(0)
  true, num, found = 0.1, 400, 0
  for _ in range(num):
    seeds = true + 0.1 * rng.standard_normal((num_seeds, 1))  # and hardly any noise of questions
    interval = statistics.paired_bootstrap([seeds + 0.01 * rng.standard_normal((1, 50))])
    found += interval.low <= true <= interval.high
  assert 0.93 < found / num < 0.99


@pytest.mark.parametrize('seed', range(20))
def test_the_front_is_what_nothing_beats(seed):
  rng = random.Random(seed)
  points = [(rng.randrange(6), rng.randrange(6)) for _ in range(rng.randrange(1, 20))]
  front = statistics.pareto(points)

  def beats(p, q):
    return p[0] >= q[0] and p[1] >= q[1] and p != q

  assert set(front) == {p for p in points if not any(beats(q, p) for q in points)}
  assert front == sorted(front)


def test_runs_that_differ_by_their_seed_are_one_arm(tmp_path):
  linear, dare = CONFIG['merge'], {'method': 'dare', 'alpha': 0.5}
  paths = [tmp_path / name for name in ('imm/seed1', 'imm/seed0', 'dare-0', 'dare-1', 'alone')]
  for path, seed, merge in zip(paths, (1, 0, 0, 1, 0), (linear, linear, dare, dare, linear | {'alpha': 1.0}), strict=True):
    make_run(path, seed, merge=merge)
  arms = compare.group([compare.read(str(path)) for path in paths])
  assert [(arm.name, [run.config['seed'] for run in arm.runs]) for arm in arms] == [
    ('imm', [0, 1]), ('dare', [0, 1]), ('alone', [0]),
  ]  # fmt: skip


def test_each_seed_of_an_arm_may_have_models_of_its_own(tmp_path):
  for arm, merge in (('imm', {'alpha': 0.5}), ('vanilla', {'alpha': 1.0})):
    for seed in range(2):
      model = {'path': f'runs/base/seed{seed}@1', 'random': {'seed': seed, 'num_layers': 2}}
      teacher = {'teacher': f'runs/vanilla/seed{seed}@4'}
      make_run(tmp_path / f'{arm}/seed{seed}', seed, merge=merge, model=model, synthesize=teacher)
  paths = [tmp_path / f'{arm}/seed{seed}' for arm in ('imm', 'vanilla') for seed in range(2)]
  arms = compare.group([compare.read(str(path)) for path in paths])
  assert [(arm.name, len(arm.runs)) for arm in arms] == [('imm', 2), ('vanilla', 2)]


def test_arms_that_their_names_do_not_tell_apart_are_called_as_their_runs(tmp_path):
  paths = [make_run(tmp_path / f'alpha-{alpha}', seed=alpha, merge={'alpha': alpha}) for alpha in (0, 1)]
  assert [arm.name for arm in compare.group([compare.read(path) for path in paths])] == ['alpha-0', 'alpha-1']
  assert [arm.name for arm in compare.group([compare.read(paths[0])])] == ['alpha']


def test_an_arm_keeps_a_number_that_is_no_seed(tmp_path):
  paths = [make_run(tmp_path / f'imm_{n}/seed{seed}', seed, merge={'alpha': n / 100}) for n in (25, 70) for seed in (0, 1)]
  assert [arm.name for arm in compare.group([compare.read(path) for path in paths])] == ['imm_25', 'imm_70']
  path = make_run(tmp_path / 'real_10', merge={'alpha': 0.1})
  assert [arm.name for arm in compare.group([compare.read(path), compare.read(paths[0])])] == ['real_10', 'imm_25']


def test_runs_on_different_data_are_different_arms(tmp_path):
  paths = [make_run(tmp_path / f'imm/seed{n}', n, evaluate={'text_source': f'data/seed{n}.txt'}) for n in (1, 2)]
  assert len(compare.group([compare.read(path) for path in paths])) == 2


def test_an_arm_is_as_long_as_its_shortest_run(tmp_path):
  runs = [compare.read(make_run(tmp_path / f'seed{num}', num, num_rounds=num)) for num in (3, 1)]
  [arm] = compare.group(runs)
  assert arm.states == [BASE, State(1, 'tuned'), State(1, 'merged')]


def test_mistakes_are_named(tmp_path):
  run = compare.read(make_run(tmp_path / 'run'))
  other = compare.read(make_run(tmp_path / 'other', tasks={'id': {'product': 5}, 'ood': {}}))
  with pytest.raises(ValueError, match='run, .*other: have no task in domain in common'):
    compare.shared_tasks([run, other])
  with pytest.raises(ValueError, match=f'{tmp_path}: holds no round that is done'):
    compare.read(str(tmp_path))
  with pytest.raises(ValueError, match='nowhere: holds no round'):
    compare.read(str(tmp_path / 'nowhere'))
  file = tmp_path / 'run' / 'rounds' / '0001' / 'evaluations.jsonl'
  file.write_text(file.read_text()[:-9])
  with pytest.raises(ValueError, match=f'{file}: is damaged'):
    compare.read(str(tmp_path / 'run'))
