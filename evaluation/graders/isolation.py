"""Shuts the process that runs a stranger's program away from everything else.

Part of the program that `sandbox.py` starts: standard library only, Linux, never
imported by the evaluation itself. Two lines of defence, each of which the kernel may
refuse:

- namespaces: a root directory with Python, its libraries and an empty work folder of 64
  MiB; no network device, no other process, no capability;
- seccomp (x86-64): no new program or process, no socket, no signal to anyone, no tracing;
  where the namespaces are missing, no file may be written, made or removed either.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEW_NAMESPACES = 0x7C020000  # mount, UTS, IPC, user, PID, network
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_BIND = 1, 2, 4, 4096
_MS_REC, _MS_PRIVATE = 16384, 1 << 18
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 22, 24
_PR_SET_NO_NEW_PRIVS = 38
_SIGKILL = 9
_ROOT = "/tmp"  # noqa: S108 Covered by a file system of its own in the new namespace.

# Numbers of x86-64, from the kernel's arch/x86/entry/syscalls/syscall_64.tbl.
_DENIED = (
    41, 57, 58, 59, 322,  # socket, fork, vfork, execve, execveat
    62, 200, 234, 129, 297, 424, 434, 438,  # kill and its kin, pidfds
    101, 310, 311, 298, 321, 323, 425,  # ptrace and its kin, perf, bpf, io_uring
    109, 112, 141, 142, 144, 203,  # setpgid, setsid, priorities, scheduling
    155, 161, 165, 166, 272, 308, 304, 442,  # mounts, chroot, namespaces, handles
    29, 64, 68, 240, 248, 249, 250,  # shared memory, queues, keys: would outlive it
)  # fmt: skip
_DENIED_FILES = (
    85, 87, 263, 82, 264, 316, 83, 258, 84, 86, 265, 88, 266,  # creat, unlink ... symlink
    90, 91, 268, 452, 92, 93, 94, 260, 76, 132, 235, 261, 280,  # chmod, chown, times
    133, 259, 188, 189, 190, 197, 198, 199,  # mknod, attributes
)  # fmt: skip
_OPEN, _OPENAT, _OPENAT2, _CLONE, _CLONE3, _PRLIMIT = 2, 257, 437, 56, 435, 302
_WRITING = (
    1 | 2 | 0x40 | 0x200 | 0x400000
)  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_TMPFILE
_CLONE_THREAD = 0x10000


def _checked(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _mount(
    source: str, target: str, kind: str | None, flags: int, data: str = ""
) -> None:
    texts = [None if t is None else t.encode() for t in (source, target, kind, data)]
    result = _LIBC.mount(
        texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3] or None
    )
    _checked(result, f"mount {target}")


def enter_namespaces() -> bool:
    """Move into new namespaces and fork, so that the child is their first process.

    The caller goes on as the child; the parent waits for it and ends as it ended.

    Returns:
        False where the kernel refuses namespaces: nothing has changed then.
    """
    user, group = os.getuid(), os.getgid()
    if _LIBC.unshare(_NEW_NAMESPACES) != 0:
        return False
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(min(255, abs(os.waitstatus_to_exitcode(status))))
    _checked(_LIBC.prctl(_PR_SET_PDEATHSIG, _SIGKILL), "die with the parent")
    return True


def enter_root() -> None:
    """Change to a root that holds Python and a work folder, and give up every right.

    Raises:
        OSError: the kernel refuses a part of it; nothing may be run then.
    """
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    shown = {os.path.realpath(p) for p in ("/usr", sys.prefix, sys.base_prefix)}
    shown |= {p for p in (sys.prefix, sys.base_prefix, *sys.path) if Path(p).is_dir()}
    links = {
        path: path.readlink()
        for path in map(Path, ("/bin", "/lib", "/lib64", "/sbin"))
        if path.is_symlink()
    }
    shown |= {p for p in ("/lib", "/lib64") if Path(p).is_dir() and Path(p) not in links}
    # Opened before: what is shown may lie below the new root's place.
    descriptors = {path: os.open(path, os.O_PATH) for path in _tops(shown)}
    nodes = ("/dev/null", "/dev/zero", "/dev/urandom", "/etc/ld.so.cache")
    for node in nodes:
        if Path(node).exists():
            descriptors[node] = os.open(node, os.O_PATH)
    _mount("tmpfs", _ROOT, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=64m,mode=755")
    for path, descriptor in descriptors.items():
        target = Path(_ROOT + path)
        if path in nodes:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        else:
            target.mkdir(parents=True, exist_ok=True)
        _mount(f"/proc/self/fd/{descriptor}", str(target), None, _MS_BIND | _MS_REC)
        if path not in nodes:
            _read_only(str(target))
        os.close(descriptor)
    for link, to in links.items():
        (Path(_ROOT) / link.name).symlink_to(to)
    for folder in ("work", "tmp"):
        (Path(_ROOT) / folder).mkdir(exist_ok=True)
    os.chroot(_ROOT)
    os.chdir("/work")
    _drop_capabilities()


def _tops(paths: set[str]) -> list[str]:
    """Of these folders those that lie in none of the others."""
    kept: list[str] = []
    for path in sorted(paths):
        if not any(path == top or path.startswith(top.rstrip("/") + "/") for top in kept):
            kept.append(path)
    return kept


def _read_only(target: str) -> None:
    attributes = struct.pack("QQQQ", _MS_RDONLY | _MS_NOSUID | _MS_NODEV, 0, 0, 0)
    result = _LIBC.syscall(
        _MOUNT_SETATTR, _AT_FDCWD, target.encode(), _AT_RECURSIVE, attributes, 32
    )
    _checked(result, f"make {target} read-only")


def _drop_capabilities() -> None:
    for capability in range(64):
        if _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # Beyond the last that the kernel knows.
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
    _checked(_LIBC.capset(header, nothing), "give up capabilities")


def filter_calls(*, files: bool) -> bool:
    """Deny this process, for good, the system calls that a computation does not need.

    Args:
        files: whether writing, making and removing files is denied too.

    Returns:
        False where the kernel or the machine has no such filter.
    """
    _checked(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    if platform.machine() != "x86_64":
        return False
    code = _program(files=files)
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    return bool(_LIBC.prctl(_PR_SET_SECCOMP, 2, program, 0, 0) == 0)


def _program(*, files: bool) -> bytes:
    """The filter, in classic BPF: every call not named is allowed."""
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill = 0x7FFF0000, 0x80000000
    number, architecture, argument = 0, 4, 16  # Offsets in struct seccomp_data.
    steps: list[tuple[int, int, int, int]] = []

    def refuse(code: int = errno.EPERM) -> tuple[int, int, int, int]:
        return give, 0, 0, 0x00050000 | code

    def refuse_where(
        call: int, index: int, test: int, value: int, *, unless: bool
    ) -> None:
        """Refuse a call by its argument's lower half."""
        passes, fails = (1, 0) if unless else (0, 1)
        steps.extend(
            [
                (equal, 0, 4, call),
                (load, 0, 0, argument + 8 * index),
                (test, passes, fails, value),
                refuse(),
                (load, 0, 0, number),
            ]
        )

    steps += [(load, 0, 0, architecture), (equal, 1, 0, 0xC000003E), (give, 0, 0, kill)]
    steps += [(load, 0, 0, number), (at_least, 0, 1, 0x40000000), (give, 0, 0, kill)]
    for call in _DENIED + (_DENIED_FILES if files else ()):
        steps += [(equal, 0, 1, call), refuse()]
    for call in (_CLONE3, _OPENAT2):  # The C library falls back to what can be judged.
        steps += [(equal, 0, 1, call), refuse(errno.ENOSYS)]
    refuse_where(_CLONE, 0, any_bit, _CLONE_THREAD, unless=True)
    refuse_where(_PRLIMIT, 0, equal, 0, unless=True)
    if files:
        refuse_where(_OPEN, 1, any_bit, _WRITING, unless=False)
        refuse_where(_OPENAT, 2, any_bit, _WRITING, unless=False)
    steps.append((give, 0, 0, allow))
    return b"".join(struct.pack("HBBI", *step) for step in steps)
