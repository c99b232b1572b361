"""Reads the flags of a command.

Only this module uses absl's flags and ml_collections' configs.
"""

from collections.abc import Sequence
import importlib.util
import os
import sys
from typing import Any

from absl import flags as absl_flags
from ml_collections import config_flags

from imm_jax.text import nearest

Error = absl_flags.Error
# The type that a declaration returns; `value` and `present` can be read after `Flags.parse`.
Flag = absl_flags.FlagHolder


class Flags:
  """The flags of one command: first declared, then parsed once.

  The lines of a flag file (--flagfile=FILE) count as if they were on the command line, including
  --config and its overrides.
  """

  def __init__(self, command: str, arguments: Sequence[str]):
    self._command = command
    self._arguments = arguments
    self._values = absl_flags.FlagValues()
    self._where: dict[str, Any] = {'flag_values': self._values, 'module_name': 'imm_jax.cli'}
    self.boolean('traceback', False, 'Show where an error comes from.')
    self._help = absl_flags.DEFINE_bool('help', False, 'Show this.', short_name='h', **self._where)

  def string(self, name: str, default: str | None, help: str) -> Flag[Any]:
    """Declares --NAME=TEXT."""
    return absl_flags.DEFINE_string(name, default, help, **self._where)

  def boolean(self, name: str, default: bool, help: str) -> Flag[bool]:
    """Declares --NAME and --noNAME."""
    return absl_flags.DEFINE_bool(name, default, help, **self._where)

  def integer(self, name: str, default: int, help: str, at_least: int | None = None) -> Flag[int]:
    """Declares --NAME=WHOLE_NUMBER."""
    return absl_flags.DEFINE_integer(name, default, help, lower_bound=at_least, **self._where)

  def number(self, name: str, default: float, help: str) -> Flag[float]:
    """Declares --NAME=NUMBER."""
    return absl_flags.DEFINE_float(name, default, help, **self._where)

  def choice(self, name: str, default: str, choices: Sequence[str], help: str) -> Flag[str]:
    """Declares --NAME=ONE_OF_THE_CHOICES."""
    return absl_flags.DEFINE_enum(name, default, choices, help, **self._where)

  def names(self, name: str, help: str) -> Flag[list[str]]:
    """Declares --NAME=A,B,C; none by default."""
    return absl_flags.DEFINE_list(name, [], help, **self._where)

  def repeated(self, name: str, help: str) -> Flag[list[str]]:
    """Declares --NAME=TEXT, which may be given several times; none by default."""
    return absl_flags.DEFINE_multi_string(name, [], help, **self._where)

  def parse(self, num_positional: int | None = 0, usage: str = '', epilog: str = '') -> list[str]:
    """Parses the declared flags; returns the positional arguments.

    --help prints the usage, the flags and the epilog, and exits with code 0.

    Args:
      num_positional: how many positional arguments there must be; None for any number.
      usage: the positional arguments, for the help.
      epilog: the end of the help.

    Raises:
      ValueError, OSError, Error: a mistake of the user's, in one line.
    """
    try:
      _, *positional = self._values(self._argv())
    except absl_flags.UnrecognizedFlagError as error:
      raise self._no_such_flag(error) from error
    self._finish(positional, num_positional, usage, epilog)
    return positional

  def parse_config(self) -> dict[str, Any]:
    """Parses the declared flags, --config=FILE and its overrides; returns the config as a dict.

    Raises as `parse` does, and ValueError when --config is missing or is not a config.
    """
    config, _ = self.parse_optional_config()
    if config is None:
      raise ValueError(
        '--config: is missing; give the file of an experiment, such as configs/quickstart.py'
      )
    return config

  def parse_optional_config(
    self, num_positional: int | None = 0, usage: str = ''
  ) -> tuple[dict[str, Any] | None, list[str]]:
    """Parses as `parse_config` does; returns the config, or None, and the positional arguments."""
    source = self.string(
      'config',
      None,
      'File of the experiment, and FILE:ARGUMENT for its get_config. Each of its keys is a flag'
      ' --config.KEY.',
    )
    # Parsing only known flags leaves the overrides and positional arguments.
    rest = self._values(self._argv(), known_only=True)
    if source.value is None:
      _, *positional = self._parse_rest(rest, absl_flags.FlagValues())
      self._finish(positional, num_positional, usage)
      return None, positional
    try:
      config = _load(source.value)
      for argument in rest:
        if argument.startswith('-'):
          _check_key(config, argument.lstrip('-').partition('=')[0])
      values = absl_flags.FlagValues()
      config_flags.DEFINE_config_dict('config', config, flag_values=values, sys_argv=rest)
      _, *positional = self._parse_rest(rest, values)
    except (ValueError, OSError, Error):
      raise
    # A config is the user's program, so any exception is a mistake in it.
    except Exception as error:
      hint = ''
      if isinstance(error, ImportError):
        hint = '; a config imports what stands beside it or on PYTHONPATH'
      raise ValueError(f'--config: {one_line(error)}{hint}') from error
    self._finish(positional, num_positional, usage)
    return config.to_dict(), positional

  @property
  def shows_traceback(self) -> bool:
    """Whether --traceback is given; an error may come before the flags are parsed."""
    if self._values.is_parsed():
      return self._values.traceback
    return '--traceback' in self._arguments

  def _argv(self) -> list[str]:
    return [self._command, *self._values.read_flags_from_files(self._arguments)]

  def _parse_rest(self, rest: list[str], values: absl_flags.FlagValues) -> list[str]:
    try:
      return values(rest)
    except absl_flags.UnrecognizedFlagError as error:
      raise self._no_such_flag(error) from error

  def _no_such_flag(self, error: absl_flags.UnrecognizedFlagError) -> ValueError:
    hint = nearest(error.flagname, self._values)
    return ValueError(f'--{error.flagname}: no such flag{hint}; see {self._command} --help')

  def _finish(
    self,
    positional: Sequence[str],
    num_positional: int | None,
    usage: str,
    epilog: str = '',
  ) -> None:
    """Prints the help and exits when it is asked for; else counts the positional arguments."""
    if self._help.value:
      text = self._values.main_module_help() or self._values.get_help()
      print('\n'.join([f'{self._command} {usage}'.rstrip(), text, epilog]).rstrip())
      sys.exit(0)
    if num_positional is not None and len(positional) != num_positional:
      given = f'takes {num_positional} arguments and got {len(positional)}: {" ".join(positional)}'
      raise ValueError(f'{self._command}: {given}')


