"""All tests run on 8 CPU devices, with strict dtypes and ranks; those of test_gpu.py on a GPU beside them."""

import dataclasses
import functools
import importlib.util
import os
import pathlib
import sys

ON_GPU = os.environ.get('JAX_PLATFORMS') == 'cuda,cpu'  # `make test-gpu`
if not ON_GPU:
  os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['HF_HUB_OFFLINE'] = '1'
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
os.environ['JAX_COMPILATION_CACHE_DIR'] = str(pathlib.Path(__file__).parents[1] / '.pytest_cache' / 'xla')

import jax

# The tests compile much and compute little: what makes compiled code fast is off. JAX 0.12's XLA has no second flag, and
# one that it does not know ends the program.
if not ON_GPU:
  os.environ['XLA_FLAGS'] = '--xla_backend_optimization_level=0'
  if jax.__version_info__ < (0, 11):
    os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'
  # JAX 0.12 lets a device wait in several collectives at once, a thread each: of as many threads as devices the last device
  # may find none, and all wait for ever.
  if jax.__version_info__ >= (0, 12):
    os.environ['NPROC'] = '32'

import jax.numpy as jnp
import numpy as np
import pytest

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_numpy_rank_promotion', 'raise')

from imm_jax import processes, sharding
from imm_jax.models import transformer
from imm_jax.models.config import ModelConfig

processes.join()  # as `imm run` does, before anything asks for devices

ROOT = pathlib.Path(__file__).parent.parent
DATA = ROOT.parent / 'shared' / 'data'  # real data sets, where there are some


def load_config(name: str, *arguments: str):
  """Returns get_config(*arguments) of configs/<name>.py."""
  sys.path.insert(0, str(ROOT / 'configs'))
  spec = importlib.util.spec_from_file_location(name, ROOT / 'configs' / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*arguments)


@functools.cache
def random_params(config: ModelConfig) -> transformer.Params:
  """Params on one device, with biases and scales that are not 0 and 1, or they could be left out unnoticed."""
  params = jax.device_get(transformer.init_params(config, 0, sharding.make_mesh()))
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: jnp.asarray(x + 0.1 * rng.normal(size=x.shape).astype(np.float32)), params)


@pytest.fixture
def params(config) -> transformer.Params:
  return random_params(config)


# What families compute otherwise than the model of `config`.
FAMILIES = {
  'qwen': {},
  'gemma': {
    'query_scalar': 12, 'attention_softcap': 2.0, 'logit_softcap': 3.0, 'sliding_window': 3, 'global_layers': (1,),
    'local_rope_theta': 100.0, 'activation': 'gelu_tanh', 'norms': 'both', 'norm_plus_one': True,
    'scale_embeddings': True, 'tie_embeddings': True, 'qkv_bias': False,
  },
  'olmo2': {'norms': 'after', 'qk_norm': 'all', 'qkv_bias': False},
  'phi3': {'rotary_fraction': 0.5, 'sliding_window': 3, 'qk_norm': '', 'qkv_bias': False},
}  # fmt: skip
every_family = pytest.mark.parametrize('config', FAMILIES, indirect=True)


@pytest.fixture
def config(request) -> ModelConfig:
  """A two-layer model with every feature of Qwen on, or of what `every_family` asks for."""
  base = ModelConfig(
      family='llama', vocab_size=64, num_layers=2, embed_dim=32, mlp_dim=64, num_heads=4, num_kv_heads=2, head_dim=8,
      max_length=128, rope_theta=10_000.0, rms_norm_eps=1e-5, tie_embeddings=False, qkv_bias=True, qk_norm='head',
  )  # fmt: skip
  return dataclasses.replace(base, **FAMILIES[getattr(request, 'param', 'qwen')])


MESHES = [pytest.param((1, 8, 1), marks=pytest.mark.slow), (2, 2, 2), pytest.param((1, 1, 8), marks=pytest.mark.slow)]


@pytest.fixture(params=MESHES, ids=str)
def mesh(request) -> jax.sharding.Mesh:
  return sharding.make_mesh(*request.param)
