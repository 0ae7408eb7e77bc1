"""Sandbox that confines programs written by a model, by bubblewrap and resource limits.

A program sees the interpreter and the system's libraries, read-only, and a scratch directory in memory, which is its home.
It has no network and no privileges, sees no other processes, and its time, memory, disk space and processes are limited.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import json
import marshal
import math
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from balora.errors import BALoraError
from balora.evaluation.sandbox.child import TOKEN_BYTES
from balora.evaluation.sandbox.seccomp import seccomp_filter

_CHILD = Path(__file__).with_name("child.py")
_CHILD_INSIDE = "/run/child.py"
_PYTHON_INSIDE = "/run/python"
_PACKAGES_INSIDE = "/run/packages"
_PACKAGES = ("numpy",)
"""Packages beyond the standard library that a program can import, where they are installed."""
_SYSTEM_DIRECTORIES = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_MAX_OUTPUT = 64 * 1024
"""Bytes. The report of a program has a few hundred."""
_MAX_DESCRIPTION = 1000
"""Bytes of an exception's description that are kept."""
_OWN_RESULTS = ("passed", "timed out", "wrote without end")
"""Results that only the sandbox gives, also if an exception of a program has such a name."""
_FIRST_USER_ID = 1_000_000_000
_user_ids = itertools.count()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Resource limits of one program."""

    seconds: float = 15.0
    """Wall-clock time. The limit of CPU time is one second more."""
    memory: int = 1 << 30
    """Bytes of address space per process."""
    processes: int = 16
    """Number of processes and threads."""
    file: int = 16 << 20
    """Bytes per file."""
    scratch: int = 64 << 20
    """Bytes of all files in the scratch directory."""
    open_files: int = 128

    def resources(self, *, processes: bool, more: int = 0) -> dict[str, int]:
        """Return the limits by their names in `resource`; ``processes`` includes the limit of processes, raised by ``more``."""
        return {
            "RLIMIT_CPU": math.ceil(self.seconds) + 1,
            "RLIMIT_AS": self.memory,
            "RLIMIT_FSIZE": self.file,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_CORE": 0,
            **({"RLIMIT_NPROC": self.processes + more} if processes else {}),
        }


@dataclasses.dataclass(frozen=True)
class UnitTests:
    """Tests of a program."""

    source: str
    """Python source, which uses what the program defines at its outermost level."""
    names: tuple[str, ...]
    """Names that the program defines for the tests. A name that it does not define is left to the tests."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Outcome of a program."""

    passed: bool
    """True if the program ran to its end without an exception."""
    result: str
    """``passed``, the exception, or the reason why the program was stopped."""
    seconds: float


