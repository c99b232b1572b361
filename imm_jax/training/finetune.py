"""Supervised fine-tuning on packed rows: the loss, one optimizer step, and the steps of a round."""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from imm_jax.models.transformer import (
  abstract_params,
  param_shardings,
  Params,
  Transformer,
  XLA_OPTIONS,
)
from imm_jax.training import lora
from imm_jax.training import optimizer as optimizer_lib
from imm_jax.training.loss import cross_entropy
from imm_jax.training.packing import Batch


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
  """The length of a round's fine-tuning, its batches, and its adapters."""

  num_epochs: int  # Passes over the round's sequences.
  batch_size: int  # Packed rows per optimizer step.
  accumulation_steps: int  # Parts of a batch, which are computed one after the other.
  max_length: int  # The length of a packed row in tokens.
  max_drift: float = 0.0  # Training stops at this ‖params - base‖ / ‖base‖; 0 is off.
  lora_rank: int = 0  # The rank of adapters, trained in place of the params; 0 trains the params.
  lora_alpha: float = 0.0  # An adapter is scaled by lora_alpha / lora_rank.

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if field.default is dataclasses.MISSING and getattr(self, field.name) < 1:
        raise ValueError(f'finetune.{field.name}: {getattr(self, field.name)} is less than 1')
    if not 0 <= self.max_drift < math.inf:
      raise ValueError(f'finetune.max_drift: {self.max_drift} is not a number from 0, which is off')
    if self.lora_rank < 0 or self.lora_rank and self.lora_alpha <= 0:
      raise ValueError(
        f'finetune.lora_rank, lora_alpha: {self.lora_rank}, {self.lora_alpha} are not above 0'
      )
    if self.lora_rank and self.max_drift:
      raise ValueError(
        'finetune.max_drift: is measured on params, and with finetune.lora_rank adapters are'
        ' trained; set it to 0'
      )
    if self.batch_size % self.accumulation_steps:
      raise ValueError(
        f'finetune.batch_size: {self.batch_size} is not a multiple of'
        f' accumulation_steps={self.accumulation_steps}'
      )

  @property
  def lora_scale(self) -> float:
    """The factor of an adapter's product."""
    return self.lora_alpha / max(1, self.lora_rank)


def loss_fn(params: Params, model: Transformer, batch: Batch, num_targets: jax.Array) -> jax.Array:
  """Returns the cross-entropy in nats summed over the batch's targets, divided by num_targets.

  num_targets and the result are [] f32.
  """
  x, _ = model.bind({'params': params}).features(batch.tokens, batch.positions, batch.segment_ids)
  return cross_entropy(
    model, params, x, batch.targets, batch.loss_mask.astype(jnp.float32) / num_targets
  )


# Turns off windowed einsum: the TPU compiler would overlap the gathering of weights with products
# of their parts, and compute half as much again.
_TPU_OPTIONS = {'xla_jf_spmd_threshold_for_windowed_einsum_mib': '1000000'}


@flax.struct.dataclass
class TrainState:
  """The input and output of an optimizer step; all of it is donated."""

  params: Params  # The trained arrays, float32: the model's params, or adapters.
  opt_state: Any  # The optimizer's state for them.
  frozen: Params  # The model's params beside adapters; {} where they are trained themselves.


class Step(NamedTuple):
  """An optimizer step that has been sent to the devices, which may still be computing it."""

  number: int  # The number of the step in its round, from 1 on.
  state: TrainState
  metrics: dict[str, Any]  # loss_nats, grad_norm, num_tokens and learning_rate, each [] f32.


