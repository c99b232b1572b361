"""Importance and change of layers against brute force, collapse and forgetting by hand, and what a run's analysis leaves."""

import dataclasses
import functools
import hashlib
import json
import shutil

from imm_jax import sharding
from imm_jax.formats.tokenizer import Tokenizer
from imm_jax.lm import LM
from imm_jax.models import transformer
from imm_jax.models.transformer import target_logprobs, Transformer
from imm_jax.reports import analysis, statistics
from imm_jax.rounds import layerwise, loop
from imm_jax.rounds.records import Answer, Sample
from imm_jax.tasks.synthetic import CHARACTERS
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from tests.conftest import load_config, random_params

pytestmark = pytest.mark.xdist_group('analysis')

RNG = np.random.default_rng(0)
PAIRS = [([int(t) for t in RNG.integers(0, 64, p)], [int(t) for t in RNG.integers(0, 64, c)]) for p, c in
         ((5, 3), (2, 7), (9, 1), (4, 4), (3, 2))]  # fmt: skip


def lm_on(config, mesh, rules=sharding.TRAIN):
  params = jax.device_put(random_params(config), transformer.param_shardings(config, mesh, rules))
  return LM(config, params, Tokenizer.from_characters(CHARACTERS), mesh, rules)


@functools.partial(jax.jit, static_argnames='config')
def all_logits(config, params, tokens):
  return Transformer(config).apply({'params': params}, tokens, jnp.arange(tokens.shape[1])[None])[0][0]


def completion_logits(config, params, prompt, completion):
  """The logits that each token of a completion is chosen from: a row of its own, no gates."""
  end = len(prompt) + len(completion)
  tokens = jnp.asarray([*prompt, *completion] + [0] * (16 - end))[None]  # no token sees what follows it
  return all_logits(config, params, tokens)[len(prompt) - 1 : end - 1]


def mean_nll(config, params, pairs):
  """The mean of -log p of a completion token, in nats."""
  logits = [completion_logits(config, params, *pair) for pair in pairs]
  return -target_logprobs(jnp.concatenate(logits), jnp.asarray([token for _, y in pairs for token in y])).mean()


def greedy_share(config, params, pairs):
  """The share of completions whose every token is the likeliest one."""
  return np.mean([jnp.argmax(completion_logits(config, params, x, y), -1).tolist() == y for x, y in pairs])


def with_greedy(config, params, pairs):
  """The pairs, and three whose completion the model itself would write: skipping a layer changes some."""
  own = []
  for prompt, _ in pairs[:3]:
    tokens = list(prompt)
    for _ in range(2):
      tokens.append(int(jnp.argmax(completion_logits(config, params, tokens, [0])[-1])))
    own.append((prompt, tokens[len(prompt) :]))
  return [*pairs, *own]


@pytest.mark.parametrize('rules', [sharding.TRAIN, sharding.SAMPLE], ids=['train', 'sample'])
def test_importance_is_what_taking_the_layer_out_costs(config, params, mesh, rules):
  pairs, lm = with_greedy(config, params, PAIRS), lm_on(config, mesh, rules)
  found = layerwise.importance(lm, lm.params, pairs, batch_size=3)
  shorter = dataclasses.replace(config, num_layers=1)
  nll, accuracy = mean_nll(config, params, pairs), greedy_share(config, params, pairs)
  assert 3 / 8 <= accuracy < 1
  for layer in range(2):
    without = params | {'layers': jax.tree.map(lambda x, layer=layer: x[1 - layer : 2 - layer], params['layers'])}
    np.testing.assert_allclose(found.nll_rise[layer], mean_nll(shorter, without, pairs) - nll, atol=1e-5)
    np.testing.assert_allclose(found.accuracy_drop[layer], accuracy - greedy_share(shorter, without, pairs), atol=1e-9)
  assert found.accuracy_drop.max() > 0

  gradient = jax.jit(jax.grad(lambda params: mean_nll(config, params, pairs)))(params)['layers']
  products = jax.tree.map(lambda g, p: np.abs(g * p).reshape(2, -1).sum(1), gradient, params['layers'])
  np.testing.assert_allclose(found.taylor, sum(jax.tree.leaves(products)), rtol=1e-4)


