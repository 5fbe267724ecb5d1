"""Looking at a stack: everybody is asked for himself, side by side, and nobody is waited for in vain.

Each question goes to whoever knows best: supervisord, the proxy, the driver, and every worker itself, so that
one of them that is away, hangs or is just being stopped takes along only what it alone knew.
"""

from __future__ import annotations

import http.client
import json
import time
import xmlrpc.client
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vllm_stack.address import LOOPBACK, TcpAddress
from vllm_stack.commands.stack import Stack
from vllm_stack.errors import NoStack
from vllm_stack.gpus.usage import GpuUsage, read_usage
from vllm_stack.layout import drain_order, failure_record, lives_record, phase_note
from vllm_stack.local_http import fetch
from vllm_stack.log_tail import last_lines
from vllm_stack.records.drain_order import read_order
from vllm_stack.records.lives import read_lives
from vllm_stack.records.phase import Phase, PhaseNote, read_phase
from vllm_stack.roll.record import read_roll
from vllm_stack.status.figures import Figures, read_figures
from vllm_stack.status.looks import Look
from vllm_stack.status.sights import Place, ProxySight, Sights, Standing, WorkerSight
from vllm_stack.status.traffic import Traffic, read_traffic
from vllm_stack.supervisor_rpc import SHUTDOWN_STATE, Supervisor
from vllm_stack.worker.failure import last_failure
from vllm_stack.worker.probe import Probe

# Seconds for each question.
PATIENCE = 2.0
# Phases in which a server may answer: its wrapper notes a moment later that it does.
_SERVING = (Phase.STARTING, Phase.READY)
# Lines of a log that are looked through for how far a load has come.
_LOG = 400


@dataclass(frozen=True, slots=True)
class _Programs:
    """What supervisord says: of itself, and of every program its word and since when it runs (Unix time)."""

    supervisord: str
    words: Mapping[str, str]
    since: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Health:
    """What a worker said just now: what is wrong with it, None if nothing is, and its figures."""

    note: PhaseNote | None
    trouble: str | None
    figures: Figures | None


def places_of(stack: Stack) -> list[Place]:
    """Give every server as it was rendered, the workers first."""
    workers = [
        Place(name, stack.model_of(name), str(address), stack.gpus[name], stack.cores[name])
        for name, address in stack.workers.items()
    ]
    upstreams = [
        Place(name, stack.model_of(name), address, remote=True) for name, address in stack.upstreams.items()
    ]
    return [*workers, *upstreams]


