"""Merge identities: the ends are exact, the mean is right, masks are unbiased and the same everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax.merging import methods

SHAPES = {'a': {'kernel': (3, 8, 16)}, 'b': (24,)}
ODD = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, 1.0, -2.5], np.float32)


def tree(seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), SHAPES, is_leaf=lambda s: isinstance(s, tuple))


def bits(x):
  return np.asarray(x).view(np.uint32)


def assert_same_bits(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(bits(x), bits(y)), a, b)


@pytest.mark.parametrize('jitted', [False, True])
@pytest.mark.parametrize('alpha, expected', [(0.0, 0), (1.0, 1)])
def test_linear_at_the_ends_returns_bits_whatever_the_other_side_holds(alpha, expected, jitted):
  pair = [{'x': jnp.asarray(np.repeat(ODD, 8))}, {'x': jnp.asarray(np.tile(ODD, 8))}]
  merge = jax.jit(methods.linear) if jitted else methods.linear
  assert_same_bits(merge(*pair, alpha=alpha), pair[expected])


def test_linear_equals_the_equation():
  base, tuned = tree(0), tree(1)
  merged = jax.jit(methods.linear)(base, tuned, alpha=0.3)
  jax.tree.map(
      lambda m, b, t: np.testing.assert_allclose(m, np.float32(0.7) * b + np.float32(0.3) * t, atol=8 * 2**-24 * 4),
      merged, base, tuned,
  )  # fmt: skip


@pytest.mark.parametrize('alpha', [0.1, 1 / 3, 0.5])
def test_a_model_merged_with_itself_is_itself(alpha):
  base = tree(0)
  assert_same_bits(jax.jit(methods.linear)(base, base, alpha=alpha), base)
  assert_same_bits(methods.dare(base, base, alpha=alpha, drop_rate=0.4, key=jax.random.key(0)), base)


def test_linear_keeps_the_dtype_and_computes_in_float32():
  base = {'x': jnp.full((4,), 1.0, jnp.bfloat16)}
  tuned = {'x': jnp.full((4,), 1.0078125, jnp.bfloat16)}  # the next bfloat16
  merged = methods.linear(base, tuned, alpha=0.6)['x']
  assert merged.dtype == jnp.bfloat16
  np.testing.assert_array_equal(merged.astype(jnp.float32), 1.0078125)


def test_dare_without_drops_is_linear_and_its_ends_are_exact():
  base, tuned = tree(0), tree(1)
  key = jax.random.key(0)
  assert_same_bits(methods.dare(base, tuned, alpha=0.3, drop_rate=0.0, key=key), methods.linear(base, tuned, alpha=0.3))
  assert_same_bits(methods.dare(base, tuned, alpha=0.0, drop_rate=0.5, key=key), base)
  assert_same_bits(methods.dare(base, tuned, alpha=1.0, drop_rate=0.0, key=key), tuned)


def test_dare_is_unbiased_also_for_24_elements():
  base, tuned, draws = {'x': jnp.zeros(24)}, {'x': jnp.ones(24)}, 4000
  keys = jax.random.split(jax.random.key(0), draws)
  merged = jax.vmap(lambda key: methods.dare(base, tuned, alpha=0.5, drop_rate=0.2, key=key)['x'])(keys)
  assert set(np.unique(merged)) == {0.0, np.float32(0.625)}
  standard_error = 0.625 * np.sqrt(0.2 * 0.8 / (draws * 24))
  assert abs(float(merged.mean()) - 0.5) < 4 * standard_error


def test_dare_masks_differ_by_key_and_by_leaf():
  base = {name: jnp.zeros(256) for name in 'ab'}
  tuned = {name: jnp.ones(256) for name in 'ab'}
  one, two = (methods.dare(base, tuned, alpha=0.5, drop_rate=0.5, key=jax.random.key(i)) for i in range(2))
  assert (one['a'] != two['a']).any()
  assert (one['a'] != one['b']).any()


def test_dare_masks_are_the_same_on_every_mesh(mesh):
  base, tuned = {'x': jnp.zeros((16, 16))}, {'x': jnp.ones((16, 16))}
  merge = jax.jit(lambda b, t: methods.dare(b, t, alpha=0.5, drop_rate=0.5, key=jax.random.key(3)))
  sharded = jax.device_put((base, tuned), jax.NamedSharding(mesh, jax.P('fsdp', 'tensor')))
  assert_same_bits(merge(*sharded), merge(base, tuned))
