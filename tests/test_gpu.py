"""What a GPU computes is what a CPU computes, with both attention kernels: `make test-gpu`."""

import dataclasses
import functools
import os
import subprocess
import sys

from imm_jax import merging, sharding
from imm_jax.formats.tokenizer import Tokenizer
from imm_jax.models import transformer
from imm_jax.models.transformer import Transformer
from imm_jax.sampling.prefill import Request
from imm_jax.sampling.sampler import Sampler, SamplerConfig
from imm_jax.training import finetune, packing
from imm_jax.training.finetune import FinetuneConfig, Trainer
from imm_jax.training.optimizer import OptimizerConfig
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.conftest import every_family, ON_GPU, random_params, ROOT

TOLERANCE = 1e-4  # float32 sums in another order

pytestmark = pytest.mark.skipif(not ON_GPU, reason='`make test-gpu`')


@pytest.fixture(autouse=True)
def whole_float32():
  """By default a GPU multiplies float32 with the 10 bits of TF32."""
  with jax.default_matmul_precision('highest'):
    yield


def mesh_of(platform):
  return sharding.make_mesh(1, 1, 1, jax.devices(platform)[:1])


def packed_rows(vocab_size, length):
  """Two rows of packed segments, with padding behind them."""
  rng = np.random.default_rng(0)
  pairs = [(list(rng.integers(0, vocab_size, n)), list(rng.integers(0, vocab_size, 9))) for n in (3, 40, 20, 33, 5, 28)]
  return packing.pack(pairs, length)


@functools.partial(jax.jit, static_argnames='config')
def forward(config, params, rows):
  return Transformer(config).apply({'params': params}, rows.tokens, rows.positions, rows.segment_ids)[0]


@every_family
def test_logits(config, params):
  rows = packed_rows(config.vocab_size, 128)

  def logits(platform):
    placed = jax.device_put((params, rows), jax.devices(platform)[0])
    return forward(config, *placed)

  np.testing.assert_allclose(logits('gpu'), logits('cpu'), atol=TOLERANCE)


@pytest.mark.parametrize('window', [None, 16])
def test_cudnn_is_as_near_to_float32_as_xla(config, window):
  config = dataclasses.replace(config, embed_dim=128, num_heads=2, num_kv_heads=1, head_dim=64, sliding_window=window)
  params, rows = random_params(config), packed_rows(config.vocab_size, 128)

  def loss_and_gradient(platform, **changes):
    model = Transformer(dataclasses.replace(config, **changes))
    function = jax.jit(jax.value_and_grad(lambda p, rows: finetune.loss_fn(p, model, rows, jnp.float32(54))))
    loss, gradient = function(*jax.device_put((params, rows), jax.devices(platform)[0]))
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves((loss, gradient))])

  exact = loss_and_gradient('cpu')
  off = {
    attention: np.linalg.norm(loss_and_gradient('gpu', dtype='bfloat16', attention=attention) - exact)
    for attention in ('xla', 'cudnn')
  }
  assert off['cudnn'] < 1.2 * off['xla'] < 0.1 * np.linalg.norm(exact)


def test_greedy_tokens_and_their_probabilities(config, params):
  tokenizer = Tokenizer.from_characters('abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789\n')
  tails = [7], [8, 9, 10], [13, 14, 15, 16, 17], [20] * 9
  requests = [Request(str(i), list(range(5)) + tail) for i, tail in enumerate(tails)]
  how = SamplerConfig(num_samples_per_prompt=1, temperature=0.0, top_k=0, top_p=1.0, num_slots=3, chunk_steps=3)

  def sample(platform):
    with jax.set_mesh(mesh := mesh_of(platform)):
      placed = jax.device_put(params, transformer.param_shardings(config, mesh, sharding.SAMPLE))
      sampler = Sampler(Transformer(config, sharding.SAMPLE), placed, tokenizer, how)
      found = sampler.sample(requests, how.decoding(12), key=jax.random.key(0))
    return [sample for [sample] in found]

  for ours, theirs in zip(sample('gpu'), sample('cpu'), strict=True):
    assert ours.tokens == theirs.tokens
    np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=TOLERANCE)


def test_fine_tuning(config, params):
  settings = OptimizerConfig(
    1e-2, warmup_fraction=0.0, weight_decay=0.1, b1=0.9, b2=0.999, eps=1e-8, clip_norm=0.5, keep_opt_state=False
  )
  rows, how = packed_rows(config.vocab_size, 64), FinetuneConfig(2, batch_size=4, accumulation_steps=1, max_length=64)

  def train(platform):
    mesh = mesh_of(platform)
    trainer = Trainer(Transformer(config), how, settings, mesh)
    losses = []
    with jax.set_mesh(mesh):
      placed = jax.device_put(params, transformer.param_shardings(config, mesh, sharding.TRAIN))
      state = trainer.init(jax.tree.map(jnp.copy, placed))
      for step in trainer.steps(state, rows, seed=0, round_=1):
        state = step.state
        losses.append(float(step.metrics['loss_nats']))
    return losses, jax.device_get(trainer.result(state))

  (ours, tuned), (theirs, expected) = train('gpu'), train('cpu')
  assert len(ours) > 1
  np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE)
  for one, other in zip(jax.tree.leaves(tuned), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-3)  # Adam divides by the gradient's size, however small that is


@pytest.mark.parametrize(
  'method, parameters', [('linear', {}), ('slerp', {}), ('ties', {'density': 0.5}), ('dare', {'drop_rate': 0.5})]
)
def test_merges(config, params, method, parameters):
  rng = np.random.default_rng(0)
  tuned = jax.tree.map(lambda x: x + 0.01 * rng.normal(size=x.shape).astype(np.float32), params)

  def merge(platform):
    base, other = jax.device_put((params, tuned), jax.devices(platform)[0])
    return merging.merge(method, base, [other], alpha=0.3, key=jax.random.key(0), **parameters)

  for ours, theirs in zip(jax.tree.leaves(merge('gpu')), jax.tree.leaves(merge('cpu')), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_run(tmp_path):
  command = [sys.executable, '-m', 'imm_jax', 'run', '--config=configs/tiny.py', f'--workdir={tmp_path}/run']
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ)
  assert done.returncode == 0, done.stderr
