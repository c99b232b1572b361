"""Merge methods: exact ends, stacked = unstacked, every mesh alike, masks by their properties, in place on the devices."""

import dataclasses
import functools
import operator

from hypothesis import given, settings, strategies
from hypothesis.extra.numpy import arrays
from imm_jax import merging, sharding
from imm_jax.merging import coefficients, largest, METHODS, methods, pieces, sparsify, stream
from imm_jax.models import transformer
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

SHAPES = {
  'embedding': (32, 16),
  'layers': {'mlp': {'kernel': (2, 16, 8)}, 'norm': {'scale': (2, 16)}},
}
ODD = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, 1.0, -2.5], np.float32)
WITH_ALPHA = [name for name, row in METHODS.items() if row.alpha]
ELEMENTWISE = [
  'linear',
  'task_arithmetic',
  'lines',
  'dare',
]  # with an alpha; no element of the result depends on another


def tree(seed, size=1.0):
  rng = np.random.default_rng(seed)
  is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
  return jax.tree.map(lambda shape: jnp.asarray(size * rng.normal(size=shape), jnp.float32), SHAPES, is_leaf=is_shape)


def near(base, seed, size):
  return jax.tree.map(jnp.add, base, tree(seed, size))


BASE = tree(0)
MODELS = [near(BASE, 1, 0.02), near(BASE, 2, 0.3), near(BASE, 3, 0.1)]


def bits(x):
  return np.asarray(x).view(np.uint32)


def assert_same_bits(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(bits(x), bits(y)), a, b)


def assert_close(a, b, tolerance=8 * 2**-24):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * np.abs(y).max()), a, b)


def arguments(name):
  """Returns (base, models, parameters) with which every method can be called, some parameters not at their defaults."""
  row = METHODS[name]
  least, most = row.num_models
  num_models = min(3 if most is None else most, max(least, 3))
  given = {
    'weight': tuple([0.5, 0.3, 0.4][:num_models]),
    't': 0.3,
    'a': 0.4,
    'density': 0.4,
    'drop_rate': 0.3,
    'gamma': 0.1,
  }
  given |= {
    'fisher': tuple([1.0, 2.0, 3.0][:num_models]),
    'scale': [0.5, 1.5],
    'select_topk': 0.5,
    'lambda': [0.2, 0.9, 0.4],
  }
  return (
    BASE if row.base == 'required' else None,
    MODELS[:num_models],
    {k: v for k, v in given.items() if k in row.parameters},
  )


def jit_merge(name, base, models, key=None, **parameters):
  """merging.merge in one compilation instead of one an operation."""
  merge = jax.jit(lambda base, models, key: merging.merge(name, base, models, key=key, **parameters))
  return merge(base, models, key)


@functools.cache
def merged(name):
  base, models, parameters = arguments(name)
  return jax.jit(lambda base, models: merging.merge(name, base, models, key=jax.random.key(5), **parameters))(base, models)


# Ends and identities.


@pytest.mark.parametrize('name', WITH_ALPHA)
def test_alpha_0_is_base_and_1_is_tuned_to_the_bit(name):
  parameters = {'density': 1.0, 'drop_rate': 0.0}
  parameters = {key: value for key, value in parameters.items() if key in METHODS[name].parameters}
  merge = jax.jit(lambda alpha: merging.merge(name, BASE, MODELS[:1], alpha=alpha, key=jax.random.key(0), **parameters))
  if name != 'lines':  # alpha is its slope's start: 0 leaves base only where depth is 0
    assert_same_bits(merge(0.0), BASE)
  assert_same_bits(merge(1.0), MODELS[0])


@pytest.mark.parametrize('name', ['linear', 'task_arithmetic', 'dare'])
@pytest.mark.parametrize('alpha, expected', [(0.0, 0), (1.0, 1)])
def test_the_ends_return_bits_whatever_the_other_side_holds(name, alpha, expected):
  pair = [{'x': jnp.asarray(np.repeat(ODD, 8))}, {'x': jnp.asarray(np.tile(ODD, 8))}]
  parameters = {'drop_rate': 0.0} if name == 'dare' else {}
  merge = lambda alpha: merging.merge(name, pair[0], pair[1:], alpha=alpha, key=jax.random.key(0), **parameters)  # noqa: E731
  if expected and name != 'linear':  # a delta of inf - inf is NaN, and NaN is not kept by a mask
    finite = np.isfinite(pair[0]['x']) & np.isfinite(pair[1]['x'])
    np.testing.assert_array_equal(bits(jax.jit(merge)(alpha)['x'])[finite], bits(pair[1]['x'])[finite])
  else:
    assert_same_bits(jax.jit(merge)(alpha), pair[expected])
    assert_same_bits(merge(alpha), pair[expected])


