"""Runs a model's program and its tests where they can do little harm; children.run_tests starts it, it imports none of ours.

The kernel holds it in, on Linux: no processes, threads, signals to others, sockets or other programs (seccomp, x86-64 and
arm64); limits of CPU time, memory and files; where user namespaces are permitted, no network, all file systems read-only and
a small one in memory as the working directory. Where they are not, as in some containers, files that its user may write
are not protected. A program shares its process with its tests: one that is written to cheat them, say by values that equal
everything, can.
"""

import ctypes
import json
import os
import platform
import resource
import signal
import socket
import struct
import sys

_LIBC = ctypes.CDLL(None, use_errno=True)

_NEWNS, _NEWUSER, _NEWNET = 0x00020000, 0x10000000, 0x40000000  # sched.h
_PRIVATE, _RECURSIVE, _NOSUID, _NODEV = 1 << 18, 0x4000, 2, 4  # mount.h
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _READ_ONLY = 442, -100, 0x8000, 1
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38

# Machine -> (its number, those of: clone clone3 fork vfork, execve execveat, kill tkill tgkill rt_sigqueueinfo
# rt_tgsigqueueinfo pidfd_send_signal, socket socketpair, ptrace process_vm_readv process_vm_writev, io_uring_setup).
_DENIED = {
  'x86_64': (0xC000003E, (56, 435, 57, 58, 59, 322, 62, 200, 234, 129, 297, 424, 41, 53, 101, 310, 311, 425)),
  'aarch64': (0xC00000B7, (220, 435, 221, 281, 129, 130, 131, 138, 240, 424, 198, 199, 117, 270, 271, 425)),
}


def limit(request):
  """Sets the limits of this process."""
  for what, most in (
    (resource.RLIMIT_CPU, request['cpu_secs']),
    (resource.RLIMIT_AS, request['memory_bytes']),
    (resource.RLIMIT_FSIZE, request['file_bytes']),
    (resource.RLIMIT_NPROC, 16),  # of its user in its namespace; root has none, and seccomp denies them anyhow
    (resource.RLIMIT_NOFILE, 64),
    (resource.RLIMIT_CORE, 0),
  ):
    resource.setrlimit(what, (most, most))


def separate(directory, num_bytes):
  """Leaves the network and all writable files behind, but for a new file system on `directory`, where it is permitted."""
  uid, gid = os.getuid(), os.getgid()
  if _LIBC.unshare(_NEWUSER | _NEWNS | _NEWNET):
    return
  try:
    for name, text in (('setgroups', 'deny'), ('uid_map', f'{uid} {uid} 1'), ('gid_map', f'{gid} {gid} 1')):
      with open(f'/proc/self/{name}', 'w') as file:
        file.write(text)
  except OSError:  # a namespace without rights in it, as AppArmor gives
    return
  _LIBC.mount(None, b'/', None, _RECURSIVE | _PRIVATE, None)
  read_only = struct.pack('4Q', _READ_ONLY, 0, 0, 0)
  _LIBC.syscall(_MOUNT_SETATTR, _AT_FDCWD, b'/', _AT_RECURSIVE, read_only, ctypes.c_size_t(len(read_only)))
  _LIBC.mount(b'tmpfs', os.fsencode(directory), b'tmpfs', _NOSUID | _NODEV, f'size={num_bytes}'.encode())
  os.chdir(directory)


def deny():
  """Has the kernel answer EPERM to the system calls of _DENIED."""
  if platform.machine() not in _DENIED:
    return
  machine, numbers = _DENIED[platform.machine()]
  load, equal, above, give = 0x20, 0x15, 0x35, 0x06
  end = len(numbers) + 5  # where 'denied' stands
  lines = [(load, 0, 0, 4), (equal, 0, end - 2, machine), (load, 0, 0, 0), (above, end - 4, 0, 0x40000000)]
  lines += [(equal, end - 5 - i, 0, number) for i, number in enumerate(numbers)]
  lines += [(give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x00050001)]  # allowed; denied, with errno 1
  code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *line) for line in lines))
  _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
  _LIBC.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(_Filter(len(lines), ctypes.addressof(code))), 0, 0)


class _Filter(ctypes.Structure):
  """sock_fprog of filter.h."""

  _fields_ = (('length', ctypes.c_ushort), ('code', ctypes.c_void_p))


def receive(channel, size):
  """Returns the next `size` bytes, and leaves what follows unread."""
  parts = []
  while size:
    parts.append(channel.recv(min(size, 2**16)))
    if not parts[-1]:
      os._exit(1)
    size -= len(parts[-1])
  return b''.join(parts)


def main():
  """Runs what comes from the socket whose number is the argument, and sends back the token that follows it."""
  channel = socket.socket(fileno=int(sys.argv.pop()))
  request = json.loads(receive(channel, struct.unpack('!Q', receive(channel, 8))[0]))
  separate(os.getcwd(), request['file_bytes'])
  _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
  deny()
  limit(request)
  namespace = {'__name__': 'solution'}
  for name in ('program', 'tests'):
    exec(compile(request[name], name, 'exec'), namespace)
  channel.sendall(receive(channel, 32))  # unread so far: no variable had it while the program ran
  os._exit(0)


if __name__ == '__main__':
  main()
