"""What a run records."""

from typing import NamedTuple


class State(NamedTuple):
  """Which params of a run: those after a round's merge, or the tuned ones before it."""

  round_: int
  which: str  # 'merged' or 'tuned'

  def key(self, domain: str) -> str:
    """Returns the key under which the round's row has their accuracies in a domain."""
    return domain if self.which == 'merged' else f'tuned_{domain}'

  @property
  def name(self) -> str:
    """Returns what they are called in a table."""
    return 'base' if self == BASE else f'round {self.round_} {self.which}'


BASE = State(0, 'merged')  # the original model