@pytest.mark.parametrize('name', [name for name in METHODS if name != 'passthrough'])
def test_a_model_merged_with_itself_is_itself(name):
  base, models, parameters = arguments(name)
  parameters |= {'normalize': True} if 'normalize' in METHODS[name].parameters else {}
  again = jax.jit(
    lambda x: merging.merge(name, base and x, [x] * len(models), key=jax.random.key(0), **parameters)
  )(BASE)  # fmt: skip
  assert_same_bits(again, BASE)


@settings(max_examples=25, deadline=None)
@given(
  arrays(np.float32, (2, 24), elements=strategies.floats(-100, 100, width=32)),
  strategies.floats(0, 1),
)
def test_linear_is_its_equation_and_stays_between(pair, alpha):
  base, tuned = {'x': jnp.asarray(pair[0])}, {'x': jnp.asarray(pair[1])}
  x = np.asarray(merging.merge('linear', base, [tuned], alpha=alpha)['x'])
  tolerance = 8 * 2**-24 * np.abs(pair).max() + np.finfo(np.float32).tiny  # XLA flushes subnormal results
  np.testing.assert_allclose(x, (1 - alpha) * pair[0].astype(float) + alpha * pair[1], rtol=0, atol=tolerance)
  assert (x >= pair.min(axis=0) - tolerance).all() and (x <= pair.max(axis=0) + tolerance).all()
  other = merging.merge('linear', tuned, [base], alpha=1 - alpha)['x']
  np.testing.assert_allclose(x, other, rtol=0, atol=tolerance)


def test_methods_that_come_to_the_same():
  merge = functools.partial(jit_merge, base=BASE, models=MODELS[:1])
  linear = merge('linear', alpha=0.3)
  for name in ('task_arithmetic', 'dare', 'ties', 'breadcrumbs', 'dare_linear', 'della_linear'):
    parameters = {'drop_rate': 0.0} if name == 'dare' else {} if name == 'task_arithmetic' else {'density': 1.0}
    assert_close(merge(name, alpha=0.3, key=jax.random.key(0), **parameters), linear)
  assert_close(merge('slerp', alpha=0.3), linear, 1e-4)  # a fine-tuned neighbour is nearly parallel
  assert_close(merge('lines', alpha=1.0), MODELS[0])
  two = jit_merge('linear', None, MODELS[:2], weight=(2.0, 6.0))
  assert_close(jit_merge('fisher', None, MODELS[:2], weight=1.0, fisher=(2.0, 6.0)), two)
  assert_close(jit_merge('linear', None, MODELS[:2], weight=(1.0, 3.0)), two)


def test_linear_keeps_the_dtype_and_computes_in_float32():
  base = {'x': jnp.full((4,), 1.0, jnp.bfloat16)}
  tuned = {'x': jnp.full((4,), 1.0078125, jnp.bfloat16)}  # the next bfloat16
  x = merging.merge('linear', base, [tuned], alpha=0.6)['x']
  assert x.dtype == jnp.bfloat16
  np.testing.assert_array_equal(x.astype(jnp.float32), 1.0078125)
  few = merging.merge('linear', base, [tuned], alpha=0.3)['x']
  assert stream.count_unmoved(base['x'], [tuned['x']], few) == (4, 4)
  assert stream.count_unmoved(base['x'], [tuned['x']], x) == (4, 0)


def test_scale_free_thresholds():
  """Deltas a thousand times smaller give a result as much nearer to base; mergekit's absolute thresholds do not."""
  for name in ('model_stock', 'sce'):
    moved = {}
    base = jax.tree.map(jnp.zeros_like, BASE)
    for size in (1.0, 2.0**-14):
      models = [jax.tree.map(functools.partial(jnp.multiply, size), near(BASE, i, 0.5)) for i in (1, 2)]
      for compat in (False, True):
        moved[size, compat] = jit_merge(name, base, models, mergekit_compat=compat)
    assert_close(jax.tree.map(lambda x: x * 2.0**14, moved[2.0**-14, False]), moved[1.0, False], 1e-5)
    assert_same_bits(moved[1.0, True], moved[1.0, False])
    assert any(
      (a * 2.0**14 != b).any() for a, b in zip(*map(jax.tree.leaves, (moved[2.0**-14, True], moved[1.0, True])), strict=True)
    )


