"""The `imm` command: a module a command, imported when it is asked for."""

import atexit
import importlib
import os
import signal
import sys
import threading
from typing import Any

from imm_jax.cli import flags

COMMANDS = ('run', 'doctor', 'evaluate', 'analyze', 'convert', 'merge', 'report', 'plan', 'tasks')

OVERVIEW = """imm: Iterative Model Merging of self-improving language models.

  imm run --config=FILE --workdir=DIR      run the rounds, or go on with them
  imm doctor --config=FILE --workdir=DIR   check whether a run would start, fit and write
  imm evaluate --config=FILE               measure config.model.path on the config's tasks
  imm convert SOURCE TARGET                write a Hugging Face directory that transformers loads
  imm analyze --workdir=DIR                layer importance and change, diversity, forgetting
  imm merge --base=A --tuned=B --out=DIR   merge models on disk, or --recipe=FILE.yml, mergekit's
  imm report WORKDIR [WORKDIR ...]         one HTML page of a run, or of several side by side
  imm plan --config=FILE --topology=v5e:4x4   compile for TPUs that are not there: memory, time
  imm tasks [NAME --show=3]                list the known data sets, or show prompts of one

A model is a Hugging Face directory, a .gguf file, or WORKDIR@ROUND. `imm COMMAND --help` lists a
command's flags. Every config key is a flag: --config.merge.alpha=0.3. Errors are one line;
--traceback shows where they come from.
"""


def main() -> None:
  """Runs the command that sys.argv names.

  The exit code is 0 when it is done, 1 for a user's error in one line, and 42 when a run stopped on
  notice.
  """
  hear_signals()
  name, *arguments = sys.argv[1:] or ['--help']
  if name in ('-h', '--help', 'help'):
    print(OVERVIEW, end='')
    return
  given = flags.Flags(f'imm {name}', arguments)
  try:
    if name not in COMMANDS:
      raise ValueError(f'{name!r} is no command; the commands are {", ".join(COMMANDS)}')
    importlib.import_module(f'imm_jax.cli.{name}').main(given)
  # What a user can cause is a ValueError or an OSError with one clear line. Anything else is ours,
  # and shows its traceback.
  except (ValueError, OSError, flags.Error) as error:
    if given.shows_traceback:
      raise
    print(f'imm: {flags.one_line(error)}', file=sys.stderr)
    sys.exit(1)
  except KeyboardInterrupt:
    print('imm: stopped; a run goes on with the same command', file=sys.stderr, flush=True)
    # An orderly exit would wait for, or crash in, a computation that is still running.
    os._exit(130)


def hear_signals() -> None:
  """Makes SIGTERM act as Ctrl-C, so that temporary files are removed, and lets neither be lost."""
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  # SIGTERM is ignored at exit, as it would replace the exit code.
  atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)
  sys.unraisablehook = _send_again


def _send_again(unraisable: Any) -> None:
  """Sends a signal again that came in a callback of the garbage collector, which drops errors.

  jax has such a callback. The signal is sent by a thread, after the callback has ended.
  """
  if unraisable.exc_type is KeyboardInterrupt:
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
  else:
    sys.__unraisablehook__(unraisable)
