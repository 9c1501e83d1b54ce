"""Questions of `doctor` that may hang or crash: each has its own process or thread, and a time limit."""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

# What is asked of a registry or hub: a small page that needs no login.
SERVICES = {
    "PyPI": "https://pypi.org/simple/pip/",
    "Paddle's index": "https://www.paddlepaddle.org.cn/packages/stable/cpu/",
    "Hugging Face": "https://huggingface.co/api/models/baidu/ERNIE-4.5-0.3B-PT",
    "AI Studio": "https://aistudio.baidu.com/",
    "ModelScope": "https://modelscope.cn/api/v1/models/PaddlePaddle/ERNIE-4.5-0.3B-Paddle",
}
SECONDS = 5.0
_PADDLE_SECONDS = 120

# Paddle takes the whole process down when its libraries do not fit the machine, so it is imported in another.
_PADDLE = """
import json, time
started = time.perf_counter()
import paddle
facts = {
    "version": paddle.version.full_version,
    "import_seconds": round(time.perf_counter() - started, 1),
    "cuda": paddle.version.cuda() if paddle.is_compiled_with_cuda() else None,
    "device": paddle.get_device(),
    "gpus": paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0,
}
x = paddle.ones([1024, 1024])
float((x @ x)[0, 0])
best = 1e9
for _ in range(5):
    started = time.perf_counter()
    float((x @ x)[0, 0])
    best = min(best, time.perf_counter() - started)
facts["fp32_matmul_gflops"] = round(2 * 1024**3 / best / 1e9)
print("FACTS " + json.dumps(facts))
"""

# A damaged library or compiler may do anything too.
_KERNELS = """
import json
from erniekit.log import set_up_logging
from erniekit.ops.kernels.describe import describe
set_up_logging()
print("FACTS " + json.dumps(describe()))
"""
_KERNELS_SECONDS = 600


def paddle_facts(seconds: float = _PADDLE_SECONDS) -> dict[str, Any]:
    """What Paddle says of itself, or `{"error": why not}`."""
    return _facts_of(_PADDLE, seconds)


def kernel_facts(seconds: float = _KERNELS_SECONDS) -> dict[str, Any]:
    """Which kernels run, or `{"error": why not}`; compiles them when that has not happened yet."""
    return _facts_of(_KERNELS, seconds)


def _facts_of(program: str, seconds: float) -> dict[str, Any]:
    """The facts that a program prints in a process of its own, or `{"error": why not}`."""
    command = [sys.executable, "-W", "ignore", "-c", program]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"it took more than {seconds:g} s"}
    for line in answer.stdout.splitlines():
        if line.startswith("FACTS "):
            facts: dict[str, Any] = json.loads(line.removeprefix("FACTS "))
            return facts
    lines = [line for line in answer.stderr.splitlines() if line.strip()]
    if answer.returncode < 0:
        return {"error": f"its process was ended by signal {-answer.returncode}"}
    return {"error": lines[-1] if lines else f"its process ended with {answer.returncode}"}


def ask_services(services: dict[str, str] | None = None, *, seconds: float = SECONDS) -> dict[str, str]:
    """Ask every service at once.

    Args:
        services: name -> address; the registries and hubs ErnieKit uses when not given.
        seconds: how long to wait for an answer. The threads are daemons, because looking up a name
            has no time limit of its own and must not keep the command from ending.

    Returns:
        name -> `answers (0.2 s)` or why it does not.
    """
    services = _with_own_index() if services is None else services
    answers: dict[str, str] = {}

    def ask(name: str, address: str) -> None:
        answers[name] = _ask(address, seconds)

    threads = [threading.Thread(target=ask, args=item, daemon=True) for item in services.items()]
    deadline = time.monotonic() + seconds + 1
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return {name: answers.get(name, f"no answer in {seconds:g} s") for name in services}


def without_credentials(address: str) -> str:
    """An address whose user name and password, if any, are left out."""
    parts = urllib.parse.urlsplit(address)
    if "@" not in parts.netloc:
        return address
    return urllib.parse.urlunsplit(parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]))


def _with_own_index() -> dict[str, str]:
    own = os.environ.get("PIP_INDEX_URL")
    return {**SERVICES, **({"PIP_INDEX_URL": own} if own else {})}


def _ask(address: str, seconds: float) -> str:
    started = time.perf_counter()
    try:
        request = urllib.request.Request(address, headers={"User-Agent": "erniekit-doctor"})
        with urllib.request.urlopen(request, timeout=seconds) as reply:
            reply.read(1)
    except urllib.error.HTTPError as error:
        return f"answers with HTTP {error.code} ({time.perf_counter() - started:.1f} s)"
    except urllib.error.URLError as error:
        return f"no answer ({error.reason})"
    except (OSError, ValueError) as error:
        return f"no answer ({error or type(error).__name__})"
    return f"answers ({time.perf_counter() - started:.1f} s)"
