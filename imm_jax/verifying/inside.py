"""Runs inside the sandbox: a program and its tests, as a module, under a filter of system calls.

sandbox.py starts it through bubblewrap, with a socket as its standard input. It imports nothing of
this package, so that it starts fast.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys
import types

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
# Instructions of the kernel's filter machine.
_LOAD, _EQUAL, _ABOVE, _RETURN = 0x20, 0x15, 0x25, 0x06
_ALLOW, _ERRNO, _EPERM, _ENOSYS = 0x7FFF0000, 0x00050000, 1, 38
_MACHINES = {'x86_64': 0xC000003E, 'aarch64': 0xC00000B7}

# What CPython needs, with its numbers on x86-64 and on arm64. Left out, and so denied: other
# processes and threads (clone, execve), signals, limits and priorities (kill, prlimit64,
# setpriority), sockets, mounts, namespaces, ptrace and the rest.
_ALLOWED = {
  'access': (21, None), 'alarm': (37, None), 'brk': (12, 214), 'chdir': (80, 49),
  'chmod': (90, None), 'clock_getres': (229, 114), 'clock_gettime': (228, 113),
  'clock_nanosleep': (230, 115), 'close': (3, 57), 'close_range': (436, 436),
  'copy_file_range': (326, 285), 'dup': (32, 23), 'dup2': (33, None), 'dup3': (292, 24),
  'epoll_create': (213, None), 'epoll_create1': (291, 20), 'epoll_ctl': (233, 21),
  'epoll_pwait': (281, 22), 'epoll_wait': (232, None), 'exit': (60, 93), 'exit_group': (231, 94),
  'faccessat': (269, 48), 'faccessat2': (439, 439), 'fadvise64': (221, 223),
  'fallocate': (285, 47), 'fchdir': (81, 50), 'fchmod': (91, 52), 'fchmodat': (268, 53),
  'fcntl': (72, 25), 'fdatasync': (75, 83), 'fgetxattr': (193, 10), 'flistxattr': (196, 13),
  'flock': (73, 32), 'fstat': (5, 80), 'fstatfs': (138, 44), 'fsync': (74, 82),
  'ftruncate': (77, 46), 'futex': (202, 98), 'get_robust_list': (274, 100), 'getcpu': (309, 168),
  'getcwd': (79, 17), 'getdents': (78, None), 'getdents64': (217, 61), 'getegid': (108, 177),
  'geteuid': (107, 175), 'getgid': (104, 176), 'getgroups': (115, 158), 'getitimer': (36, 102),
  'getpgid': (121, 155), 'getpgrp': (111, None), 'getpid': (39, 172), 'getppid': (110, 173),
  'getpriority': (140, 141), 'getrandom': (318, 278), 'getresgid': (120, 150),
  'getresuid': (118, 148), 'getrusage': (98, 165), 'getsid': (124, 156), 'gettid': (186, 178),
  'gettimeofday': (96, 169), 'getuid': (102, 174), 'getxattr': (191, 8), 'ioctl': (16, 29),
  'lgetxattr': (192, 9), 'link': (86, None), 'linkat': (265, 37), 'listxattr': (194, 11),
  'llistxattr': (195, 12), 'lseek': (8, 62), 'lstat': (6, None), 'madvise': (28, 233),
  'mincore': (27, 232), 'mkdir': (83, None), 'mkdirat': (258, 34),
  'mmap': (9, 222), 'mprotect': (10, 226), 'mremap': (25, 216), 'msync': (26, 227),
  'munmap': (11, 215), 'nanosleep': (35, 101), 'newfstatat': (262, 79), 'open': (2, None),
  'openat': (257, 56),
  'pause': (34, None), 'pipe': (22, None), 'pipe2': (293, 59), 'poll': (7, None),
  'ppoll': (271, 73), 'pread64': (17, 67), 'preadv': (295, 69), 'pselect6': (270, 72),
  'pwrite64': (18, 68), 'pwritev': (296, 70), 'read': (0, 63), 'readlink': (89, None),
  'readlinkat': (267, 78), 'readv': (19, 65), 'rename': (82, None), 'renameat': (264, 38),
  'renameat2': (316, 276), 'restart_syscall': (219, 128), 'rmdir': (84, None), 'rseq': (334, 293),
  'rt_sigaction': (13, 134), 'rt_sigpending': (127, 136), 'rt_sigprocmask': (14, 135),
  'rt_sigreturn': (15, 139), 'rt_sigtimedwait': (128, 137), 'sched_get_priority_max': (146, 125),
  'sched_get_priority_min': (147, 126), 'sched_getaffinity': (204, 123),
  'sched_getparam': (143, 121), 'sched_getscheduler': (145, 120), 'sched_yield': (24, 124),
  'select': (23, None), 'sendfile': (40, 71), 'set_robust_list': (273, 99),
  'set_tid_address': (218, 96), 'setitimer': (38, 103), 'sigaltstack': (131, 132),
  'stat': (4, None), 'statfs': (137, 43), 'statx': (332, 291), 'symlink': (88, None),
  'symlinkat': (266, 36), 'sysinfo': (99, 179), 'time': (201, None), 'times': (100, 153),
  'truncate': (76, 45), 'umask': (95, 166), 'uname': (63, 160), 'unlink': (87, None),
  'unlinkat': (263, 35), 'utimensat': (280, 88), 'utimes': (235, None), 'write': (1, 64),
  'writev': (20, 66),
}  # fmt: skip
_NEWEST = 450  # C libraries ask for newer calls first, and take ENOSYS for an answer.


class _Filter(ctypes.Structure):
  """sock_fprog of linux/filter.h."""

  _fields_ = (('length', ctypes.c_ushort), ('code', ctypes.c_void_p))


def allow_only(numbers, machine):
  """Makes the kernel deny every other system call in this process, for good.

  Raises OSError when it cannot.
  """
  deny, unknown, allow = len(numbers) + 4, len(numbers) + 5, len(numbers) + 6
  lines = [
    (_LOAD, 0, 0, 4),
    (_EQUAL, 0, deny - 2, machine),
    (_LOAD, 0, 0, 0),
    (_ABOVE, unknown - 4, 0, _NEWEST),
  ]
  lines += [(_EQUAL, allow - 5 - i, 0, number) for i, number in enumerate(numbers)]
  lines += [
    (_RETURN, 0, 0, _ERRNO | _EPERM),
    (_RETURN, 0, 0, _ERRNO | _ENOSYS),
    (_RETURN, 0, 0, _ALLOW),
  ]
  code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *line) for line in lines))
  libc = ctypes.CDLL(None, use_errno=True)
  if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
    _PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(_Filter(len(lines), ctypes.addressof(code))), 0, 0
  ):
    raise OSError(ctypes.get_errno(), 'the kernel takes no filter of system calls (seccomp)')


def allowed_numbers():
  """Returns the numbers of _ALLOWED on this machine, and the kernel's name of it.

  Raises OSError for an unknown machine.
  """
  machine = platform.machine()
  if machine not in _MACHINES:
    raise OSError(
      f'no system calls are known of a machine {machine}, only of {", ".join(_MACHINES)}'
    )
  column = list(_MACHINES).index(machine)
  return sorted(row[column] for row in _ALLOWED.values() if row[column] is not None), _MACHINES[
    machine
  ]


def limit(request):
  """Sets the limits of this process, which it cannot change afterwards."""
  for what, most in (
    (resource.RLIMIT_CPU, request['cpu_secs']),
    (resource.RLIMIT_AS, request['memory_bytes']),
    (resource.RLIMIT_FSIZE, request['file_bytes']),
    (resource.RLIMIT_NOFILE, 64),
    (resource.RLIMIT_CORE, 0),
  ):
    resource.setrlimit(what, (most, most))


def ask_and_answer():
  """Reports that the tests have passed, sends back the token, and ends the process.

  The token is sent to this process only after the report. Neither the token nor its descriptor is
  in a variable or a frame while the program runs: 63, the last descriptor of the limit, has no
  name.
  """
  os.write(63, b'done\n')
  os.write(63, os.read(63, 2**10))
  os._exit(0)


def main():
  """Runs the program and the tests of the request on standard input, a line of JSON."""
  parts = [os.read(0, 2**16)]
  while parts[-1] and not parts[-1].endswith(b'\n'):
    parts.append(os.read(0, 2**16))
  request = json.loads(b''.join(parts))
  numbers, machine = allowed_numbers()
  limit(request)
  allow_only(numbers, machine)
  os.dup2(0, 63)
  nothing = os.open(os.devnull, os.O_RDWR)
  os.write(0, b'ready\n')
  for standard in (0, 1, 2):
    os.dup2(nothing, standard)
  module = sys.modules['solution'] = types.ModuleType('solution')
  for name in ('program', 'tests'):
    exec(compile(request[name], name, 'exec', dont_inherit=True), module.__dict__)
  ask_and_answer()


if __name__ == '__main__':
  main()
