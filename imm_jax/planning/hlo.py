"""Reads the costs of a compiled program from its HLO text: FLOPs, estimated cycles, collectives.

Loops count by their trip counts.
"""

import collections
from collections.abc import Mapping
import dataclasses
import math
import re
from typing import NamedTuple

_BYTES = {
  'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4,
  'f32': 4, 's64': 8, 'u64': 8,
}  # fmt: skip
_SHAPE = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\]')
_OP = re.compile(r'^\s+(?:ROOT )?%?([\w.-]+) = (.*?[\])}]) ([a-z][a-z0-9-]*)\((.*)$')
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.-]+) .*\{$')
_CALLED = re.compile(r'(?:calls|to_apply|body)=%?([\w.-]+)')
_COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'collective-permute', 'all-to-all')


class Op(NamedTuple):
  """A line of HLO."""

  name: str
  shape: str  # of the result
  opcode: str
  rest: str  # operands and attributes


class Collective(NamedTuple):
  """A collective of a program."""

  kind: str
  size: int  # bytes on a device: before a reduce-scatter, after any other
  times: int  # it is executed


@dataclasses.dataclass
class Cost:
  """The cost of one execution on one device."""

  flops: float = 0.0  # of dots and convolutions
  cycles: float = 0.0  # as the compiler estimates; without collectives and kernels
  # Custom calls: the compiler says nothing of their cycles, and their FLOPs are not counted.
  kernels: int = 0
  # By kind and channel.
  collectives: dict[str, Collective] = dataclasses.field(default_factory=dict)

  def add(self, other: 'Cost', times: int = 1) -> None:
    """Adds another cost, `times` over.

    A collective that is spread over several ops, so that others run beside it, has one channel. It
    counts as often as the least frequent of these ops.
    """
    self.flops += times * other.flops
    self.cycles += times * other.cycles
    self.kernels += times * other.kernels
    for channel, (kind, size, count) in other.collectives.items():
      found = self.collectives.get(channel)
      least = min(found.times, times * count) if found else times * count
      self.collectives[channel] = Collective(kind, max(found.size, size) if found else size, least)

  @property
  def collective_bytes(self) -> dict[str, int]:
    """The bytes of all collectives by kind."""
    total: collections.Counter[str] = collections.Counter()
    for kind, size, times in self.collectives.values():
      total[kind] += size * times
    return dict(total)


def cost(text: str, unknown_trips: int | None = None) -> Cost:
  """Returns the cost of the entry computation of an optimized module's text (compiled.as_text()).

  A loop's body counts as often as it runs: its trip count is the compiler's known count, or the
  constant in its condition, or `unknown_trips`. Raises ValueError when a loop has none of these.
  """
  entry, computations = _parse(text)
  done: dict[tuple[str, bool], Cost] = {}

  def of(name: str, fused: bool) -> Cost:
    if (name, fused) not in done:
      total = Cost()
      shapes = {op.name: op.shape for op in computations[name]}
      for op in computations[name]:
        total.add(_own(op, shapes, fused))
        if op.opcode == 'while':
          total.add(of(_attribute(op, 'body'), fused), _trip_count(op, computations, unknown_trips))
        elif op.opcode == 'conditional':
          branches = re.findall(r'%?([\w.-]+)', _find(r'branch_computations=\{(.*?)\}', op.rest))
          total.add(max((of(branch, fused) for branch in branches), key=lambda c: c.cycles))
        elif (
          op.opcode in ('fusion', 'call')
          or op.opcode.endswith('-start')
          or op.opcode.startswith('async')
        ):
          for called in _CALLED.findall(op.rest)[:1]:
            total.add(of(called, fused or op.opcode == 'fusion'))
      done[name, fused] = total
    return done[name, fused]

  return of(entry, False)


def _parse(text: str) -> tuple[str, dict[str, list[Op]]]:
  """Returns the name of the entry computation, and the ops of each computation by its name."""
  entry = ''
  computations: dict[str, list[Op]] = {}
  current: list[Op] = []
  for line in text.splitlines():
    if match := _COMPUTATION.match(line):
      current = computations[match[2]] = []
      if match[1]:
        entry = match[2]
    elif match := _OP.match(line):
      current.append(Op(*match.groups()))
  return entry, computations


def _own(op: Op, shapes: Mapping[str, str], fused: bool) -> Cost:
  """Returns the cost of a single op; the cycles of fused ops belong to their fusion."""
  result = Cost()
  if not fused and (match := re.search(r'"estimated_cycles":"(\d+)"', op.rest)):
    result.cycles = float(match[1])
  if op.opcode == 'dot':
    result.flops = _dot_flops(op, shapes)
  elif op.opcode == 'convolution':
    result.flops = _convolution_flops(op, shapes)
  elif op.opcode == 'custom-call' and 'tpu_custom_call' in op.rest:
    result.kernels = 1
  kind = op.opcode.removesuffix('-start')
  if kind in _COLLECTIVES:
    channel = re.search(r'channel_id=(\d+)', op.rest)
    name = channel[1] if channel else op.name
    result.collectives[f'{kind} {name}'] = Collective(kind, _collective_size(op, kind, shapes), 1)
  return result


