"""Plans: a run's programs compiled for devices that are not there, and what is said of them."""

import dataclasses
import importlib.util
import json

from imm_jax import cli, sharding
from imm_jax.planning import abstract, plan
from imm_jax.rounds import experiment, loading
import jax
import pytest
from tests.conftest import FAMILIES, load_config, ROOT

HAS_TPU_COMPILER = importlib.util.find_spec('libtpu') is not None
CHIP = plan.CHIPS['v5e']


@pytest.fixture
def exp():
  config = load_config('tiny')
  config.finetune.update({'batch_size': 16, 'max_length': 64})
  config.model.random.update({'embed_dim': 128, 'mlp_dim': 512})
  return experiment.resolve(config.to_dict())


@pytest.mark.parametrize('program', plan.PROGRAMS)
def test_every_program_compiles_and_is_reported(exp, program):
  mesh = sharding.make_mesh()
  report = plan.compile_program(exp, loading.model_config(exp.model, mesh), mesh, CHIP, program, (32, 16))
  assert report.fits and report.peak_gib > 0 and report.arguments_gib > 0
  assert (report.model_flops > 0) == (program != 'merge')
  if program == 'merge':
    assert report.collective_bytes == {}


@pytest.mark.parametrize('remat, forwards, family', [('none', 3, 'qwen'), ('full', 4, 'qwen'), ('none', 3, 'gemma')])
def test_the_flops_of_a_train_step_are_the_formulas(exp, remat, forwards, family):
  mesh = sharding.make_mesh(1, 8, 1)
  config = dataclasses.replace(loading.model_config(exp.model, mesh), remat=remat, **FAMILIES[family])
  report = plan.compile_program(exp, config, mesh, CHIP, 'train', (0, 0))
  tokens, keys = 16 * 64, 64  # XLA computes all scores, seen or not
  head = 2.0 * config.vocab_size * config.embed_dim * tokens
  layers = 2.0 * plan.num_weights(config) * tokens - head
  layers += plan.attention_flops(config, tokens, keys)
  unneeded = 2.0 * config.num_layers * config.embed_dim * config.mlp_dim * tokens if remat == 'full' else 0.0
  assert report.tokens == tokens
  assert report.flops * 8 == pytest.approx(forwards * layers + 3 * head - unneeded, rel=0.05)


def test_adapters_need_no_gradient_and_no_moments_of_the_params(exp):
  mesh = sharding.make_mesh(8, 1, 1)
  config = loading.model_config(exp.model, mesh)
  full, adapters = (
    plan.compile_program(
      dataclasses.replace(exp, finetune=dataclasses.replace(exp.finetune, lora_rank=rank)),
      config,
      mesh,
      CHIP,
      'train',
      (0, 0),
    )
    for rank in (0, 2)
  )
  assert adapters.arguments_gib < 0.5 * full.arguments_gib  # params and two moments, and here little more than params
  assert adapters.peak_gib < full.peak_gib


def test_an_unknown_chip_and_a_mesh_that_does_not_fit(exp):
  with pytest.raises(ValueError, match="'v7:2x2' is not CHIP:SHAPE with one of the chips v5e, v5p, v6e"):
    plan.chip_of('v7:2x2')
  with pytest.raises(ValueError, match='needs 4 devices and there are 8'):
    sharding.make_mesh(2, 2, 1, devices=jax.devices())


def test_what_does_not_fit_gets_advice():
  config = load_config('tiny').to_dict()
  report = plan.Report('train', 'none', 20.0, 15.75, 9.0, 11.0, 1e12, 1e12, 1.0, {}, 0.0, 1.0, 1000)
  assert not report.fits and plan.advice(report, config) == '--config.model.remat=full, or auto'
  full = dataclasses.replace(report, remat='full')
  assert plan.advice(full, config) == '--config.finetune.accumulation_steps=2'
  assert 'num_slots=32' in plan.advice(dataclasses.replace(report, program='decode', arguments_gib=12.0), config)


@pytest.mark.skipif(HAS_TPU_COMPILER, reason='the tpu extra is installed')
def test_without_the_compiler_one_line_says_what_to_install(monkeypatch, capsys):
  monkeypatch.setattr('sys.argv', ['imm', 'plan', f'--config={ROOT}/configs/tiny.py'])
  with pytest.raises(SystemExit) as stop:
    cli.main()
  assert stop.value.code == 1
  assert "the TPU compiler is missing: pip install 'imm_jax[tpu]'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TPU_COMPILER, reason='needs the tpu extra')
@pytest.mark.parametrize('slices', [1, 2])
def test_a_plan_for_a_tpu_slice(monkeypatch, capsys, slices):
  monkeypatch.setattr('sys.argv', [
    'imm', 'plan', f'--config={ROOT}/configs/tiny.py', '--topology=v5e:2x2', f'--num_slices={slices}', '--json',
    f'--config.mesh.data={slices}', '--prompt_tokens=32', '--new_tokens=16', '--config.model.remat=auto',
  ])  # fmt: skip
  cli.main()
  reports = json.loads(capsys.readouterr().out)
  assert set(reports) == set(plan.PROGRAMS)
  assert all(report['compute_secs'] > 0 for report in reports.values())


@pytest.fixture
def planned(monkeypatch, capsys):
  """Returns a function that runs `imm plan --json` on this machine's devices: (exit code, reports, errors)."""
  monkeypatch.setattr(plan, 'topology_devices', lambda topology, num_slices: jax.devices())

  def run(*arguments):
    monkeypatch.setattr('sys.argv', ['imm', 'plan', f'--config={ROOT}/configs/tiny.py', '--json', *arguments])
    code = 0
    try:
      cli.main()
    except SystemExit as stop:
      code = stop.code
    out, errors = capsys.readouterr()
    return code, json.loads(out or '{}'), errors

  return run


def test_all_programs_are_set_up_before_the_first_compiles(planned, monkeypatch):
  def wrong(*unused):
    raise ValueError('score cannot be set up')

  monkeypatch.setitem(abstract.ABSTRACT, 'score', wrong)
  monkeypatch.setattr(plan, 'compile_program', lambda *unused: pytest.fail('a program is compiled'))
  code, reports, errors = planned()
  assert code == 1 and not reports and errors.endswith('imm: score cannot be set up\n')


def test_programs_that_are_compiled_are_printed_when_a_later_one_fails(planned, monkeypatch):
  def compile_program(exp, config, mesh, chip, program, lengths):
    if program == 'decode':
      raise ValueError('decode fails')
    return plan.Report(program, 'none', 1.5, 15.75, 1.0, 0.5, 1e12, 1e12, 1.0, {}, 0.0, 2.0, 1000)

  monkeypatch.setattr(plan, 'compile_program', compile_program)
  code, reports, errors = planned()
  assert code == 1 and list(reports) == ['train', 'prefill']
  assert 'train: compiled in 2 s; 1.50 GiB a device' in errors and errors.endswith('imm: decode fails\n')
