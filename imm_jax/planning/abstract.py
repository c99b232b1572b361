"""The programs that a run jits, with abstract arrays in place of params and data."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from imm_jax import merging, sharding
from imm_jax.formats import checkpoint
from imm_jax.merging import coefficients
from imm_jax.models import transformer
from imm_jax.models.config import ModelConfig
from imm_jax.models.transformer import Transformer
from imm_jax.rounds.experiment import Experiment
from imm_jax.sampling import prefill, scoring, slots
from imm_jax.training import finetune
from imm_jax.training.packing import Batch


def _params(config: ModelConfig, mesh: jax.sharding.Mesh, rules: sharding.Rules) -> Any:
  shapes, _ = transformer.abstract_params(config)
  if rules == sharding.SAMPLE:
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(config.dtype)), shapes)
  return checkpoint.abstract(shapes, transformer.param_shardings(config, mesh, rules))


def _place(tree: Any, mesh: jax.sharding.Mesh, spec: Callable[[Any], jax.P]) -> Any:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.NamedSharding(mesh, spec(x))),
    tree,
  )


def _train(
  exp: Experiment, config: ModelConfig, mesh: jax.sharding.Mesh, *unused_lengths: int
) -> Any:
  model = Transformer(config, sharding.TRAIN)
  trainer = finetune.Trainer(model, exp.finetune, exp.optimizer, mesh)
  parts, length = exp.finetune.accumulation_steps, exp.finetune.max_length
  ways = model.rules.num_parts('batch', mesh.shape)
  rows = -(-exp.finetune.batch_size // parts // ways) * ways
  dtypes = Batch(jnp.int32, jnp.int32, jnp.bool_, jnp.int32, jnp.int32)
  batch = Batch(*(jax.ShapeDtypeStruct((parts, rows, length), dtype) for dtype in dtypes))
  spec = model.rules.spec(('batch', 'length'), (rows, length), mesh.shape)
  batch = _place(batch, mesh, lambda x: jax.P(None, *spec))
  rate = _place(jax.ShapeDtypeStruct((), jnp.float32), mesh, lambda x: jax.P())
  return trainer.program, (trainer.abstract(), batch, rate), parts * rows * length, length / 2


def _merge(
  exp: Experiment, config: ModelConfig, mesh: jax.sharding.Mesh, *unused_lengths: int
) -> Any:
  params, key = _params(config, mesh, sharding.TRAIN), jax.eval_shape(lambda: jax.random.key(0))
  shardings = transformer.param_shardings(config, mesh, sharding.TRAIN)
  merge = merging.make_merge(exp.merge, shardings, donates=exp.merge_donates)
  return merge, (params, params, coefficients.resolve(0.5, params), key), 0, 0.0


def _tokens(mesh: jax.sharding.Mesh, *shape: int) -> jax.ShapeDtypeStruct:
  axes = ('batch', 'length')[: len(shape)]
  return _place(
    jax.ShapeDtypeStruct(shape, jnp.int32),
    mesh,
    lambda x: sharding.SAMPLE.spec(axes, x.shape, mesh.shape),
  )


def _capacity(exp: Experiment, mesh: jax.sharding.Mesh) -> tuple[int, int]:
  """Returns how many rows decode at once, and how many questions are prefilled at once."""
  config = exp.sampler
  return slots.capacity(
    config.num_slots, config.num_samples_per_prompt, sharding.SAMPLE, mesh.shape
  )


def _prefill(
  exp: Experiment, config: ModelConfig, mesh: jax.sharding.Mesh, prompt_tokens: int, *unused: int
) -> Any:
  model, (_, rows) = Transformer(config, sharding.SAMPLE), _capacity(exp, mesh)
  arguments = _tokens(mesh, rows, prompt_tokens), _tokens(mesh, rows), _tokens(mesh)
  arguments = model, _params(config, mesh, sharding.SAMPLE), None, *arguments
  return prefill.prefill, arguments, rows * prompt_tokens, prompt_tokens / 2


def _decode(
  exp: Experiment, config: ModelConfig, mesh: jax.sharding.Mesh, prompt_tokens: int, new_tokens: int
) -> Any:
  model, (rows, _) = Transformer(config, sharding.SAMPLE), _capacity(exp, mesh)
  state = jax.eval_shape(lambda: slots.empty_slots(model, rows, prompt_tokens, new_tokens))

  def spec(x):
    if x.ndim == 5:
      return model.rules.spec(slots.CACHE_AXES, x.shape, mesh.shape)
    return model.rules.spec(
      ('batch', *(None,) * (x.ndim - 1)) if x.ndim else (), x.shape, mesh.shape
    )

  state = _place(state, mesh, spec)
  stops = _place(jax.ShapeDtypeStruct((config.vocab_size,), jnp.bool_), mesh, lambda x: jax.P())
  step = jax.jit(slots.decode_step, static_argnames=('model', 'rule'), donate_argnames='slots')
  arguments = model, _params(config, mesh, sharding.SAMPLE), None, state, stops, exp.sampler.rule
  return step, arguments, rows, prompt_tokens + new_tokens


def _score(
  exp: Experiment, config: ModelConfig, mesh: jax.sharding.Mesh, prompt_tokens: int, *unused: int
) -> Any:
  model, rows, options = Transformer(config, sharding.SAMPLE), exp.sampler.num_slots, 32
  batch = scoring.OptionRows(
    *[_tokens(mesh, rows, prompt_tokens)] * 3, *[_tokens(mesh, rows, options)] * 2
  )
  arguments = model, _params(config, mesh, sharding.SAMPLE), None, batch, _tokens(mesh)
  return scoring.score_rows, arguments, rows * prompt_tokens, prompt_tokens / 2


# (exp, config, mesh, prompt_tokens, new_tokens) -> the jitted function, its abstract arguments, the
# tokens it handles, and the keys that a token attends to on average.
ABSTRACT = {
  'train': _train,
  'prefill': _prefill,
  'decode': _decode,
  'merge': _merge,
  'score': _score,
}
