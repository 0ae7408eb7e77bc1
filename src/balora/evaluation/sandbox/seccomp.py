"""Filter that refuses the system calls that no test program needs.

Namespaces and limits confine everything else. The filter closes ways around the limits (memory that belongs to no process,
a namespace in which the program is root again) and parts of the kernel that have had the most vulnerabilities.
"""

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
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
}
_CLONE, _CLONE3 = (56, 220), (435, 435)
_SOCKET = (41, 198)
_SOCKET_FAMILIES = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6 and AF_NETLINK, which a network namespace confines. It does not confine AF_VSOCK."""
_CLONE_NEWUSER = 0x10000000
_X32 = 0x40000000
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# Classic BPF over seccomp_data: offset 0 is the call's number, 4 the architecture, 16 the low 32 bits of the first argument.
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000


def seccomp_filter() -> bytes | None:
    """Return the filter for bubblewrap's ``--seccomp``; None on an architecture that is not in the table."""
    known = _ARCHITECTURES.get(platform.machine())
    if known is None:
        return None
    architecture, column = known
    refuse = _op(_RETURN, _ERROR | errno.EPERM)
    program = [_op(_LOAD, 4), _op(_EQUAL, architecture, 1, 0), _op(_RETURN, _KILL), _op(_LOAD, 0)]
    if column == 0:
        program += [_op(_AT_LEAST, _X32, 0, 1), _op(_RETURN, _KILL)]  # the x32 numbers of the same calls
    for numbers in _REFUSED.values():
        program += [_op(_EQUAL, numbers[column], 0, 1), refuse]
    # A filter cannot read the flags of clone3. Without clone3, the C library falls back to clone.
    program += [_op(_EQUAL, _CLONE3[column], 0, 1), _op(_RETURN, _ERROR | errno.ENOSYS)]
    allow = _op(_RETURN, _ALLOW)
    program += [_op(_EQUAL, _CLONE[column], 0, 4), _op(_LOAD, 16), _op(_ANY_BIT, _CLONE_NEWUSER, 0, 1), refuse, allow]
    families = [op for family in _SOCKET_FAMILIES for op in (_op(_EQUAL, family, 0, 1), allow)]
    program += [_op(_EQUAL, _SOCKET[column], 0, 2 + len(families)), _op(_LOAD, 16), *families, refuse]
    return b"".join([*program, allow])


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
