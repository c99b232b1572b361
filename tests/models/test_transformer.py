"""The Transformer: causality, cached = full forward, scan and remat, segments, shared prefixes, sharded = one device."""

import contextlib
import dataclasses
import functools
from types import SimpleNamespace

from imm_jax import sharding
from imm_jax.models import attention, layers, transformer
from imm_jax.models.cache import empty_cache
from imm_jax.models.config import choose_attention, mesh_advice
from imm_jax.models.transformer import Transformer
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.conftest import every_family, random_params

TOLERANCE = 2e-5  # float32 sums in another order


@pytest.fixture
def tokens():
  return jax.random.randint(jax.random.key(2), (4, 12), 0, 64)


def positions_of(tokens):
  return jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)


@functools.partial(jax.jit, static_argnames=('config', 'method'))
def apply(config, params, tokens, positions, segment_ids=None, cache=None, prefix=None, gates=None, method='__call__'):
  return Transformer(config).apply({'params': params}, tokens, positions, segment_ids, cache, prefix, gates, method=method)


def forward(config, params, tokens):
  return apply(config, params, tokens, positions_of(tokens))[0]


@pytest.mark.parametrize('window', [None, 3])
def test_a_token_depends_on_the_past_within_the_window_only(config, params, tokens, window):
  config = dataclasses.replace(config, sliding_window=window, num_layers=1)
  params = params | {'layers': jax.tree.map(lambda x: x[:1], params['layers'])}
  where = positions_of(tokens)

  def features(embedding):
    """Position 7's output as a function of an embedding of its own for each position."""
    table = params | {'embedding': embedding}
    return apply(config, table, jnp.arange(12)[None], where[:1], method='features')[0][0, 7]

  jacobian = jax.jacrev(features)(params['embedding'])
  reached = np.flatnonzero(np.abs(jacobian).sum((0, 2)) > 0)
  assert list(reached) == list(range(8) if window is None else range(5, 8))


@every_family
@pytest.mark.parametrize('prefill', [1, 5, 11])
def test_cached_decode_equals_the_full_forward(config, params, tokens, prefill):
  where = positions_of(tokens)
  cache = empty_cache(config, 4, 16)
  outputs = []
  for start, end in [(0, prefill), *((i, i + 1) for i in range(prefill, 12))]:
    logits, cache = apply(config, params, tokens[:, start:end], where[:, start:end], cache=cache)
    outputs.append(logits)
  np.testing.assert_allclose(jnp.concatenate(outputs, 1), forward(config, params, tokens), atol=TOLERANCE)


@every_family
def test_a_prefix_shared_by_all_rows_equals_the_full_forward(config, params, tokens):
  tokens = tokens.at[:, :5].set(tokens[:1, :5])
  where = positions_of(tokens)
  _, prefix = apply(config, params, tokens[:1, :5], where[:1, :5])
  logits, cache = apply(config, params, tokens[:, 5:9], where[:, 5:9], prefix=prefix)
  np.testing.assert_allclose(logits, forward(config, params, tokens)[:, 5:9], atol=TOLERANCE)
  grown = empty_cache(config, 4, 9)
  _, grown = apply(config, params, tokens[:, 5:9], where[:, 5:9], prefix=prefix, cache=grown)
  logits, _ = apply(config, params, tokens[:, 9:10], where[:, 9:10], prefix=prefix, cache=grown)
  np.testing.assert_allclose(logits, forward(config, params, tokens)[:, 9:10], atol=TOLERANCE)
  assert cache.v.shape[3] == 4


def test_padding_is_seen_by_nobody(config, params, tokens):
  where = positions_of(tokens).at[:, 8:].set(attention.EMPTY)
  logits, cache = apply(config, params, tokens, where)
  np.testing.assert_allclose(logits[:, :8], forward(config, params, tokens)[:, :8], atol=TOLERANCE)
  assert np.isfinite(logits).all()
  logits, _ = apply(config, params, tokens[:, 8:9], jnp.full((4, 1), 8), cache=cache)
  np.testing.assert_allclose(logits, forward(config, params, tokens)[:, 8:9], atol=TOLERANCE)


