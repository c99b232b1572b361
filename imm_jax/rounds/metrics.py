"""Metrics of a run: a JSONL file, TensorBoard or a logger of your own, and profiles.

The JSONL file is always written; loggers and profiles are written when the config asks for them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import importlib
import importlib.util
import itertools
import json
import time
from typing import Any, TypeVar

from etils import epath

T = TypeVar('T')

FIRST_TRACED = 2  # The first steps of a round compile, or fill the devices' queue.
WRITE_EVERY_SECS = 10.0  # The shortest time between two writes of metrics.jsonl.


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
  """The number of steps of each round's fine-tuning that jax.profiler traces."""

  num_steps: int  # 0 turns tracing off.

  def __post_init__(self):
    if self.num_steps < 0:
      raise ValueError(f'profile.num_steps: {self.num_steps} is negative')


class TensorBoard:
  """A logger that writes to TensorBoard; `logger` in a config may name another class.

  A logger is made with a workdir and takes values as they come.
  """

  def __init__(self, workdir: str):
    """Writes to workdir/tensorboard."""
    import tensorboardX  # Only the `logging` extra installs it.

    self._board = tensorboardX.SummaryWriter(str(epath.Path(workdir) / 'tensorboard'))

  def write(self, round_: int, step: int | None, values: Mapping[str, float]) -> None:
    """Adds a point to a curve over rounds or, when a step is given, to the round's own curve."""
    for name, value in values.items():
      tag, x = (name, round_) if step is None else (f'{name}/round{round_}', step)
      self._board.add_scalar(tag, value, x)

  def close(self) -> None:
    """Closes the files."""
    self._board.close()


def find_logger(name: str) -> Callable[[str], Any]:
  """Returns the class that config.logger names, 'tensorboard' or 'MODULE:CLASS'.

  Raises ValueError when it cannot be found.
  """
  if name == 'tensorboard':
    if importlib.util.find_spec('tensorboardX') is None:
      raise ValueError(
        "config.logger: tensorboardX is not installed; pip install 'imm_jax[logging]'"
      )
    return TensorBoard
  module, _, attribute = name.partition(':')
  try:
    return getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError, ValueError) as error:
    raise ValueError(
      f"config.logger: {name!r} is not 'tensorboard', nor 'MODULE:CLASS' that can be imported"
      f' ({error})'
    ) from error


class Writer:
  """Writes metrics to workdir/metrics.jsonl, whole each time, and to the logger of the config."""

  def __init__(
    self, workdir: str, lines: Iterable[Mapping[str, Any]], *, logger: str = '', writes: bool = True
  ):
    """Starts with the lines of the rounds that are done.

    `writes` is False in all processes but one.
    """
    self.workdir, self._lines, self._writes = workdir, list(lines), writes
    self._path = epath.Path(workdir) / 'metrics.jsonl'
    self._loggers = [find_logger(logger)(workdir)] if logger and writes else []
    self.flush()

  def write(self, round_: int, values: Mapping[str, float], step: int | None = None) -> None:
    """Adds the values of a round, or of one fine-tuning step in it; keys are `<phase>/<name>`."""
    place = {'round': round_} if step is None else {'round': round_, 'step': step}
    self._lines.append(place | dict(values))
    if time.monotonic() - self._written > WRITE_EVERY_SECS:
      self.flush()
    for logger in self._loggers:
      logger.write(round_, step, values)

  def of_round(self, round_: int) -> list[Mapping[str, Any]]:
    """Returns the lines of a round."""
    return [line for line in self._lines if line['round'] == round_]

  def flush(self) -> None:
    """Writes all lines to the file."""
    from imm_jax import processes

    if self._writes:
      processes.write_text(self._path, ''.join(json.dumps(line) + '\n' for line in self._lines))
    self._written = time.monotonic()

  def close(self) -> None:
    """Writes all lines, and closes the loggers."""
    self.flush()
    for logger in self._loggers:
      logger.close()


class StepLog:
  """The metrics of a round's optimizer steps, fetched one step late.

  That way the devices never wait for the host.
  """

  def __init__(self, write: Callable[[int, Mapping[str, float]], None]):
    """Calls write(step, values) for each step, once its values have been fetched."""
    self.steps: list[dict[str, float]] = []
    self._write = write
    self._waiting: Mapping[str, Any] | None = None

  def add(self, values: Mapping[str, Any]) -> None:
    """Takes the values of a step that may still be running; fetches those of the step before."""
    self.flush()
    self._waiting = values

  def flush(self) -> None:
    """Fetches the values of the newest step."""
    if self._waiting is not None:
      values = {name: float(value) for name, value in self._waiting.items()}
      self._waiting = None
      self.replay([values])

  def replay(self, steps: Iterable[dict[str, float]]) -> None:
    """Takes the values of steps that an earlier process has fetched."""
    for values in steps:
      self.steps.append(values)
      self._write(len(self.steps) - 1, values)


def profiled(
  steps: Iterable[T], numbers: range, config: ProfileConfig, workdir: str, wait: Callable[[], None]
) -> Iterator[T]:
  """Yields steps, and traces those that the config asks for into workdir/profile.

  A step starts when it is asked for.

  Args:
    steps: the steps to yield.
    numbers: the numbers of the steps in their round.
    config: the number of steps to trace.
    workdir: the directory of the run, where the trace goes.
    wait: returns when no step is running, so that the trace holds whole steps.
  """
  traced = range(
    max(numbers.start, FIRST_TRACED), min(numbers.stop, FIRST_TRACED + config.num_steps)
  )
  if not traced:
    yield from steps
    return
  import jax  # Imported here to keep `imm --help` quick.

  steps = iter(steps)
  yield from itertools.islice(steps, traced.start - numbers.start)
  wait()
  with jax.profiler.trace(str(epath.Path(workdir) / 'profile')):
    yield from itertools.islice(steps, len(traced))
    wait()
  yield from steps
