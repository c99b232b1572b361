"""The rounds: what a workdir holds, the method's laws and switches, the same bytes again, and going on after a stop."""

import collections
import functools
import importlib
import json
import os
import shutil

from imm_jax import formats, lm, merging, sharding
from imm_jax.reports import report
from imm_jax.rounds import loop
from imm_jax.rounds.run import Run
from imm_jax.rounds.workdir import Workdir
from imm_jax.tasks.synthetic import CHARACTERS
import jax
import numpy as np
import pytest
from tests.conftest import load_config

pytestmark = pytest.mark.xdist_group('loop')

ROUND_FILES = ('samples.jsonl', 'evaluations.jsonl')


def tiny(**changes):
  """The tiny config, smaller, with keys replaced: tiny(**{'merge.alpha': 0.3})."""
  config = load_config('tiny')
  config.model.random.update({'num_layers': 1, 'embed_dim': 32, 'mlp_dim': 64})
  config.tasks.ood = {'max': config.tasks.ood['max']}
  config.optimizer.learning_rate = 3e-3
  config.sampler.num_slots = 1280  # a round's completions at once: the fewest calls
  with config.ignore_type():
    config.update_from_flattened_dict(changes)
  return config.to_dict()


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A run of two rounds, and its rows."""
  path = str(tmp_path_factory.mktemp('finished') / 'run')
  return path, loop.run(tiny(), path, report.write)


def params_of(path, round_, name='params'):
  source = f'{path}/model'
  like = lm.LM(formats.read_config(source), {}, formats.load_tokenizer(source), sharding.make_mesh())
  return jax.device_get(lm.restore(path, round_, name, like))


def read_lines(path):
  with open(path, encoding='utf-8') as file:
    return [json.loads(line) for line in file]


def write_lines(path, records):
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))


def without_times(value):
  if isinstance(value, dict):
    return {key: without_times(item) for key, item in value.items() if 'secs' not in key}
  return [without_times(item) for item in value] if isinstance(value, list) else value


def assert_same_run(one, two):
  """Same samples and answers byte for byte, same params bit for bit, same metrics but for the times."""
  for round_ in range(len(Workdir(one).finished())):
    for name in ROUND_FILES if round_ else ROUND_FILES[1:]:
      with open(f'{one}/rounds/{round_:04d}/{name}', 'rb') as a, open(f'{two}/rounds/{round_:04d}/{name}', 'rb') as b:
        assert a.read() == b.read()
    jax.tree.map(np.testing.assert_array_equal, params_of(one, round_), params_of(two, round_))
  assert without_times(read_lines(f'{one}/metrics.jsonl')) == without_times(read_lines(f'{two}/metrics.jsonl'))
  with open(f'{one}/summary.json') as a, open(f'{two}/summary.json') as b:
    assert without_times(json.load(a)) == without_times(json.load(b))


def test_the_workdir_holds_what_it_should(finished):
  path, rows = finished
  assert [row['round'] for row in rows] == [0, 1, 2]
  with open(f'{path}/summary.json') as file:
    assert json.load(file) == {'rounds': rows}
  with open(f'{path}/report.html', encoding='utf-8') as file:
    assert file.read() == report.page([path])  # of all rounds
  for row in rows:
    assert {'jax', 'imm_jax', 'python'} <= row['versions'].keys() and row['devices'] == '8 x cpu in 1 processes'
    for domain, task in (('id', 'sum'), ('ood', 'max')):
      result = row[domain][task]
      assert result.keys() == {'accuracy', 'low', 'high', 'n', 'guess'}
      assert result['low'] <= result['accuracy'] <= result['high'] and result['n'] == 20
  for row in rows[1:]:
    assert row['sample'].keys() == {'num_samples', 'right_rate', 'acceptance_rate', 'num_accepted'}
    assert row['finetune'].keys() == {'steps', 'tokens', 'loss_nats', 'drift_norm'}
    assert row['merge']['method'] == 'linear' and row['merge']['alpha'] == 0.5
    assert row['finetune']['drift_norm'] > row['merge']['drift_norm'] > 0
    assert row['tuned_id'].keys() == row['id'].keys() and row['tuned_ood'].keys() == row['ood'].keys()
    assert set(row['secs']) == {'sample', 'finetune', 'evaluate_tuned', 'merge', 'evaluate', 'checkpoint'}


def test_what_is_learned_is_what_was_right_and_sampled(finished):
  path, rows = finished
  records = read_lines(f'{path}/rounds/0001/samples.jsonl')
  assert len(records) == rows[1]['sample']['num_samples'] == 80 * 16
  accepted = [record for record in records if record['accepted']]
  assert len(accepted) == rows[1]['sample']['num_accepted'] == len({record['question_id'] for record in accepted})
  assert all(record['right'] and record['finish_reason'] == 'stop' for record in accepted)
  assert {record['reason'] for record in records if not record['accepted']} >= {'wrong'}
  # Two epochs, a target for each sampled token, the one that stopped it included.
  assert rows[1]['finetune']['tokens'] == 2 * sum(len(record['tokens']) for record in accepted)


def test_fine_tuning_on_real_solutions_samples_nothing(finished, tmp_path):
  path = str(tmp_path / 'run')
  [_, row] = loop.run(tiny(**{'num_rounds': 1, 'synthesize.real_fraction': 1.0, 'synthesize.num_questions': 70}), path)
  assert row['sample'] == {'num_samples': 0, 'num_accepted': 70, 'num_real': 70}
  assert row['finetune']['tokens'] == 2 * 2 * 70  # two epochs of a digit and what ends it
  records = read_lines(f'{path}/rounds/0001/samples.jsonl')
  assert all(record['real'] and record['accepted'] and record['text'] == record['gold'] for record in records)
  # A right sample that the same stop string ended has the same tokens.
  sampled = [record for record in read_lines(f'{finished[0]}/rounds/0001/samples.jsonl') if record['right']]
  newline, real = records[0]['tokens'][-1], {record['question_id']: record['tokens'] for record in records}
  same = [record for record in sampled if record['tokens'][-1] == newline and record['question_id'] in real]
  assert same and all(record['tokens'] == real[record['question_id']] for record in same)


@pytest.mark.slow
def test_accumulated_data_is_of_all_rounds_and_goes_on_to_the_same_bytes(tmp_path):
  whole, half = str(tmp_path / 'whole'), str(tmp_path / 'half')
  rows = loop.run(tiny(**{'synthesize.data': 'accumulate'}), whole)
  accepted = [
    record['tokens']
    for round_ in (1, 2)
    for record in read_lines(f'{whole}/rounds/{round_:04d}/samples.jsonl')
    if record['accepted']
  ]
  assert len(accepted) == rows[1]['sample']['num_accepted'] + rows[2]['sample']['num_accepted']
  assert rows[2]['finetune']['tokens'] == 2 * sum(map(len, accepted))
  for num_rounds in (1, 2):
    loop.run(tiny(**{'synthesize.data': 'accumulate', 'num_rounds': num_rounds}), half)
  assert_same_run(whole, half)


def test_a_teacher_samples_in_every_round(finished, tmp_path):
  path = str(tmp_path / 'run')
  loop.run(tiny(**{'synthesize.teacher': f'{finished[0]}@0', 'merge.alpha': 0.9}), path)
  plain, one, two = (
    {(r['question_id'], *r['tokens']): r['logprob'] for r in read_lines(f'{run}/rounds/{round_:04d}/samples.jsonl')}
    for run, round_ in ((finished[0], 1), (path, 1), (path, 2))
  )
  assert one == plain  # the teacher is the base, as in the first round without
  assert one.keys() != two.keys()  # other draws
  assert one.keys() & two.keys()
  assert all(abs(one[sample] - two[sample]) < 1e-4 for sample in one.keys() & two.keys())  # of the same model


def test_a_teacher_of_another_vocabulary_is_refused_at_once(finished, tmp_path):
  other = tiny(**{'num_rounds': 0, 'model.random.characters': '9876543210' + CHARACTERS.removeprefix('0123456789')})
  loop.run(other, str(tmp_path / 'other'))
  teacher = f'{tmp_path}/other@0'
  with pytest.raises(ValueError, match=f'synthesize.teacher: {teacher}: its tokenizer has another vocabulary: 10 tokens'):
    loop.run(tiny(**{'synthesize.teacher': teacher}), str(tmp_path / 'run'))
  with pytest.raises(ValueError, match='synthesize.teacher: has nothing to sample at real_fraction 1'):
    loop.run(tiny(**{'synthesize.teacher': teacher, 'synthesize.real_fraction': 1.0}), str(tmp_path / 'run'))


STEP = {'schedule': 'step', 'start': 1.0, 'end': 0.5, 'rounds': 2}
ARMS = {
  'vanilla': {'merge.alpha': 1.0},
  'real': {'synthesize.real_fraction': 1.0, 'merge.alpha': 1.0},
  'mixed': {'synthesize.real_fraction': 0.25},
  'dare': {'merge.method': 'dare'},
  'single': {'merge.alpha': STEP},
  'early': {'merge.alpha': 1.0, 'finetune.max_drift': 0.01},
  'accumulate': {'synthesize.data': 'accumulate'},
  'layer_adaptive': {'merge.rule': 'layer_adaptive'},
  'shuffled': {'merge.rule': 'layer_adaptive_shuffled'},
  'search': {'merge.rule': 'search'},
}


@pytest.fixture(scope='module')
def arms(tmp_path_factory):
  """Runs arms of two rounds, each once: arms(name) -> its path, its rows and its config's changes."""

  @functools.cache
  def run(name):
    changes = ARMS[name] | {
      'model.random.num_layers': 2,
      'finetune.num_epochs': 8,
      'finetune.batch_size': 2,
      'evaluate.tuned': False,
    }
    if name == 'search':
      domain = tiny()['tasks']['id']['sum']
      changes |= {
        'tasks.dev': {'diff': domain | {'operation': 'diff'}},
        'tasks.probe': {'min': domain | {'operation': 'min'}},
      }
    path = str(tmp_path_factory.mktemp('arms') / name)
    return path, loop.run(tiny(**changes), path), changes

  return run