@dataclasses.dataclass(frozen=True)
class Trainer:
  """Trains a model that is sharded by its rules.

  It trains the model's params or, with `config.lora_rank`, adapters beside them.
  """

  model: Transformer
  config: FinetuneConfig
  optimizer: optimizer_lib.OptimizerConfig
  mesh: jax.sharding.Mesh

  def init(self, params: Params, opt_state: Any = None, key: jax.Array | None = None) -> TrainState:
    """Returns the state before the first step.

    It takes ownership of params and opt_state: the first step donates them.

    Args:
      params: float32, sharded as the model is.
      opt_state: the optimizer state from an earlier round; None starts anew.
      key: the key of new adapters; needed with config.lora_rank.
    """
    frozen: Params = {}
    if self.config.lora_rank:
      assert key is not None
      replicated = jax.NamedSharding(self.mesh, jax.P())
      adapters = jax.device_put(
        lora.init(key, self.model.config, self.config.lora_rank), replicated
      )
      frozen, params = params, adapters
    if opt_state is None:
      opt_state = self._programs.init(params)
    return TrainState(params, opt_state, frozen)

  def resume(self, start: Params, params: Params, opt_state: Any) -> TrainState:
    """Returns the state of an interrupted training from its saved params and opt_state.

    The training had started from `start`.
    """
    return TrainState(params, opt_state, start if self.config.lora_rank else {})

  def abstract(self) -> TrainState:
    """Returns the state as ShapeDtypeStructs with their shardings."""
    return self._programs.abstract

  def step(
    self, state: TrainState, batch: Batch, rate: jax.Array
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes one optimizer step; returns the state after it and its metrics, each [] f32.

    Args:
      state: donated.
      batch: fields [A, B, T]: A parts, computed one after the other, whose gradients are added up.
      rate: the learning rate, [] f32.
    """
    return self._programs.step(state, batch, rate)

  @property
  def program(self) -> Any:
    """The jitted program of `step`, for its text and its memory."""
    return self._programs.step

  def steps(
    self, state: TrainState, rows: Batch, seed: int, round_: int, first: int = 0
  ) -> Iterator[Step]:
    """Yields the steps of a round on packed rows, from the step `first` on.

    Each is yielded as soon as it has been sent to the devices. The order of the rows is a function
    of (seed, round_, epoch).
    """
    parts = batches(
      rows, self.config, seed, round_, self.model.rules.num_parts('batch', self.mesh.shape)
    )
    schedule = optimizer_lib.learning_rate(self.optimizer, len(parts))
    # All rates are computed up front, so that no step waits for the host.
    rates = np.asarray([schedule(i) for i in range(len(parts))], np.float32)
    spec = self.model.rules.spec(('batch', 'length'), parts[0].tokens.shape[1:], self.mesh.shape)
    sharded = jax.NamedSharding(self.mesh, jax.P(None, *spec))
    replicated = jax.NamedSharding(self.mesh, jax.P())
    for i in range(first, len(parts)):
      batch, rate = jax.device_put((parts[i], rates[i]), (sharded, replicated))
      with jax.transfer_guard('disallow'):
        state, metrics = self.step(state, batch, rate)
      yield Step(i + 1, state, metrics | {'learning_rate': rates[i]})

  def result(self, state: TrainState) -> Params:
    """Returns the model's params after training, adapters merged into them.

    It takes ownership of the state.
    """
    if not self.config.lora_rank:
      return state.params
    merge = lora.make_merge(self.model, self.mesh, self.config.lora_scale)  # pyright: ignore[reportArgumentType]
    return merge(state.frozen, state.params)

  @property
  def _programs(self) -> '_Programs':
    rank, scale = self.config.lora_rank, self.config.lora_scale
    return _make_programs(self.model, self.optimizer, self.mesh, rank, scale)  # pyright: ignore[reportArgumentType]


class _Programs(NamedTuple):
  """The programs of a Trainer, compiled once for all trainers that share their inputs."""

  init: Any  # The jitted params -> opt_state.
  step: Any  # The jitted (state, batch, rate) -> (state, metrics).
  abstract: TrainState


@functools.lru_cache
def _make_programs(
  model: Any,
  config: optimizer_lib.OptimizerConfig,
  mesh: jax.sharding.Mesh,
  lora_rank: int,
  lora_scale: float,
) -> _Programs:
  tx = optimizer_lib.make(config)
  replicated = jax.NamedSharding(mesh, jax.P())
  params, _ = abstract_params(model.config)
  shardings = param_shardings(model.config, mesh, model.rules)
  frozen = ({}, {})
  if lora_rank:
    frozen = (params, shardings)
    params = lora.abstract(model.config, lora_rank)
    shardings = jax.tree.map(lambda _: replicated, params)
  opt_state = jax.eval_shape(tx.init, params)
  opt_shardings = optax.tree.map_params(
    tx, lambda _, s: s, opt_state, shardings, transform_non_params=lambda _: replicated
  )
  state_shardings = TrainState(shardings, opt_shardings, frozen[1])

  def step(state, batch, rate):
    def loss(params, part, num_targets):
      whole = lora.attach(state.frozen, params, lora_scale) if lora_rank else params
      return loss_fn(whole, model, part, num_targets)

    return _update(tx, loss, state, batch, rate)

  on_tpu = mesh.devices.flat[0].platform == 'tpu'
  jitted = jax.jit(
    step,
    out_shardings=(state_shardings, replicated),
    donate_argnames='state',
    compiler_options=XLA_OPTIONS | (_TPU_OPTIONS if on_tpu else {}),
  )
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    TrainState(params, opt_state, frozen[0]),
    state_shardings,
  )
  return _Programs(jax.jit(tx.init, out_shardings=opt_shardings), jitted, abstract)


def _update(
  tx: Any, loss: Callable[..., jax.Array], state: TrainState, batch: Batch, rate: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Takes a step down loss(params, part, num_targets), summed over all parts of the batch."""
  num_targets = jnp.sum(batch.loss_mask, dtype=jnp.float32)

  def add_part(carry, part):
    return jax.tree.map(
      jnp.add, carry, jax.value_and_grad(loss)(state.params, part, num_targets)
    ), None

  # One part needs no accumulator the size of the params.
  if batch.tokens.shape[0] == 1:
    part = jax.tree.map(lambda x: x[0], batch)
    value, grads = jax.value_and_grad(loss)(state.params, part, num_targets)
  else:
    zeros = (jnp.float32(0), jax.tree.map(jnp.zeros_like, state.params))
    (value, grads), _ = jax.lax.scan(add_part, zeros, batch)
  with jax.numpy_dtype_promotion('standard'):  # optax's Adam raises a float to an int power.
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, jax.tree.map(lambda u: -rate * u, updates))
  metrics = {'loss_nats': value, 'grad_norm': optax.global_norm(grads), 'num_tokens': num_targets}
  return dataclasses.replace(state, params=params, opt_state=opt_state), metrics


