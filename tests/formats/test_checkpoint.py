"""Checkpoints: the same bits on any mesh, one tree of several, and damage is an error that names the path."""

from imm_jax import sharding
from imm_jax.formats import checkpoint
import jax
import jax.numpy as jnp
import numpy as np
import pytest


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
    with pytest.raises(ValueError, match=f'{path}: is damaged or of another model: '):
      checkpoint.restore(str(path), name, abstract(tree, mesh, jax.P()))


def flip_in_largest_file(path):
  file = max((file for file in path.rglob('*') if file.is_file()), key=lambda file: file.stat().st_size)
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 16
  file.write_bytes(data)


def test_damage_is_found(saved):
  path, trees = saved
  flip_in_largest_file(path)
  with pytest.raises(checkpoint.Damaged, match=f'{path}: is damaged') as error:
    for name in ('params', 'tuned'):
      checkpoint.restore(str(path), name, abstract(trees[name], sharding.make_mesh(), jax.P()))
  assert error.value.path == str(path)


def test_digests_tell_every_bit_and_place_and_not_the_mesh(mesh):
  x = np.arange(64, dtype=np.float32).reshape(8, 8)
  digest = checkpoint.digests_of({'x': jnp.asarray(x)})
  assert checkpoint.digests_of({'x': jax.device_put(x, jax.NamedSharding(mesh, jax.P('fsdp', 'tensor')))}) == digest
  others = []
  for bit in range(32):
    flipped = x.copy()
    flipped.view(np.int32)[3, 4] ^= np.int32(np.uint32(1 << bit).view(np.int32))
    others.append(flipped)
  swapped = x.copy()
  swapped[0, 0], swapped[7, 7] = x[7, 7], x[0, 0]
  assert not [other for other in (*others, swapped) if checkpoint.digests_of({'x': jnp.asarray(other)}) == digest]


def test_the_newest_step_that_is_whole_is_used_and_two_are_kept(tmp_path):
  trees = [{'params': {'x': jnp.full(1000, float(step))}} for step in range(4)]
  steps = checkpoint.Steps(str(tmp_path))
  for step, tree in enumerate(trees):
    steps.save(step, tree, {'history': [{'loss': 0.1 * step}]})
  steps.close()
  assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit()) == ['2', '3']
  target, lines = {'params': abstract(trees[0]['params'], sharding.make_mesh(), jax.P())}, []
  steps = checkpoint.Steps(str(tmp_path))
  step, found, state = steps.restore(target, lines.append)
  assert (step, state, found['params']['x'][0]) == (3, {'history': [{'loss': 0.1 * 3}]}, 3.0)
  steps.close()
  for file in (tmp_path / '3' / 'params').rglob('*'):
    if file.is_file():
      file.write_bytes(file.read_bytes()[:-1])
  steps = checkpoint.Steps(str(tmp_path))
  assert steps.restore(target, lines.append)[0] == 2
  assert len(lines) == 1 and f'{tmp_path}/3: is damaged' in lines[0]
  steps.close()


def test_what_is_saved_is_what_was_given_though_it_changes_before_it_is_written(tmp_path):
  tree = {'x': jnp.zeros(2**22)}
  target, found = {'params': abstract(tree, sharding.make_mesh(), jax.P())}, []
  for i in range(10):  # the writer's thread may win
    steps, history = checkpoint.Steps(str(tmp_path / str(i))), ['of step 0']
    steps.save(1, {'params': tree}, {'history': history})
    history.append('of step 1')
    steps.close()
    steps = checkpoint.Steps(str(tmp_path / str(i)))
    found.append(steps.restore(target, print)[2])
    steps.close()
  assert found == 10 * [{'history': ['of step 0']}]