@pytest.mark.slow
@pytest.mark.parametrize('name', ['mixed', 'early', 'layer_adaptive', 'search'])
def test_each_arm_goes_on_to_the_same_bytes(arms, name, tmp_path):
  path, _, changes = arms(name)
  half = tmp_path / 'half'
  shutil.copytree(path, half)
  shutil.rmtree(half / 'rounds' / '0002')
  loop.run(tiny(**changes), str(half))
  assert_same_run(path, half)


def test_layer_adaptive_alphas_have_the_drift_of_a_uniform_one(arms):
  _, rows, _ = arms('layer_adaptive')
  for row in rows[1:]:
    merge = row['merge']
    assert len(merge['alpha_by_layer']) == len(merge['importance']) == 2 and merge['alpha'] == 0.5
    assert merge['importance'] == rows[1]['merge']['importance']
    np.testing.assert_allclose(merge['drift_norm'], 0.5 * row['finetune']['drift_norm'], rtol=1e-3)


def test_search_takes_the_best_alpha_that_the_probe_allows(arms):
  _, rows, _ = arms('search')
  for row in rows[1:]:
    merge = row['merge']
    assert {0.0, 0.25, 0.5, 0.75, 1.0} < {alpha for alpha, *_ in merge['trials']}
    allowed = [(dev, -alpha) for alpha, dev, probe in merge['trials'] if probe >= merge['base_probe'] - 1e-9]
    assert merge['alpha'] == -max(allowed)[1]
    assert merge['base_probe'] == rows[1]['merge']['base_probe'] == merge['trials'][0][2]  # alpha 0 is the base


