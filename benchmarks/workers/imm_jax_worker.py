"""imm_jax's side of the benchmarks."""

import copy
import dataclasses
import functools
import time

import jax
import numpy as np
import serve
import transformers  # noqa: F401, imm_jax imports it when it loads a tokenizer

import imm_jax
from imm_jax import sharding
from imm_jax.models.transformer import Transformer
from imm_jax.sampling import scoring
from imm_jax.sampling.prefill import Request
from imm_jax.sampling.sampler import Sampler, SamplerConfig
from imm_jax.training import finetune, optimizer, packing

compile_secs = serve.watch_compiler()
training = []  # The state of training, from one request to the next.


@functools.cache
def lm():
  """Returns the model."""
  return imm_jax.load(serve.MODEL, dtype='bfloat16' if serve.GPU else 'float32')


@functools.cache
def sampling_lm():
  """Returns the model with params in the dtype of the computation."""
  return lm().to_sample()


def load():
  """Loads the model and reads every weight."""
  start = time.monotonic()
  model = imm_jax.load(serve.MODEL)
  leaves = jax.tree.leaves(model.params)
  total = sum(float(np.asarray(x).sum()) for x in leaves)
  return {
    'secs': time.monotonic() - start,
    'sum': total,
    'model_gib': sum(x.nbytes for x in leaves) / 2**30,
  }


def generate(prompts, texts, num_samples, temperature, max_new_tokens, stop, stop_ids, batch_size):
  """Completes texts; batch_size is in slots.

  The other programs' prompts and stop_ids are not needed.
  """
  del prompts, stop_ids
  lm()
  compile_secs.clear()
  start = time.monotonic()
  completions = lm().generate(
    texts,
    num_samples=num_samples,
    temperature=temperature,
    max_new_tokens=max_new_tokens,
    stop=stop,
    num_slots=batch_size,
  )
  secs = time.monotonic() - start
  rows = [completion.tokens for samples in completions for completion in samples]
  return {
    'secs': secs,
    'num_tokens': sum(map(len, rows)),
    'num_rows': len(rows),
    'compile_secs': sum(compile_secs),
  }


def decode(prompts, max_new_tokens):
  """Completes prompts greedily, with nothing that stops."""
  tokenizer = copy.copy(lm().tokenizer)
  tokenizer.stop_ids = frozenset()
  config = SamplerConfig(1, 0.0, 0, 1.0, num_slots=len(prompts), chunk_steps=8)
  model, params, key = sampling_lm().model, sampling_lm().params, jax.random.key(0)
  compile_secs.clear()
  start = time.monotonic()
  with jax.set_mesh(lm().mesh):
    sampler = Sampler(model, params, tokenizer, config)
    completions = sampler.sample(_requests(prompts), config.decoding(max_new_tokens), key=key)
  secs = time.monotonic() - start
  rows = [samples[0].tokens for samples in completions]
  return {
    'secs': secs,
    'num_tokens': sum(map(len, rows)),
    'tokens': rows,
    'compile_secs': sum(compile_secs),
  }


def score(prompts, options, texts, batch_size):
  """Scores token ids; texts are for lm-eval."""
  del texts
  model = lm().model
  compile_secs.clear()
  start = time.monotonic()
  with jax.set_mesh(lm().mesh):
    scores = scoring.score(model, lm().params, _requests(prompts), options, batch_size=batch_size)
  secs = time.monotonic() - start
  sums = [[float(score.logprobs.sum()) for score in own] for own in scores]
  return {
    'secs': secs,
    'sums': sums,
    'num_options': sum(map(len, sums)),
    'compile_secs': sum(compile_secs),
  }


def _requests(prompts):
  return [Request(str(i), prompt) for i, prompt in enumerate(prompts)]


def _train(batches, remat, learning_rate):
  """Takes an optimizer step per batch; returns its seconds and losses."""
  config = optimizer.OptimizerConfig(
      learning_rate=learning_rate, warmup_fraction=0.0, weight_decay=0.0, b1=0.9, b2=0.999,
      eps=1e-8, clip_norm=1.0,
      keep_opt_state=False,
  )  # fmt: skip
  model = Transformer(dataclasses.replace(lm().config, remat=remat), sharding.TRAIN)
  settings = finetune.FinetuneConfig(num_epochs=1, batch_size=1, accumulation_steps=1, max_length=1)
  trainer = finetune.Trainer(model, settings, config, lm().mesh)
  losses = []
  with jax.set_mesh(lm().mesh):
    if not training:
      training.append(trainer.init(lm().params))
      lm().params = {}  # The steps take them over.
    compile_secs.clear()
    start = time.monotonic()
    for batch in batches:
      training[0], metrics = trainer.step(
        training[0], jax.device_put(batch), np.float32(learning_rate)
      )
      losses.append(metrics['loss_nats'])
    losses = [float(loss) for loss in losses]
  return {'secs': time.monotonic() - start, 'losses': losses, 'compile_secs': sum(compile_secs)}


def train(tokens, num_steps, remat, learning_rate):
  """Takes steps on one batch [B, T + 1] of which every token is a target."""
  tokens = np.array(tokens, np.int32)[None]
  shape = (1, tokens.shape[1], tokens.shape[2] - 1)
  positions = np.broadcast_to(np.arange(shape[2], dtype=np.int32), shape)
  batch = packing.Batch(
    tokens[..., :-1], tokens[..., 1:], np.ones(shape, bool), np.ones(shape, np.int32), positions
  )
  return _train([batch] * num_steps, remat, learning_rate) | {
    'num_tokens': num_steps * shape[1] * shape[2]
  }


def train_pairs(pairs, num_steps, batch_size, max_length, remat, learning_rate):
  """Takes steps on (prompt, completion) pairs in packed rows."""
  config = finetune.FinetuneConfig(
    num_epochs=1, batch_size=batch_size, accumulation_steps=1, max_length=max_length
  )
  batches = finetune.batches(packing.pack(pairs, max_length), config, seed=0, round_=0)[:num_steps]
  num_tokens = sum(int((batch.segment_ids > 0).sum()) for batch in batches)
  return _train(batches, remat, learning_rate) | {'num_tokens': num_tokens}


serve.serve(
  {
    'load': load,
    'generate': generate,
    'decode': decode,
    'score': score,
    'train': train,
    'train_pairs': train_pairs,
  },
  serve.jax_gpu_bytes,
)