def test_importance_of_rows_that_hold_many_completions_is_the_same(config):
  lm = lm_on(config, sharding.make_mesh())
  alone, packed = layerwise.importance(lm, lm.params, PAIRS), layerwise.importance(lm, lm.params, PAIRS, max_length=32)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), alone, packed)
  with pytest.raises(ValueError, match='every completion is empty'):
    layerwise.importance(lm, lm.params, [([1, 2], [])])


def test_change_is_relative_to_the_original(config, params, mesh):
  moved = jax.tree.map(lambda x: x, params)
  moved['layers']['attn']['q'] = jax.tree.map(lambda x: x.at[1].multiply(1.5), moved['layers']['attn']['q'])
  moved['embedding'] = 0.8 * moved['embedding']
  shardings = transformer.param_shardings(config, mesh, sharding.TRAIN)
  found = layerwise.change(*jax.device_put((params, moved), (shardings, shardings)))
  assert found.keys() == {
    'layers', 'attn/q', 'attn/k', 'attn/v', 'attn/o', 'mlp/gate', 'mlp/up', 'mlp/down', 'norm', 'embedding', 'lm_head'
  }  # fmt: skip

  def norm(tree):
    return np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(tree)))

  q, block = params['layers']['attn']['q'], jax.tree.map(lambda x: x[1], params['layers'])
  moved_by = 0.5 * norm(jax.tree.map(lambda x: x[1], q))
  np.testing.assert_allclose(found['layers'], [0, moved_by / norm(block)], rtol=1e-5)
  np.testing.assert_allclose([found['attn/q'], found['embedding']], [moved_by / norm(q), 0.2], rtol=1e-5)
  assert all(found[kind] == 0 for kind in found.keys() - {'layers', 'attn/q', 'embedding'})


def test_spearman_is_scipys_and_p_is_that_of_chance():
  rng = np.random.default_rng(3)
  x, y = rng.integers(0, 6, 30), rng.integers(0, 6, 30)  # with ties
  found, wanted = statistics.spearman(x, y), scipy.stats.spearmanr(x, y)
  np.testing.assert_allclose([found['rho'], found['p']], [wanted.statistic, wanted.pvalue], atol=0.02)
  np.testing.assert_allclose(found['rho'], wanted.statistic, atol=1e-12)
  falling = statistics.spearman([1, 2, 3], [5, 4, -1])  # of six orders two are as far out
  np.testing.assert_allclose([falling['rho'], falling['p']], [-1, 1 / 3], atol=0.02)
  assert statistics.spearman([1, 2, 3], [0, 0, 0]) is None


def record(question, tokens, text, right, entropy):
  return Sample(
    question_id=question, question='', gold='', sample_index=0, text=text, tokens=tokens, prompt_tokens=[],
    logprob=0.0, entropy=entropy, finish_reason='stop', right=right, reason='' if right else 'wrong',
  )  # fmt: skip


def test_collapse_by_hand():
  found = analysis.collapse(
    [
      record('a', [1, 2, 1, 2], 'so 7', True, 1.0),
      record('a', [1, 2], 'thus 7 ', True, 2.0),
      record('a', [3], '', False, 0.5),
      record('b', [1, 2], '8', False, 1.0),
      record('b', [4], '9', False, 0.25),
      record('b', [4], '9', False, 0.25),
    ],
    extract=lambda text: text.strip()[-1:],
  )
  assert found.pop('self_bleu') > 0
  assert found == pytest.approx({
    'distinct_1': 4 / 11, 'distinct_2': 2 / 5, 'distinct_3': 1.0, 'unique_answers': 1.5, 'unique_solutions': 1.0,
    'token_entropy_nats': 5 / 11, 'pass@1': 1 / 3, 'pass@3': 0.5,
  })  # fmt: skip
  assert analysis.collapse([record('a', [1], '7', True, None)], extract=str)['distinct_2'] is None


def test_self_bleu_is_1_for_copies_and_0_for_strangers_within_a_group():
  one, other = 'the answer is three plus four', 'we count seven apples on a table'
  assert analysis.self_bleu([[one, one], [other, other, other]]) == pytest.approx(1)
  assert analysis.self_bleu([[one, other], [one, other]]) == 0
  mixed = analysis.self_bleu([[one, one, other]])
  assert mixed == pytest.approx(2 / 3)
  assert analysis.self_bleu([[one], [other]]) is None
  assert analysis.self_bleu([[one, one]] * 300, num_texts=10) == pytest.approx(1)