def test_weights_that_add_up_to_0_leave_no_nan():
  halfway = jit_merge('nuslerp', None, MODELS[:2], weight=(0.5, 0.5))
  assert_same_bits(jit_merge('nuslerp', None, MODELS[:2], weight=(1.0, -1.0)), halfway)
  assert_same_bits(jit_merge('nuslerp', None, MODELS[:2], weight=(0.0, 0.0)), halfway)
  with pytest.raises(ValueError, match='multislerp: the weights add up to 0 in embedding'):
    merging.merge('multislerp', None, MODELS[:2], weight=(1.0, -1.0))
  with pytest.raises(ValueError, match='fisher: the weights add up to 0 in embedding'):
    merging.merge('fisher', None, MODELS[:2], weight=(1.0, -2.0), fisher=(2.0, 1.0))
  with pytest.raises(ValueError, match='linear: the weights add up to 0 in layers/mlp/kernel'):
    merging.merge(
      'linear',
      None,
      MODELS[:2],
      weight=([{'filter': 'mlp', 'value': [1, -1]}, {'value': 3}], [0, 1]),
    )
  plain = jit_merge('ties', BASE, MODELS[:2], weight=(1.0, -1.0))  # task vectors are divided by 1, as with mergekit
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(plain))


@pytest.mark.parametrize('filter_wise', [False, True])
def test_model_stock_of_opposite_task_vectors_is_the_base(filter_wise):
  """Their mean says nothing of a direction: t would be -2 / 0, or a large number times what was rounded."""
  for step in (0.125, 0.1):
    models = [jax.tree.map(lambda x, y, s=sign * step: x + s * jnp.sign(y), BASE, tree(7)) for sign in (1, -1)]
    assert_same_bits(jit_merge('model_stock', BASE, models, filter_wise=filter_wise), BASE)
  three = [near(BASE, i, 0.1) for i in range(3)]  # nearly at right angles: this is left alone
  assert_close(jit_merge('model_stock', BASE, three), stock(three))


def stock(models):
  """The equation in float64, a layer at a time."""

  def one(base, *models):
    base, *models = (np.asarray(x, np.float64) for x in (base, *models))
    deltas, n = [model - base for model in models], len(models)
    pairs = [(deltas[i], deltas[j]) for i in range(n) for j in range(i)]
    cos = np.mean([np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs])
    t = n * cos / (1 + (n - 1) * cos)
    return np.float32(t * np.mean(models, axis=0) + (1 - t) * base)

  def leaf(path, *arrays):
    if path[0].key != 'layers':
      return one(*arrays)
    return np.stack([one(*layer) for layer in zip(*arrays, strict=True)])

  return jax.tree.map_with_path(leaf, BASE, *models)


# Layers and meshes.


def unstack(stacked):
  layers = {str(i): jax.tree.map(operator.itemgetter(i), stacked['layers']) for i in range(2)}
  return {'embedding': stacked['embedding'], 'layers': layers}


ALIKE = (
  'dare_linear',
  'dare_ties',
  'della',
  'della_linear',
  'breadcrumbs_ties',
)  # made of the parts of others


@pytest.mark.parametrize('name', [pytest.param(name, marks=pytest.mark.slow if name in ALIKE else ()) for name in METHODS])
def test_stacked_is_unstacked(name):
  base, models, parameters = arguments(name)
  merge = jax.jit(lambda base, models: merging.merge(name, base, models, key=jax.random.key(5), **parameters))
  apart = merge(base and unstack(base), [unstack(model) for model in models])
  assert_close(apart, unstack(merged(name)))


def merged_on(mesh, name):
  base, models, parameters = arguments(name)
  specs = {
    'embedding': jax.P('tensor', 'fsdp'),
    'layers': {
      'mlp': {'kernel': jax.P(None, 'fsdp', 'tensor')},
      'norm': {'scale': jax.P(None, 'fsdp')},
    },
  }
  shardings = jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, jax.P))
  merge = jax.jit(
    lambda base, models: merging.merge(name, base, models, key=jax.random.key(5), **parameters),
    out_shardings=shardings,
  )
  return merge(*jax.device_put((base, models), (base and shardings, [shardings] * len(models))))