@pytest.mark.slow
def test_an_early_stop_and_a_single_merge_are_at_their_drift(arms):
  _, rows, _ = arms('early')
  _, vanilla, _ = arms('vanilla')
  for row in rows[1:]:
    assert row['finetune']['drift_norm'] >= 0.01
    np.testing.assert_allclose(row['merge']['drift_norm'], row['finetune']['drift_norm'], rtol=1e-6)
  first, second = (row['finetune'] for row in rows[1:])
  assert 0 < first['steps'] < vanilla[1]['finetune']['steps']
  assert second == {'steps': 0, 'tokens': 0, 'loss_nats': None, 'drift_norm': first['drift_norm']}  # as far as it may
  _, single, _ = arms('single')
  assert [row['merge']['alpha'] for row in single[1:]] == [1.0, 0.5]
  for row, share in zip(single[1:], (1, 0.5), strict=True):
    np.testing.assert_allclose(row['merge']['drift_norm'], share * row['finetune']['drift_norm'], rtol=1e-3)


def test_a_share_of_what_is_learned_from_is_real(finished, tmp_path):
  path = str(tmp_path / 'run')
  rows = loop.run(tiny(**{'num_rounds': 1, 'synthesize.real_fraction': 0.5}), path)
  records, plain = (read_lines(f'{run}/rounds/0001/samples.jsonl') for run in (path, finished[0]))
  real = [record for record in records if record.get('real')]
  assert len(real) == round(0.5 * finished[1][1]['sample']['num_accepted'])
  assert rows[1]['sample'] == finished[1][1]['sample'] | {'num_real': len(real)}
  assert [record['tokens'] for record in records[: len(plain)]] == [record['tokens'] for record in plain]


