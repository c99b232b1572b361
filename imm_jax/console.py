"""Prints notes on the terminal during a run, and progress with its rate."""

from collections.abc import Callable, Iterator
import contextlib
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_EVERY_SECS = 15.0  # The time between two lines of progress without a terminal.

_muted = False


def mute() -> None:
  """Silences notes and progress: in all processes but one."""
  global _muted
  _muted = True


def note(text: str) -> None:
  """Prints a line for whoever watches."""
  Console(stderr=True, quiet=_muted).print(text, highlight=False, markup=False)


def _digits(rate: float) -> str:
  return f'{rate:.1f}' if rate >= 1 else f'{rate:.2g}'


@contextlib.contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
  """Yields advance(n), which shows the progress of `total` units.

  On a terminal it is a bar with rate and remaining time; elsewhere it is a plain line every
  PLAIN_EVERY_SECS.
  """
  console = Console(stderr=True, quiet=_muted)
  if console.is_terminal:
    columns = (
        TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(),
        TextColumn('{task.fields[rate]}'),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bars:
      bar, start = bars.add_task(label, total=total, rate=''), time.monotonic()

      def advance(n: int) -> None:
        bars.advance(bar, n)
        rate = bars.tasks[0].completed / max(time.monotonic() - start, 1e-3)
        bars.update(bar, rate=f'{_digits(rate)} {unit}/s')

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
      text = (
        f'{label}: {done}/{total} {unit}, {_digits(rate)}/s, {(total - done) / rate:.0f} s left'
      )
      console.print(text, highlight=False)
      last = now

  yield advance_plain
  console.print(f'{label}: {done} {unit} in {time.monotonic() - start:.1f} s', highlight=False)