@pytest.mark.parametrize('name', [*ELEMENTWISE, 'breadcrumbs'])
def test_masks_and_elements_are_the_same_on_every_mesh(name, mesh):
  assert_same_bits(merged_on(mesh, name), merged(name))


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(METHODS.keys() - {*ELEMENTWISE, 'breadcrumbs'}))
def test_every_mesh_gives_the_same(name, mesh):
  assert_close(merged_on(mesh, name), merged(name))


@pytest.mark.parametrize('name', ELEMENTWISE)
def test_a_merge_moves_nothing_between_devices_and_is_in_place(name, config, mesh):
  config = dataclasses.replace(config, vocab_size=4096)  # a leaf that is larger than the leaves' keys together
  shardings = transformer.param_shardings(config, mesh, sharding.TRAIN)
  abstract, _ = transformer.abstract_params(config)
  params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
  merge = merging.make_merge(merging.MergeConfig(name, 0.5, 0.2, 0.5, 'base', 'fixed', 0.0), shardings, donates=True)
  alpha = coefficients.resolve(0.5, params)
  compiled = merge.lower(params, params, alpha, jax.random.key(0)).compile()
  text = compiled.as_text()
  assert not [word for word in ('all-reduce', 'all-gather', 'all-to-all', 'collective-permute') if word in text]
  memory = compiled.memory_analysis()
  sizes = [np.prod(s.shard_shape(x.shape)) * 4 for x, s in zip(*map(jax.tree.leaves, (abstract, shardings)), strict=True)]
  assert memory.alias_size_in_bytes >= sum(sizes)
  assert memory.temp_size_in_bytes <= max(sizes)


def test_one_compile_for_all_rounds_of_a_run():
  merge = merging.make_merge(merging.MergeConfig('linear', 0.5, 0.2, 0.5, 'base', 'fixed', 0.0), None, donates=False)
  rules_ = (0.0, 0.3, 1, [0.2, 0.8], {'mlp': 0.1, 'default': [0.0, 1.0]}, coefficients.by_layer([0.1, 0.9], 0.5))
  for alpha in rules_:
    expected = jax.jit(lambda base, tuned, a=alpha: merging.merge('linear', base, [tuned], alpha=a))(BASE, MODELS[0])
    assert_same_bits(merge(BASE, MODELS[0], coefficients.resolve(alpha, BASE), None), expected)
  assert merge._cache_size() == 1


def test_one_compile_for_all_alphas():
  merge = jax.jit(lambda base, tuned, alpha: merging.merge('ties', base, [tuned], alpha=alpha, density=0.3))
  for alpha in (0.1, 0.5, 1.0):
    merge(BASE, MODELS[0], jnp.float32(alpha))
  assert merge._cache_size() == 1


# Masks.


def keep_k(scores, k):
  return largest.is_largest(scores, largest.find_cut(scores, k))


def keep(ask, mask, delta, p):
  return mask(delta, p, pieces.answer(ask(delta, p, delta.size)))


@settings(max_examples=40, deadline=None)
@given(
  arrays(np.float32, 60, elements=strategies.sampled_from([0.0, 1e-40, 0.5, 1.0, 2.0, 3.5, 1e30])),
  strategies.integers(0, 60),
)
def test_largest_keeps_k_of_the_largest_and_the_first_of_equal_ones(scores, k):
  mask = np.asarray(keep_k(jnp.asarray(scores.reshape(5, 12)), k)).ravel()
  assert mask.sum() == k
  expected = np.argsort(-scores, kind='stable')[:k]
  assert set(np.flatnonzero(mask)) == set(expected)


@pytest.mark.parametrize('k', [1, 5, 700, 1999, 2000])
@pytest.mark.parametrize('sampled', ['alike', 'smaller', 'larger'])
def test_largest_of_many_rows_whatever_a_sample_says(k, sampled):
  scores = np.random.default_rng(0).integers(0, 500, size=(200, 10)).astype(np.float32)
  scores[:: largest.SAMPLE] *= {'alike': 1, 'smaller': 1e-3, 'larger': 1e3}[sampled]
  mask = np.asarray(jax.jit(keep_k)(jnp.asarray(scores), k)).ravel()
  assert set(np.flatnonzero(mask)) == set(np.argsort(-scores, axis=None, kind='stable')[:k])


