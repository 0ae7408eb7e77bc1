"""The sandbox confines harmful programs and leaves the machine unchanged."""

from __future__ import annotations

import ast
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from balora import BALoraError
from balora.evaluation.sandbox import sandbox as module
from balora.evaluation.sandbox.sandbox import Limits, Sandbox
from balora.evaluation.sandbox.seccomp import seccomp_filter

MIB = 2**20


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    try:
        return Sandbox(Limits(seconds=20.0))
    except BALoraError as error:
        pytest.skip(f"no sandbox here: {error}")


@pytest.fixture(scope="module")
def short(sandbox: Sandbox) -> Sandbox:
    return Sandbox(Limits(seconds=2.0))


def processes() -> int:
    return sum(name.isdecimal() for name in os.listdir("/proc"))


@pytest.mark.parametrize(
    ("program", "result"),
    [
        ("assert 1 + 1 == 2", "passed"),
        ("assert 1 + 1 == 3, 'no'", "AssertionError: no"),
        ("def (", "SyntaxError: invalid syntax (program.py, line 1)"),
        ("input()", "EOFError: EOF when reading a line"),
        ("if __name__ == '__main__': input()", "passed"),
        ("import collections, dataclasses, heapq, itertools, math, random, re, typing", "passed"),
        (
            "from __future__ import annotations\nimport dataclasses\n@dataclasses.dataclass\nclass A:\n  x: int\nA(1)",
            "passed",
        ),
        ("print('passed')", "passed"),
        ("print('\\ud800')", "passed"),
        ("\ufeffx = 1", "passed"),
    ],
)
def test_the_outcome_of_a_harmless_program(sandbox: Sandbox, program: str, result: str) -> None:
    assert sandbox.run(program).result == result


@pytest.mark.parametrize("leave", ["import sys; sys.exit(0)", "import os; os._exit(0)", "exit()", "raise SystemExit"])
def test_an_early_exit_does_not_pass(sandbox: Sandbox, leave: str) -> None:
    assert not sandbox.run(f"print('passed')\n{leave}\nassert False").passed


FORGED = """
import json, os
for fd in range(3, 9):
    try:
        os.write(fd, json.dumps({"token": "x", "outcome": "passed"}).encode() + b"\\n")
    except OSError:
        pass
os._exit(0)
"""
LEAVES_SOMETHING_RUNNING = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open("/proc/self/comm", "w").write(NAME)
        time.sleep(60)
time.sleep(0.3)
"""
FIND_STRINGS = """
import gc, os, sys
seen, queue = {}, [sys.modules, sys._getframe(), *gc.get_objects()]
frame = sys._getframe()
while frame:
    queue += [frame, frame.f_locals, frame.f_globals, *frame.f_locals.values(), *frame.f_code.co_consts]
    frame = frame.f_back
found = set()
while queue and len(seen) < 100_000:
    item = queue.pop()
    if id(item) not in seen:
        seen[id(item)] = item
        queue += gc.get_referents(item)
        if isinstance(item, (str, bytes)) and len(item) in (16, 32):
            found.add(item.encode("utf-8", "replace") if isinstance(item, str) else item)
"""
HOSTILE = {
    "an exception with the name of the verdict": "class passed(Exception): pass\nraise passed",
    "an exception whose text is the verdict": "raise type('', (Exception,), {})('passed')",
    "an exception whose text raises": "class E(Exception):\n def __str__(self): raise SystemExit(0)\nraise E",
    "a lone surrogate in an exception": "raise ValueError('\\ud800')",
    "a lone surrogate in the source": "raise ValueError('\ud800')",
    "a lone surrogate in an exception's name": "raise type('\\udfff', (Exception,), {})",
    "bytes that are no UTF-8": "import os\nfor fd in range(3, 99):\n try: os.write(fd, b'\\xff\\x00\\n')\n except OSError: pass",
    "the token from the frames": FIND_STRINGS
    + """
import json
for token in found:
    for fd in range(3, 20):
        for report in (token, json.dumps({"token": token.decode("latin-1"), "outcome": "passed", "passed": True}).encode()):
            try: os.write(fd, report + b"\\n")
            except OSError: pass
os._exit(0)
""",
    "the settings of the parent's frames": """
import os, sys, json
frame = sys._getframe()
while frame.f_back: frame = frame.f_back
values = {**frame.f_globals, **frame.f_locals}
for inner in list(values.values()):
    if isinstance(inner, dict): values.update(inner)