def test_the_same_config_gives_the_same_bytes(finished, tmp_path):
  loop.run(tiny(), str(tmp_path / 'again'))
  assert_same_run(finished[0], tmp_path / 'again')


def test_half_a_run_goes_on_to_the_same_bytes(finished, tmp_path):
  path = str(tmp_path / 'half')
  loop.run(tiny(num_rounds=1), path)
  loop.run(tiny(num_rounds=2), path)
  assert_same_run(finished[0], path)


@pytest.mark.slow
def test_another_mesh_goes_on_from_the_same_bits(tmp_path):
  one, two = {'mesh.fsdp': 8}, {'mesh.fsdp': 2, 'mesh.tensor': 4}
  loop.run(tiny(num_rounds=1, **one), tmp_path)
  before = params_of(tmp_path, 1)
  rows = loop.run(tiny(num_rounds=2, **two), tmp_path)
  assert [row['round'] for row in rows] == [0, 1, 2]
  jax.tree.map(np.testing.assert_array_equal, before, params_of(tmp_path, 1))


@pytest.mark.parametrize('lost', [['metrics.json', 'checkpoint'], ['metrics.json', *ROUND_FILES]])
def test_a_round_that_was_cut_off_is_done_again(finished, tmp_path, lost):
  path = str(tmp_path / 'cut')
  shutil.copytree(finished[0], path)
  for name in lost:
    target = f'{path}/rounds/0002/{name}'
    shutil.rmtree(target) if os.path.isdir(target) else os.remove(target)
  with open(f'{path}/metrics.jsonl', 'a') as file:
    file.write('{"round": 2, "st')
  loop.run(tiny(), path)
  assert_same_run(finished[0], path)


def test_a_finished_run_does_nothing_more(finished):
  path, rows = finished
  before = {entry: os.stat(entry).st_mtime_ns for entry in (f'{path}/rounds', f'{path}/rounds/0002/metrics.json')}
  assert loop.run(tiny(), path) == rows
  assert before == {entry: os.stat(entry).st_mtime_ns for entry in before}


@pytest.mark.slow
def test_the_merge_is_the_methods_and_the_drift_is_its_distance(tmp_path):
  path = str(tmp_path / 'run')
  rows = loop.run(tiny(**{'sample_from': 'tuned', 'merge.alpha': 0.3}), path)
  base = params_of(path, 0)
  for round_ in (1, 2):
    merged, tuned = params_of(path, round_), params_of(path, round_, 'tuned')
    expected = merging.merge('linear', base, [tuned], alpha=0.3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=8 * 2**-24 * 3), merged, expected)
    moved = sum(np.sum((m - b) ** 2, dtype=np.float64) for m, b in zip(*map(jax.tree.leaves, (merged, base)), strict=True))
    size = sum(np.sum(b**2, dtype=np.float64) for b in jax.tree.leaves(base))
    np.testing.assert_allclose(rows[round_]['merge']['drift_norm'], np.sqrt(moved / size), rtol=1e-4)
  loop.run(tiny(**{'sample_from': 'tuned', 'merge.alpha': 0.3, 'num_rounds': 1}), str(tmp_path / 'half'))
  loop.run(tiny(**{'sample_from': 'tuned', 'merge.alpha': 0.3}), str(tmp_path / 'half'))
  assert_same_run(path, tmp_path / 'half')


def test_alpha_0_is_the_base_for_ever(tmp_path):
  path = str(tmp_path / 'run')
  rows = loop.run(tiny(**{'merge.alpha': 0.0}), path)
  jax.tree.map(np.testing.assert_array_equal, params_of(path, 0), params_of(path, 2))
  assert rows[2]['merge']['drift_norm'] == 0
  assert rows[2]['id'] == rows[0]['id']


