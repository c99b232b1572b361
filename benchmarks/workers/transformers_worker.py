"""transformers' side of the benchmarks, and that of lm-eval and TRL, which are built on it."""

import functools
import random
import tempfile
import time

import serve
import torch
import transformers
from transformers.models.llama import LlamaForCausalLM  # noqa: F401, from_pretrained imports it

DEVICE = 'cuda' if serve.GPU else 'cpu'

optimizers = {}


@functools.cache
def model(dtype=torch.bfloat16 if serve.GPU else torch.float32):
  """Returns the model; only the stop tokens that a call names end a row."""
  result = transformers.AutoModelForCausalLM.from_pretrained(serve.MODEL, dtype=dtype).to(DEVICE)
  result.generation_config.eos_token_id = None
  return result


@functools.cache
def tokenizer():
  """Returns the tokenizer."""
  return transformers.PreTrainedTokenizerFast.from_pretrained(serve.MODEL)


def load():
  """Loads model and tokenizer and reads every weight."""
  start = time.monotonic()
  loaded = transformers.AutoModelForCausalLM.from_pretrained(serve.MODEL, dtype=torch.float32)
  total = sum(float(x.detach().numpy().sum()) for x in loaded.parameters())
  weights_secs = time.monotonic() - start
  transformers.PreTrainedTokenizerFast.from_pretrained(serve.MODEL)
  model_gib = sum(x.nbytes for x in loaded.parameters()) / 2**30
  return {
    'secs': time.monotonic() - start,
    'weights_secs': weights_secs,
    'sum': total,
    'model_gib': model_gib,
  }


