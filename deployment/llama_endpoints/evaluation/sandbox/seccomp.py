"""The system call filter, made by libseccomp.

It is a list of what is denied, so that it holds for every runtime: sockets, memory that no limit counts, calls by which
kernels have been attacked, and new processes where a program needs none. Everything else is left to namespaces and limits.
"""

import errno
import functools
import os
from typing import Any, Final

_DENIED: Final = (
    # the memory of other processes
    "ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_open pidfd_getfd pidfd_send_signal "
    # namespaces and mounts
    "unshare setns mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick move_mount open_tree mount_setattr "
    # sockets, also of the machine's own services; a socket pair is a pipe, and Java needs one
    "socket connect bind listen accept accept4 "
    # memory that no limit of a process counts
    "memfd_create memfd_secret shmget shmat semget msgget mq_open "
    # the kernel's own matters
    "bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register keyctl add_key request_key "
    "kexec_load kexec_file_load init_module finit_module delete_module open_by_handle_at name_to_handle_at "
    "personality acct quotactl reboot swapon swapoff syslog sethostname setdomainname iopl ioperm "
    "settimeofday clock_settime adjtimex clock_adjtime landlock_create_ruleset fanotify_init lookup_dcookie vhangup"
)  # fmt: skip
_CLONE_THREAD: Final = 0x10000
_CLONE_NAMESPACES: Final = (
    0x80,
    0x00020000,
    0x02000000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)


@functools.cache
def filter_program(*, processes: bool = False) -> bytes | None:
    """Return the filter as a BPF program; None where libseccomp or its Python binding is missing.

    Args:
        processes: whether new processes are allowed, and not threads alone.
    """
    binding = _binding()
    if binding is None:
        return None
    made = binding.SyscallFilter(binding.ALLOW)
    for name in _DENIED.split():
        _deny(binding, made, name, errno.EPERM)
    _deny(binding, made, "clone3", errno.ENOSYS)  # (its flags cannot be seen; the C library then calls clone)
    for flag in _CLONE_NAMESPACES:
        _deny(binding, made, "clone", errno.EPERM, binding.Arg(0, binding.MASKED_EQ, flag, flag))
    if not processes:
        for name in ("fork", "vfork"):
            _deny(binding, made, name, errno.EPERM)
        _deny(binding, made, "clone", errno.EPERM, binding.Arg(0, binding.MASKED_EQ, _CLONE_THREAD, 0))
    return _exported(made)


def _binding() -> Any:
    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError):  # (the last two: libseccomp itself is missing)
        return None
    return pyseccomp


def _deny(binding: Any, made: Any, name: str, number: int, *arguments: Any) -> None:
    try:
        made.add_rule(binding.ERRNO(number), name, *arguments)
    except (OSError, ValueError):
        return  # this machine, or this libseccomp, has no such call


def _exported(made: Any) -> bytes:
    descriptor = os.memfd_create("filter")
    with os.fdopen(descriptor, "r+b") as file:
        made.export_bpf(file)
        file.seek(0)
        return file.read()
