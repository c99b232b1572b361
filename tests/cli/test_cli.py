"""The command: what it prints, and that a user's mistake is one line with exit code 1 and nothing lost."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time

from imm_jax import cli, lm, sharding
from imm_jax.cli import tables
from imm_jax.formats.tokenizer import Tokenizer
from imm_jax.models import transformer
from imm_jax.models.config import ModelConfig
from imm_jax.tasks.synthetic import CHARACTERS
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.conftest import ROOT
from tests.reports.test_compare import make_run

TINY = f'--config={ROOT}/configs/tiny.py'
WORDS = f'--config={ROOT}/configs/word_problems.py'
SMALL = ['--config.num_rounds=1', '--config.model.random.num_layers=1', '--config.model.random.embed_dim=32']


@pytest.fixture
def imm(monkeypatch, capsys):
  """Returns a function that runs `imm ARGUMENTS`: (exit code, what was printed, what was printed as an error)."""

  def run(*arguments):
    monkeypatch.setattr(sys, 'argv', ['imm', *map(str, arguments)])
    monkeypatch.setattr(sys, 'path', list(sys.path))
    try:
      cli.main()
      code = 0
    except SystemExit as stop:
      code = stop.code
    return code, *capsys.readouterr()

  return run


@pytest.fixture
def fails(imm):
  """Returns a function that runs a command that must fail with one line; returns the line."""

  def run(*arguments):
    code, _, errors = imm(*arguments)
    lines = [line for line in errors.splitlines() if line.startswith('imm: ')]
    assert code == 1 and len(lines) == 1, errors
    assert 'Traceback' not in errors and errors.endswith(lines[0] + '\n')
    return lines[0]

  return run


@pytest.fixture(scope='session')
def model_dir(tmp_path_factory):
  """A tiny model as a Hugging Face directory."""
  tokenizer = Tokenizer.from_characters(CHARACTERS)
  config = ModelConfig(
    family='llama', vocab_size=tokenizer.size, num_layers=1, embed_dim=32, mlp_dim=64, num_heads=4, num_kv_heads=4,
    head_dim=8, max_length=64, rope_theta=10_000.0, rms_norm_eps=1e-5, tie_embeddings=False,
  )  # fmt: skip
  mesh = sharding.make_mesh()
  path = tmp_path_factory.mktemp('models') / 'model'
  lm.LM(config, transformer.init_params(config, 0, mesh), tokenizer, mesh).save(str(path))
  return path


def edit_json(path, **changes):
  content = json.loads(path.read_text()) | changes
  path.write_text(json.dumps(content))


def test_help_names_the_commands_and_each_has_its_own(imm):
  code, out, _ = imm('--help')
  assert code == 0
  for command in ('run', 'evaluate', 'analyze', 'convert', 'merge'):
    assert f'imm {command}' in out
    code, own, _ = imm(command, '--help')
    assert code == 0 and own.startswith(f'imm {command}')
  assert '--alpha' in own


def test_run_prints_a_row_for_each_set_of_params_and_goes_on(imm, tmp_path):
  code, out, errors = imm('run', TINY, *SMALL, f'--workdir={tmp_path}/run')
  assert code == 0
  for text in (
    'guess',
    'base',
    'round 1 tuned',
    'round 1 merged',
    'ID sum',
    'OOD max',
    f'summary: {tmp_path}/run/summary.json',
    f'report: {tmp_path}/run/report.html',
  ):
    assert text in out
  assert 'sample sum: 1280 completions' in errors
  assert imm('run', TINY, *SMALL, f'--workdir={tmp_path}/run')[1] == out
  code, evaluated, _ = imm('evaluate', TINY, f'--config.model.path={tmp_path}/run@1')
  assert code == 0 and 'ID sum' in evaluated and 'change from base' not in evaluated
  # The same accuracy as in the run's table.
  merged = next(line for line in out.splitlines() if 'round 1 merged' in line)
  base = next(line for line in evaluated.splitlines() if 'run@1' in line or line.count('│') == 6 and '[' in line)
  assert base.split('│')[2].split()[0] == merged.split('│')[2].split()[0]


def test_analyze_prints_layers_samples_and_answers(imm, fails, tmp_path):
  assert f'{tmp_path}: is not the directory of a run' in fails('analyze', f'--workdir={tmp_path}')
  assert '--workdir: is missing' in fails('analyze')
  assert imm('run', TINY, *SMALL, f'--workdir={tmp_path}/run')[0] == 0
  code, out, _ = imm('analyze', f'--workdir={tmp_path}/run', '--num_completions=4')
  assert code == 0
  for text in ('NLL rise', 'rho (p)', 'self_bleu', 'tuned_ood', '1->0', f'summary: {tmp_path}/run/summary.json'):
    assert text in out


def test_report_writes_a_page(imm, fails, tmp_path):
  one, other = (make_run(tmp_path / f'arm/seed{seed}', seed) for seed in range(2))
  code, out, _ = imm('report', one)
  assert (code, out) == (0, f'report: {one}/report.html\n')
  code, out, _ = imm('report', one, other, f'--out={tmp_path}/both.html', f'--figures={tmp_path}/figures')
  assert (tmp_path / 'figures/plane.svg').read_text().startswith('<svg ')
  assert (code, out) == (0, f'report: {tmp_path}/both.html\n')
  assert '<h1>arm</h1>' in (tmp_path / 'both.html').read_text()
  assert fails('report', tmp_path).startswith(f'imm: {tmp_path}: holds no round that is done')
  assert 'takes at least one WORKDIR' in fails('report')
  assert '--out: is missing' in fails('report', one, other)
  assert 'out.html: No such file or directory' in fails('report', one, f'--out={tmp_path}/nowhere/out.html')


def test_convert_and_merge_write_models(imm, model_dir, tmp_path):
  assert imm('convert', model_dir, tmp_path / 'copy')[0] == 0
  assert (tmp_path / 'copy' / 'model.safetensors').read_bytes() == (model_dir / 'model.safetensors').read_bytes()
  code, _, _ = imm('merge', f'--base={model_dir}', f'--tuned={tmp_path}/copy', f'--out={tmp_path}/merged', '--alpha=0.3')
  assert code == 0
  assert (tmp_path / 'merged' / 'model.safetensors').read_bytes() == (model_dir / 'model.safetensors').read_bytes()


def test_convert_merges_an_adapter_into_its_base(imm, fails, model_dir, tmp_path):
  adapter = tmp_path / 'adapter'
  adapter.mkdir()
  config = {'peft_type': 'LORA', 'lora_alpha': 6, 'base_model_name_or_path': str(model_dir), 'use_dora': False}
  (adapter / 'adapter_config.json').write_text(json.dumps(config))
  rng, name = np.random.default_rng(0), 'model.layers.0.self_attn.q_proj'
  A, B = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 32), (32, 3)))
  tensors = {f'base_model.model.{name}.lora_A.weight': A, f'base_model.model.{name}.lora_B.weight': B}
  save_file(tensors, adapter / 'adapter_model.safetensors')
  assert imm('convert', adapter, tmp_path / 'merged')[0] == 0
  base, merged = (load_file(path / 'model.safetensors') for path in (model_dir, tmp_path / 'merged'))
  np.testing.assert_allclose(merged[f'{name}.weight'] - base[f'{name}.weight'], 2 * B @ A, atol=1e-5)
  assert all(np.array_equal(merged[key], x) for key, x in base.items() if name not in key)
  assert imm('convert', adapter, tmp_path / 'again', f'--base={tmp_path}/merged')[0] == 0
  assert 'is no LoRA adapter' in fails('convert', model_dir, tmp_path / 'x', f'--base={model_dir}')
  assert "its base 'nowhere' is no directory here" in fails('convert', adapter, tmp_path / 'x', '--base=nowhere')
  (adapter / 'adapter_config.json').write_text(json.dumps(config | {'use_dora': True}))
  assert 'adapter_config.json: use_dora = True is not supported' in fails('convert', adapter, tmp_path / 'x')


def test_evaluate_writes_what_it_prints(imm, tmp_path):
  code, out, _ = imm('evaluate', TINY, *SMALL, '--config.evaluate.num_samples_per_prompt=2', f'--out={tmp_path}/row.json')
  row = json.loads((tmp_path / 'row.json').read_text())
  assert code == 0 and f'{100 * row["id"]["sum"]["accuracy"]:.1f} [' in out
  assert f'sum: mean@2 {100 * row["id"]["sum"]["mean@2"]:.1f} %' in out


def test_tasks_are_listed_and_shown(imm, fails, tmp_path):
  code, out, _ = imm('tasks')
  assert code == 0 and all(name in out for name in ('gsm8k', '7473', 'CC BY-SA 4.0', 'humaneval', 'numeric', 'likelihood'))
  rows = [{'question': f'{i} + {i}?', 'answer': f'{i} + {i} = {2 * i}\n#### {2 * i}'} for i in range(9)]
  (tmp_path / 'rows.json').write_text(json.dumps(rows))
  code, out, _ = imm('tasks', 'gsm8k', f'--source={tmp_path}/rows.json', '--show=2')
  assert code == 0 and 'gsm8k: 3 train and 2 test questions, 4 shots' in out
  assert out.count('--- gold') == 2 and out.count('The answer is') == 8
  code, out, _ = imm('tasks', 'max', TINY, '--show=1')
  assert code == 0 and 'max: 80 train and 20 test questions' in out
  assert fails('tasks', 'gsm9k') == 'imm: imm tasks: gsm9k: no such task; did you mean gsm8k?'
  assert 'the tasks are sum, max, min' in fails('tasks', 'xyz', TINY)


def test_merge_from_a_recipe(imm, fails, model_dir, tmp_path):
  shutil.copytree(model_dir, tmp_path / 'tuned')
  tuned = f'{{model: {tmp_path}/tuned, parameters: {{weight: 1}}}}'
  recipe = f'merge_method: ties\nbase_model: {model_dir}\nmodels: [{tuned}]\n'
  (tmp_path / 'recipe.yml').write_text(recipe)
  assert imm('merge', f'--recipe={tmp_path}/recipe.yml', f'--out={tmp_path}/out')[0] == 0
  assert (tmp_path / 'out' / 'model.safetensors').read_bytes() == (model_dir / 'model.safetensors').read_bytes()
  assert '--alpha: the recipe says that' in fails('merge', f'--recipe={tmp_path}/recipe.yml', '--alpha=0.3', '--out=y')
  assert '--base: the recipe says that' in fails('merge', f'--recipe={tmp_path}/recipe.yml', '--base=x', '--out=y')
  (tmp_path / 'recipe.yml').write_text(recipe + 'densitty: 1\n')
  line = fails('merge', f'--recipe={tmp_path}/recipe.yml', f'--out={tmp_path}/other')
  assert line.startswith(f'imm: {tmp_path}/recipe.yml: densitty: no such key')


def test_merge_says_what_a_coarse_dtype_swallows(imm, model_dir, tmp_path):
  for name, step in (('base', 0), ('tuned', 2**-7)):
    shutil.copytree(model_dir, tmp_path / name)
    weights = {key: (1 + step + 0 * x).astype(jnp.bfloat16) for key, x in load_file(model_dir / 'model.safetensors').items()}
    save_file(weights, tmp_path / name / 'model.safetensors')
  merge = ['merge', f'--base={tmp_path}/base', f'--tuned={tmp_path}/tuned']
  assert 'warning: 100% of the changed elements' in imm(*merge, '--alpha=0.3', f'--out={tmp_path}/few')[1]
  assert 'warning' not in imm(*merge, '--alpha=0.7', f'--out={tmp_path}/most')[1]


# What users get wrong.


@pytest.mark.parametrize(
  'flag, says',
  [
    ('--config.merge.alfa=0.3', 'config.merge.alfa: no such key; did you mean alpha?'),
    ('--config.tasks.id.svamp.num_shots=1', 'config.tasks.id.svamp: no such key; config.tasks.id has sum'),
    ('--config.seed.x=1', 'config.seed.x: no such key; config.seed has none'),
    ('--merge.alpha=0.3', '--merge.alpha: no such flag; a key of the config is --config.merge.alpha'),
  ],
)
def test_a_flag_that_is_no_key(fails, tmp_path, flag, says):
  assert says in fails('run', TINY, f'--workdir={tmp_path}/run', flag)


def test_merge_flags(fails, model_dir, tmp_path):
  merge = ['merge', f'--base={model_dir}', f'--tuned={model_dir}', f'--out={tmp_path}/out']
  for flag, says in (
    ('--method=teis', "'teis' is no merge method; did you mean ties?"),
    ('--method=model_stock', 'model_stock: takes at least 2 models beside the base and got 1'),
    ('--alpha=5', 'alpha: 5.0 is not in [0, 1]'),
    ('--alpha=nan', 'alpha: nan is not in [0, 1]'),
    ('--param=density=0.5', 'the command.density: linear has no such parameter here'),
    ('--param=weight', "--param: 'weight' is not NAME=VALUE"),
    (
      f'--tuned={model_dir}@2',
      f'no such directory; imm merge reads Hugging Face directories; a round becomes one by imm convert {model_dir}@2 DIR',
    ),
  ):
    assert says in fails(*merge, flag)
  assert '--out: is missing' in fails('merge', f'--base={model_dir}', f'--tuned={model_dir}')
  assert '--tuned: is missing' in fails('merge', f'--base={model_dir}', f'--out={tmp_path}/out')
  assert not (tmp_path / 'out').exists()


def test_a_run_is_no_model(fails, imm, tmp_path):
  assert imm('run', TINY, *SMALL, '--config.num_rounds=0', f'--workdir={tmp_path}/run')[0] == 0
  assert f'{tmp_path}/run: is a run; name one of its rounds, such as {tmp_path}/run@0' in fails(
    'convert', tmp_path / 'run', tmp_path / 'out'
  )


def test_no_such_command(fails):
  assert "'rum' is no command; the commands are run, doctor, evaluate, analyze, convert, merge" in fails('rum')


def test_unknown_config_key(fails, tmp_path):
  assert 'alhpa' in fails('run', TINY, '--config.merge.alhpa=0.3', f'--workdir={tmp_path}/run')
  assert not (tmp_path / 'run').exists()


def test_wrong_type(fails, tmp_path):
  line = fails('run', TINY, '--config.num_rounds=two', f'--workdir={tmp_path}/run')
  assert 'num_rounds' in line and 'two' in line
  assert 'merge.anchor' in fails('run', TINY, '--config.merge.anchor=bse', f'--workdir={tmp_path}/run')


def test_missing_config_and_workdir(fails, tmp_path):
  assert '--config: is missing' in fails('run', f'--workdir={tmp_path}/run')
  assert 'no_such.py' in fails('run', '--config=no_such.py', f'--workdir={tmp_path}/run')
  assert '--workdir: is missing' in fails('run', TINY)


def test_missing_model(fails, tmp_path):
  line = fails('run', TINY, f'--config.model.path={tmp_path}/nowhere', f'--workdir={tmp_path}/run')
  assert f'{tmp_path}/nowhere' in line
  assert f'{tmp_path}/nowhere' in fails('convert', tmp_path / 'nowhere', tmp_path / 'out')


def test_missing_data_file_field_and_empty_split(fails, tmp_path, model_dir):
  common = ['run', WORDS, f'--config.model.path={model_dir}', f'--workdir={tmp_path}/run']
  common.append('--config.tasks.id.svamp.test_source=')
  assert f'{tmp_path}/none.json' in fails(*common, f'--config.tasks.id.svamp.train_source={tmp_path}/none.json')
  (tmp_path / 'rows.json').write_text('[{"Body": "a", "Question": "b?"}]')
  line = fails(*common, f'--config.tasks.id.svamp.train_source={tmp_path}/rows.json')
  assert 'Answer' in line and 'rows.json' in line
  (tmp_path / 'rows.json').write_text('[{"Body": "a", "Question": "b?", "Answer": 1.0}]')
  assert 'split is empty' in fails(*common, f'--config.tasks.id.svamp.train_source={tmp_path}/rows.json')


def test_unsupported_architecture_and_field(fails, model_dir, tmp_path):
  shutil.copytree(model_dir, tmp_path / 'model')
  edit_json(tmp_path / 'model' / 'config.json', model_type='mamba')
  assert 'mamba' in fails('convert', tmp_path / 'model', tmp_path / 'out')
  edit_json(tmp_path / 'model' / 'config.json', model_type='llama', hidden_act='gelu')
  assert 'hidden_act' in fails('convert', tmp_path / 'model', tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_a_tokenizer_larger_than_the_model(fails, model_dir, tmp_path):
  shutil.copytree(model_dir, tmp_path / 'model')
  Tokenizer.from_characters(CHARACTERS + 'abcdef').save(tmp_path / 'model')
  line = fails('convert', tmp_path / 'model', tmp_path / 'out')
  num_tokens = len(CHARACTERS) + 1  # and the end
  assert f'{num_tokens + 6} tokens' in line and f'only {num_tokens}' in line


@pytest.mark.parametrize('damage', [lambda data: data[:-100], lambda data: b'\xff' * 64 + data[64:], lambda data: b''])
def test_corrupt_safetensors(fails, model_dir, tmp_path, damage):
  shutil.copytree(model_dir, tmp_path / 'model')
  weights = tmp_path / 'model' / 'model.safetensors'
  weights.write_bytes(damage(weights.read_bytes()))
  assert str(weights) in fails('convert', tmp_path / 'model', tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_unwritable_workdir(fails, tmp_path):
  (tmp_path / 'file').write_text('')
  assert f'{tmp_path}/file' in fails('run', TINY, f'--workdir={tmp_path}/file')
  assert f'{tmp_path}/file/run' in fails('run', TINY, f'--workdir={tmp_path}/file/run')


@pytest.mark.skipif(os.getuid() == 0, reason='root writes everywhere')
def test_read_only_workdir(fails, tmp_path):
  tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
  assert 'Permission denied' in fails('run', TINY, f'--workdir={tmp_path}/run')


def test_a_workdir_of_another_config(fails, imm, tmp_path):
  assert imm('run', TINY, *SMALL, '--config.num_rounds=0', f'--workdir={tmp_path}/run')[0] == 0
  line = fails('run', TINY, *SMALL, '--config.seed=7', '--config.num_rounds=0', f'--workdir={tmp_path}/run')
  assert 'config.seed was 0 and is 7' in line


def test_a_target_that_exists_is_not_overwritten(fails, model_dir, tmp_path):
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'keep.txt').write_text('mine')
  assert 'exists and is not an empty directory' in fails('convert', model_dir, tmp_path / 'out')
  assert (tmp_path / 'out' / 'keep.txt').read_text() == 'mine'


def test_a_mesh_that_does_not_fit_the_devices(fails, tmp_path):
  line = fails('run', TINY, '--config.mesh.tensor=3', '--config.mesh.fsdp=3', f'--workdir={tmp_path}/run')
  assert 'needs 9 devices and there are 8' in line
  assert jax.device_count() == 8


def test_a_failed_first_try_does_not_lock_the_workdir(fails, imm, tmp_path):
  first = ['run', TINY, *SMALL, '--config.num_rounds=0', f'--workdir={tmp_path}/run']
  fails(*first, f'--config.model.path={tmp_path}/nowhere')
  assert imm(*first)[0] == 0


def test_an_error_inside_a_config_is_its_own_line(fails, tmp_path):
  line = fails('run', f'{WORDS}:svmap', f'--workdir={tmp_path}/run')
  assert line == 'imm: configs/word_problems.py:svmap: the data sets are svamp, mawps, gsm8k, math'
  empty = '--config.tasks.id.mawps.train_source='
  line = fails('run', f'{WORDS}:mawps', '--config.model.path=x', f'--workdir={tmp_path}/run', empty)
  assert line.startswith('imm: tasks.mawps.train_source: is empty')


@pytest.mark.parametrize(
  'text, line',
  [
    ('import commmon', "No module named 'commmon'; a config imports what stands beside it or on PYTHONPATH"),
    ('x = {1 2}', '{path}, line 1: invalid syntax. Perhaps you forgot a comma?'),
    ('def get_config():\n  return 1 / 0', 'division by zero'),
  ],
)
def test_a_config_that_is_no_program_is_one_line(fails, tmp_path, text, line):
  path = tmp_path / 'own.py'
  path.write_text(text + '\n')
  command = ['doctor', f'--config={path}', f'--workdir={tmp_path}/run']
  assert fails(*command) == f'imm: --config: {line.format(path=path)}'
  with pytest.raises(ValueError, match='^--config: '):  # the place is in its traceback
    fails(*command, '--traceback')


def test_source_and_show_want_a_name(fails):
  assert 'name it first: imm tasks NAME --show=3' in fails('tasks', '--show=2')


def test_sigterm_leaves_no_half_of_a_merge(tmp_path):
  for model in ('base', 'tuned'):  # large enough that the signal comes while tensors are merged
    (tmp_path / model).mkdir()
    save_file(
      {f'layers.{i}.w': np.ones((1024, 1024), np.float32) for i in range(48)}, tmp_path / model / 'model.safetensors'
    )
    (tmp_path / model / 'config.json').write_text('{}')
  command = [sys.executable, '-m', 'imm_jax', 'merge', '--method=ties', '--alpha=0.5', '--base=base', '--tuned=tuned']
  process = subprocess.Popen(
    [*command, '--out=out'], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )
  while not list(tmp_path.glob('out.tmp*')) and process.poll() is None:
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  printed, _ = process.communicate()
  assert process.returncode == 130 and 'Traceback' not in printed, printed
  assert sorted(path.name for path in tmp_path.iterdir()) == ['base', 'tuned']


IN_A_CALLBACK = """
import gc, os, signal, time
from imm_jax import cli

