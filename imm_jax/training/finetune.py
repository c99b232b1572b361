"""Supervised fine-tuning on packed rows: loss, train step, fine_tune(params, rows) -> params."""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from imm_jax import merging, processes
from imm_jax.formats import checkpoint
from imm_jax.models.transformer import abstract_params, param_shardings, Params, Transformer, XLA_OPTIONS
from imm_jax.training import lora, optimizer
from imm_jax.training.loss import cross_entropy
from imm_jax.training.packing import Batch


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
  """How long, and on how much at a time."""

  num_epochs: int  # passes over the round's sequences
  batch_size: int  # packed rows per optimizer step
  accumulation_steps: int  # parts a batch is computed in, one after the other
  max_length: int  # tokens a packed row
  max_drift: float = 0.0  # ‖params - base‖ / ‖base‖ at which it stops; 0 is off
  lora_rank: int = 0  # of adapters that are trained in place of the params; 0 trains the params
  lora_alpha: float = 0.0  # an adapter is scaled by lora_alpha / lora_rank

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if field.default is dataclasses.MISSING and getattr(self, field.name) < 1:
        raise ValueError(f'finetune.{field.name}: {getattr(self, field.name)} is less than 1')
    if not 0 <= self.max_drift < math.inf:
      raise ValueError(f'finetune.max_drift: {self.max_drift} is not a number from 0, which is off')
    if self.lora_rank < 0 or self.lora_rank and self.lora_alpha <= 0:
      raise ValueError(f'finetune.lora_rank, lora_alpha: {self.lora_rank}, {self.lora_alpha} are not above 0')
    if self.lora_rank and self.max_drift:
      raise ValueError(
        'finetune.max_drift: is measured on params, and with finetune.lora_rank adapters are trained; set it to 0'
      )
    if self.batch_size % self.accumulation_steps:
      raise ValueError(
        f'finetune.batch_size: {self.batch_size} is not a multiple of accumulation_steps={self.accumulation_steps}'
      )

  @property
  def lora_scale(self) -> float:
    """What an adapter's product is multiplied by."""
    return self.lora_alpha / max(1, self.lora_rank)


def loss_fn(params: Params, model: Transformer, batch: Batch, num_targets: jax.Array) -> jax.Array:
  """Returns the cross-entropy in nats summed over the batch's targets, [], divided by num_targets [] f32."""
  x, _ = model.bind({'params': params}).features(batch.tokens, batch.positions, batch.segment_ids)
  return cross_entropy(model, params, x, batch.targets, batch.loss_mask.astype(jnp.float32) / num_targets)


# The TPU compiler would overlap the gathering of weights with products of their parts; it then computes half as much again.
_TPU_OPTIONS = {'xla_jf_spmd_threshold_for_windowed_einsum_mib': '1000000'}


@functools.lru_cache
def make_train_step(
  model: Any,
  config: optimizer.OptimizerConfig,
  mesh: jax.sharding.Mesh,
  max_drift: float = 0.0,
  lora_rank: int = 0,
  lora_scale: float = 0.0,
) -> tuple[Any, Any, Any]:
  """Returns init(params) -> opt_state, step(params, opt_state, batch, rate) -> (both, metrics), and opt_state's shardings.

  batch has fields [A, B, T]: A parts whose gradients are added up. params and opt_state are donated.

  With max_drift the step is step(params, opt_state, batch, rate, base, drift), and metrics have `drift_norm`, [] f32, of the
  params from base. Where drift, that of the step before, has reached max_drift, it changes nothing: so the devices stop at
  the right step although the host sees its metrics when the next one runs already.

  With lora_rank the params that are trained are adapters, and the step is step(adapters, opt_state, batch, rate, params).
  """
  tx, replicated = optimizer.make(config), jax.NamedSharding(mesh, jax.P())
  shardings = param_shardings(model.config, mesh, model.rules)
  if lora_rank:
    shardings = jax.tree.map(lambda _: replicated, lora.abstract(model.config, lora_rank))
  abstract = jax.tree.map(lambda s: jax.ShapeDtypeStruct((), jnp.float32), shardings)
  opt_shardings = optax.tree.map_params(
    tx, lambda _, s: s, jax.eval_shape(tx.init, abstract), shardings, transform_non_params=lambda _: replicated
  )

  def step(params, opt_state, batch, rate):
    return _update(tx, lambda params, *of: loss_fn(params, model, *of), params, opt_state, batch, rate)

  def step_adapters(adapters, opt_state, batch, rate, params):
    def loss(adapters, *of):
      return loss_fn(lora.attach(params, adapters, lora_scale), model, *of)

    return _update(tx, loss, adapters, opt_state, batch, rate)

  def step_to_drift(params, opt_state, batch, rate, base, drift):
    def stay(params, opt_state, *_):
      return params, opt_state, dict.fromkeys(('loss_nats', 'grad_norm', 'num_tokens'), jnp.float32(0))

    params, opt_state, metrics = jax.lax.cond(drift < max_drift, step, stay, params, opt_state, batch, rate)
    return params, opt_state, metrics | {'drift_norm': merging.drift_norm(base, params)}

  jitted = jax.jit(
    step_adapters if lora_rank else step_to_drift if max_drift else step,
    out_shardings=(shardings, opt_shardings, replicated),
    donate_argnums=(0, 1),
    compiler_options=XLA_OPTIONS | (_TPU_OPTIONS if mesh.devices.flat[0].platform == 'tpu' else {}),
  )
  return jax.jit(tx.init, out_shardings=opt_shardings), jitted, opt_shardings