def test_segments_do_not_see_each_other(config, params, tokens):
  where = jnp.concatenate([jnp.arange(7), jnp.arange(5)])[None].repeat(4, 0)
  segments = (jnp.arange(12) >= 7).astype(jnp.int32)[None].repeat(4, 0) + 1
  packed, _ = apply(config, params, tokens, where, segments)
  apart = [forward(config, params, tokens[:, :7]), forward(config, params, tokens[:, 7:])]
  np.testing.assert_allclose(packed, jnp.concatenate(apart, 1), atol=TOLERANCE)


@every_family
@pytest.mark.parametrize('remat', ['full', 'dots'])
def test_remat_changes_no_gradient(config, params, tokens, remat):
  def loss(params, config):
    return jnp.mean(forward(config, params, tokens) ** 2)

  grad = jax.jit(jax.grad(loss), static_argnums=1)
  plain = grad(params, config)
  again = grad(params, dataclasses.replace(config, remat=remat))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4), plain, again)


def test_each_layer_has_its_own_window_and_rotary_frequencies(config, params, tokens):
  config = dataclasses.replace(config, sliding_window=3, local_rope_theta=100.0)
  x = jax.random.normal(jax.random.key(0), (4, 12, config.embed_dim))
  own = jax.tree.map(lambda p: p[0], params['layers'])

  def block(config, *is_global):
    arguments = x, (), positions_of(tokens), jnp.zeros_like(tokens), (), None, *is_global
    return jax.jit(transformer.Block(config, sharding.TRAIN).apply)({'params': own}, *arguments)[0]

  full = block(dataclasses.replace(config, sliding_window=None, local_rope_theta=None))
  local = block(dataclasses.replace(config, rope_theta=100.0, local_rope_theta=None))
  np.testing.assert_allclose(block(config, jnp.bool_(True)), full, atol=TOLERANCE)
  np.testing.assert_allclose(block(config, jnp.bool_(False)), local, atol=TOLERANCE)
  np.testing.assert_allclose(block(config), local, atol=TOLERANCE)
  assert np.abs(full - local).max() > 0.1
  assert list(dataclasses.replace(config, num_layers=4, global_layers=(1, 3)).is_global()) == [False, True] * 2


@pytest.mark.parametrize('kernel', ['splash', 'cudnn'])
def test_a_kernel_gets_the_window_of_its_layer(config, params, monkeypatch, kernel):
  """What each platform's kernel is asked for is what `attend` computes; in place of the kernel stands `attend`."""
  config = dataclasses.replace(config, sliding_window=3, global_layers=(1,), local_rope_theta=100.0)
  tokens = jax.random.randint(jax.random.key(2), (1, 128), 0, 64)

  def stand_in(q, kv, segment_ids, window, cap=None, spec=None):
    return attention.attend(q, kv.positions, segment_ids, [kv], window, cap)

  monkeypatch.setattr(layers, kernel, stand_in)
  found, _ = Transformer(dataclasses.replace(config, attention=kernel)).apply(
    {'params': params}, tokens, positions_of(tokens)
  )
  np.testing.assert_allclose(found, forward(config, params, tokens), atol=TOLERANCE)


@every_family
def test_scan_equals_a_loop_over_layers(config, params, tokens):
  x, where, block = (
    jnp.take(params['embedding'], tokens, axis=0),
    positions_of(tokens),
    transformer.Block(config, sharding.TRAIN),
  )
  if config.scale_embeddings:
    x *= 32**0.5
  for layer in range(config.num_layers):
    own = jax.tree.map(lambda p, layer=layer: p[layer], params['layers'])
    is_global = jnp.bool_(layer in config.global_layers) if config.global_layers else None
    x, _ = jax.jit(block.apply)({'params': own}, x, (), where, jnp.zeros_like(tokens), (), None, is_global)
  features, _ = apply(config, params, tokens, where, method='features')
  norm = layers.RMSNorm(config.rms_norm_eps, 'embed', config.norm_plus_one)
  np.testing.assert_allclose(features, norm.apply({'params': params['final_norm']}, x), atol=TOLERANCE)


