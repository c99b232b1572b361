"""WORKDIR@ROUND: names the model of a run's round, wherever a model path is expected."""

import os
import re
import tempfile

from etils import epath

_AT_ROUND = re.compile(r'(?P<workdir>.+)@(?P<round>\d+)')


def parse(path: str) -> tuple[str, int] | None:
  """Returns the workdir and the round that a path names, None for another path."""
  match = _AT_ROUND.fullmatch(path)
  return (match['workdir'], int(match['round'])) if match else None


def source_of(path: str | os.PathLike[str]) -> str:
  """Returns the path that holds the config and the tokenizer of a model.

  For WORKDIR@ROUND it is in the workdir, otherwise it is the path itself. Raises FileNotFoundError
  when the workdir does not exist, ValueError when the path is a workdir without a round.
  """
  path = os.path.expanduser(os.fspath(path))
  named = parse(path)
  if named and not epath.Path(named[0]).is_dir():
    raise FileNotFoundError(f'{path}: there is no run in {named[0]}')
  if os.path.isdir(os.path.join(path, 'rounds')):
    raise ValueError(f'{path}: is a run; name one of its rounds, such as {path}@0')
  return model_directory(named[0]) if named else path


def model_directory(workdir: str) -> str:
  """Returns a local directory with the config and the tokenizer of a run's model."""
  model = epath.Path(workdir) / 'model'
  if '://' not in workdir:
    return str(model)
  local = tempfile.mkdtemp()
  for file in model.iterdir():
    (epath.Path(local) / file.name).write_text(file.read_text())
  return local


def checkpoint(workdir: str, round_: int) -> str:
  """Returns the path of a round's checkpoint."""
  return str(epath.Path(workdir) / 'rounds' / f'{round_:04d}' / 'checkpoint')