def num_steps(rows: Batch, config: FinetuneConfig) -> int:
  """Returns the number of optimizer steps that the rows take."""
  return -(-rows.tokens.shape[0] * config.num_epochs // config.batch_size)


def batches(
  rows: Batch, config: FinetuneConfig, seed: int, round_: int, multiple_of: int = 1
) -> list[Batch]:
  """Returns the round's batches [A, B / A, T], in an order that is a function of (seed, round).

  Each epoch is a permutation of the rows; the stream of epochs is cut into batches, the last filled
  with padding. A part is padded to a multiple of the devices that share it.
  """
  num_rows = rows.tokens.shape[0]
  orders = [
    np.random.default_rng((seed, round_, epoch)).permutation(num_rows)
    for epoch in range(config.num_epochs)
  ]
  order = np.concatenate(orders)
  order = np.pad(order, (0, -len(order) % config.batch_size), constant_values=num_rows)
  padded = [np.concatenate([field, np.zeros_like(field[:1])]) for field in rows]
  parts = order.reshape(
    -1, config.accumulation_steps, config.batch_size // config.accumulation_steps
  )
  parts = np.pad(
    parts, ((0, 0), (0, 0), (0, -parts.shape[2] % multiple_of)), constant_values=num_rows
  )
  return [Batch(*(field[part] for field in padded)) for part in parts]