def test_a_gate_of_0_takes_a_block_out_and_gates_of_1_change_no_bit(config, tokens):
  config = dataclasses.replace(config, num_layers=3)
  params, shorter = random_params(config), dataclasses.replace(config, num_layers=2)
  gated = functools.partial(apply, config, params, tokens, positions_of(tokens))
  np.testing.assert_array_equal(gated(gates=jnp.ones(3))[0], forward(config, params, tokens))
  for layer in range(3):
    kept = np.delete(np.arange(3), layer)
    without = params | {'layers': jax.tree.map(lambda x, kept=kept: x[kept], params['layers'])}
    logits, _ = gated(gates=jnp.ones(3).at[layer].set(0))
    np.testing.assert_array_equal(logits, forward(shorter, without, tokens))


@every_family
@pytest.mark.parametrize('rules', [sharding.TRAIN, sharding.SAMPLE], ids=['train', 'sample'])
def test_sharded_equals_one_device(config, params, tokens, mesh, rules):
  placed = jax.device_put(params, transformer.param_shardings(config, mesh, rules))
  assert max(leaf.size // leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(placed)) >= 4
  model = Transformer(config, rules)
  with jax.set_mesh(mesh):
    sharded = jax.jit(lambda p, t, w: model.apply({'params': p}, t, w)[0])(placed, tokens, positions_of(tokens))
  np.testing.assert_allclose(sharded, forward(config, params, tokens), atol=TOLERANCE)


@pytest.mark.parametrize('tied', [True, False])
def test_logprobs_in_chunks_are_those_of_all_logits(config, tokens, tied, monkeypatch):
  config = dataclasses.replace(config, tie_embeddings=tied)
  params = random_params(config)
  monkeypatch.setattr(transformer, 'LOGIT_BYTES', 4 * 64 * 8)  # six chunks of two positions
  x, _ = apply(config, params, tokens, positions_of(tokens), method='features')
  targets = jnp.roll(tokens, -1, axis=1)
  chunked = transformer.of_logits(Transformer(config), params, x, targets, transformer.target_logprobs)
  expected = jnp.take_along_axis(jax.nn.log_softmax(forward(config, params, tokens)), targets[..., None], axis=-1)[..., 0]
  np.testing.assert_allclose(chunked, expected, atol=1e-5)


@pytest.mark.parametrize(
  'window, cap, shape, T',
  [(None, None, None, 256), (100, None, (2, 2, 2), 256), (None, 2.0, None, 256), (None, None, None, 640)],
)
def test_the_tpu_kernel_attends_as_attend_does(window, cap, shape, T):
  """Packed rows with grouped queries, values and gradients; interpreted on the CPU."""
  B, N, K, H = 4, 4, 2, 128
  keys = jax.random.split(jax.random.key(0), 4)
  q, k, v, weights = (jax.random.normal(key, (B, T, heads, H)) for key, heads in zip(keys, (N, K, K, N), strict=True))
  segments = jnp.asarray(np.repeat([[1, 2, 3, 0]], [90, 70, 50, T - 210], axis=1), jnp.int32) * jnp.ones((B, 1), jnp.int32)
  rows = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (B, T))

  def plain(q, k, v):
    kv = attention.KeyValues(k.transpose(0, 2, 3, 1), v.swapaxes(1, 2), rows, segments)
    out = attention.attend(q, rows, segments, [kv], window, cap)
    return jnp.sum(out * weights), out

  def kernel(q, k, v):
    kv = attention.KeyValues(k.transpose(0, 2, 3, 1), v.swapaxes(1, 2), rows, segments)
    spec = jax.P(('data', 'fsdp'), 'tensor', None, None)
    out = attention.splash(q, kv, segments, window, cap, spec, interpret=True)
    return jnp.sum(out * weights), out

  expected = jax.jit(jax.value_and_grad(plain, (0, 1, 2), has_aux=True))(q, k, v)
  with jax.set_mesh(sharding.make_mesh(*shape)) if shape else contextlib.nullcontext():
    found = jax.jit(jax.value_and_grad(kernel, (0, 1, 2), has_aux=True))(q, k, v)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4, rtol=1e-4), found, expected)


