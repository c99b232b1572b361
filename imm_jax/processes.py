"""One program in many processes: joining them, what they run on, what one does for all, whole
arrays, notices to stop.

Every process runs the same program on the same host values; only arrays are split. Nothing is sent
but what jax sends, and process 0 writes what goes to disk.
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
  """A notice to stop has come; what was done until then is saved."""


def join() -> None:
  """Joins this process with the others of its run, before anything asks for devices.

  Cloud TPU, GKE and Slurm tell jax who the others are; elsewhere JAX_COORDINATOR_ADDRESS,
  JAX_NUM_PROCESSES and JAX_PROCESS_ID do. A process that nothing is told is a group of one: that is
  how it hears of SIGTERM.

  Raises ValueError when only some of these are set.
  """
  if jax.distributed.is_initialized():
    return
  names = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
  address, num, index = (os.environ.get(name) for name in names)
  if num or index:
    if not (address and num and index):
      raise ValueError(f'{", ".join(names)}: are set together or not at all')
    # On CPUs a device that waits for others holds a thread, and XLA has as many as there are cores.
    os.environ.setdefault('NPROC', '32')
    jax.distributed.initialize(address, int(num), int(index))
    # On CPUs a program that is loaded from the cache meets the other processes in another order,
    # and aborts (JAX 0.10).
    if jax.default_backend() == 'cpu':
      jax.config.update('jax_enable_compilation_cache', False)
    return
  try:
    jax.distributed.initialize()
  except ValueError:  # jax has found nobody to ask
    # Its devices need no network between them
    jax.config.update('jax_cpu_collectives_implementation', None)
    # A process that is suspended (Ctrl-Z, SIGSTOP) sends no heartbeats, and would be ended as dead
    # when it goes on.
    jax.distributed.initialize(
      f'localhost:{free_port()}', 1, 0, heartbeat_timeout_seconds=_MAX_SUSPENDED_SECS
    )


def free_port() -> int:
  """Returns a port of this machine that nobody listens on."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return free.getsockname()[1]


def versions() -> dict[str, str]:
  """Returns the versions of Python and of the packages that results depend on."""
  return {name: importlib.metadata.version(name) for name in _PACKAGES} | {
    'python': platform.python_version()
  }


def devices() -> str:
  """Returns what this process and those of its run compute on."""
  found = jax.devices()
  return f'{len(found)} x {found[0].device_kind} in {jax.process_count()} processes'


def is_first() -> bool:
  """Returns whether this is the process that writes files and talks."""
  return jax.process_index() == 0


def write_text(path: epath.Path, text: str) -> None:
  """Writes a file whole or not at all, with the directory it is in, in process 0.

  Raises OSError when it cannot.
  """
  if not is_first():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(path.name + '.tmp')
  try:
    temporary.write_text(text)
    temporary.replace(path)
  except OSError as error:
    # A full disk does not say where
    raise OSError(error.errno, error.strerror, str(path)) from error


# What an error in process 0 becomes in the others.
_KINDS = (ValueError, OSError, Exception)


def on_first(function: Callable[[], Any]) -> Any:
  """Returns on all processes what function() gives in process 0, a value of JSON, or raises its
  ValueError or OSError.
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
  """Returns whether some process was told to stop (SIGTERM, a pod's notice): on all of them at the
  same call of this.
  """
  return jax.distributed.is_initialized() and multihost_utils.reached_preemption_sync_point(
    next(_checks)
  )


def check_stop() -> None:
  """Raises Stopped when `should_stop`."""
  if should_stop():
    raise Stopped
