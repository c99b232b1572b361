"""Checks before a long run whether it would start, fit and be able to write.

The result is one page; the first problem that needs fixing is raised as an error.
"""

from collections.abc import Iterator, Mapping
import os
import shutil
from typing import Any
import zlib

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np

from imm_jax import processes, sharding, verifying
from imm_jax.models import transformer
from imm_jax.models.config import mesh_advice
from imm_jax.rounds import experiment, loading
from imm_jax.rounds.experiment import Experiment
from imm_jax.rounds.workdir import Workdir

# Bytes per parameter: itself, its start, its gradient and two moments, all float32.
_TRAIN_BYTES = 4 * 5


def examine(config: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
  """Yields (check, finding) for each thing that a run in that workdir would need.

  Raises ValueError or OSError for the first problem that needs fixing.
  """
  exp = experiment.resolve(config)
  yield 'versions', _versions()
  mesh = exp.mesh.make()
  yield 'devices', f'{processes.devices()}, mesh {dict(mesh.shape)}'
  yield 'batch', _batch(exp, mesh)
  model = loading.model_config(exp.model, mesh)
  num_params = sum(x.size for x in jax.tree.leaves(transformer.abstract_params(model)[0]))
  yield (
    'model',
    f'{exp.model.path or "random"}: {model.family}, {num_params / 1e6:,.0f}M parameters',
  )
  yield 'mesh', mesh_advice(model, mesh) or 'no mesh.data would split more of the model'
  yield 'memory', _memory(num_params, mesh)
  for name, task in exp.all_tasks.items():
    yield (
      f'task {name}',
      f'{len(exp.train_questions(task))} train and {len(task.test)} test questions',
    )
  exp.check_questions()
  yield 'sandbox', processes.on_first(_sandbox)
  # The disk holds params at the end of each round, and two steps with params and both moments.
  num_bytes = 4 * num_params * (exp.num_rounds + 1 + 2 * 3)
  yield 'workdir', processes.on_first(lambda: _workdir(Workdir(path).path, num_bytes))


def _versions() -> str:
  text = ', '.join(f'{name} {version}' for name, version in processes.versions().items())
  if jax.process_count() > 1:
    first = processes.on_first(lambda: text)
    same = multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode())))
    if len(set(same.tolist())) > 1:
      different = [i for i, digest in enumerate(same) if digest != zlib.crc32(first.encode())]
      raise ValueError(
        f'versions: processes {different} have others than process 0, which has {first}; install'
        ' the same'
      )
  return text


def _batch(exp: Experiment, mesh: jax.sharding.Mesh) -> str:
  steps = exp.finetune.accumulation_steps
  rows = exp.finetune.batch_size // steps
  ways = sharding.TRAIN.num_parts('batch', mesh.shape)
  notes = [f'{rows} rows a step on {ways} devices']
  if rows % ways:
    notes.append(
      f'{-rows % ways} of them padding: make finetune.batch_size a multiple of {ways * steps}'
    )
  slots = exp.sampler.num_slots
  among = sharding.SAMPLE.num_parts('attention_batch', mesh.shape)
  notes.append(f'{slots} slots on {among}')
  if slots % among:
    notes.append(f'rounded up: make sampler.num_slots a multiple of {among}')
  return ', '.join(notes)


def _memory(num_params: int, mesh: jax.sharding.Mesh) -> str:
  device = mesh.local_devices[0]
  needed = _TRAIN_BYTES * num_params / mesh.size
  if device.platform == 'cpu':
    limit = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / len(mesh.local_devices)
  else:
    limit = device.memory_stats()['bytes_limit']
  text = (
    f'{needed / 2**30:.2f} GiB a device for params and optimizer, without activations,'
    f' of {limit / 2**30:.2f}'
  )
  if needed > limit:
    raise ValueError(
      f'memory: {text}; take more devices (mesh.fsdp splits them) or a smaller model'
    )
  return text + '; imm plan tells the whole of it'


def _sandbox() -> str:
  try:
    return verifying.sandbox.check()
  except OSError as error:  # No task needs the sandbox, or its check would have raised before.
    return f'none, and no task needs it ({error})'


def _workdir(path: str, num_bytes: int) -> str:
  probe = epath.Path(path) / 'probe.tmp'
  is_new = not probe.parent.exists()
  probe.parent.mkdir(parents=True, exist_ok=True)
  probe.write_text('')
  probe.unlink()
  text = f'{path}: can be written; up to {num_bytes / 1e9:.1f} GB of checkpoints'
  if '://' in path:
    return text
  free = shutil.disk_usage(path).free
  if is_new:
    probe.parent.rmdir()
  if free < num_bytes:
    raise ValueError(
      f'workdir: {text}, and {free / 1e9:.1f} GB are free; make room, or take fewer rounds'
    )
  return f'{text}, {free / 1e9:.1f} GB free'