def _collective_size(op: Op, kind: str, shapes: Mapping[str, str]) -> int:
  """Returns the bytes of a collective on a device: before a reduce-scatter, after any other."""
  if kind == 'reduce-scatter':
    return sum(sum(_sizes(shapes.get(name, ''))) for name in _operands(op))
  if op.opcode != kind:  # The tuple of a start holds operands and contexts too.
    return max(_sizes(op.shape))
  return sum(_sizes(op.shape))


def _find(pattern: str, text: str) -> str:
  match = re.search(pattern, text)
  assert match, (pattern, text)
  return match[1]


def _operands(op: Op) -> list[str]:
  return re.findall(r'%([\w.-]+)', op.rest.partition('), ')[0])


def _attribute(op: Op, name: str) -> str:
  return _find(rf'\b{name}=%?([\w.-]+)', op.rest)


def _trip_count(op: Op, computations: Mapping[str, list[Op]], unknown: int | None) -> int:
  if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', op.rest):
    return int(known[1])
  constants = [
    re.match(r'(\d+)\)', o.rest)
    for o in computations[_attribute(op, 'condition')]
    if o.opcode == 'constant'
  ]
  if len(constants) == 1 and constants[0]:
    return int(constants[0][1])
  if unknown is None:
    raise ValueError(f'{op.name}: a loop whose trip count is not known')
  return unknown


def _dims(shape: str) -> list[int]:
  return [int(n) for n in _find(r'\[([\d,]*)\]', shape).split(',') if n]


def _sizes(text: str) -> list[int]:
  """Returns the bytes of each array in the text of a shape, which may be a tuple's."""
  found = _SHAPE.findall(text)
  return [
    _BYTES.get(dtype, 0) * math.prod(int(n) for n in dims.split(',') if n) for dtype, dims in found
  ]


def _dot_flops(op: Op, shapes: Mapping[str, str]) -> float:
  lhs = _dims(shapes[_operands(op)[0]])
  contracted = _find(r'lhs_contracting_dims=\{([\d,]*)\}', op.rest)
  return (
    2.0 * math.prod(_dims(op.shape)) * math.prod(lhs[int(i)] for i in contracted.split(',') if i)
  )


def _convolution_flops(op: Op, shapes: Mapping[str, str]) -> float:
  """Returns 2 x the number of multiplications that meet an element of the input.

  On TPU a dot is a convolution, maybe padded and dilated.
  """
  lhs_labels, rhs_labels, out_labels = re.split('_|->', _find(r'dim_labels=([\w>-]+)', op.rest))
  lhs_dims, rhs_dims = (_dims(shapes[name]) for name in _operands(op)[:2])
  lhs = dict(zip(lhs_labels, lhs_dims, strict=True))
  rhs = dict(zip(rhs_labels, rhs_dims, strict=True))
  out = dict(zip(out_labels, _dims(op.shape), strict=True))
  total = 2.0 * (lhs['b'] // _number(op, 'batch_group_count')) * rhs['i'] * rhs['o']
  for i, window in enumerate(_windows(op)):
    total *= _meetings(lhs[str(i)], out[str(i)], window)
  return total


def _number(op: Op, name: str) -> int:
  match = re.search(rf'\b{name}=(\d+)', op.rest)
  return int(match[1]) if match else 1


class Window(NamedTuple):
  """One spatial dimension of a convolution's window."""

  size: int
  stride: int
  low: int  # padding before the first element
  lhs_dilate: int
  rhs_dilate: int


def _windows(op: Op) -> list[Window]:
  """Returns the window of each spatial dimension."""
  text = re.search(r'window=\{(.*?)\}', op.rest)
  if not text:
    return []
  fields = dict(part.split('=') for part in text[1].split())
  num = len(fields.get('size', '').split('x')) if fields.get('size') else 0

  def values(name: str, default: int) -> list[int]:
    """A field is a number a dimension, 3x3; of padding, 1_1x0_2, the low one counts."""
    parts = fields[name].split('x') if name in fields else [str(default)] * num
    return [int(part.split('_')[0]) for part in parts]

  columns = (
    values('size', 1),
    values('stride', 1),
    values('pad', 0),
    values('lhs_dilate', 1),
    values('rhs_dilate', 1),
  )
  return [Window(*row) for row in zip(*columns, strict=True)]


def _meetings(length: int, out: int, window: Window) -> int:
  """Returns the number of pairs (output, window position) that fall on an element of the input."""
  end = (length - 1) * window.lhs_dilate + 1
  total = 0
  for position in range(window.size):
    first = position * window.rhs_dilate - window.low
    places = range(first, first + out * window.stride, window.stride)
    total += sum(0 <= place < end and place % window.lhs_dilate == 0 for place in places)
  return total