for fd in [value for value in values.values() if isinstance(value, int)]:
    try: os.write(fd, json.dumps({"token": str(values.get("token")), "outcome": "passed"}).encode() + b"\\n")
    except OSError: pass
os._exit(0)
""",
    "functions of the runner are replaced": """
import json, os, sys
real = os.write
os.write = lambda fd, data: real(fd, b"passed\\n")
json.dumps = lambda *_, **__: '{"passed": true}'
os._exit = lambda status: None
for name, value in list(sys.modules["__main__"].__dict__.items()):
    if callable(value): setattr(sys.modules["__main__"], name, lambda *_: b"passed")
assert False
""",
    "the runner runs again": "import sys\nsys.modules['__main__'].main()\nassert False",
    "the runner jumps over the exception": """
import sys
runner = sys._getframe(1)
def trace(frame, event, argument):
    if event == "line" and frame.f_code.co_filename == runner.f_code.co_filename:
        for line in range(frame.f_code.co_firstlineno + 1, frame.f_code.co_firstlineno + 12):
            try: frame.f_lineno = line
            except ValueError: pass
    return trace
outer = runner
while outer:
    outer.f_trace = trace
    outer = outer.f_back
sys.settrace(trace)
assert False
""",
    "a fork passes and the program fails": "import os, time\nif os.fork():\n time.sleep(0.3)\n assert False",
    "a fork passes and the program is killed": (
        "import os, signal, time\nif os.fork():\n time.sleep(0.3)\n os.kill(os.getpid(), 9)"
    ),
    "what standard input still holds": (
        "import os\nfor fd in range(9):\n try: os.write(fd, os.read(fd, 99))\n except OSError: pass\nos._exit(0)"
    ),
    "builtins are replaced": "import builtins\nbuiltins.BaseException = KeyError\nbuiltins.type = lambda _: int\nassert False",
}
MORE_HOSTILE = {
    "numpy writes over memory": (
        "import numpy as np\na = np.lib.stride_tricks.as_strided(np.zeros(1), (1 << 16,), (8,))\na[:] = 7.5\nassert False"
    ),
    "an exception whose text has no end": "class E(Exception):\n def __str__(self):\n  while True: pass\nraise E",
    "an exception with a very long text": "raise ValueError('x' * 10**8)",
    "an exception whose text is of no text type": "class E(Exception):\n def __str__(self): return 7\nraise E",
    "an exception with line breaks in its name": "raise type('passed\\n', (Exception,), {})('passed\\npassed')",
    "an exception whose class has a name that raises": (
        "class M(type(Exception)):\n @property\n def __name__(self): raise SystemExit(0)\n"
        "raise type.__call__(M, 'E', (Exception,), {})"
    ),
    "a null byte in the source": "x = 1\0\nassert False",
    "nesting without end": "x = " + "(" * 100_000,
    "recursion beyond the stack": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()\nf()",
    "an interrupt": "raise KeyboardInterrupt",
    "a skipped test": "import unittest\nraise unittest.SkipTest('passed')",
    "a handler at exit": "import atexit, os\natexit.register(os._exit, 0)\nassert False",
    "an alarm that leaves early": (
        "import signal, sys\nsignal.signal(signal.SIGALRM, lambda *_: sys.exit(0))\nsignal.setitimer(0, 0.05)\nwhile True: pass"
    ),
    "the runner's own functions are replaced": (
        "import sys\nmain = sys.modules['__main__']\nmain._run = lambda: None\nmain._describe = lambda error: b''\nassert False"
    ),
    "threads that go on": "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()\nassert False",
    "the parent is stopped": "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)\nassert False",
    "all files are closed": "import os\nos.closerange(0, 999)\nassert False",
    "a module of the tests is replaced": "import sys, types\nsys.modules['math'] = types.ModuleType('math')\nimport math\nmath.pi",
}
VARIABLES = """
import os
known = ("HOME", "PATH", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LD_LIBRARY_PATH", "PWD", "LC_CTYPE")
assert set(os.environ) <= set(known), list(os.environ)
"""


def test_a_forged_report_is_ignored(sandbox: Sandbox) -> None:
    assert not sandbox.run(FORGED).passed


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_does_not_pass(sandbox: Sandbox, name: str) -> None:
    outcome = sandbox.run(HOSTILE[name])
    assert outcome.passed is False and outcome.result not in ("passed", "timed out")
    outcome.result.encode()  # the journal of an evaluation is a UTF-8 file


@pytest.mark.parametrize("name", MORE_HOSTILE)
def test_another_hostile_program_does_not_pass_either(sandbox: Sandbox, name: str) -> None:
    outcome = Sandbox(Limits(seconds=4.0)).run(MORE_HOSTILE[name])
    assert outcome.passed is False and outcome.result != "passed"
    assert outcome.seconds < 10 and len(outcome.result) < 1000
    outcome.result.encode()
    assert sandbox.run("assert True").passed


def test_numpy_is_available_and_nothing_else_of_the_environment(sandbox: Sandbox) -> None:
    assert sandbox.run("import numpy as np\nassert (np.ones((90, 90)) @ np.ones(90) == 90).all()").result == "passed"
    assert "No module named 'pytest'" in sandbox.run("import pytest").result
    assert "Read-only" in sandbox.run("import numpy\nopen(numpy.__file__, 'w')").result
    assert Sandbox(Limits(seconds=20), unsafe=True).run("import numpy").passed


def test_the_token_is_not_found_by_introspection(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.secrets, "token_hex", lambda _: "0123456789abcdef")
    search = f"{FIND_STRINGS}\nassert not [text for text in found if text.startswith(b'01234' + b'56789')]"
    outcome = sandbox.run(f"{search}\nassert len(seen) > 5000")
    assert outcome.passed, outcome.result


@pytest.mark.parametrize("length", [0, 4096 - 300, 65536, 300_000])
def test_a_program_of_any_length_passes(sandbox: Sandbox, length: int) -> None:
    assert sandbox.run(f"# {'x' * length}\nassert True").passed


def test_a_fork_bomb(short: Sandbox) -> None:
    before, started = processes(), time.monotonic()
    for bomb in ("import os\nwhile True:\n try: os.fork()\n except OSError: pass", "import os\nwhile True: os.fork()"):
        assert not short.run(bomb).passed
    assert time.monotonic() - started < 15
    time.sleep(0.5)
    assert processes() < before + 200, "other processes start here too, but a fork bomb makes thousands"


def test_the_number_of_processes_is_limited(sandbox: Sandbox) -> None:
    count = "import os, time\nfor number in range(100):\n if os.fork() == 0: time.sleep(5); os._exit(0)"
    assert "BlockingIOError" in sandbox.run(count).result
    threads = "import threading, time\nfor _ in range(100): threading.Thread(target=time.sleep, args=(3,), daemon=True).start()"
    assert "can't start new thread" in sandbox.run(threads).result


@pytest.mark.parametrize("loop", ["while True: pass", "import time\ntime.sleep(1000)", "x = 9 ** 9 ** 9"])
def test_an_endless_loop(short: Sandbox, loop: str) -> None:
    outcome = short.run(loop)
    assert outcome.result in ("timed out", "out of memory") and outcome.seconds < 6


def test_background_processes_are_killed(sandbox: Sandbox) -> None:
    name = f"left-{os.getpid()}"
    leave = LEAVES_SOMETHING_RUNNING.replace("NAME", repr(name))
    assert sandbox.run(leave).seconds < 15
    time.sleep(0.3)
    names = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                names.append((folder / "comm").read_text().strip())
            except OSError:
                continue
    assert name not in names


def test_ten_gigabytes(sandbox: Sandbox) -> None:
    assert sandbox.run("block = bytearray(10 * 2**30)").result == "out of memory"
    assert not sandbox.run("blocks = []\nwhile True: blocks.append(bytearray(50 * 2**20))").passed


def test_the_home_directory_is_not_visible(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    for path in (Path.home(), secret, Path(__file__), "/etc/passwd", "/etc/shadow", "/home", "/root"):
        look = f"import os\nos.listdir({str(path)!r}) if os.path.isdir({str(path)!r}) else open({str(path)!r}).read()"
        assert not sandbox.run(look).passed, path
    assert sandbox.run("import os\nassert os.listdir(os.environ['HOME']) == []").passed
    assert sandbox.run(VARIABLES).passed


def test_deleting_files(sandbox: Sandbox, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("here")
    delete = "import os\nfor place in {!r}:\n try: os.remove(place); raise SystemExit('deleted')\n except OSError: pass"
    places = [str(kept), sys.executable, "/usr/bin/env", os.__file__]
    assert sandbox.run(delete.format(places)).passed
    assert sandbox.run("import shutil\nshutil.rmtree('/usr/lib', ignore_errors=True)\nimport colorsys").passed
    assert kept.read_text() == "here" and Path("/usr/bin/env").exists()


def test_writing_outside_the_scratch_directory(sandbox: Sandbox) -> None:
    for place in ("/x", "/usr/x", "/etc/x", "/dev/x", "/run/x", "/run/child.py", "/var/x"):
        assert not sandbox.run(f"open({place!r}, 'w')").passed, place
    assert sandbox.run("open('note', 'w').write('x')\nassert open('/tmp/note').read() == 'x'").passed
    assert sandbox.run("import os\nassert os.listdir('/tmp') == []").passed, (
        "every program gets a new scratch directory"
    )


def test_filling_the_disk(sandbox: Sandbox) -> None:
    free = shutil.disk_usage("/tmp").free
    assert "File too large" in sandbox.run(f"open('big', 'wb').write(b'x' * {40 * MIB})").result
    for place in ("/tmp", "/dev/shm"):
        fill = f"number = 0\nwhile True:\n open(f'{place}/{{number}}', 'wb').write(b'x' * {MIB})\n number += 1"
        assert "No space left" in sandbox.run(fill).result
    assert shutil.disk_usage("/tmp").free > free - 2000 * MIB


def test_opening_a_socket(sandbox: Sandbox) -> None:
    met = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(4)

        def accept() -> None:
            try:
                met.append(server.accept())
            except OSError:
                return

        thread = threading.Thread(target=accept)
        thread.start()
        port = server.getsockname()[1]
        call = "import socket\nsocket.create_connection(({!r}, {}), 2)"
        assert not sandbox.run(call.format("127.0.0.1", port)).passed
        assert not sandbox.run(call.format("192.0.2.1", 80)).passed
        assert not sandbox.run("import urllib.request\nurllib.request.urlopen('http://example.org')").passed
        thread.join()
    assert not met


def test_endless_output(short: Sandbox) -> None:
    started = time.monotonic()
    for program in (
        "while True: print('x' * 1000)",
        "import os\nwhile True: os.write(1, b'x' * 1000)",
        "import os\nwhile True:\n for fd in range(3, 9):\n  try: os.write(fd, b'x' * 1000)\n  except OSError: pass",
    ):
        assert short.run(program).result in ("timed out", "wrote without end")
    assert time.monotonic() - started < 15


def test_killing_other_processes(sandbox: Sandbox) -> None:
    me = os.getpid()
    for target in ("os.getppid()", "1", "-1", str(me), f"-{os.getpgid(0)}"):
        sandbox.run(f"import os, signal\nos.kill({target}, signal.SIGKILL)")
    assert os.getpid() == me and sandbox.run("pass").passed
    assert sandbox.run(f"import os\nassert not os.path.exists('/proc/{me}/environ') or {me} < 10").passed


def test_regaining_privileges(sandbox: Sandbox) -> None:
    for program in (
        "import os\nos.setuid(0)",
        "import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (10000, 10000))",
        "import ctypes\nassert ctypes.CDLL(None).mount(b'none', b'/usr', b'tmpfs', 0, None) == 0",
        "import ctypes\nassert ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0",
    ):
        assert not sandbox.run(program).passed, program


@pytest.mark.skipif(seccomp_filter() is None, reason="the system call numbers of this architecture are not known")
@pytest.mark.parametrize(
    "call",
    [
        "libc.unshare(0x10000000)",  # a user namespace, in which the program would be root
        "libc.syscall(56 if x86 else 220, 0x10000000 | 17, 0, 0, 0, 0)",  # clone into a user namespace
        "libc.shmget(0, 1 << 20, 0o1666)",  # memory that belongs to no process
        "libc.memfd_create(b'x', 0)",
        "libc.syscall(447, 0)",  # memfd_secret
        "libc.socket(40, 1, 0)",  # AF_VSOCK: the host of a virtual machine
        "libc.socket(38, 5, 0)",  # AF_ALG: the kernel's cryptography
        "libc.syscall(425, 4, 0)",  # io_uring
        "libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)",
        "libc.ptrace(16, 1, 0, 0)",
    ],
)
def test_system_calls_that_evade_the_limits_are_refused(sandbox: Sandbox, call: str) -> None:
    program = f"""
import ctypes, errno, platform
x86 = platform.machine() == "x86_64"
libc = ctypes.CDLL(None, use_errno=True)
assert {call} == -1 and ctypes.get_errno() == errno.EPERM, ctypes.get_errno()
"""
    assert sandbox.run(program).result == "passed"


def test_harmless_threads_and_processes_are_allowed(sandbox: Sandbox) -> None:
    program = """
import subprocess, threading
from concurrent.futures import ThreadPoolExecutor
assert list(ThreadPoolExecutor(2).map(abs, [-1, -2])) == [1, 2]
assert subprocess.run(["/bin/echo", "hi"], capture_output=True).stdout == b"hi\\n"
"""
    assert sandbox.run(program).result == "passed"


def test_crashing_the_interpreter(sandbox: Sandbox) -> None:
    assert sandbox.run("import ctypes\nctypes.string_at(0)").result == "killed by SIGSEGV"


def test_without_bubblewrap_the_error_names_both_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(BALoraError, match=r"apt-get install bubblewrap.*--unsafe-code"):
        Sandbox()


def test_a_kernel_without_namespaces_is_reported(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text(
        "#!/bin/sh\n[ \"$1\" = --help ] && echo '--size --perms' && exit\necho 'bwrap: No permissions' >&2\nexit 1\n"
    )
    broken.chmod(0o755)
    monkeypatch.setattr(module.shutil, "which", lambda name: str(broken))
    with pytest.raises(BALoraError, match=r"No permissions.*--unsafe-code"):
        Sandbox()


def test_unsafe_programs_keep_their_limits() -> None:
    unsafe = Sandbox(Limits(seconds=2.0), unsafe=True)
    assert unsafe.run("assert True").passed
    assert unsafe.run("while True: pass").result == "timed out"
    assert unsafe.run("import os, time\nos.closerange(0, 99)\ntime.sleep(60)").result == "timed out"
    assert unsafe.run("block = bytearray(10 * 2**30)").result == "out of memory"
    assert not unsafe.run("import sys; sys.exit(0)").passed
    for name in HOSTILE:
        assert not unsafe.run(HOSTILE[name]).passed, name


USERS_PROGRAMS = [
    "assert True",
    "import os\nwhile True: os.fork()",
    "open('/usr/x', 'w')",
    "open('/x', 'w')",
    "open('/dev/x', 'w')",
    "import socket\nsocket.create_connection(('192.0.2.1', 80), 1)",
    "bytearray(10 * 2**30)",
]


USERS_FUNCTIONS = [
    "def f(x): return 4",
    # The tests' process has the same user, and its memory holds the token.
    "import os\ndef f(x): return open(f'/proc/{os.getppid()}/mem', 'rb')",
    "import os\ndef f(x): return os.listdir(f'/proc/{os.getppid()}/fd')",
]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change to another user")
def test_the_sandbox_confines_programs_of_an_ordinary_user(sandbox: Sandbox, tmp_path: Path) -> None:
    """Run the sandbox in the process of another user: its namespaces are made in another way than for root."""
    python = "/usr/bin/python3"
    if not os.access(python, os.X_OK):
        pytest.skip(f"there is no {python} that another user could run")
    package = Path(module.__file__).parent
    folder = Path("/tmp") / f"balora-user-{os.getpid()}"
    try:
        (folder / "balora" / "evaluation").mkdir(parents=True)
        shutil.copytree(package, folder / "balora" / "evaluation" / "sandbox")
        shutil.copy(package.parents[1] / "errors.py", folder / "balora" / "errors.py")
        subprocess.run(["chmod", "-R", "a+rX", str(folder)], check=True)
        script = f"""
from balora.evaluation.sandbox.sandbox import Limits, Sandbox
from balora.evaluation.sandbox.sandbox import UnitTests
box = Sandbox(Limits(seconds=5.0))
print([box.run(program).passed for program in {USERS_PROGRAMS!r}])
print([box.run(program, UnitTests("assert f(2) == 4", ("f",))).result for program in {USERS_FUNCTIONS!r}])
"""
        result = subprocess.run(
            [python, "-c", script], user=65534, group=65534, extra_groups=[], capture_output=True, text=True,
            cwd=folder, env={"PYTHONPATH": str(folder), "PATH": os.environ["PATH"]}, check=False, timeout=60,
        )  # fmt: skip
    finally:
        shutil.rmtree(folder)
    if "cannot make a sandbox here" in result.stderr:
        pytest.skip("the kernel forbids namespaces of ordinary users")
    alone, tested = result.stdout.splitlines()
    assert alone == str([True] + [False] * 6), result.stderr
    passed, *refused = ast.literal_eval(tested)
    assert passed == "passed" and all(text.startswith("PermissionError: [Errno 13]") for text in refused), tested