class Sandbox:
    """Runs programs that a model wrote.

    Args:
        limits: Resource limits of each program.
        unsafe: Run the programs without bubblewrap. Only the limits on time, memory and files remain.

    Raises:
        BALoraError: bubblewrap is missing or does not work here, and ``unsafe`` is false.
    """

    def __init__(self, limits: Limits | None = None, *, unsafe: bool = False) -> None:
        self.limits = limits or Limits()
        self.unsafe = unsafe
        self._as_root = not unsafe and os.geteuid() == 0
        self._bwrap = "" if unsafe else self._find_bubblewrap()

    def run(self, program: str, tests: UnitTests | None = None) -> Outcome:
        """Run a program and wait until it ends or reaches its time limit.

        Args:
            program: Python source. It passes if it ends without an exception.
            tests: Tests of the program, which must end without an exception too. They run in a process of their own, so a
                program cannot change them, their verdict, or what a value is equal to.
        """
        token = secrets.token_hex(TOKEN_BYTES // 2).encode()
        settings = {
            "user": self._new_user(),
            "tests_user": self._new_user(),
            # Outside the sandbox, this limit would count all processes of the user.
            "limits": self.limits.resources(processes=not self.unsafe, more=0 if tests is None or self._as_root else 1),
            # Without the sandbox, a program can also import the other installed packages.
            "packages": [str(path.parent) for path in packages().values()] if self.unsafe else [_PACKAGES_INSIDE],
        }
        start_time = time.monotonic()
        with self._process(() if tests is None else ("tests",)) as process:
            if tests is None:
                message = token + f"{json.dumps(settings)}\n{program}".encode("utf-8", "surrogatepass")
            else:
                parts = {"program": program, "tests": tests.source, "names": tests.names}
                modules = _child_modules()
                header = json.dumps({**settings, "modules": {name: len(code) for name, code in modules.items()}})
                message = f"{header}\n".encode() + b"".join([*modules.values(), token, json.dumps(parts).encode()])
            deadline = start_time + self.limits.seconds
            reply, reason = _exchange(process, message, deadline)
            passed = reason is None and reply == token + b"\n" and _has_exited(process, deadline)
            # If only a fork of the program sent the token, the status is not 0.
            passed = passed and process.returncode == 0
        result = (
            "passed" if passed else reason or _parse_error(reply, token) or _describe_exit_status(process.returncode)
        )
        return Outcome(passed, result, time.monotonic() - start_time)

    def _new_user(self) -> int | None:
        return _FIRST_USER_ID + (os.getpid() * 1000 + next(_user_ids)) % _FIRST_USER_ID if self._as_root else None

    @contextlib.contextmanager
    def _process(self, arguments: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
        call_filter = None if self.unsafe else seccomp_filter()
        with tempfile.TemporaryDirectory(prefix="balora-code-") as scratch, tempfile.TemporaryFile() as filter_file:
            filter_file.write(call_filter or b"")
            filter_file.seek(0)
            filter_fd = None if call_filter is None else filter_file.fileno()
            process = subprocess.Popen(
                [*self.command(filter_fd), *arguments],
                pass_fds=[] if filter_fd is None else [filter_fd],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=scratch if self.unsafe else "/",
                env={"PATH": "/usr/bin:/bin", "HOME": scratch, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
            )
            try:
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
                for pipe in (process.stdin, process.stdout):
                    with contextlib.suppress(OSError):
                        pipe.close()  # type: ignore[union-attr]
                process.wait()

    def command(self, filter_fd: int | None = None) -> list[str]:
        """Return the command line that runs the child: in bubblewrap, which reads the filter of system calls from a file."""
        if self.unsafe:
            return [sys.executable, "-I", "-S", "-B", str(_CHILD)]
        privileges = (
            # As root, bubblewrap needs no user namespace, and the child changes to a user without files. The limit of
            # processes does not apply to root, nor to the root of a user namespace that root created.
            ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
            if self._as_root
            else ["--unshare-user", *(["--disable-userns"] if "--disable-userns" in self._options else [])]
        )
        return [
            self._bwrap,
            *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
            *privileges,
            *("--die-with-parent", "--new-session", "--clearenv"),
            *([] if filter_fd is None else ["--seccomp", str(filter_fd)]),
            *("--setenv", "HOME", "/tmp", "--setenv", "PATH", "/usr/bin:/bin"),
            # More threads would need more memory than a program has.
            *("--setenv", "OMP_NUM_THREADS", "1", "--setenv", "OPENBLAS_NUM_THREADS", "1"),
            *_system_binds(),
            *_interpreter()[1],
            *("--ro-bind", str(_CHILD), _CHILD_INSIDE),
            *("--perms", "0755", "--dir", _PACKAGES_INSIDE),
            *(part for path in packages().values() for part in _package_binds(path)),
            *("--proc", "/proc", "--dev", "/dev"),
            *("--size", str(self.limits.scratch), "--perms", "1777", "--tmpfs", "/dev/shm"),
            *("--size", str(self.limits.scratch), "--perms", "1777", "--tmpfs", "/tmp"),
            # Without these two options, a program could fill the memory with files in /dev and /.
            *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp", "--"),
            *(_interpreter()[0], "-I", "-S", "-B", _CHILD_INSIDE),
        ]

    def _find_bubblewrap(self) -> str:
        """Return the path of bubblewrap, after a program that does nothing has run in a sandbox."""
        found = shutil.which("bwrap")
        if found is None:
            raise BALoraError(
                "The sandbox for generated programs needs bubblewrap, which is not installed (apt-get install bubblewrap). "
                "With --unsafe-code the programs run without a sandbox and can delete your files."
            )
        self._bwrap = found
        help_text = subprocess.run([found, "--help"], capture_output=True, text=True, check=False)
        self._options = help_text.stdout + help_text.stderr
        if "--size" not in self._options or "--perms" not in self._options:
            raise BALoraError(
                f"{found} is too old to limit the size of a sandbox's files. Install bubblewrap 0.7 or newer."
            )
        command = self.command()
        probe = [*command[: command.index("--") + 1], _interpreter()[0], "-I", "-S", "-c", "pass"]
        result = subprocess.run(probe, capture_output=True, text=True, check=False, timeout=60)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise BALoraError(
                f"bubblewrap cannot make a sandbox here ({reason}): the kernel or the container forbids namespaces. Allow "
                "them (sysctl kernel.unprivileged_userns_clone=1, or docker run --privileged), or run the programs without a "
                "sandbox (--unsafe-code), where they can delete your files."
            )
        return found


def _exchange(process: subprocess.Popen[bytes], message: bytes, deadline: float) -> tuple[bytes, str | None]:
    """Send a message, and return the reply. The second value is the reason if the child wrote too much or took too long."""
    assert process.stdin is not None and process.stdout is not None
    reply, rest = b"", memoryview(message)
    os.set_blocking(process.stdin.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            remaining = deadline - time.monotonic()
            ready = selector.select(max(0.0, remaining))
            if not ready and remaining <= 0:
                return reply, "timed out"
            for key, _ in ready:
                if key.fileobj is process.stdin:
                    rest = _send(key.fd, rest)
                    if not rest:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                part = os.read(key.fd, _MAX_OUTPUT)
                reply += part
                if not part and not _has_exited(process, deadline):
                    return reply, "timed out"  # the program closed its end of the pipe and runs on
                if not part or reply.endswith(b"\n"):
                    return reply, None
                if len(reply) > _MAX_OUTPUT:
                    return reply, "wrote without end"


def _send(pipe: int, rest: memoryview) -> memoryview:
    """Write as much as the pipe takes, and return the rest."""
    try:
        return rest[os.write(pipe, rest[:_MAX_OUTPUT]) :]
    except BlockingIOError:
        return rest
    except BrokenPipeError:
        return rest[len(rest) :]


def _has_exited(process: subprocess.Popen[bytes], deadline: float) -> bool:
    """Wait for the process to exit. Return False if it runs on after the deadline."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.1, deadline - time.monotonic()))
        return True
    return False


def _parse_error(reply: bytes, token: bytes) -> str:
    """Return the description of the exception. The program may have written it, so it can be any bytes."""
    text = " ".join(reply[:_MAX_DESCRIPTION].replace(token, b"").decode("utf-8", "backslashreplace").split())
    return f"exception {text}" if text in _OWN_RESULTS else text


def _describe_exit_status(status: int) -> str:
    """Describe how a process ended that did not report."""
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-status if status < 0 else status - 128).name}"
    return "ended early"


def _system_binds() -> Iterator[str]:
    """Yield the options that show the machine's libraries to a program, read-only."""
    yield from ("--ro-bind", "/usr", "/usr")
    for path in _SYSTEM_DIRECTORIES:
        if os.path.islink(path):
            yield from ("--symlink", os.readlink(path), path)
        elif os.path.isdir(path):
            yield from ("--ro-bind", path, path)
    for folder in ("/etc", "/run"):
        yield from ("--perms", "0755", "--dir", folder)  # by default, bubblewrap makes them readable for root only
    for file in ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/localtime"):
        yield from ("--ro-bind-try", file, file)


def _interpreter() -> tuple[str, list[str]]:
    """Return the path of Python inside the sandbox, and the options that make it available there.

    An interpreter in a home directory (pyenv, conda, uv) gets another path inside, so that the home is not visible.
    """
    base, executable = Path(sys.base_prefix).resolve(), Path(sys.executable).resolve()
    if base.is_relative_to("/usr"):
        return str(executable), []
    inside = Path(_PYTHON_INSIDE) / (executable.relative_to(base) if executable.is_relative_to(base) else "bin/python3")
    return str(inside), ["--ro-bind", str(base), _PYTHON_INSIDE, "--setenv", "LD_LIBRARY_PATH", f"{_PYTHON_INSIDE}/lib"]


@functools.cache
def _child_modules() -> dict[str, bytes]:
    """Return the compiled modules of the child that runs tests apart from the program. Compiling takes longer than most tests."""
    paths = {name: _CHILD.with_name(f"{name}.py") for name in ("values", "calls")}
    return {name: marshal.dumps(compile(path.read_bytes(), path.name, "exec")) for name, path in paths.items()}


@functools.cache
def packages() -> dict[str, Path]:
    """Return the directories of the packages beyond the standard library that programs can import, by name."""
    found = {}
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            found[name] = Path(spec.submodule_search_locations[0]).resolve()
    return found


def _package_binds(path: Path) -> Iterator[str]:
    """Yield the options that show a package and the shared libraries beside it to a program, read-only."""
    for folder in (path, path.with_name(f"{path.name}.libs")):
        if folder.is_dir():
            yield from ("--ro-bind", str(folder), f"{_PACKAGES_INSIDE}/{folder.name}")