class Observer:
    """Looks at one stack, again and again; as a context manager it ends its threads."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._state = stack.layout.state
        # One for each worker, and for supervisord, the driver, and both pages of the proxy.
        self._pool = ThreadPoolExecutor(len(stack.workers) + 4)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def see(self) -> Sights:
        """Look at everything; takes a moment, and some `PATIENCE` where somebody does not answer.

        Raises `NoStack` when there is no supervisord.
        """
        submit, names = self._pool.submit, self._stack.worker_names
        programs = submit(self._ask_supervisord)
        proxy = submit(self._ask_proxy)
        gpus = submit(self._ask_driver)
        health = {name: submit(self._ask_worker, name) for name in names}
        standings = seen.standings if (seen := proxy.result()) else {}
        told = programs.result()
        workers = {
            name: self._worker(name, told.words.get(name, ""), health[name].result(), standings.get(name))
            for name in names
        }
        record = self._stack.layout.roll_record
        return Sights(
            at=time.time(),
            supervisord=told.supervisord,
            proxy_program=told.words.get("proxy", ""),
            proxy_since=told.since.get("proxy"),
            proxy=seen,
            workers=workers,
            gpus=gpus.result(),
            roll=(roll := read_roll(record)),
            rolling=roll is not None and _is_held(record.with_suffix(".lock")),
        )

    def look_again(self, seen: Sights) -> Look:
        """Ask those for their counts once more that have just told them."""
        submit = self._pool.submit
        traffic: Future[Traffic | None] | None = None
        if seen.proxy is not None and seen.proxy.traffic is not None:
            traffic = submit(self._ask_traffic)
        figures = {
            name: submit(self._ask_figures, name)
            for name, worker in seen.workers.items()
            if worker.figures is not None
        }
        return Look(
            {name: future.result() for name, future in figures.items()},
            None if traffic is None else traffic.result(),
        )

    # The questions.

    def _ask_supervisord(self) -> _Programs:
        """Ask for its programs; while it shuts down it tells nothing but that."""
        supervisor = Supervisor(self._stack.layout.socket, PATIENCE)
        try:
            found: list[dict[str, Any]] = supervisor.call("getAllProcessInfo")
        except xmlrpc.client.Fault as fault:
            stops = fault.faultCode == SHUTDOWN_STATE
            words = dict.fromkeys(("proxy", *self._stack.worker_names), "STOPPING") if stops else {}
            return _Programs("stopping" if stops else "not answering", words, {})
        except (FileNotFoundError, ConnectionRefusedError):
            raise NoStack(
                f"supervisord is not running, so nothing is: vllm-stack up --out {self._stack.layout.out}"
            ) from None
        except OSError:
            return _Programs("not answering", {}, {})
        return _Programs(
            "running",
            {program["name"]: str(program["statename"]) for program in found},
            {
                program["name"]: float(program["start"])
                for program in found
                if program["statename"] == "RUNNING"
            },
        )

    def _ask_proxy(self) -> ProxySight | None:
        page = self._page("/workers")
        try:
            standings = {
                server["name"]: Standing(
                    str(server["state"]), int(server["in_flight"]), int(server["open_in"])
                )
                for server in page["workers"]
            }
            reloads = page["reloads"] or {}
            return ProxySight(
                standings, int(page["waiting"]), page["totals"], self._ask_traffic(), reloads.get("trouble")
            )
        except (KeyError, TypeError, ValueError):
            return None

    def _ask_traffic(self) -> Traffic | None:
        page = self._page("/traffic")
        return read_traffic(page, time.monotonic())

    def _page(self, path: str) -> dict[str, Any]:
        """Give a page of the admin door, {} if it has none."""
        try:
            status, body = fetch(TcpAddress(LOOPBACK, self._stack.admin_port), path, PATIENCE)
            page = json.loads(body) if status == 200 else {}
        except (OSError, http.client.HTTPException, ValueError):
            return {}
        return page if isinstance(page, dict) else {}

    def _ask_driver(self) -> dict[str, GpuUsage]:
        tokens = tuple(dict.fromkeys(token for gpus in self._stack.gpus.values() for token in gpus))
        return {usage.token: usage for usage in read_usage(tokens, PATIENCE)}

    def _ask_worker(self, name: str) -> _Health:
        note = read_phase(phase_note(self._state, name))
        if note is None or note.phase not in _SERVING:
            return _Health(note, None, None)
        trouble = self._probe(name).health()
        return _Health(note, trouble, None if trouble else self._ask_figures(name))

    def _ask_figures(self, name: str) -> Figures | None:
        metrics = self._probe(name).metrics()
        return read_figures(metrics, time.monotonic()) if metrics else None

    def _probe(self, name: str) -> Probe:
        return Probe(name, self._stack.workers[name], self._stack.admin_port, PATIENCE)

    # What is written down.

    def _worker(self, name: str, program: str, health: _Health, standing: Standing | None) -> WorkerSight:
        loads = health.note is not None and health.note.phase is Phase.STARTING and health.trouble is not None
        return WorkerSight(
            note=health.note,
            program=program,
            trouble=health.trouble,
            standing=standing,
            figures=health.figures,
            failure=last_failure(failure_record(self._state, name)),
            lives=read_lives(lives_record(self._state, name)),
            order=read_order(drain_order(self._state, name)),
            log=last_lines(self._stack.layout.log(name), _LOG) if loads else (),
        )


def look_of(sights: Sights) -> Look:
    """Give what counts up among what was seen."""
    figures = {name: worker.figures for name, worker in sights.workers.items()}
    return Look(figures, sights.proxy.traffic if sights.proxy else None)


def _is_held(lock: Path) -> bool:
    """Tell whether a process holds this lock file; to try it would refuse a roll that begins just now."""
    try:
        inode = lock.stat().st_ino
        locks = Path("/proc/locks").read_text("ascii").splitlines()
    except (OSError, ValueError):
        return False
    # "1: FLOCK  ADVISORY  WRITE 4711 fd:00:1234 0 EOF" (proc_locks(5)).
    held = (line.split() for line in locks if " FLOCK " in line)
    return any(len(words) > 5 and words[5].rpartition(":")[2] == str(inode) for words in held)
