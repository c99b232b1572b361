"""The worker's side of harness.Worker: requests on stdin, replies on a pipe of their own."""

from collections.abc import Callable, Mapping, Sequence
import json
import sys
from typing import Any

MODEL = sys.argv[2]  # the Hugging Face directory


def serve(tasks: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
  """Answers requests until there are no more."""
  with open(int(sys.argv[1]), 'w') as replies:
    replies.write('{}\n')  # ready
    replies.flush()
    for line in sys.stdin:
      request = json.loads(line)
      replies.write(json.dumps(tasks[request.pop('task')](**request)) + '\n')
      replies.flush()


def cut(rows: Sequence[Sequence[int]], stop_ids: Sequence[int]) -> list[list[int]]:
  """Returns each row up to its first stop token, which it keeps."""
  stops = set(stop_ids)
  ends = [next((i + 1 for i, token in enumerate(row) if token in stops), len(row)) for row in rows]
  return [list(row[:end]) for row, end in zip(rows, ends, strict=True)]


def watch_compiler() -> list[float]:
  """Returns a list to which the seconds of each of JAX's compilations will be added."""
  import jax  # pylint: disable=g-import-not-at-top

  secs = []

  def listen(name: str, value: float, **_: Any) -> None:
    if name.endswith('backend_compile_duration'):
      secs.append(value)

  jax.monitoring.register_event_duration_secs_listener(listen)
  return secs