@pytest.mark.parametrize('density', [0.01, 0.3, 0.5, 0.999, 1.0])
def test_keep_largest_keeps_a_share(density):
  delta = tree(4)['embedding']
  mask = np.asarray(keep(sparsify.ask_largest, sparsify.keep_largest, delta, {'density': density}))
  magnitude = np.abs(np.asarray(delta))
  assert mask.sum() == max(1, np.floor(np.float32(density) * np.float32(delta.size)))
  assert mask.all() or magnitude[mask].min() >= magnitude[~mask].max()


@pytest.mark.parametrize('density, gamma', [(0.5, 0.1), (0.9, 0.01), (0.95, 0.2), (1.0, 0.1)])
def test_keep_band_drops_the_largest_and_the_smallest(density, gamma):
  delta = tree(4)['embedding']
  p = {'density': density, 'gamma': gamma}
  mask = np.asarray(keep(sparsify.ask_band, sparsify.keep_band, delta, p)).ravel()
  order = np.argsort(-np.abs(np.asarray(delta)).ravel(), kind='stable')
  kept = np.flatnonzero(mask[order])
  assert mask.sum() == np.floor(np.float32(density) * np.float32(delta.size))
  assert kept.max() - kept.min() == len(kept) - 1
  assert kept.min() == min(np.floor(np.float32(gamma) * np.float32(delta.size)), delta.size - len(kept)) * (density < 1)


def test_keep_by_rank_is_likelier_for_larger_ones():
  delta, draws = jnp.asarray([[0.1, -0.4, 0.2, -0.3], [4.0, 1.0, -3.0, 2.0]]), 4000
  p = {'density': 0.5, 'epsilon': 0.3}
  draw = lambda key: sparsify.keep_by_rank(delta, p, sparsify.uniform(key, delta.shape))  # noqa: E731
  rate = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(0), draws))).mean(axis=0)
  expected = 0.2 + 0.6 * np.array([[0, 3, 1, 2], [3, 0, 2, 1]]) / 3
  assert (np.abs(rate - expected) < 4 * np.sqrt(expected * (1 - expected) / draws)).all()


def test_bits_are_those_of_jax_and_a_piece_draws_what_the_whole_does():
  counters = jnp.arange(100, dtype=jnp.uint32), jnp.arange(100, 200, dtype=jnp.uint32)
  key = jnp.array([7, 2**32 - 1], jnp.uint32)
  bits = jax.extend.random.threefry_2x32(key, jnp.concatenate(counters))
  np.testing.assert_array_equal(jnp.concatenate(sparsify.threefry_2x32(key, *counters)), bits)
  whole = sparsify.uniform(jax.random.key(3), (4, 6))
  np.testing.assert_array_equal(sparsify.uniform(jax.random.key(3), (2, 3), 13).ravel(), whole.ravel()[13:19])


@pytest.mark.parametrize('size', [24, 1000])
def test_dare_is_unbiased_also_for_24_elements(size):
  base, tuned, draws = {'x': jnp.zeros(size)}, {'x': jnp.ones(size)}, 4000
  merge = lambda key: merging.merge('dare', base, [tuned], alpha=0.5, drop_rate=0.2, key=key)['x']  # noqa: E731
  x = jax.jit(jax.vmap(merge))(jax.random.split(jax.random.key(0), draws))
  assert set(np.unique(x)) == {0.0, np.float32(0.625)}
  standard_error = 0.625 * np.sqrt(0.2 * 0.8 / draws)
  assert abs(float(x.mean()) - 0.5) < 4 * standard_error / np.sqrt(size)
  assert (np.abs(np.asarray(x).mean(axis=0) - 0.5) < 5 * standard_error).all()


def test_dare_masks_differ_by_key_leaf_layer_and_model():
  base = {'layers': {name: jnp.zeros((2, 256)) for name in 'ab'}}
  tuned = jax.tree.map(jnp.ones_like, base)
  one, two = (merging.merge('dare', base, [tuned], alpha=0.5, drop_rate=0.5, key=jax.random.key(i)) for i in range(2))
  masks = [
    one['layers']['a'][0],
    one['layers']['a'][1],
    one['layers']['b'][0],
    two['layers']['a'][0],
  ]
  both = merging.merge('dare', base, [tuned, tuned], weight=(1.0, 10.0), drop_rate=0.5, key=jax.random.key(0))
  assert len(np.unique(both['layers']['a'][0])) == 4
  assert all((masks[i] != masks[j]).any() for i in range(4) for j in range(i))


