"""Computes the cross-entropy of a whole batch and its gradient without ever holding all logits."""

import functools
import math

import jax
import jax.numpy as jnp

from imm_jax.models.attention import softcap
from imm_jax.models.transformer import chunk_length, Params, split, target_logprobs, Transformer


def cross_entropy(
  model: Transformer, params: Params, x: jax.Array, targets: jax.Array, weights: jax.Array
) -> jax.Array:
  """Returns sum weights * -log p(target) in nats, [] f32.

  Args:
    model: the model whose output head is used.
    params: the params of the model; only the head has a gradient.
    x: [B, T, D], the head's input.
    targets: [B, T] int32.
    weights: [B, T] f32, not differentiated.
  """
  head = params['embedding'] if model.config.tie_embeddings else params['lm_head']['kernel']
  return _cross_entropy(model, head, x, targets, weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(model, head, x, targets, weights):
  return _forward(model, head, x, targets, weights)[0]


def _forward(model, head, x, targets, weights):
  """Returns the value, and the gradients of head and x.

  Each device gathers the head once, takes its own rows chunk by chunk, and adds up the head's
  gradient, which is reduced at the end: in a loop of the whole mesh it would be reduced for every
  chunk.
  """
  names = ('vocab', 'embed') if model.config.tie_embeddings else ('embed', 'vocab')
  mesh = jax.sharding.get_abstract_mesh()
  over = dict(model.rules.table)['batch']  # The mesh axes that rows are split over.
  manual = tuple(axis for axis in over if mesh.shape.get(axis, 1) > 1)
  local = functools.partial(_local, model.config.tie_embeddings, model.config.logit_softcap)
  if not manual:
    (total, d_head, d_x) = local(head, x, targets, weights)
    return total, (d_head, d_x)

  def keep(spec):
    """Returns the part of a spec that speaks of the manual axes."""
    entries = [
      tuple(axis for axis in (entry if isinstance(entry, tuple) else (entry,)) if axis in manual)
      for entry in spec
    ]
    return jax.P(*(entry or None for entry in entries))

  rows = keep(model.rules.spec(('batch', 'length'), targets.shape, mesh.shape))
  place = keep(model.rules.spec(names, head.shape, mesh.shape))
  split_at = next((i for i, entry in enumerate(place) if entry), None)

  def on_device(head, x, targets, weights):
    whole = head.astype(x.dtype)
    if split_at is not None:
      whole = jax.lax.all_gather(whole, place[split_at], axis=split_at, tiled=True)
    total, d_head, d_x = local(whole, x, targets, weights)
    d_head = d_head.astype(x.dtype)  # Sent in this dtype, as the gradients of all matrices are.
    others = [axis for axis in manual if split_at is None or axis not in place[split_at]]
    if split_at is not None:
      d_head = jax.lax.psum_scatter(d_head, place[split_at], scatter_dimension=split_at, tiled=True)
    d_head = jax.lax.psum(d_head, others) if others else d_head
    return jax.lax.psum(total, manual), d_head.astype(jnp.float32), d_x

  mapped = jax.shard_map(
      on_device, in_specs=(place, rows, rows, rows), out_specs=(jax.P(), place, rows),
      axis_names=set(manual),
      check_vma=False,
  )  # fmt: skip
  total, d_head, d_x = mapped(head, x, targets, weights)
  return total, (d_head, d_x)


def _backward(model, gradients, cotangent):
  del model
  d_head, d_x = gradients
  return d_head * cotangent, d_x * cotangent.astype(d_x.dtype), None, None


_cross_entropy.defvjp(_forward, _backward)


def _local(
  tied: bool,
  cap: float | None,
  head: jax.Array,
  x: jax.Array,
  targets: jax.Array,
  weights: jax.Array,
):
  """Returns the value [] f32 and the gradients of head, f32, and of x [B, T, D].

  Every logit is computed only once.
  """
  W = 'VD' if tied else 'DV'
  num_tokens = math.prod(targets.shape)
  length = chunk_length(1, num_tokens, head.shape[W.index('V')])
  compute = head.astype(x.dtype)

  def add_chunk(carry, chunk):
    total, d_head = carry
    x, targets, weights = chunk
    logits = softcap(jnp.einsum(f'ND,{W}->NV', x, compute, preferred_element_type=jnp.float32), cap)
    is_target = targets[:, None] == jnp.arange(logits.shape[-1])[None]
    d_logits = (jax.nn.softmax(logits) - jnp.where(is_target, 1.0, 0.0)) * weights[:, None]
    if cap is not None:
      d_logits *= 1 - (logits / cap) ** 2
    d_logits = d_logits.astype(x.dtype)  # As the gradients of all activations are.
    d_head += jnp.einsum(f'NV,ND->{W}', d_logits, x, preferred_element_type=jnp.float32)
    d_x = jnp.einsum(f'NV,{W}->ND', d_logits, compute)
    return (total - jnp.sum(target_logprobs(logits, targets) * weights), d_head), d_x

  start = jnp.float32(0), jnp.zeros(head.shape, jnp.float32)
  # Tokens in one row; those that fill the last chunk have no weight.
  chunks = [
    split(a.reshape(1, num_tokens, *a.shape[2:]), length)[:, 0] for a in (x, targets, weights)
  ]
  (total, d_head), d_x = jax.lax.scan(add_chunk, start, tuple(chunks))
  return total, d_head, d_x.reshape(-1, x.shape[-1])[:num_tokens].reshape(x.shape)
