"""Loads the models that a config names: the original, the teacher, and the random model.

Tests and the testbed use the random model.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax

from imm_jax import evaluate, formats, processes, sharding
from imm_jax import lm as lm_lib
from imm_jax.formats.at_round import source_of
from imm_jax.formats.tokenizer import Tokenizer
from imm_jax.lm import LM
from imm_jax.models import transformer
from imm_jax.models.config import choose_attention, ModelConfig
from imm_jax.rounds import experiment
from imm_jax.rounds.experiment import Experiment, ModelSpec
from imm_jax.rounds.workdir import Workdir


def load_base(exp: Experiment, workdir: Workdir, mesh: jax.sharding.Mesh) -> LM:
  """Returns the original model, from the config's path or from round 0 of a run that has begun."""
  if workdir.num_done > 0:
    return load_model(exp, f'{workdir.path}@0', mesh)
  lm = load_model(exp, exp.model.path, mesh)
  processes.on_first(lambda: workdir.write_model(functools.partial(_save_without_weights, lm)))
  return lm


def load_model(exp: Experiment, path: str, mesh: jax.sharding.Mesh) -> LM:
  """Returns the model at path, sharded for training; for '' it is the config's random model."""
  if path:
    spec = exp.model
    return lm_lib.load(
      path,
      dtype=spec.dtype,
      remat=spec.remat,
      attention=spec.attention,
      mesh=mesh,
      rules=sharding.TRAIN,
    )
  return random_lm(exp, mesh)


def random_lm(exp: Experiment, mesh: jax.sharding.Mesh) -> LM:
  """Returns the model of the config's `model.random`."""
  assert exp.model.random is not None
  tokenizer = Tokenizer.from_characters(exp.model.random.characters)
  config = random_config(exp.model, mesh)
  params = transformer.init_params(config, exp.model.random.seed, mesh)
  return LM(config, params, tokenizer, mesh, sharding.TRAIN)


def random_config(spec: ModelSpec, mesh: jax.sharding.Mesh) -> ModelConfig:
  """Returns the architecture of `model.random`, its vocabulary the characters and an end token."""
  assert spec.random is not None
  shape = {
    name: value
    for name, value in dataclasses.asdict(spec.random).items()
    if name not in ('seed', 'characters')
  }
  config = ModelConfig(
      family='llama', vocab_size=Tokenizer.from_characters(spec.random.characters).size,
      rope_theta=10_000.0,
      rms_norm_eps=1e-5, tie_embeddings=False, dtype=spec.dtype, remat=spec.remat, **shape,
  )  # fmt: skip
  return dataclasses.replace(config, attention=choose_attention(spec.attention, config, mesh))


def model_config(spec: ModelSpec, mesh: jax.sharding.Mesh) -> ModelConfig:
  """Returns the architecture of the config's model, without reading its weights."""
  if not spec.path:
    return random_config(spec, mesh)
  config = dataclasses.replace(
    formats.read_config(source_of(spec.path)), dtype=spec.dtype, remat=spec.remat
  )
  return dataclasses.replace(config, attention=choose_attention(spec.attention, config, mesh))


def load_to_sample(config: Mapping[str, Any]) -> LM:
  """Returns config.model.path on the config's mesh, ready to sample and to score."""
  exp = experiment.resolve(config)
  return load_model(exp, exp.model.path, exp.mesh.make()).to_sample()


def check_teacher(exp: Experiment, lm: LM) -> None:
  """Checks that the model can train on the teacher's samples.

  Raises ValueError when the teacher's tokens differ from those of lm.
  """
  if exp.synthesize.teacher:
    tokenizer = formats.load_tokenizer(source_of(exp.synthesize.teacher))
    lm.tokenizer.check_same(tokenizer, f'synthesize.teacher: {exp.synthesize.teacher}')


def check_lengths(exp: Experiment, lm: LM) -> None:
  """Checks that every question of a run fits the context of the model that answers it.

  Raises ValueError naming the first question that does not.
  """
  tokenizer, max_length = lm.tokenizer, lm.config.max_length
  measured = exp.all_tasks if exp.merge.rule == 'search' else exp.id_tasks | exp.ood_tasks
  for task in measured.values():
    evaluate.check_lengths(tokenizer, max_length, task, task.test)
  if exp.synthesize.teacher:
    source = source_of(exp.synthesize.teacher)
    tokenizer, max_length = formats.load_tokenizer(source), formats.read_config(source).max_length
  if exp.synthesize.real_fraction < 1:
    for task in exp.id_tasks.values():
      evaluate.check_lengths(tokenizer, max_length, task, exp.sampled_questions(task))


def check_test_lengths(exp: Experiment, mesh: jax.sharding.Mesh) -> None:
  """Checks that every test question fits the context of config.model, before that is loaded.

  Raises ValueError naming the first question that does not.
  """
  max_length = model_config(exp.model, mesh).max_length
  if exp.model.path:
    tokenizer = formats.load_tokenizer(source_of(exp.model.path))
  else:
    assert exp.model.random is not None
    tokenizer = Tokenizer.from_characters(exp.model.random.characters)
  for task in (exp.id_tasks | exp.ood_tasks).values():
    evaluate.check_lengths(tokenizer, max_length, task, task.test)


def _save_without_weights(lm: LM, path: str) -> None:
  formats.hf.save_config(path, lm.config)
  lm.tokenizer.save(path)