# Rounds.


@pytest.mark.parametrize('anchor', ['base', 'previous', 'vanilla'])
def test_drift_follows_the_laws_of_its_anchor(anchor):
  """What remains of updates u_t: alpha^(T-t+1) u_t with the base, alpha u_t with the previous model, all without a merge."""
  alpha, rounds = 0.5, 5
  updates, params, expected = (
    [tree(10 + t, 0.1) for t in range(rounds)],
    BASE,
    jax.tree.map(jnp.zeros_like, BASE),
  )
  for t, update in enumerate(updates):
    tuned = jax.tree.map(jnp.add, params, update)
    start = {'base': BASE, 'previous': params, 'vanilla': BASE}[anchor]
    params = merging.merge('linear', start, [tuned], alpha=1.0 if anchor == 'vanilla' else alpha)
    weight = {'base': alpha ** (rounds - t), 'previous': alpha, 'vanilla': 1.0}[anchor]
    expected = jax.tree.map(lambda e, u: e + weight * u, expected, update)  # noqa: B023
  drift = jax.tree.map(jnp.subtract, params, BASE)
  jax.tree.map(lambda d, e: np.testing.assert_allclose(d, e, atol=2e-6), drift, expected)


# Coefficients.


def test_coefficients_by_layer_filter_and_group():
  at = lambda coefficient, name, layer=None: coefficients.at(coefficient, name, layer, 5)  # noqa: E731
  assert [at([0, 1], 'mlp', layer) for layer in range(5)] == [0, 0.25, 0.5, 0.75, 1]
  assert [at([0, 1, 0], 'mlp', layer) for layer in range(5)] == [0, 0.5, 1, 0.5, 0]
  assert at([0.2, 1], 'embedding') == 0.2 and at([0.4], 'mlp', 3) == 0.4
  assert coefficients.at([0.2, 1], 'mlp', 0, 1) == 1 and coefficients.at([0.2, 1], 'embedding', None, 1) == 0.2
  rules = [{'filter': 'mlp', 'value': [0, 1]}, {'filter': 'norm', 'value': 0.7}, {'value': 0.1}]
  assert at(rules, 'layers/mlp/kernel', 4) == 1 and at(rules, 'final_norm/scale') == 0.7 and at(rules, 'embedding') == 0.1
  groups = {'attention': 0.2, 'norms': 0.9, 'default': [0, 1]}
  assert at(groups, 'layers/attn/q/kernel', 4) == 0.2 and at(groups, 'layers/attn_norm/scale', 2) == 0.9
  assert at(groups, 'model.layers.4.mlp.up_proj.weight', 4) == 1
  assert at(np.arange(5.0), 'mlp', 3) == 3
  with pytest.raises(ValueError, match='embedding: no filter or group of'):
    at(rules[:2], 'embedding')


def test_a_coefficient_is_resolved_to_an_array_a_leaf():
  tree = {'embedding': jnp.ones((4, 2)), 'layers': {'mlp': jnp.ones((3, 2))}, 'ids': jnp.arange(2)}
  apart = {'embedding': jnp.ones((4, 2)), 'layers': {str(i): {'mlp': jnp.ones(2)} for i in range(3)}}
  mlp = {0.5: [0.5] * 3, (0.0, 1.0): [0.0, 0.5, 1.0]}
  mlp = [*mlp.items(), (np.float32([1, 2, 3]), [1.0, 2.0, 3.0]), (coefficients.by_layer([3, 2, 1], 9), [3.0, 2.0, 1.0])]
  for coefficient, expected in mlp:
    found = coefficients.resolve(coefficient, tree)
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype(np.float32)}
    assert found['embedding'].shape == () and found['layers']['mlp'].tolist() == expected
    traced = jax.jit(lambda c: coefficients.resolve(c, tree))(jnp.asarray(0.5))
    assert traced['layers']['mlp'].tolist() == [0.5] * 3 and traced['embedding'].shape == ()
  layers = coefficients.resolve((0.0, 1.0), apart)['layers']
  assert [float(layers[str(i)]['mlp']) for i in range(3)] == [0.0, 0.5, 1.0]


