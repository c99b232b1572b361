"""The worker's side of harness.Worker: requests on stdin, replies on a pipe of their own."""

from collections.abc import Callable, Mapping, Sequence
import json
import sys
from typing import Any

MODEL = sys.argv[2]  # the Hugging Face directory
GPU = sys.argv[3] == 'gpu'  # where it computes in bfloat16; elsewhere in float32


def serve(
  tasks: Mapping[str, Callable[..., dict[str, Any]]], gpu_bytes: Callable[[], int] | None = None
) -> None:
  """Answers requests until there are no more.

  gpu_bytes() returns the most bytes that were ever held on the GPU, if it can be used.
  """
  with open(int(sys.argv[1]), 'w') as replies:
    replies.write('{}\n')  # ready
    replies.flush()
    for line in sys.stdin:
      request = json.loads(line)
      reply = tasks[request.pop('task')](**request)
      if GPU and gpu_bytes:
        reply['peak_gib'] = gpu_bytes() / 2**30
      replies.write(json.dumps(reply) + '\n')
      replies.flush()


def cut(rows: Sequence[Sequence[int]], stop_ids: Sequence[int]) -> list[list[int]]:
  """Returns each row up to its first stop token, which it keeps."""
  stops = set(stop_ids)
  ends = [next((i + 1 for i, token in enumerate(row) if token in stops), len(row)) for row in rows]
  return [list(row[:end]) for row, end in zip(rows, ends, strict=True)]


def jax_gpu_bytes() -> int:
  """Returns the most bytes that JAX has held on its first device."""
  import jax  # pylint: disable=g-import-not-at-top

  return jax.devices()[0].memory_stats()['peak_bytes_in_use']


def watch_compiler() -> list[float]:
  """Returns a list to which the seconds of each of JAX's compilations will be added."""
  import jax  # pylint: disable=g-import-not-at-top

  secs = []

  def listen(name: str, value: float, **_: Any) -> None:
    if name.endswith('backend_compile_duration'):
      secs.append(value)

  jax.monitoring.register_event_duration_secs_listener(listen)
  return secs
