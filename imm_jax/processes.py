"""Runs one program in many processes: joining, sharing values and arrays, notices to stop.

Every process runs the same program on the same host values; only arrays are split. All
communication goes through jax, and process 0 writes the files.
"""

from collections.abc import Callable
import importlib.metadata
import itertools
import json
import os
import platform
import socket
from typing import Any

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np

_PACKAGES = ('imm_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'transformers')
_MAX_SUSPENDED_SECS = 30 * 24 * 3600
_checks = itertools.count()


class Stopped(Exception):
  """A notice to stop has come; all progress until then is saved."""


def join() -> None:
  """Joins this process with the others of its run, before anything asks for devices.

  On Cloud TPU, GKE and Slurm jax finds the other processes; elsewhere it reads
  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Without any of these a process
  forms a group of one, which is how it hears of SIGTERM.

  Raises ValueError when only some of these are set.
  """
  if jax.distributed.is_initialized():
    return
  names = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
  address, num, index = (os.environ.get(name) for name in names)
  if num or index:
    if not (address and num and index):
      raise ValueError(f'{", ".join(names)}: are set together or not at all')
    # On CPUs a device that waits for others holds a thread, and XLA has only one per core by
    # default.
    os.environ.setdefault('NPROC', '32')
    jax.distributed.initialize(address, int(num), int(index))
    # On CPUs a program loaded from the compilation cache runs its collectives in another order than
    # the other processes, and aborts (JAX 0.10).
    if jax.default_backend() == 'cpu':
      jax.config.update('jax_enable_compilation_cache', False)
    return
  try:
    jax.distributed.initialize()
  except ValueError:  # jax has found no coordinator.
    # The devices of a single process need no network between them.
    jax.config.update('jax_cpu_collectives_implementation', None)
    # A suspended process (Ctrl-Z, SIGSTOP) sends no heartbeats, and would be ended as dead when it
    # continues.
    jax.distributed.initialize(
      f'localhost:{free_port()}', 1, 0, heartbeat_timeout_seconds=_MAX_SUSPENDED_SECS
    )


def free_port() -> int:
  """Returns a free port of this machine."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return free.getsockname()[1]


def versions() -> dict[str, str]:
  """Returns the versions of Python and of the packages that results depend on."""
  return {name: importlib.metadata.version(name) for name in _PACKAGES} | {
    'python': platform.python_version()
  }


def devices() -> str:
  """Returns a description of the devices of this run, over all its processes."""
  found = jax.devices()
  return f'{len(found)} x {found[0].device_kind} in {jax.process_count()} processes'


def is_first() -> bool:
  """Returns whether this is the process that writes files and prints."""
  return jax.process_index() == 0


def write_text(path: epath.Path, text: str) -> None:
  """Writes a file whole or not at all in process 0, and makes its directory.

  Raises OSError when it cannot be written.
  """
  if not is_first():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(path.name + '.tmp')
  try:
    temporary.write_text(text)
    temporary.replace(path)
  except OSError as error:
    # The error of a full disk does not name the file.
    raise OSError(error.errno, error.strerror, str(path)) from error


# What an error in process 0 becomes in the others.
_KINDS = (ValueError, OSError, Exception)


def on_first(function: Callable[[], Any]) -> Any:
  """Runs function() in process 0; returns its result, a JSON value, on all processes.

  A ValueError or OSError of it is raised on all processes too.
  """
  if jax.process_count() == 1:
    return function()
  text, kind = '', 0
  if is_first():
    try:
      text = json.dumps(function())
    except Exception as error:  # Of any kind: the other processes wait for the answer.
      kind = next(i for i, of in enumerate(_KINDS, 1) if isinstance(error, of))
      text = str(error) if kind < len(_KINDS) else f'{type(error).__name__}: {error}'
  size, kind = (int(x) for x in _broadcast(np.array([len(text.encode()), kind])))
  text = bytes(_broadcast(np.frombuffer(text.encode().ljust(size), np.uint8))).decode()
  if kind:
    raise (ValueError, OSError, RuntimeError)[kind - 1](text)
  return json.loads(text)


def _broadcast(x: np.ndarray) -> np.ndarray:
  return np.asarray(multihost_utils.broadcast_one_to_all(x))


def fetch(tree: Any) -> Any:
  """Returns global arrays as whole NumPy arrays, on every process."""
  return (
    multihost_utils.process_allgather(tree, tiled=True)
    if jax.process_count() > 1
    else jax.device_get(tree)
  )


def should_stop() -> bool:
  """Returns whether some process has been given notice to stop (SIGTERM, a pod's notice).

  All processes get the same answer at the same call of this function.
  """
  return jax.distributed.is_initialized() and multihost_utils.reached_preemption_sync_point(
    next(_checks)
  )


def check_stop() -> None:
  """Raises Stopped when `should_stop`."""
  if should_stop():
    raise Stopped