def _generate(prompts, **settings):
  """Returns the new tokens of a batch, padded on the left."""
  pad, length = tokenizer().pad_token_id, max(map(len, prompts))
  ids = torch.tensor([[pad] * (length - len(prompt)) + prompt for prompt in prompts], device=DEVICE)
  mask = torch.tensor(
    [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=DEVICE
  )
  with torch.inference_mode():
    return (
      model().generate(ids, attention_mask=mask, pad_token_id=pad, **settings)[:, length:].tolist()
    )


def generate(prompts, texts, num_samples, temperature, max_new_tokens, stop, stop_ids, batch_size):
  """Completes prompts, batch_size at a time; stop strings would take far longer than stop_ids."""
  del texts, stop
  model()
  start = time.monotonic()
  rows = []
  for first in range(0, len(prompts), batch_size):
    rows += _generate(
      prompts[first : first + batch_size],
      do_sample=True,
      temperature=temperature,
      top_k=0,
      top_p=1.0,
      num_return_sequences=num_samples,
      max_new_tokens=max_new_tokens,
      eos_token_id=stop_ids,
    )
  rows = serve.cut(rows, stop_ids)
  tokenizer().batch_decode(rows, skip_special_tokens=True)
  return {
    'secs': time.monotonic() - start,
    'num_tokens': sum(map(len, rows)),
    'num_rows': len(rows),
  }


def decode(prompts, max_new_tokens, cache):
  """Completes prompts greedily, with nothing that stops.

  cache is 'dynamic', 'static', or 'compiled', which is static too.
  """
  settings = {}
  if cache != 'dynamic':
    settings['cache_implementation'] = 'static'
  if cache == 'compiled':  # by default only on accelerators
    settings['compile_config'] = transformers.CompileConfig(fullgraph=False)
    settings['compile_config']._compile_all_devices = True
  model()
  start = time.monotonic()
  rows = _generate(prompts, do_sample=False, max_new_tokens=max_new_tokens, **settings)
  tokenizer().batch_decode(rows, skip_special_tokens=True)
  return {'secs': time.monotonic() - start, 'num_tokens': sum(map(len, rows)), 'tokens': rows}


@functools.cache
def _lm_eval(batch_size):
  from lm_eval.models import huggingface  # pylint: disable=g-import-not-at-top

  return huggingface.HFLM(
    pretrained=serve.MODEL, dtype='float32', device='cpu', batch_size=batch_size
  )


def score(prompts, options, texts, batch_size):
  """Scores texts [[prompt, options]] with lm-eval; the token ids are for imm_jax."""
  del prompts, options
  from lm_eval.api.instance import Instance  # pylint: disable=g-import-not-at-top

  lm = _lm_eval(batch_size)
  pairs = [(prompt, option) for prompt, own in texts for option in own]
  requests = [Instance('loglikelihood', {}, pair, i) for i, pair in enumerate(pairs)]
  start = time.monotonic()
  sums = iter([total for total, _ in lm.loglikelihood(requests, disable_tqdm=True)])
  secs = time.monotonic() - start
  return {
    'secs': secs,
    'sums': [[next(sums) for _ in own] for _, own in texts],
    'num_options': len(pairs),
  }


def _train(batches, learning_rate):
  """Takes an optimizer step per batch of (ids, mask, targets); returns its seconds and losses.

  Weights are float32.
  """
  tuned = model(torch.float32)
  if not optimizers:
    optimizers['adamw'] = torch.optim.AdamW(
      tuned.parameters(), lr=learning_rate, weight_decay=0.0, fused=True
    )
    tuned.train()
  losses = []
  start = time.monotonic()
  for batch in batches:
    ids, mask, targets = (None if x is None else x.to(DEVICE) for x in batch)
    # shift_labels: every position has a target, so none is computed in vain.
    with torch.autocast(DEVICE, torch.bfloat16, enabled=serve.GPU):
      loss = tuned(
        input_ids=ids, attention_mask=mask, labels=targets, shift_labels=targets, use_cache=False
      ).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
    optimizers['adamw'].step()
    optimizers['adamw'].zero_grad()
    losses.append(loss.detach())
  losses = [float(loss) for loss in losses]
  return {'secs': time.monotonic() - start, 'losses': losses}


def train(tokens, num_steps, learning_rate):
  """Takes steps on one batch [B, T + 1] of which every token is a target."""
  tokens = torch.tensor(tokens)
  batch = tokens[:, :-1], None, tokens[:, 1:].contiguous()
  return _train([batch] * num_steps, learning_rate) | {'num_tokens': num_steps * batch[0].numel()}


def train_pairs(pairs, num_steps, batch_size, learning_rate):
  """Takes steps on (prompt, completion) pairs, each batch padded to its longest."""
  pairs = random.Random(0).sample(pairs, min(len(pairs), num_steps * batch_size))
  batches, num_tokens = [], 0
  for first in range(0, len(pairs), batch_size):
    part = pairs[first : first + batch_size]
    lengths = [len(prompt) + len(completion) - 1 for prompt, completion in part]
    ids = torch.zeros(len(part), max(lengths), dtype=torch.long)
    mask, targets = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, ((prompt, completion), length) in enumerate(zip(part, lengths, strict=True)):
      ids[row, :length], mask[row, :length] = torch.tensor([*prompt, *completion][:-1]), 1
      targets[row, len(prompt) - 1 : length] = torch.tensor(completion)
    batches.append((ids, mask, targets))
    num_tokens += sum(lengths)
  return _train(batches, learning_rate) | {'num_tokens': num_tokens}


class Clock(transformers.TrainerCallback):
  """When a step ends."""

  def __init__(self):
    self.ends = []

  def on_step_end(self, args, state, control, **kwargs):
    """Notes the time."""
    self.ends.append(time.monotonic())


def train_trl(pairs, num_steps, batch_size, max_length, learning_rate):
  """Takes steps on (prompt, completion) pairs with TRL's SFTTrainer and its packing.

  Its first step is not measured.
  """
  import datasets  # pylint: disable=g-import-not-at-top
  import trl  # pylint: disable=g-import-not-at-top

  rows = [
    {'input_ids': prompt + completion, 'completion_mask': [0] * len(prompt) + [1] * len(completion)}
    for prompt, completion in pairs
  ]
  clock = Clock()
  with tempfile.TemporaryDirectory() as scratch:
    config = trl.SFTConfig(
      scratch,
      packing=True,
      max_length=max_length,
      completion_only_loss=True,
      per_device_train_batch_size=batch_size,
      max_steps=1 + num_steps,
      learning_rate=learning_rate,
      lr_scheduler_type='constant',
      max_grad_norm=1.0,
      bf16=False,
      gradient_checkpointing=False,
      logging_steps=1,
      save_strategy='no',
      report_to='none',
      use_cpu=True,
      disable_tqdm=True,
      seed=0,
    )
    trainer = trl.SFTTrainer(
      model(torch.float32),
      config,
      train_dataset=datasets.Dataset.from_list(rows),
      processing_class=tokenizer(),
      callbacks=[clock],
    )
    trainer.train()
  logs = [entry for entry in trainer.state.log_history if 'num_tokens' in entry and 'loss' in entry]
  return {
    'secs': clock.ends[-1] - clock.ends[0],
    'num_tokens': logs[-1]['num_tokens'] - logs[0]['num_tokens'],
    'losses': [entry['loss'] for entry in logs],
  }


torch.set_num_threads(2)
serve.serve(
  {
    'load': load, 'generate': generate, 'decode': decode, 'score': score, 'train': train,
    'train_pairs': train_pairs,
    'train_trl': train_trl,
  },
  torch.cuda.max_memory_allocated,
)  # fmt: skip
