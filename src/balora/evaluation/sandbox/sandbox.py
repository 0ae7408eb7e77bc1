"""A place where programs written by a model can do no harm: bubblewrap, with limits on everything.

A program sees the interpreter and the system's libraries, read-only, and a scratch folder in memory, which is its home. It
has no network, no sight of other processes, no rights, and little time, memory, disk and company.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from balora.errors import BALoraError
from balora.evaluation.sandbox.protocol import how_it_ended, outcome_in, talk
from balora.evaluation.sandbox.seccomp import seccomp_filter

_CHILD = Path(__file__).with_name("child.py")
_INSIDE = "/run/child.py"
_PYTHON = "/run/python"
_LINKS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_FIRST_USER = 1_000_000_000
_users = itertools.count()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use."""

    seconds: float = 15.0
    """By the clock; of the processor it gets one second more."""
    memory: int = 1 << 30
    """Bytes of each of its processes."""
    processes: int = 16
    """Processes and threads."""
    file: int = 16 << 20
    """Bytes of one file."""
    scratch: int = 64 << 20
    """Bytes of all files."""
    open_files: int = 128

    def resources(self, *, processes: bool) -> dict[str, int]:
        """As the kernel takes them."""
        limits = {
            "RLIMIT_CPU": math.ceil(self.seconds) + 1,
            "RLIMIT_AS": self.memory,
            "RLIMIT_FSIZE": self.file,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_CORE": 0,
        }
        return {**limits, "RLIMIT_NPROC": self.processes} if processes else limits


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    passed: bool
    """Whether it ran to its end without an exception."""
    result: str
    """``passed``, the exception, or what stopped it."""
    seconds: float