def test_a_coefficient_reaches_its_tensors():
  rule = {'mlp': [0.0, 1.0], 'embeddings': 0.25, 'default': jnp.asarray([1.0, 0.0])}
  x = jax.jit(lambda base, tuned: merging.merge('linear', base, [tuned], alpha=rule))(BASE, MODELS[0])
  for layer, (mlp, norm) in enumerate(zip((0, 1), (1, 0), strict=True)):
    at = lambda tree: jax.tree.map(lambda x: x[layer], tree['layers'])  # noqa: B023, E731
    assert_close(at(x)['mlp'], merging.merge('linear', at(BASE)['mlp'], [at(MODELS[0])['mlp']], alpha=mlp))
    assert_close(at(x)['norm'], merging.merge('linear', at(BASE)['norm'], [at(MODELS[0])['norm']], alpha=norm))
  assert_close(x['embedding'], merging.merge('linear', BASE['embedding'], [MODELS[0]['embedding']], alpha=0.25))


def test_layer_means_are_a_coefficient():
  squares = jax.tree.map(jnp.square, MODELS[0])
  rules = coefficients.layer_means(squares)
  value = coefficients.at(rules, 'layers/mlp/kernel', 1, 2)
  np.testing.assert_allclose(value, squares['layers']['mlp']['kernel'][1].mean(), rtol=1e-6)
  np.testing.assert_allclose(coefficients.at(rules, 'embedding', None, 2), squares['embedding'].mean(), rtol=1e-6)


# Errors.


@pytest.mark.parametrize(
  'call, says',
  [
    (lambda: merging.merge('tise', BASE, MODELS), "'tise' is no merge method; did you mean ties"),
    (lambda: merging.merge('ties', None, MODELS, weight=1.0), 'ties: needs a base model'),
    (
      lambda: merging.merge('linear', BASE, MODELS, weight=1.0),
      'linear: takes no base model; make it one of the models',
    ),
    (
      lambda: merging.merge('slerp', BASE, MODELS, t=0.1),
      'slerp: takes 1 models beside the base and got 3',
    ),
    (lambda: merging.merge('model_stock', BASE, MODELS, alpha=0.5), 'model_stock: has no alpha'),
    (lambda: merging.merge('ties', BASE, MODELS), "ties: parameter 'weight' is missing"),
    (
      lambda: merging.merge('ties', BASE, MODELS, alpha=0.5, desnity=1),
      "ties: has no parameter 'desnity'; did you mean density",
    ),
    (
      lambda: merging.merge('ties', BASE, MODELS, alpha=0.5, normalize=1),
      'ties: normalize is true or false',
    ),
    (lambda: merging.merge('dare', BASE, MODELS, alpha=0.5), 'dare: draws masks; give a key'),
    (
      lambda: merging.merge('slerp', BASE, MODELS[:1], alpha=0.5, t=0.2),
      "slerp: alpha sets 't'; give one of the two",
    ),
    (
      lambda: merging.merge('linear', None, MODELS, alpha=0.5),
      'linear: alpha weighs the models against a base; give it',
    ),
    (
      lambda: merging.merge('linear', {'a': jnp.ones(2), 'b': jnp.ones(2)}, [{'a': jnp.ones(3)}], alpha=0.5),
      r'differ in 2 tensors .*: a is float32 \[2\] in model 0 and float32 \[3\] in model 1; b is float32 \[2\].* missing',
    ),
    (
      lambda: merging.merge('linear', {'n': jnp.arange(3)}, [{'n': jnp.arange(3) + 1}], alpha=0.5),
      'n: is int32, which cannot be merged, and differs',
    ),
  ],
)
def test_errors_name_what_is_wrong(call, says):
  with pytest.raises(ValueError, match=says):
    call()


def test_the_table_is_complete():
  for name, row in METHODS.items():
    assert row.reference.startswith('https://'), name
    assert getattr(row.apply, 'func', row.apply).__doc__, name
    assert not row.alpha or row.alpha in row.parameters, name
    assert set(row.parameters) & set(methods.FLAGS) == {k for k, v in row.parameters.items() if isinstance(v, bool)}


@pytest.mark.parametrize('name', ['linear', 'task_arithmetic', 'ties', 'karcher', 'multislerp', 'model_stock', 'sce'])
def test_the_order_of_models_does_not_matter(name):
  base, models, parameters = arguments(name)
  backwards = {key: value[::-1] if isinstance(value, tuple) else value for key, value in parameters.items()}
  assert_close(jit_merge(name, base, models[::-1], **backwards), merged(name))
