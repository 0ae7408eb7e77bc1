"""A filter of system calls for the sandbox: what no honest test program asks the kernel for is refused.

Namespaces and limits hold the rest; this closes the ways around the limits (memory that belongs to no process, a namespace
in which one is root again) and the corners of the kernel where most of its faults have been.
"""

from __future__ import annotations

import errno
import platform
import struct

_REFUSED = {
    # name: number on x86_64, on aarch64
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_register": (427, 427),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
}
_CLONE, _CLONE3 = (56, 220), (435, 435)
_NEW_USER = 0x10000000
_X32 = 0x40000000
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# Classic BPF over seccomp_data: the call's number at 0, the architecture at 4, the low half of the first argument at 16.
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000


def seccomp_filter() -> bytes | None:
    """The filter as bubblewrap's ``--seccomp`` reads it; None on an architecture whose numbers are not known here."""
    known = _ARCHITECTURES.get(platform.machine())
    if known is None:
        return None
    architecture, column = known
    refuse = _step(_RETURN, _ERROR | errno.EPERM)
    program = [_step(_LOAD, 4), _step(_EQUAL, architecture, 1, 0), _step(_RETURN, _KILL), _step(_LOAD, 0)]
    if column == 0:
        program += [_step(_AT_LEAST, _X32, 0, 1), _step(_RETURN, _KILL)]  # the same calls under other numbers
    for numbers in _REFUSED.values():
        program += [_step(_EQUAL, numbers[column], 0, 1), refuse]
    # clone3 keeps its flags where a filter cannot look; without it the C library takes clone.
    program += [_step(_EQUAL, _CLONE3[column], 0, 1), _step(_RETURN, _ERROR | errno.ENOSYS)]
    program += [_step(_EQUAL, _CLONE[column], 0, 3), _step(_LOAD, 16), _step(_ANY_BIT, _NEW_USER, 0, 1), refuse]
    return b"".join([*program, _step(_RETURN, _ALLOW)])


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


__all__ = ["seccomp_filter"]
