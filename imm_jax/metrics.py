"""Numbers of a run as they come: a JSONL file, TensorBoard when asked, progress on the terminal."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import json
import os
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_EVERY_SECS = 15.0  # between two lines of progress where there is no terminal


class Writer:
  """Appends metrics to workdir/metrics.jsonl, and to workdir/tensorboard when asked."""

  def __init__(self, workdir: str, first_round: int, tensorboard: bool):
    """Opens the files; lines of `first_round` and later, left by a run that was cut off, are dropped."""
    path = os.path.join(workdir, 'metrics.jsonl')
    kept = []
    if os.path.exists(path):
      with open(path, encoding='utf-8') as file:
        # A line without its end was being written when the run was cut off.
        kept = [line for line in file if line.endswith('\n') and json.loads(line)['round'] < first_round]
    with open(path + '.tmp', 'w', encoding='utf-8') as file:
      file.writelines(kept)
    os.replace(path + '.tmp', path)
    self._file = open(path, 'a', encoding='utf-8')
    self._board = None
    if tensorboard:
      import tensorboardX  # the `logging` extra

      self._board = tensorboardX.SummaryWriter(os.path.join(workdir, 'tensorboard'))

  def write(self, round_: int, values: Mapping[str, float], step: int | None = None) -> None:
    """Writes the values of a round, or of one fine-tuning step in it; keys are `<phase>/<name>`."""
    place = {'round': round_} if step is None else {'round': round_, 'step': step}
    self._file.write(json.dumps(place | dict(values)) + '\n')
    self._file.flush()
    if self._board:
      for name, value in values.items():
        # A curve over rounds, and for each round one over its steps.
        tag, x = (name, round_) if step is None else (f'{name}/round{round_}', step)
        self._board.add_scalar(tag, value, x)

  def close(self) -> None:
    """Closes the files."""
    self._file.close()
    if self._board:
      self._board.close()


def note(text: str) -> None:
  """Prints a line for whoever watches."""
  Console(stderr=True).print(text, highlight=False, markup=False)


@contextlib.contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
  """Yields advance(n). On a terminal a bar with rate and remaining time; elsewhere a plain line every now and then."""
  console = Console(stderr=True)
  if console.is_terminal:
    columns = (
        TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TextColumn('{task.fields[rate]}'),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bars:
      bar, start = bars.add_task(label, total=total, rate=''), time.monotonic()

      def advance(n: int) -> None:
        bars.advance(bar, n)
        rate = bars.tasks[0].completed / max(time.monotonic() - start, 1e-3)
        bars.update(bar, rate=f'{rate:.1f} {unit}/s')

      yield advance
    return

  start = last = time.monotonic()
  done = 0

  def advance_plain(n: int) -> None:
    nonlocal done, last
    done += n
    now = time.monotonic()
    if now - last >= PLAIN_EVERY_SECS and 0 < done < total:
      rate = done / (now - start)
      console.print(f'{label}: {done}/{total} {unit}, {rate:.1f}/s, {(total - done) / rate:.0f} s left', highlight=False)
      last = now

  yield advance_plain
  console.print(f'{label}: {done} {unit} in {time.monotonic() - start:.1f} s', highlight=False)