@pytest.mark.slow
def test_anchors_and_starts_follow_their_laws(tmp_path):
  """With D_1 the same, M_1 is the same whatever anchor and start; M_2 is not."""
  drifts = {}
  for name, changes in {
    'base': {},
    'previous': {'merge.anchor': 'previous'},
    'from_base': {'finetune_from': 'base'},
    'vanilla': {'merge.alpha': 1.0},
    'dare': {'merge.method': 'dare', 'merge.drop_rate': 0.5},
  }.items():
    path = str(tmp_path / name)
    drifts[name] = [row['merge']['drift_norm'] for row in loop.run(tiny(**changes), path)[1:]]
  assert drifts['base'][0] == drifts['previous'][0] == drifts['from_base'][0]
  np.testing.assert_allclose(drifts['vanilla'][0], 2 * drifts['base'][0], rtol=1e-4)
  # d_2 = u_2 / 2 + u_1 / 4 with the base, u_2 / 2 + u_1 / 2 with the previous model, u_2 / 2 from the base again.
  assert drifts['from_base'][1] < drifts['base'][1] < drifts['previous'][1] < drifts['vanilla'][1]
  # Masked and rescaled: the same mean, a norm sqrt(1 / keep) as large.
  np.testing.assert_allclose(drifts['dare'][0], np.sqrt(2) * drifts['base'][0], rtol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
  'changes',
  [
    {'optimizer.keep_opt_state': True, 'merge.anchor': 'all_previous'},
    {'merge.method': 'ties', 'merge.density': 0.3, 'merge.alpha': {'attention': 0.2, 'mlp': [0.4, 0.6], 'default': 0.5}},
  ],
  ids=['moments-mean', 'ties-rule'],
)
def test_other_merges_go_on_to_the_same_bytes(tmp_path, changes):
  whole, half = str(tmp_path / 'whole'), str(tmp_path / 'half')
  rows = loop.run(tiny(**changes, num_rounds=3), whole)
  for num_rounds in (2, 3):
    loop.run(tiny(**changes, num_rounds=num_rounds), half)
  jax.tree.map(np.testing.assert_array_equal, params_of(whole, 3), params_of(half, 3))
  assert without_times(rows) == without_times(loop.run(tiny(**changes, num_rounds=3), half))


def test_the_mean_of_all_previous_is_an_anchor(tmp_path):
  path = str(tmp_path / 'run')
  loop.run(tiny(**{'merge.anchor': 'all_previous', 'sample_from': 'tuned'}), path)
  mean = jax.tree.map(lambda a, b: (a + b) / 2, params_of(path, 0), params_of(path, 1))
  expected = jax.tree.map(lambda a, b: (a + b) / 2, mean, params_of(path, 2, 'tuned'))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params_of(path, 2), expected)


@pytest.mark.slow
def test_nothing_compiles_after_the_first_round(tmp_path):
  compiled, round_ = collections.Counter(), 0
  alpha = {'schedule': 'linear', 'start': 0.3, 'end': 0.6, 'rounds': 3}

  def count(event, *_, **__):
    compiled[round_] += event == '/jax/core/compile/backend_compile_duration'

  def next_round(path):
    nonlocal round_
    round_ += 1

  with pytest.MonkeyPatch.context() as patch:
    patch.delenv('JAX_COMPILATION_CACHE_DIR')
    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(count)
    config = tiny(**{'num_rounds': 3, 'merge.method': 'dare', 'merge.alpha': alpha})
    loop.run(config, str(tmp_path / 'run'), next_round)
    jax.monitoring.unregister_event_duration_listener(count)
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / '.xla_cache')
  assert compiled[0] > 0 and compiled[1] > 0
  assert compiled[2] == compiled[3] == 0


def test_another_config_is_refused_with_the_difference(finished):
  with pytest.raises(
    ValueError, match='holds a run of another config: config.merge.alpha was 0.5 and is 0.4; choose another'
  ):
    loop.run(tiny(**{'merge.alpha': 0.4}), finished[0])
  with pytest.raises(ValueError, match='config.num_rounds was 2 and is 1'):
    loop.run(tiny(num_rounds=1), finished[0])


