"""gunicorn's master, whose reload breaks no connection: `python -m vllm_stack.proxy.master --config FILE`.

Stock gunicorn ends the processes of before a reload like those of a shutdown: what is open after the
graceful timeout is cut, the master heeds nothing until then, and as long as they live they count as
processes that need not be started. Here they go on until their successors serve. Then they retire: they end
when their clients do. They are not counted.
"""

from __future__ import annotations

import signal
import sys
from typing import Any, cast

from gunicorn.app.wsgiapp import WSGIApplication
from gunicorn.arbiter import Arbiter

from vllm_stack.proxy import hooks


class Master(Arbiter):  # type: ignore[misc]  # gunicorn has no types
    """Starts the proxy's processes, and says why they end."""

    WORKERS: dict[int, Any]
    # Processes up to this age (gunicorn counts them from 1) are of before the last reload.
    _old_age = 0
    # What the reload under way has to give back: the graceful timeout, seconds.
    _patience: int | None = None
    _reloading = False
    # Was told to reload, and waits for room.
    _postponed = False

    def reload(self) -> None:
        """Start processes that go by the options as they are now, and have those of before retire.

        Not before there is room for them: else nobody would serve until the oldest have gone.
        """
        waited, self._postponed = self._postponed, not hooks.shared()[1].make_room(self.cfg.workers)
        if self._postponed:
            if not waited:
                self.log.warning("The reload waits until processes that retire have made room")
            return
        last_age = self.worker_age
        self._reloading = True
        try:
            super().reload()
        finally:
            self._reloading = False
            if self._patience is not None:
                self.cfg.set("graceful_timeout", self._patience)
                self._patience = None
        self._old_age = last_age

    def manage_workers(self) -> None:
        """Keep the number of processes, without those of before a reload, and have these retire in time."""
        if self._reloading:
            # `Arbiter.reload` goes on to wait so long for those that it thinks it has told to end.
            self._patience = self.cfg.graceful_timeout
            self.cfg.set("graceful_timeout", 0)
            return
        if self._postponed:
            self.reload()
        everyone = self.WORKERS
        old = {pid: worker for pid, worker in everyone.items() if worker.age <= self._old_age}
        self.WORKERS = {pid: worker for pid, worker in everyone.items() if pid not in old}
        try:
            super().manage_workers()
            succeeded = self._all_serve()
        finally:
            self.WORKERS |= old
        if succeeded:
            for pid in old:  # again and again: a process can lose a signal while it starts
                self.kill_worker(pid, signal.SIGTERM)

    def _all_serve(self) -> bool:
        board = hooks.shared()[1]
        serving = [board.serves(worker.scoreboard_row) for worker in self.WORKERS.values()]
        return len(serving) >= self.num_workers and all(serving)

    def stop(self, graceful: bool = True) -> None:
        """End all processes, those that retire included."""
        hooks.shared()[1].ending = True
        super().stop(graceful)


class _Application(WSGIApplication):  # type: ignore[misc]
    def get_config_from_filename(self, filename: str) -> dict[str, Any]:
        """Read the configuration, and leave no bytecode beside it: all in `out/` is what we put there."""
        before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        try:
            return cast(dict[str, Any], super().get_config_from_filename(filename))
        finally:
            sys.dont_write_bytecode = before

    def run(self) -> None:
        try:
            Master(self).run()
        except RuntimeError as error:
            sys.exit(f"vllm-stack proxy: {error}")


if __name__ == "__main__":
    _Application("%(prog)s [OPTIONS]", prog="vllm-stack proxy").run()