def one_line(error: BaseException) -> str:
  """Returns an error's message as one line, with the path in front for a file's error."""
  if isinstance(error, OSError) and error.strerror:
    return f'{error.filename}: {error.strerror}' if error.filename else error.strerror
  if isinstance(error, SyntaxError):
    return f'{error.filename}, line {error.lineno}: {error.msg}'
  text = ': '.join(map(str, error.args)) if len(error.args) > 1 else str(error)
  return ' '.join(text.split())


def _load(source: str) -> Any:
  """Returns the result of get_config in FILE or FILE:ARGUMENT. Its own errors pass through."""
  path, colon, argument = source.partition(':')
  if not os.path.isfile(path):
    raise ValueError(
      f'--config: {path}: no such file; give the file of an experiment, such as'
      ' configs/quickstart.py'
    )
  # A config may import modules from its own directory, as a script does.
  sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
  spec = importlib.util.spec_from_file_location('config', path)
  if spec is None or spec.loader is None:
    raise ValueError(f'--config: {path}: is no Python file')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(argument) if colon else module.get_config()


def _check_key(config: Any, name: str) -> None:
  """Raises ValueError when `name`, a flag without its dashes, looks like a key but is none."""
  first, *keys = name.removeprefix('no' if name.startswith('noconfig.') else '').split('.')
  if first != 'config' and keys and first in config:
    raise ValueError(f'--{name}: no such flag; a key of the config is --config.{name}')
  if first != 'config':
    return
  where = 'config'
  section = config
  for key in keys:
    known = list(section) if hasattr(section, 'keys') else []
    if key not in known:
      hint = nearest(key, known) or f'; {where} has {", ".join(known) or "none"}'
      raise ValueError(f'{where}.{key}: no such key{hint}')
    where = f'{where}.{key}'
    section = section[key]
