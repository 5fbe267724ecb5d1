"""Where everything of a stack lies below its output directory."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from vllm_stack.errors import OutputError
from vllm_stack.given import absolute

# supervisord binds its socket as PATH.PID and then links it; a unix socket path holds 107 bytes.
_SOCKET_PATH_MAX = 107 - len(".4194304")
# The program that holds up this box's part of a Ray cluster, which stands where workers do.
RAY = "ray"
WORKER_NAME = re.compile(rf"worker-(0|[1-9][0-9]*)|{RAY}")
# Ray puts SESSION/sockets/plasma_store below its directory, which a unix socket's path must hold, too.
_RAY_TEMP_MAX = 107 - len("/session_2026-11-27_18-33-14_904901_4194304/sockets/plasma_store")
# It goes into supervisord.conf as it is: no character that its parser gives a meaning to.
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9_./:,@+=-]*")


def is_plain(path: str) -> bool:
    """Tell whether `path` can stand in supervisord.conf as it is."""
    return _PLAIN_PATH.fullmatch(path) is not None


def failure_record(state: Path, name: str) -> Path:
    """Where a worker's last failure is written down."""
    return state / f"{name}.failure.json"


def life_record(state: Path, name: str) -> Path:
    """Where a program notes that it is alive, and as which process group."""
    return state / f"{name}.life.json"


def failure_history(state: Path, name: str) -> Path:
    """Where all failures of a worker are kept, also after a deliberate stop."""
    return state / f"{name}.failures.jsonl"


def lives_record(state: Path, name: str) -> Path:
    """Where the starts and the failures of a worker are counted, also after a deliberate stop."""
    return state / f"{name}.lives.json"


def phase_note(state: Path, name: str) -> Path:
    """Where a wrapper notes what its worker is doing."""
    return state / f"{name}.phase.json"


def shared_memory_record(state: Path, name: str) -> Path:
    """Where a wrapper notes what its worker has in /dev/shm."""
    return state / f"{name}.shm.json"


def stopping_notice(state: Path, name: str) -> Path:
    """Where a worker that is told to stop leaves word for the proxy."""
    return state / f"{name}.stopping"


def drain_order(state: Path, name: str) -> Path:
    """Where an operator leaves the order that a server gets nothing new."""
    return state / f"{name}.drained"


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one stack. `out` is absolute and made of plain characters."""

    out: Path

    @classmethod
    def at(cls, out: Path) -> Layout:
        """Take `out` as the user gave it; raises `OutputError` for a path supervisord would misread."""
        path = Path(os.path.normpath(absolute(out)))
        if not is_plain(str(path)):
            raise OutputError(
                f"--out {str(path)!r} has a character that supervisord's configuration gives a meaning "
                "to: use letters, digits and _ . / : , @ + = - only"
            )
        return cls(path)

    @property
    def stack_name(self) -> str:
        """A short name that is unique to this directory; it marks every process of the stack."""
        digest = hashlib.sha256(str(self.out).encode()).hexdigest()[:8]
        return f"{self.out.name or 'root'}-{digest}"

    def process_title(self, name: str) -> str:
        """What the processes of a program are called in `ps` and nvidia-smi, up to the first `::`."""
        return f"vllm-stack:{self.stack_name}:{name}"

    @property
    def supervisord_conf(self) -> Path:
        return self.out / "supervisord.conf"

    @property
    def gunicorn_conf(self) -> Path:
        return self.out / "gunicorn.conf.py"

    @property
    def stack_json(self) -> Path:
        return self.out / "stack.json"

    @property
    def proxy_json(self) -> Path:
        return self.out / "proxy.json"

    def worker_json(self, name: str) -> Path:
        return self.out / f"{name}.json"

    @property
    def secrets(self) -> Path:
        return self.out / "secrets"

    @property
    def internal_key(self) -> Path:
        return self.secrets / "internal-key"

    @property
    def ray_token(self) -> Path:
        """What every process of the Ray cluster must know (RAY_AUTH_TOKEN_PATH)."""
        return self.secrets / "ray-token"

    @property
    def serve_yaml(self) -> Path:
        """What Ray Serve is told, where Ray runs the workers."""
        return self.out / "serve.yaml"

    @property
    def ray_temp(self) -> Path:
        """Where Ray keeps its sessions: their sockets and logs."""
        here = self.run / "sessions"
        return here if len(os.fsencode(here)) <= _RAY_TEMP_MAX else self._short / RAY

    @property
    def environment(self) -> Path:
        """Variables that the user may write down for the systemd unit; never written by us."""
        return self.secrets / "environment"

    @property
    def unit(self) -> Path:
        """The systemd unit, where one is rendered."""
        return self.out / "vllm-stack.service"

    @property
    def named_keys(self) -> Path:
        """The keys of clients that the `keys` verbs make; it outlives renders, too."""
        return self.secrets / "keys.json"

    @property
    def logs(self) -> Path:
        return self.out / "logs"

    def log(self, name: str) -> Path:
        """What a program says."""
        return self.logs / f"{name}.log"

    @property
    def access_log(self) -> Path:
        """A JSON line for every request at the door."""
        return self.logs / "requests.jsonl"

    @property
    def supervisord_out(self) -> Path:
        """What supervisord says before it has a log, or why it has none."""
        return self.logs / "supervisord.out"

    @property
    def run(self) -> Path:
        return self.out / "run"

    @property
    def evidence(self) -> Path:
        """What servers that hung were doing."""
        return self.run / "evidence"

    @property
    def state(self) -> Path:
        """Records that outlive a process: the last failure, the last life, the options in force."""
        return self.run / "state"

    @property
    def roll_record(self) -> Path:
        """How far a roll has come that is not at its end."""
        return self.state / "roll.json"

    def box(self, name: str) -> Path:
        """The private working directory of a program; nothing else has a reason to be in there."""
        return self.run / name

    def worker_boxes(self) -> list[str]:
        """Name the workers that ever had a working directory here, those of earlier renders included."""
        names = (path.name for path in self.run.glob("*") if os.path.isdir(path))
        return sorted(name for name in names if WORKER_NAME.fullmatch(name))

    def stack_in_force(self) -> Path | None:
        """The stack.json that the running proxy was started with; None before the first start."""
        path = self.state / "proxy.in-force" / "stack.json"
        return path if path.exists() else None

    @property
    def pidfile(self) -> Path:
        return self.run / "supervisord.pid"

    @property
    def socket(self) -> Path:
        """supervisord's control socket, in the temporary directory if the path here is too long."""
        here = self.run / "supervisor.sock"
        return here if len(os.fsencode(here)) <= _SOCKET_PATH_MAX else self._short / "supervisor.sock"

    @property
    def _short(self) -> Path:
        """A directory of this stack with a short path."""
        return Path(f"/tmp/vllm-stack-{os.getuid()}-{self.stack_name[-8:]}")  # noqa: S108

    def worker_socket(self, name: str) -> Path:
        """A worker's own socket (`--worker-transport unix`), beside supervisord's.

        Where that one fits into a socket's address this one does: its name is shorter than
        `supervisor.sock.PID`. Not in the worker's box: its path is longer, and may not fit.
        """
        return self.socket.parent / f"{name}.sock"

    @property
    def monitoring(self) -> Path:
        """What Prometheus and Grafana are given to read."""
        return self.out / "monitoring"

    @property
    def directories(self) -> tuple[Path, ...]:
        """Every directory a stack needs before it starts, parents first; all of them 0700."""
        return (
            self.out,
            self.secrets,
            self.logs,
            self.monitoring,
            self.run,
            self.state,
            self.socket.parent,
        )
