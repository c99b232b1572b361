"""Measures which layers matter to completions, and how far each has moved.

The formulas are ours.
"""

from collections.abc import Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imm_jax import console, processes
from imm_jax.lm import LM
from imm_jax.models.transformer import (
  is_likeliest,
  of_logits,
  param_shardings,
  Params,
  target_logprobs,
  Transformer,
  XLA_OPTIONS,
)
from imm_jax.training import finetune, packing
from imm_jax.training.finetune import FinetuneConfig
from imm_jax.training.packing import Batch

Pair = tuple[Sequence[int], Sequence[int]]  # Token ids: prompt, completion.
NUM_COMPLETIONS = 64  # The importance of layers is measured on this many completions.


class Importance(NamedTuple):
  """How much each block matters to completions.

  Every field is [L] f64, and larger is more important.
  """

  nll_rise: np.ndarray  # Nats per completion token, when the block is skipped.
  # Drop of the share of completions whose every token is the most likely one, when it is skipped.
  accuracy_drop: np.ndarray
  # Sum over the block's parameters of |gradient * parameter|, in nats per completion token.
  taylor: np.ndarray


def importance(
  lm: LM,
  params: Params,
  pairs: Sequence[Pair],
  *,
  max_length: int | None = None,
  batch_size: int = 8,
) -> Importance:
  """Measures how much each block matters to correct completions. The formulas are ours.

  nll_rise and accuracy_drop compare the model with itself without block l, with teacher forcing on
  the completions. taylor is the first-order estimate sum |g theta|, where g is the gradient of the
  mean negative log-likelihood of a completion token: L + 1 forward passes and one backward pass.

  Args:
    lm: the model, its mesh and rules.
    params: float32, sharded as lm's.
    pairs: token ids (prompt, completion).
    max_length: the length of a packed row in tokens; None takes that of the longest pair.
    batch_size: rows at a time.

  Raises:
    ValueError: a pair does not fit a row, or no completion has a token.
  """
  model = lm.model
  max_length = max_length or max((packing.num_slots(*pair) for pair in pairs), default=1)
  rows = packing.pack(pairs, max_length)
  config = FinetuneConfig(
    num_epochs=1, batch_size=batch_size, accumulation_steps=1, max_length=max_length
  )
  parts = finetune.batches(
    rows, config, 0, 0, multiple_of=model.rules.num_parts('batch', lm.mesh.shape)
  )
  batches = [Batch(*(field[0] for field in part)) for part in parts]
  L = lm.config.num_layers
  with jax.set_mesh(lm.mesh), console.progress('layer importance', L + 1, 'passes') as advance:
    spec = model.rules.spec(('batch', 'length'), batches[0].tokens.shape, lm.mesh.shape)
    on_device = [jax.device_put(batch, jax.NamedSharding(lm.mesh, spec)) for batch in batches]

    def measure(skipped: int) -> tuple[float, float]:
      processes.check_stop()
      gates = jnp.asarray(np.arange(L) != skipped, jnp.float32)
      scores = [_score(model, params, batch, gates) for batch in on_device]
      advance(1)
      return _summarise(batches, processes.fetch(scores))

    # The first pass (-1) skips no block.
    nll, accuracy = np.asarray([measure(skipped) for skipped in range(-1, L)]).T
    taylor = _taylor(lm, params, on_device, rows.loss_mask.sum())
  return Importance(nll[1:] - nll[0], accuracy[0] - accuracy[1:], taylor)


def _taylor(lm: LM, params: Params, batches: Sequence[Batch], num_targets: int) -> np.ndarray:
  """Returns sum |g theta| of each block, [L] f64, where g is the gradient over all batches."""
  add_gradient = _make_add_gradient(lm.model, lm.mesh)  # pyright: ignore[reportArgumentType]
  gradient = jax.tree.map(jnp.zeros_like, params)
  for batch in batches:
    gradient = add_gradient(gradient, params, batch, jnp.float32(num_targets))
  sums = _sum_of_products(gradient['layers'], params['layers'])
  return np.asarray(processes.fetch(sums), np.float64)


