"""Records of a run: samples, answers and round summaries, with their JSON forms."""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import time
from typing import Any, NamedTuple

from imm_jax import processes


@dataclasses.dataclass(frozen=True)
class Sample:
  """A completion with its verdict, or a solution of the data: a line of samples.jsonl."""

  question_id: str  # TASK/DIGEST; see tasks.make_example.
  question: str
  gold: str
  sample_index: int | None  # Index among the question's samples; None for a solution of the data.
  text: str  # The completion without its end token or stop string.
  tokens: list[int]  # The completion with its end token or stop string.
  # The prompt it is trained with, without solved examples; [] in runs before version 0.2.
  prompt_tokens: list[int]
  logprob: float | None  # Sum over all tokens, in nats; None for a solution of the data.
  # Entropy in nats, summed over the tokens' distributions; None for a solution of the data.
  entropy: float | None
  finish_reason: str  # 'stop' or 'length'.
  right: bool  # The verifier's verdict.
  reason: str  # Why it is not trained on, see synthesize.accept; '' where it is.
  real: bool = False  # True for a solution of the data.

  @property
  def accepted(self) -> bool:
    """Whether the sample is trained on."""
    return not self.reason

  @property
  def task(self) -> str:
    """The name of the task that the question belongs to."""
    return self.question_id.rpartition('/')[0]

  def to_json(self) -> dict[str, Any]:
    """Returns the fields and `accepted`; `real` is left out where it is False."""
    values = dataclasses.asdict(self) | {'accepted': self.accepted}
    if not self.real:
      del values['real']
    return values

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> 'Sample':
    """Reads the output of to_json, of this version or an earlier one."""
    return cls(**_known(cls, {'prompt_tokens': [], 'entropy': None} | dict(values)))


@dataclasses.dataclass(frozen=True)
class Answer:
  """An answer to a test question with its verdict: a line of evaluations.jsonl."""

  params: str  # The params that gave it: 'merged' or 'tuned'.
  task: str
  id: str  # The question's id.
  question: str
  answer: str
  gold: str
  right: bool

  def to_json(self) -> dict[str, Any]:
    """Returns the fields."""
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> 'Answer':
    """Reads the output of to_json, of this version or an earlier one."""
    return cls(**_known(cls, values))


class State(NamedTuple):
  """Names params of a run: those after a round's merge, or the tuned ones before it."""

  round_: int
  which: str  # 'merged' or 'tuned'.

  def key(self, domain: str) -> str:
    """Returns the field of the round's summary that holds their accuracies in a domain."""
    return domain if self.which == 'merged' else f'tuned_{domain}'

  @property
  def name(self) -> str:
    """The name of the params in a table."""
    return 'base' if self == BASE else f'round {self.round_} {self.which}'


BASE = State(0, 'merged')  # The original model.

# Accuracy, low, high, n, ... by task; see evaluate.evaluate.
Results = dict[str, dict[str, float]]


@dataclasses.dataclass
class RoundSummary:
  """A round's row of summary.json, filled phase by phase.

  A field is None where its phase has not run or has nothing to report.
  """

  round: int
  versions: dict[str, str] = dataclasses.field(default_factory=processes.versions)
  devices: str = dataclasses.field(default_factory=processes.devices)
  secs: dict[str, float] = dataclasses.field(default_factory=dict)  # Seconds that each phase took.
  # In round 0: the number of questions of each task, and their digest.
  tasks: dict[str, dict[str, Any]] | None = None
  sample: dict[str, float] | None = None  # See synthesize.summary.
  finetune: dict[str, Any] | None = None  # steps, tokens, loss_nats, drift_norm.
  merge: dict[str, Any] | None = None  # method, alpha, drift_norm, and the rule's measurements.
  id: Results | None = None  # Accuracies of the merged params, in domain.
  ood: Results | None = None  # Accuracies of the merged params, out of domain.
  text: dict[str, float] | None = None  # The likelihood of evaluate.text_source.
  tuned_id: Results | None = None  # The same three for the tuned params.
  tuned_ood: Results | None = None
  tuned_text: dict[str, float] | None = None

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Times a phase. Raises processes.Stopped if a notice to stop has already come."""
    processes.check_stop()
    start = time.monotonic()
    yield
    self.secs[name] = round(time.monotonic() - start, 3)

  def results(self, domain: str, which: str = 'merged') -> Results:
    """Returns the results in a domain, 'id' or 'ood', by task; {} where nothing was measured."""
    return getattr(self, State(self.round, which).key(domain)) or {}

  def states(self) -> list[State]:
    """Returns the names of the params that were measured, in order."""
    measured = {'tuned': self.tuned_id, 'merged': self.id}
    return [State(self.round, which) for which, found in measured.items() if found is not None]

  def scalars(self) -> dict[str, float]:
    """Returns the numbers as flat metrics `<phase>/<name>`."""
    flat = {}
    for field, name in (
      ('id', 'eval'),
      ('ood', 'eval'),
      ('tuned_id', 'eval_tuned'),
      ('tuned_ood', 'eval_tuned'),
    ):
      for task, result in (getattr(self, field) or {}).items():
        shown = {
          key: value for key, value in result.items() if key.startswith('accuracy') or '@' in key
        }
        flat |= {f'{name}/{task}/{key}': value for key, value in shown.items()}
    for phase in ('text', 'tuned_text', 'sample', 'finetune', 'merge'):
      for key, value in (getattr(self, phase) or {}).items():
        if isinstance(value, int | float):
          flat[f'{phase}/{key}'] = value
    return flat | {f'{phase}/secs': value for phase, value in self.secs.items()}

  def to_json(self) -> dict[str, Any]:
    """Returns the fields that are not None."""
    return {name: value for name, value in vars(self).items() if value is not None}

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> 'RoundSummary':
    """Reads the output of to_json, of this version or an earlier one."""
    return cls(**_known(cls, {'versions': {}, 'devices': ''} | dict(values)))


def _known(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
  names = {field.name for field in dataclasses.fields(cls)}
  return {name: value for name, value in values.items() if name in names}
