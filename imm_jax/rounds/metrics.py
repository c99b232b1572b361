"""Numbers of a run as they come: a JSONL file, TensorBoard or a logger of your own when asked,
profiles.
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
WRITE_EVERY_SECS = 10.0  # between two times that metrics.jsonl is written


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
  """How many steps of each round's fine-tuning jax.profiler traces."""

  num_steps: int  # 0 is off

  def __post_init__(self):
    if self.num_steps < 0:
      raise ValueError(f'profile.num_steps: {self.num_steps} is negative')


class TensorBoard:
  """A logger, as `logger` in a config may name another: made with a workdir, it takes values as
  they come.
  """

  def __init__(self, workdir: str):
    """Writes to workdir/tensorboard."""
    import tensorboardX  # the `logging` extra

    self._board = tensorboardX.SummaryWriter(str(epath.Path(workdir) / 'tensorboard'))

  def write(self, round_: int, step: int | None, values: Mapping[str, float]) -> None:
    """Adds a point to a curve over rounds, or for each round to one over its steps."""
    for name, value in values.items():
      tag, x = (name, round_) if step is None else (f'{name}/round{round_}', step)
      self._board.add_scalar(tag, value, x)

  def close(self) -> None:
    """Closes the files."""
    self._board.close()


def find_logger(name: str) -> Callable[[str], Any]:
  """Returns the class that config.logger names, 'tensorboard' or 'MODULE:CLASS'.

  Raises ValueError when there is none.
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
  """Writes metrics to workdir/metrics.jsonl, whole each time, and to the loggers that are asked
  for.
  """

  def __init__(
    self, workdir: str, lines: Iterable[Mapping[str, Any]], *, logger: str = '', writes: bool = True
  ):
    """Begins with the lines of the rounds that are done.

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
    """Writes all lines there are."""
    from imm_jax import processes

    if self._writes:
      processes.write_text(self._path, ''.join(json.dumps(line) + '\n' for line in self._lines))
    self._written = time.monotonic()

  def close(self) -> None:
    """Writes all, and closes the loggers."""
    self.flush()
    for logger in self._loggers:
      logger.close()


class StepLog:
  """The metrics of a round's optimizer steps, fetched one step late, so that the devices never wait
  for the host.
  """

  def __init__(self, write: Callable[[int, Mapping[str, float]], None]):
    """write(step, values) is called for each step when its values are there."""
    self.steps: list[dict[str, float]] = []
    self._write = write
    self._waiting: Mapping[str, Any] | None = None

  def add(self, values: Mapping[str, Any]) -> None:
    """Takes the values of a step that may be running still, and fetches those of the step
    before.
    """
    self.flush()
    self._waiting = values

  def flush(self) -> None:
    """Fetches what waits."""
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
  """Yields steps, which start when they are asked for; those of the config are traced into
  workdir/profile.

  Args:
    steps: what to yield.
    numbers: of the steps in their round.
    config: which are traced.
    workdir: where the trace goes.
    wait: returns when no step is running, so that the trace holds whole steps.
  """
  traced = range(
    max(numbers.start, FIRST_TRACED), min(numbers.stop, FIRST_TRACED + config.num_steps)
  )
  if not traced:
    yield from steps
    return
  import jax  # Not above: `imm --help` is quick.

  steps = iter(steps)
  yield from itertools.islice(steps, traced.start - numbers.start)
  wait()
  with jax.profiler.trace(str(epath.Path(workdir) / 'profile')):
    yield from itertools.islice(steps, len(traced))
    wait()
  yield from steps
