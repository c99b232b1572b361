"""The common part of the benchmarks: processes that wait side by side and are measured in turn."""

import argparse
from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import select
import statistics
import subprocess
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

ENVIRONMENT = {'HF_HUB_OFFLINE': '1', 'TOKENIZERS_PARALLELISM': 'false'}
CPU = {'JAX_PLATFORMS': 'cpu', 'NPROC': '2', 'OMP_NUM_THREADS': '2'}  # NPROC: XLA's threads
GPU = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}  # others wait beside it


class Worker:
  """A process that loads a model once and answers requests, one per line.

  A request is {'task': ..., **settings} and a reply {'secs': ..., ...}.
  """

  def __init__(self, python: str, name: str, model: str, poll_secs: float = 1.0, gpu: bool = False):
    """Starts workers/{name}.py and waits for its imports.

    While it works, its memory is read every poll_secs.
    """
    self._name, self.poll_secs = name, poll_secs
    script = pathlib.Path(__file__).parent / 'workers' / f'{name}.py'
    env = {key: value for key, value in os.environ.items() if not key.startswith('JAX_')}
    env |= ENVIRONMENT | (GPU if gpu else CPU)
    read, write = os.pipe()
    self._process = subprocess.Popen(
        [python, script, str(write), model, 'gpu' if gpu else 'cpu'], stdin=subprocess.PIPE,
        stdout=sys.stderr, env=env,
        pass_fds=[write], text=True,
    )  # fmt: skip
    os.close(write)
    self._replies = open(read)
    self._reply('its imports')
    self._imports_gib = self._memory_gib('RssAnon')

  def __call__(self, task: str, **settings: Any) -> dict[str, Any]:
    """Returns the reply, with the peak memory so far in GiB, of the GPU or of the process.

    It also holds the anonymous part of the process's memory, in which the imports' memory does not
    count.

    Raises RuntimeError when the process has died.
    """
    assert self._process.stdin is not None
    self._process.stdin.write(json.dumps({'task': task, **settings}) + '\n')
    self._process.stdin.flush()
    anonymous = 0.0
    while not select.select([self._replies], [], [], self.poll_secs)[0]:
      anonymous = max(anonymous, self._memory_gib('RssAnon'))
    reply = self._reply(task)
    anonymous = max(anonymous, self._memory_gib('RssAnon')) - self._imports_gib
    return {'peak_gib': self._memory_gib('VmHWM'), 'anonymous_gib': anonymous} | reply

  def _reply(self, what: str) -> dict[str, Any]:
    line = self._replies.readline()
    if not line:
      raise RuntimeError(f'{self._name}: died in {what}; its message is above')
    return json.loads(line)

  def _memory_gib(self, field: str) -> float:
    lines = pathlib.Path(f'/proc/{self._process.pid}/status').read_text().splitlines()
    return next(
      (int(line.split()[1]) / 2**20 for line in lines if line.startswith(f'{field}:')), 0.0
    )

  def close(self) -> None:
    """Ends the process."""
    assert self._process.stdin is not None
    self._process.stdin.close()
    self._process.wait()
    self._replies.close()


@dataclasses.dataclass(frozen=True)
class Run:
  """A request to a program, and a warm-up request that is sent once before it is measured.

  The warm-up compiles everything.
  """

  python: str
  worker: str
  task: str
  settings: dict[str, Any]
  warm: dict[str, Any] | None = None  # settings that differ then; None: it is measured cold


def measure(
  runs: Mapping[str, Run], model: str, repeats: int, poll_secs: float = 1.0, gpu: bool = False
) -> tuple[dict[str, dict], dict[str, list[dict]]]:
  """Returns each run's warm-up reply, and its replies to `repeats` requests.

  The requests are made in turn; each run goes first every other time.
  """
  with contextlib.ExitStack() as stack:
    workers = {}
    for name, run in runs.items():
      workers[name] = Worker(run.python, run.worker, model, poll_secs, gpu)
      stack.callback(workers[name].close)
    warm = {
      name: workers[name](run.task, **run.settings | run.warm)
      for name, run in runs.items()
      if run.warm is not None
    }
    replies: dict[str, list[dict]] = {name: [] for name in runs}
    for i in range(repeats):
      for name in list(runs)[:: 1 if i % 2 == 0 else -1]:
        replies[name].append(workers[name](runs[name].task, **runs[name].settings))
        brief = {
          key: round(value, 3)
          for key, value in replies[name][-1].items()
          if isinstance(value, (int, float))
        }
        print(f'{name}: {brief}', flush=True)
  return warm, replies


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
  """Returns ours / theirs, pair by pair."""
  return [a / b for a, b in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float]) -> str:
  """Returns 'median [min, max]', as rich prints it."""
  return rf'{statistics.median(values):.2f} \[{min(values):.2f}, {max(values):.2f}]'


def parser(doc: str, out: str) -> argparse.ArgumentParser:
  """Returns a parser of the arguments that all benchmarks take."""
  result = argparse.ArgumentParser(
    description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  result.add_argument(
    '--model', required=True, help='a Hugging Face directory: SmolLM2-135M-Instruct'
  )
  result.add_argument(
    '--hf', required=True, help='the Python that has torch, transformers, trl and lm-eval'
  )
  result.add_argument(
    '--tunix', help='the Python that has google-tunix; without it, Tunix is left out'
  )
  result.add_argument('--repeats', type=int, default=3)
  result.add_argument('--out', default=out)
  result.add_argument(
    '--gpu', action='store_true', help='in bfloat16 on a GPU, where the peers are transformers'
  )
  result.add_argument('--quick', action='store_true', help='tiny: tests the script')
  return result


def report(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
  """Prints a table."""
  table = Table(title=title.replace('[', r'\['))
  for name in columns:
    table.add_column(name, justify='left' if name in ('workload', 'peer') else 'right')
  for row in rows:
    table.add_row(*row)
  Console(width=140).print(table)


def write(out: str, results: Mapping[str, Any]) -> None:
  """Writes results as JSON, with a description of the machine."""
  machine = {
    'cpus': os.cpu_count(),
    'machine': platform.machine(),
    'python': platform.python_version(),
  }
  machine['jax'] = importlib.metadata.version('jax')
  pathlib.Path(out).write_text(json.dumps({'machine': machine, **results}, indent=1) + '\n')