def _update(tx: Any, loss: Callable[..., jax.Array], params: Any, opt_state: Any, batch: Batch, rate: jax.Array) -> Any:
  """Returns params, the optimizer's state and the metrics of a step down loss(params, part, num_targets), over all parts."""
  num_targets = jnp.sum(batch.loss_mask, dtype=jnp.float32)

  def add_part(carry, part):
    return jax.tree.map(jnp.add, carry, jax.value_and_grad(loss)(params, part, num_targets)), None

  # One part needs no accumulator the size of the params.
  if batch.tokens.shape[0] == 1:
    value, grads = jax.value_and_grad(loss)(params, jax.tree.map(lambda x: x[0], batch), num_targets)
  else:
    zeros = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
    (value, grads), _ = jax.lax.scan(add_part, zeros, batch)
  with jax.numpy_dtype_promotion('standard'):  # optax's Adam raises a float to an int power
    updates, opt_state = tx.update(grads, opt_state, params)
  params = optax.apply_updates(params, jax.tree.map(lambda u: -rate * u, updates))
  return params, opt_state, {'loss_nats': value, 'grad_norm': optax.global_norm(grads), 'num_tokens': num_targets}


def num_steps(rows: Batch, config: FinetuneConfig) -> int:
  """Returns how many optimizer steps the rows take."""
  return -(-rows.tokens.shape[0] * config.num_epochs // config.batch_size)


def batches(rows: Batch, config: FinetuneConfig, seed: int, round_: int, multiple_of: int = 1) -> list[Batch]:
  """Returns the round's batches [A, B / A, T], in an order that is a function of (seed, round).

  Each epoch is a permutation of the rows; the stream of epochs is cut into batches, the last filled with padding. A part is
  padded to a multiple of the devices that share it.
  """
  num_rows = rows.tokens.shape[0]
  orders = [np.random.default_rng((seed, round_, epoch)).permutation(num_rows) for epoch in range(config.num_epochs)]
  order = np.concatenate(orders)
  order = np.pad(order, (0, -len(order) % config.batch_size), constant_values=num_rows)
  padded = [np.concatenate([field, np.zeros_like(field[:1])]) for field in rows]
  parts = order.reshape(-1, config.accumulation_steps, config.batch_size // config.accumulation_steps)
  parts = np.pad(parts, ((0, 0), (0, 0), (0, -parts.shape[2] % multiple_of)), constant_values=num_rows)
  return [Batch(*(field[part] for field in padded)) for part in parts]


@dataclasses.dataclass
class _History:
  """The metrics of all steps, fetched late, so that the devices never wait: up to the one that drifts as far as it may."""

  write: Callable[[int, Mapping[str, float]], None]
  max_drift: float
  drift: float  # of the params after the newest step that is fetched
  steps: list[dict[str, float]] = dataclasses.field(default_factory=list)
  waiting: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # of steps that may be running still

  def fetch(self, keep: int = 0) -> None:
    """Fetches all that wait but the newest so many; those behind the last step changed nothing."""
    while len(self.waiting) > keep and not self.is_far:
      self.extend([{name: float(value) for name, value in self.waiting.pop(0).items()}])

  def extend(self, steps: Iterable[dict[str, float]]) -> None:
    """Adds and writes what is fetched."""
    for metrics in steps:
      self.steps.append(metrics)
      self.drift = metrics.get('drift_norm', 0.0)
      self.write(len(self.steps) - 1, metrics)

  @property
  def is_far(self) -> bool:
    """Returns whether the newest step that is fetched is the last; params may be so far before the first."""
    return self.max_drift > 0 and bool(self.drift >= np.float32(self.max_drift))


def fine_tune(
  model: Transformer,
  params: Params,
  rows: Batch,
  config: FinetuneConfig,
  optimizer_config: optimizer.OptimizerConfig,
  mesh: jax.sharding.Mesh,
  *,
  seed: int,
  round_: int,
  write: Callable[[int, Mapping[str, float]], None],
  base: Params | None = None,
  moments: Any = None,
  saved: checkpoint.Steps | None = None,
  save_every: int = 0,
  report: Callable[[str], None] = print,
  profiled: Callable[[range, Callable[[], None]], Iterable[int]] = lambda steps, wait: steps,
) -> tuple[Params, Any]:
  """Returns params fine-tuned on packed rows, and the optimizer's state. Params and moments are donated.

  Args:
    model: its rules are sharding.TRAIN.
    params: float32, sharded by them. With config.lora_rank adapters are trained beside them, and merged in at the end; the
      optimizer's state is then of the adapters.
    rows: packed sequences.
    config: how long, and on how much at a time.
    optimizer_config: of the optimizer.
    mesh: the devices.
    seed: of the order of the rows.
    round_: likewise.
    write: write(step, metrics) is called for each step, one step late, so that the devices never wait for it.
    base: what config.max_drift is measured from; needed where that is on.
    moments: the optimizer's state to go on with; None starts with a new one.
    saved: the checkpoints of an earlier process that was cut off, to go on from, and where new ones go.
    save_every: steps between two of them; 0 saves only at a notice to stop.
    report: is told what of `saved` is damaged.
    profiled: profiled(steps, wait) gives the steps back, tracing some; wait() returns when none is running.

  Raises:
    processes.Stopped: a notice to stop came, and where `saved` is given the state is there.
  """
  scale = config.lora_scale
  init, step, opt_shardings = make_train_step(model, optimizer_config, mesh, config.max_drift, config.lora_rank, scale)  # pyright: ignore[reportArgumentType]
  parts = batches(rows, config, seed, round_, multiple_of=model.rules.num_parts('batch', mesh.shape))
  replicated, shape = jax.NamedSharding(mesh, jax.P()), parts[0].tokens.shape[1:]
  places = jax.NamedSharding(mesh, jax.P(None, *model.rules.spec(('batch', 'length'), shape, mesh.shape))), replicated
  schedule = optimizer.learning_rate(optimizer_config, len(parts))
  rates = np.asarray([schedule(i) for i in range(len(parts))], np.float32)  # now: a step must not wait for one
  drift = float(merging.drift_norm(base, params)) if config.max_drift else 0.0
  frozen, history, first = (), _History(write, config.max_drift, drift), 0
  if config.lora_rank:
    key = jax.random.fold_in(jax.random.key(seed), round_)
    frozen, params = (params,), jax.device_put(lora.init(key, model.config, config.lora_rank), replicated)
  wanted = {
    'params': checkpoint.abstract(params, jax.tree.map(lambda x: x.sharding, params)),
    'moments': checkpoint.abstract(jax.eval_shape(init, params), opt_shardings),
  }
  if found := saved and saved.restore(wanted, report):
    first, trees, state = found
    params, moments = trees['params'], trees['moments']
    history.extend(state['history'])
  elif moments is None:
    moments = init(params)
  drift = jax.device_put(np.float32(history.drift), replicated)

  for i in profiled(range(first, len(parts)), history.fetch):
    if history.is_far:
      break
    on_device = jax.device_put((parts[i], rates[i]), places)
    with jax.transfer_guard('disallow'):
      params, moments, metrics = step(params, moments, *on_device, *((base, drift) if config.max_drift else frozen))
    drift = metrics.get('drift_norm')
    history.waiting.append(metrics | {'learning_rate': rates[i]})
    history.fetch(keep=1)
    stop, done = processes.should_stop(), i + 1
    if saved and (stop or save_every and (done % save_every == 0 or done == len(parts) or history.is_far)):
      history.fetch()
      saved.save(done, {'params': params, 'moments': moments}, {'history': history.steps})
    if stop:
      raise processes.Stopped
  history.fetch()
  if config.lora_rank:
    params = lora.make_merge(model, mesh, scale)(*frozen, params)  # pyright: ignore[reportArgumentType]
  return params, moments


def restore_moments(path: str, model: Transformer, config: optimizer.OptimizerConfig, mesh: jax.sharding.Mesh) -> Any:
  """Returns the optimizer's state that a checkpoint holds, sharded as fine-tuning shards it. Raises ValueError."""
  init, _, shardings = make_train_step(model, config, mesh)  # pyright: ignore[reportArgumentType]
  params, _ = abstract_params(model.config)
  return checkpoint.restore(path, 'moments', checkpoint.abstract(jax.eval_shape(init, params), shardings))
