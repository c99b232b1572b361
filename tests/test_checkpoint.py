"""Checkpoints: the same bits on any mesh, one tree of several, and damage is an error that names the path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imm_jax import checkpoint, sharding


def abstract(tree, mesh, spec):
  return checkpoint.abstract(tree, jax.tree.map(lambda _: jax.NamedSharding(mesh, spec), tree))


@pytest.fixture
def saved(tmp_path):
  odd = jnp.asarray([0.0, -0.0, jnp.inf, jnp.nan, 1e-40, 1.0, 2.0, 3.0]).repeat(8).reshape(8, 8)
  trees = {'params': {'a': odd, 'b': {'c': jnp.arange(16.0)}}, 'tuned': {'a': odd + 1, 'b': {'c': jnp.ones(16)}}}
  checkpoint.save(str(tmp_path / 'checkpoint'), trees)
  return tmp_path / 'checkpoint', trees


@pytest.mark.parametrize('name', ['params', 'tuned'])
def test_bits_come_back_on_another_mesh(saved, mesh, name):
  path, trees = saved
  restored = checkpoint.restore(str(path), name, abstract(trees[name], mesh, jax.P(('fsdp', 'tensor'))))
  for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(trees[name]), strict=True):
    np.testing.assert_array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32))
    assert a.sharding.mesh == mesh


def test_saving_again_replaces(saved):
  path, trees = saved
  checkpoint.save(str(path), {'params': {'x': jnp.zeros(8)}})
  target = abstract({'x': jnp.zeros(8)}, sharding.make_mesh(), jax.P())
  assert checkpoint.restore(str(path), 'params', target)['x'].shape == (8,)


def test_another_tree_shape_or_name_is_an_error(saved):
  path, trees = saved
  mesh = sharding.make_mesh()
  for name, tree in (
    ('params', {'a': jnp.zeros((8, 8)), 'other': jnp.zeros(2)}),
    ('params', {'a': jnp.zeros((4, 4)), 'b': {'c': jnp.zeros(16)}}),
    ('nothing', trees['params']),
  ):
    with pytest.raises(ValueError, match=f"{path}: cannot restore '{name}'"):
      checkpoint.restore(str(path), name, abstract(tree, mesh, jax.P()))