class Sandbox:
    """Runs programs.

    Args:
        limits: What each of them may use.
        unsafe: Run them without bubblewrap. The limits on time and memory stay; nothing else protects the machine.

    Raises:
        BALoraError: bubblewrap is missing or does not work here, and ``unsafe`` is false.
    """

    def __init__(self, limits: Limits | None = None, *, unsafe: bool = False) -> None:
        self.limits = limits or Limits()
        self.unsafe = unsafe
        self._as_root = not unsafe and os.geteuid() == 0
        self._bwrap = None if unsafe else self._find()

    def run(self, program: str) -> Outcome:
        """Run a program and wait for its end; it is ended when it has used up its time.

        Args:
            program: Python source. It passes when it ends without an exception.
        """
        token = secrets.token_hex(16)
        user = _FIRST_USER + (os.getpid() * 1000 + next(_users)) % _FIRST_USER if self._as_root else None
        settings = {
            "token": token,
            "user": user,
            # Outside a sandbox the limit would count all that the user runs.
            "limits": self.limits.resources(processes=not self.unsafe),
        }
        started = time.monotonic()
        with self._process() as process:
            reply, why = talk(process, f"{json.dumps(settings)}\n{program}".encode(), started + self.limits.seconds)
        outcome = outcome_in(reply, token) or why or how_it_ended(process.returncode)
        return Outcome(outcome == "passed", outcome, time.monotonic() - started)

    @contextlib.contextmanager
    def _process(self) -> Iterator[subprocess.Popen[bytes]]:
        with tempfile.TemporaryDirectory(prefix="balora-code-") as scratch, self._filter() as filtered:
            process = subprocess.Popen(
                self.command(filtered),
                pass_fds=[] if filtered is None else [filtered],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=scratch if self.unsafe else "/",
                env={"PATH": "/usr/bin:/bin", "HOME": scratch},
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

    @contextlib.contextmanager
    def _filter(self) -> Iterator[int | None]:
        """A descriptor from which bubblewrap reads the filter of system calls."""
        program = None if self.unsafe else seccomp_filter()
        if program is None:
            yield None
            return
        with tempfile.TemporaryFile() as file:
            file.write(program)
            file.seek(0)
            yield file.fileno()

    def command(self, filtered: int | None = None) -> list[str]:
        """What is started: bubblewrap, and in it Python with the child's program.

        Args:
            filtered: A descriptor with the filter of system calls.
        """
        if self.unsafe:
            return [sys.executable, "-I", "-S", "-B", str(_CHILD)]
        assert self._bwrap is not None
        rights = (
            # Root sets the namespaces up itself, and the child becomes somebody who owns nothing: a limit on the number of
            # processes does not hold for root, nor for a namespace's root that root has made.
            ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
            if self._as_root
            else ["--unshare-user", *(["--disable-userns"] if "--disable-userns" in self._options else [])]
        )
        return [
            self._bwrap,
            *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
            *rights,
            *("--die-with-parent", "--new-session", "--clearenv"),
            *([] if filtered is None else ["--seccomp", str(filtered)]),
            *("--setenv", "HOME", "/tmp", "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "OMP_NUM_THREADS", "1"),
            *_system(),
            *_interpreter()[1],
            *("--ro-bind", str(_CHILD), _INSIDE),
            *("--proc", "/proc", "--dev", "/dev"),
            *("--size", str(self.limits.scratch), "--perms", "1777", "--tmpfs", "/dev/shm"),
            *("--size", str(self.limits.scratch), "--perms", "1777", "--tmpfs", "/tmp"),
            # Without these two, the file systems that hold /dev and the root of all would be memory to be filled.
            *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp", "--"),
            *(_interpreter()[0], "-I", "-S", "-B", _INSIDE),
        ]

    def _find(self) -> str:
        found = shutil.which("bwrap")
        if found is None:
            raise BALoraError(
                "Programs written by a model are run in a sandbox, and bubblewrap is not installed (apt-get install bubblewrap). "
                "With --unsafe-code they run without one, which can delete your files."
            )
        self._bwrap = found
        help_text = subprocess.run([found, "--help"], capture_output=True, text=True, check=False)
        self._options = help_text.stdout + help_text.stderr
        if "--size" not in self._options or "--perms" not in self._options:
            raise BALoraError(
                f"{found} is too old to limit the size of a sandbox's files. Install bubblewrap 0.7 or newer."
            )
        self._try()
        return found

    def _try(self) -> None:
        """Whether the kernel lets us, asked with a program that does nothing."""
        command = self.command()
        probe = [*command[: command.index("--") + 1], _interpreter()[0], "-I", "-S", "-c", "pass"]
        result = subprocess.run(probe, capture_output=True, text=True, check=False, timeout=60)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise BALoraError(
                f"bubblewrap cannot make a sandbox here ({reason}): the kernel or the container forbids namespaces. Allow "
                "them (sysctl kernel.unprivileged_userns_clone=1, or docker run --privileged), or run the programs unprotected "
                "with --unsafe-code, which can delete your files."
            )


def _system() -> Iterator[str]:
    """What programs need of this machine, read-only: its libraries, and nothing else."""
    yield from ("--ro-bind", "/usr", "/usr")
    for link in _LINKS:
        if os.path.islink(link):
            yield from ("--symlink", os.readlink(link), link)
        elif os.path.isdir(link):
            yield from ("--ro-bind", link, link)
    for folder in ("/etc", "/run"):
        yield from ("--perms", "0755", "--dir", folder)  # of its own accord bubblewrap opens them to root alone
    for file in ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/localtime"):
        yield from ("--ro-bind-try", file, file)


def _interpreter() -> tuple[str, list[str]]:
    """Where Python is inside, and what brings it there.

    One that lies in somebody's home (pyenv, conda, uv) is shown at another place, so that the home stays out of sight.
    """
    base, executable = Path(sys.base_prefix).resolve(), Path(sys.executable).resolve()
    if base.is_relative_to("/usr"):
        return str(executable), []
    inside = Path(_PYTHON) / (executable.relative_to(base) if executable.is_relative_to(base) else "bin/python3")
    return str(inside), ["--ro-bind", str(base), _PYTHON, "--setenv", "LD_LIBRARY_PATH", f"{_PYTHON}/lib"]


__all__ = ["Limits", "Outcome", "Sandbox"]