@pytest.mark.parametrize('num_heads', [2, 4])
def test_queries_filled_up_to_a_matrix_attend_alike(num_heads):
  rng = np.random.default_rng(0)
  q, k, v = (
    jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 1, num_heads, 8), (3, 2, 5, 8), (3, 2, 5, 8))
  )
  positions, segments = jnp.tile(jnp.arange(5)[None], (3, 1)), jnp.zeros((3, 5), jnp.int32)
  sources = [attention.KeyValues(k.swapaxes(2, 3), v, positions, segments)]
  plain, filled = (attention.attend(q, positions[:, 3:4], segments[:, :1], sources, None, min_rows=rows) for rows in (1, 8))
  np.testing.assert_allclose(filled, plain, atol=1e-6)


def test_bfloat16_computes_in_bfloat16_over_float32_params(config, params, tokens):
  config = dataclasses.replace(config, dtype='bfloat16')
  x, cache = apply(config, params, tokens, positions_of(tokens), method='features')
  assert x.dtype == cache.k.dtype == jnp.bfloat16
  assert forward(config, params, tokens).dtype == jnp.float32


def test_bfloat16_logits_are_float32_sums_tied_or_not(config, params, tokens):
  config = dataclasses.replace(config, dtype='bfloat16')
  untied = params | {'lm_head': {'kernel': params['embedding'].T}}
  tied = {name: leaf for name, leaf in params.items() if name != 'lm_head'}
  one = forward(config, untied, tokens)
  np.testing.assert_allclose(one, forward(dataclasses.replace(config, tie_embeddings=True), tied, tokens), atol=1e-4)
  assert (one != one.astype(jnp.bfloat16).astype(jnp.float32)).any()


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'num_kv_heads': 3}, 'num_heads=4 is not a multiple of num_kv_heads=3'),
    ({'dtype': 'float16'}, "model.dtype: 'float16' is not one of float32, bfloat16"),
    ({'remat': 'some'}, "model.remat: 'some' is not one of none, full, dots"),
    ({'attention': 'fast'}, "model.attention: 'fast' is not one of auto, xla, splash, cudnn"),
    ({'attention': 'cudnn', 'attention_softcap': 50.0}, 'model.attention: cudnn cannot softcap scores'),
  ],
)
def test_a_wrong_config_names_the_key(config, changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(config, **changes)


def test_auto_takes_the_kernel_that_can_compute_the_model(config):
  def choose(platform, **changes):
    devices = np.array([SimpleNamespace(platform=platform)])
    changed = dataclasses.replace(config, **{'dtype': 'bfloat16', **changes})
    return choose_attention('auto', changed, SimpleNamespace(devices=devices))

  assert choose('gpu') == 'cudnn'
  assert choose('gpu', dtype='float32') == choose('gpu', attention_softcap=50.0) == choose('gpu', head_dim=256) == 'xla'
  assert choose('tpu', attention_softcap=50.0) == 'splash'
  assert choose('cpu') == 'xla'


@pytest.mark.parametrize(
  'axes, advice',
  [
    ((1, 4, 2), ''),  # 16 heads on 8 devices
    ((1, 8, 1), 'fsdp = 8 leaves embed_dim (training) = 36 whole on every device; try mesh.data=2'),
    ((2, 2, 2), ''),
  ],
)
def test_a_mesh_that_leaves_dimensions_whole_is_told(config, axes, advice):
  one = dataclasses.replace(config, embed_dim=36, num_heads=16)
  assert mesh_advice(one, sharding.make_mesh(*axes)) == advice


def test_the_advice_is_for_sampling_too(config):
  mesh = sharding.make_mesh(1, 8, 1)
  advice = mesh_advice(dataclasses.replace(config, num_heads=4), mesh)
  assert advice == 'fsdp = 8 leaves num_heads (sampling) = 4 whole on every device; try mesh.data=2'


def test_the_order_of_operations_takes_less_memory_than_xlas_own():
  def forward(x, kernels):
    def layer(x, kernel):
      return sum(jnp.tanh(x @ (kernel + i)) @ kernel.T for i in range(4)), None

    return jax.lax.scan(layer, x, kernels)[0]

  arguments = jnp.ones((8, 16)), jnp.ones((3, 16, 32))
  ours, own = (
    jax.jit(forward, compiler_options=options).lower(*arguments).compile().memory_analysis().temp_size_in_bytes
    for options in (transformer.XLA_OPTIONS, None)
  )
  assert ours < own  # an option that XLA takes and does not follow leaves them equal