def send(phase, info):
  if phase == 'stop':
    gc.callbacks.remove(send)
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(1000):  # the handler runs here
      pass

cli.hear_signals()
gc.callbacks.append(send)
try:
  gc.collect()
  time.sleep(30)
except KeyboardInterrupt:
  print('heard')
"""


def test_a_signal_that_comes_while_garbage_is_collected_is_heard():
  done = subprocess.run([sys.executable, '-c', IN_A_CALLBACK], capture_output=True, text=True, check=True, cwd=ROOT)
  assert done.stdout == 'heard\n'


def test_a_task_of_both_domains_has_two_columns(capsys):
  result = {'accuracy': 0.5, 'low': 0.4, 'high': 0.6, 'accuracy_flexible': 0.625}
  tables.results([{'round': 0, 'id': {'sum': result | {'guess': 0.125}}, 'ood': {'sum': result | {'guess': 0.25}}}])
  out = capsys.readouterr().out
  assert re.search(r'guess +│ +12\.5 │ +25\.0 │', out) and out.count('sum: accuracy_flexible 62.5 %') == 2


def test_a_notice_to_stop_that_comes_when_all_is_done_changes_no_exit_code():
  code = """
import os, signal
from imm_jax import cli
class Last:
  def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGTERM):
    kill(pid, number)
last = Last()
cli.main()
"""
  result = subprocess.run([sys.executable, '-c', code, '--help'], cwd=ROOT, capture_output=True, check=False)
  assert result.returncode == 0 and b'imm run' in result.stdout