def test_a_step_that_is_not_finite_ends_the_run(tmp_path):
  config = tiny(**{'optimizer.learning_rate': 1e30, 'finetune.batch_size': 1, 'finetune.num_epochs': 4})
  with pytest.raises(ValueError, match=r'round 1: \w+ of fine-tuning step \d+ is (nan|inf), at learning rate'):
    loop.run(config, str(tmp_path))
  assert len(Workdir(tmp_path).finished()) == 1
  assert 'NaN' not in (tmp_path / 'metrics.jsonl').read_text()


def test_a_report_that_fails_never_ends_a_run(tmp_path, capsys):
  def fail(path):
    raise KeyError('no such font')

  assert len(loop.run(tiny(num_rounds=1), str(tmp_path), fail)) == 2
  assert "after the round: KeyError: 'no such font'; the run goes on" in capsys.readouterr().err


def test_old_samples_without_prompts_are_not_learned_from(tmp_path):
  config = tiny(**{'synthesize.data': 'accumulate', 'num_rounds': 1})
  loop.run(config, str(tmp_path))
  with Run.open(config, str(tmp_path)) as run:
    assert all(one.prompt_tokens for one in run.earlier_samples(2))
    file = tmp_path / 'rounds' / '0001' / 'samples.jsonl'
    write_lines(file, [line | {'prompt_tokens': []} for line in read_lines(file)])
    with pytest.raises(ValueError, match='samples of round 1 have no prompt_tokens'):
      run.earlier_samples(2)


def test_other_data_than_those_of_round_0_are_refused(tmp_path):
  rows = [{'question': f'{i}+{j}=', 'answer': str(i + j)} for i in range(10, 20) for j in range(4)]
  file = tmp_path / 'rows.jsonl'
  write_lines(file, rows)
  config = tiny(num_rounds=0)
  common = importlib.import_module('common')
  config['tasks']['ood'] = {
    'own': common.custom('numeric', train_source=str(file), test_size=5, num_shots=0, frame='{question}', max_new_tokens=2)
  }
  loop.run(config, str(tmp_path / 'run'))
  for changed in ([*rows, {'question': '29+9=', 'answer': '38'}], [*rows[:-1], rows[-1] | {'answer': '7'}], rows[1:]):
    write_lines(file, changed)
    with pytest.raises(ValueError, match='tasks.own: its data have changed since the run began, from 35 train and 5 test'):
      loop.run(config | {'num_rounds': 1}, str(tmp_path / 'run'))
  write_lines(file, rows)
  loop.run(config, str(tmp_path / 'run'))


def test_a_run_may_be_watched(tmp_path, capsys):
  watched = {'logger': 'tests.rounds.test_metrics:Recorder', 'profile.num_steps': 2}
  watched |= {'finetune.num_epochs': 8, 'finetune.batch_size': 1}  # steps enough
  rows = loop.run(tiny(num_rounds=1, **watched), str(tmp_path / 'run'))
  *found, end = importlib.import_module('tests.rounds.test_metrics').Recorder.last.found
  lines = [{'round': round_} | ({} if step is None else {'step': step}) | values for round_, step, values in found]
  assert lines == read_lines(tmp_path / 'run' / 'metrics.jsonl') and end == 'closed'
  assert len(list((tmp_path / 'run' / 'profile').rglob('*.xplane.pb'))) == 1
  right = [f'{100 * row[domain][task]["accuracy"]:.1f}' for row in rows for domain, task in (('id', 'sum'), ('ood', 'max'))]
  told = capsys.readouterr().err.splitlines()
  assert f'base: ID sum {right[0]}, OOD max {right[1]} % right' in told
  assert f'round 1 merged: ID sum {right[2]}, OOD max {right[3]} % right' in told


def test_a_round_loads_as_a_model_and_converts(finished, tmp_path):
  path, _ = finished
  model = lm.load(f'{path}@2')
  model.save(str(tmp_path / 'out'))
  again = lm.load(str(tmp_path / 'out'))
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(model.params), jax.device_get(again.params))
  assert model.generate(['1+2='], max_new_tokens=4) == again.generate(['1+2='], max_new_tokens=4)
  with pytest.raises(FileNotFoundError, match='round 7 of this run is not done'):
    lm.load(f'{path}@7')