def test_transitions_count_each_item_once_by_task():
  def answers(**right):
    return [
      Answer('merged', task, str(i), question='', answer='', gold='', right=ok)
      for task, oks in right.items()
      for i, ok in enumerate(oks)
    ]

  before, after = answers(sum=[True, True, False, False], max=[True]), answers(max=[False], sum=[True, False, True, False])
  assert analysis.transitions(before, after) == {
    'sum': {'1->0': 1, '0->1': 1, '1->1': 1, '0->0': 1}, 'max': {'1->0': 1, '0->1': 0, '1->1': 0, '0->0': 0}
  }  # fmt: skip


def tiny(num_rounds):
  config = load_config('tiny')
  config.num_rounds = num_rounds
  config.model.random.update({'num_layers': 3, 'embed_dim': 32, 'mlp_dim': 64})
  config.tasks.ood = {'max': config.tasks.ood['max']}
  config.synthesize.num_questions = 40
  return config.to_dict()


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  path = tmp_path_factory.mktemp('finished') / 'run'
  loop.run(tiny(1), str(path))
  return path


def files_of(path):
  return {str(file): file.read_bytes() for file in sorted([*path.glob('rounds/*/analysis.json'), path / 'summary.json'])}


def test_a_run_is_analysed_to_the_same_bytes_and_goes_on_with_it(finished, tmp_path):
  path = tmp_path / 'run'
  shutil.copytree(finished, path)
  analyses = analysis.analyze(str(path), num_completions=8)
  first = files_of(path)
  assert len(first) == 3 and analysis.analyze(str(path), num_completions=8) == analyses and files_of(path) == first
  loop.run(tiny(2), str(path))  # refuses what it does not know, and writes the summary anew
  rows = json.loads((path / 'summary.json').read_text())['rounds']
  assert [row.get('analysis') for row in rows] == [*analyses, None]

  assert {name: len(values) for name, values in analyses[0]['importance'].items()} == dict.fromkeys(
    layerwise.Importance._fields, 3
  )
  later = analysis.analyze(str(path), num_completions=8)
  assert later[:2] == analyses and len(later) == 3
  for row, found in zip(rows[1:], later[1:], strict=True):
    assert found['collapse']['sum']['pass@1'] == pytest.approx(row['sample']['right_rate'])
    for domain, task in (('id', 'sum'), ('ood', 'max')):
      for prefix in ('', 'tuned_'):
        counts = found['transitions'][prefix + domain][task]
        assert sum(counts.values()) == row[domain][task]['n']
        gained = (counts['0->1'] - counts['1->0']) / row[domain][task]['n']
        accuracies = [row[prefix + domain][task]['accuracy'], rows[0][domain][task]['accuracy']]
        assert gained == pytest.approx(accuracies[0] - accuracies[1])
    np.testing.assert_array_less(0, found['change']['layers'])
    assert found['spearman'].keys() == analyses[0]['importance'].keys()


def test_a_run_before_prompts_were_recorded_is_analyzed_alike(finished, tmp_path):
  expected = analysis.analyze(str(finished), num_completions=8)
  old = tmp_path / 'run'
  shutil.copytree(finished, old)
  for round_ in range(1, len(expected)):
    file = old / 'rounds' / f'{round_:04d}' / 'samples.jsonl'
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert all(line.pop('prompt_tokens') for line in lines)
    file.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    manifest = file.with_name('manifest.json')
    facts = json.loads(manifest.read_text())
    data = file.read_bytes()
    facts[f'rounds/{round_:04d}/samples.jsonl'] = [len(data), hashlib.sha256(data).hexdigest()]
    manifest.write_text(json.dumps(facts))
  assert analysis.analyze(str(old), num_completions=8) == expected


def test_what_is_no_run_or_damaged_is_refused(finished, tmp_path):
  with pytest.raises(ValueError, match='is not the directory of a run'):
    analysis.analyze(str(tmp_path))
  path = tmp_path / 'run'
  shutil.copytree(finished, path)
  with open(path / 'rounds' / '0001' / 'samples.jsonl', 'a') as file:
    file.write('\n')
  with pytest.raises(ValueError, match='samples.jsonl: is not what was written'):
    analysis.analyze(str(path))
  shutil.rmtree(path / 'rounds' / '0001')
  with pytest.raises(ValueError, match='round 1 is not done'):
    analysis.analyze(str(path))
