"""Meshes and specs: what the tables say, a mesh axis once, only dimensions that divide."""

from imm_jax import sharding
from imm_jax.models import transformer
import jax
import jax.numpy as jnp
import pytest

MESH = {'data': 2, 'fsdp': 4, 'tensor': 2}


@pytest.mark.parametrize(
  'rules, axes, shape, expected',
  [
    (sharding.TRAIN, ('embed', 'mlp'), (64, 64), ('fsdp', 'tensor')),
    (sharding.TRAIN, ('batch', 'length', 'embed'), (16, 8, 64), (('data', 'fsdp'), None, None)),
    (sharding.TRAIN, ('batch', 'length', 'embed'), (2, 8, 64), ('data', None, 'fsdp')),
    (sharding.TRAIN, ('heads', 'head_dim'), (9, 64), (None, None)),
    (sharding.TRAIN, ('embed', ('heads', 64)), (64, 9 * 64), ('fsdp', None)),  # never within a head
    (sharding.SAMPLE, ('embed', ('kv_heads', 64)), (64, 2 * 64), (None, 'tensor')),
    (sharding.SAMPLE, ('embed', 'mlp'), (64, 64), (None, ('tensor', 'fsdp'))),
    (sharding.SAMPLE, ('embed', 'mlp'), (64, 4), (None, 'tensor')),
    (sharding.SAMPLE, ('kv_heads',), (4,), ('tensor',)),
    (sharding.SAMPLE, ('batch', 'length'), (6, 8), ('data', None)),
  ],
)
def test_specs(rules, axes, shape, expected):
  assert rules.spec(axes, shape, MESH) == jax.P(*expected)


def test_an_axis_of_one_device_is_skipped():
  assert sharding.SAMPLE.spec(('mlp',), (64,), {'data': 1, 'fsdp': 8, 'tensor': 1}) == jax.P('fsdp')


def test_minus_one_takes_the_rest():
  assert dict(sharding.make_mesh(2, -1, 2).shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}


@pytest.mark.parametrize(
  'sizes, message',
  [
    ((3, 1, 1), 'mesh data=3 fsdp=1 tensor=1: needs 3 devices and there are 8'),
    ((3, -1, 1), 'needs 6 devices and there are 8'),
    ((-1, -1, 1), 'one at most is -1'),
    ((0, -1, 1), 'each axis is a positive size'),
  ],
)
def test_sizes_that_do_not_fit_are_named(sizes, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(*sizes)


def test_params_of_a_large_layer_are_split_over_all_devices(config, mesh):
  abstract, _ = transformer.abstract_params(config)
  for rules in (sharding.TRAIN, sharding.SAMPLE):
    kernel = transformer.param_shardings(config, mesh, rules)['layers']['mlp']['gate']['kernel']
    shape = abstract['layers']['mlp']['gate']['kernel'].shape
    ways = 8 // mesh.shape['data']
    assert kernel.shard_shape(shape)[1] * kernel.shard_shape(shape)[2] == shape[1] * shape[2] // ways


def test_constrain_pins_inside_a_mesh_and_is_free_outside(mesh):
  x = jnp.zeros((8, 4, 16))
  assert sharding.constrain(x, ('batch', 'length', 'embed'), sharding.TRAIN) is x
  with jax.set_mesh(mesh):
    pinned = jax.jit(lambda x: sharding.constrain(x, ('batch', 'length', 'embed'), sharding.TRAIN))(x)
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  assert pinned.sharding.shard_shape(x.shape) == (8 // ways, 4, 16)