@functools.partial(jax.jit, static_argnames='model', compiler_options=XLA_OPTIONS)
def _score(
  model: Transformer, params: Params, batch: Batch, gates: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns log p(target) in nats [B, T] f32, and whether the target is the most likely token.

  The second array is [B, T] bool.
  """
  x, _ = model.bind({'params': params}).features(
    batch.tokens, batch.positions, batch.segment_ids, gates=gates
  )

  def judge(logits, targets):
    return target_logprobs(logits, targets), is_likeliest(logits, targets)

  return of_logits(model, params, x, batch.targets, judge)


def _summarise(
  batches: Sequence[Batch], scores: Sequence[tuple[np.ndarray, np.ndarray]]
) -> tuple[float, float]:
  """Returns the mean of -log p of a completion token, and the accuracy of completions.

  The accuracy is the share of completions whose every token is the most likely one.
  """
  mask, segments = (
    np.concatenate([getattr(batch, name) for batch in batches])
    for name in ('loss_mask', 'segment_ids')
  )
  logprobs, likeliest = (np.concatenate(arrays) for arrays in zip(*scores, strict=True))
  row, _ = np.nonzero(mask)
  # Each token's completion is identified by the row and the segment in it.
  completion = np.stack([row, segments[mask]], axis=1)
  missed = np.unique(completion[~likeliest[mask]], axis=0)
  return -logprobs[mask].mean(dtype=np.float64), 1 - len(missed) / len(
    np.unique(completion, axis=0)
  )


@functools.lru_cache
def _make_add_gradient(model: Any, mesh: jax.sharding.Mesh) -> Any:
  """Returns the jitted add_gradient(gradient, params, batch, num_targets) -> gradient.

  The given gradient is donated. The function adds the gradient of the batch's share of the mean
  negative log-likelihood of num_targets tokens.
  """

  def add(gradient, params, batch, num_targets):
    return jax.tree.map(
      jnp.add, gradient, jax.grad(finetune.loss_fn)(params, model, batch, num_targets)
    )

  shardings = param_shardings(model.config, mesh, model.rules)
  return jax.jit(
    add, donate_argnames='gradient', out_shardings=shardings, compiler_options=XLA_OPTIONS
  )


@jax.jit
def _sum_of_products(gradient: Any, layers: Any) -> jax.Array:
  """Returns sum |g theta| [L] f32 of trees with leaves [L, ...]."""
  products = jax.tree.map(
    lambda g, p: jnp.sum(jnp.abs(g * p), axis=range(1, p.ndim)), gradient, layers
  )
  return jax.tree.reduce(jnp.add, products)


def change(base_params: Params, params: Params) -> dict[str, Any]:
  """Returns the relative change ‖params - base‖ / ‖base‖ (Frobenius) by layer and kind of module.

  'layers' is [L] f64, one value per block, and each kind has a float. Kinds are 'embedding',
  'attn/q', 'attn/k', 'attn/v', 'attn/o', 'mlp/gate', 'mlp/up', 'mlp/down', 'norm' and 'lm_head',
  each over all layers. The formula is ours. Both trees are float32 and sharded alike.
  """
  squares = jax.tree.leaves_with_path(processes.fetch(_squares(base_params, params)))
  sums: dict[str, Any] = {}
  for path, value in squares:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    kind = (
      'norm'
      if 'norm' in name
      else name.removeprefix('layers/').removesuffix('/kernel').removesuffix('/bias')
    )
    moved_and_size = np.asarray(value, np.float64)  # [2], or [2, L] for a stacked tensor.
    sums[kind] = sums.get(kind, 0) + moved_and_size.reshape(2, -1).sum(axis=1)
    if name.startswith('layers/'):
      sums['layers'] = sums.get('layers', 0) + moved_and_size
  ratios = {key: np.sqrt(moved / size) for key, (moved, size) in sums.items()}
  return {key: ratio if key == 'layers' else float(ratio) for key, ratio in ratios.items()}


@jax.jit
def _squares(base_params: Params, params: Params) -> Params:
  """Returns sum (params - base)^2 and sum base^2 of each tensor.

  They are [2] f32, or [2, L] for a stacked tensor.
  """

  def squares(path, base, new):
    axes = range(path[0].key == 'layers', base.ndim)
    return jnp.stack([jnp.sum((new - base) ** 2, axis=axes), jnp.sum(base**2, axis=axes)])

  return jax.tree.map_with_path(squares, base_params, params)
