"""One life of a worker, from an empty box to an empty box.

Theory of operation. supervisord starts the wrapper at once after every failure; the wrapper waits
out the delay at its own start. So `supervisorctl status` says STARTING while it waits, a stop is
immediate in every phase, and a deliberate restart waits for nothing:

    ask supervisord -> prepare (sweep, waits) -> start -> watch -> reap -> find out why

A requested end removes the failure record and exits with 0. Any other end is a failure, exit code
0 included (vllm#48966: vLLM can exit with 0 when its engine died): it is recorded, and the wrapper
exits non-zero. A wrapper that was killed itself leaves its note of being alive: the next start
takes that for the failure it is.
"""

from __future__ import annotations

import tempfile
import time

from vllm_stack.leftovers.processes import MARKER
from vllm_stack.program import STOP_SIGNALS, Order, ask_supervisord, take_signal
from vllm_stack.records.lives import count_start
from vllm_stack.records.phase import Phase, write_phase
from vllm_stack.user_name import user_name
from vllm_stack.worker.autopsy import Autopsy
from vllm_stack.worker.preparation import Preparation, empty, remove_socket
from vllm_stack.worker.spec import Spec
from vllm_stack.worker.tree import Tree
from vllm_stack.worker.turn import Turn
from vllm_stack.worker.voice import Voice
from vllm_stack.worker.watch import Watch

# What must not leak from the operator's shell into a server: development mode opens control routes
# without a key (vllm/envs.py), and supervisord's own variables are nobody else's business.
# Nor is a token, or a cluster, that the operator's own Ray goes by.
_NOT_INHERITED = (
    "VLLM_SERVER_DEV_MODE",
    "VLLM_API_KEY",
    "VLLM_STACK_",
    "SUPERVISOR_",
    "RAY_AUTH_",
    "RAY_ADDRESS",
)
# Nor what names GPUs in other words than the plan: vLLM refuses a CUDA_VISIBLE_DEVICES that differs from
# HIP's (`_sync_hip_cuda_env_vars` in vllm/platforms/rocm.py), and HIP counts in what ROCr leaves.
_OTHER_MASKS_OF_ROCM = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
# Gloo, which an engine opens even for itself alone, listens at the address of the machine's name, often one
# of the network, and asks nobody who he is. All processes of a worker are on this machine.
_INTERFACE_OF_GLOO = {"GLOO_SOCKET_IFNAME": "lo"}
EXIT_ENGINE_DIED = 70  # sysexits.h EX_SOFTWARE: stands in for an exit code 0 nobody asked for
EXIT_CANNOT_START = 127  # as a shell says it


class Life:
    """One run of the wrapper."""

    def __init__(self, spec: Spec, environ: dict[str, str]) -> None:
        self._spec = spec
        self._environ = environ
        self._voice = Voice(spec.name)
        self._autopsy = Autopsy(spec, self._voice)
        self._turn = Turn(spec.stagger, spec.state, spec.name)

    def run(self) -> int:
        """Live this life; gives the exit code that tells supervisord how it ended."""
        try:
            return self._live()
        finally:
            with self._voice.noting("the note of what this worker does could not be removed"):
                self._spec.phase.unlink(missing_ok=True)

    def _live(self) -> int:
        preparation = Preparation(self._spec, self._voice, self._autopsy, self._turn)
        if ask_supervisord(self._environ) is not Order.RUN or not preparation.finish():
            self._voice.say("told to stop before the start: nothing was started")
            self._autopsy.forget()
            return 0
        self._note_life()
        try:
            tree = Tree(self._spec.argv, self._server_environment(), self._spec.box, self._spec.cores)
        except OSError as error:
            self._autopsy.of_command(EXIT_CANNOT_START, error)
            self._forget_life()
            return EXIT_CANNOT_START
        started = f"started {self._spec.what} on {self._spec.address}, process {tree.pid}"
        self._autopsy.begin(self._voice.say(started))
        asked = Watch(self._spec, self._environ, self._voice, self._autopsy, self._turn, tree).until_end()
        return self._end(tree, asked)

    def _end(self, tree: Tree, asked: bool) -> int:
        seconds = time.monotonic() - tree.started
        remove_socket(self._spec, self._voice)
        returncode = tree.reap()
        assert returncode is not None  # noqa: S101 - the watch returns only then
        # Recorded before the reaping: whatever happens to us now, the next start waits.
        failed = None if asked else self._autopsy.of_server(returncode, seconds)
        if tree.end_stragglers(self._voice.say):
            self._forget_life()
            self._spec.memory.remove_stale(self._voice.say)
            with self._voice.noting("the working directory could not be emptied"):
                empty(self._spec.box)
        if failed is None or self._stop_is_pending():
            self._autopsy.forget()
            self._voice.say("stopped")
            return 0
        self._autopsy.finish(*failed)
        return returncode or EXIT_ENGINE_DIED if returncode >= 0 else 128 - returncode

    @staticmethod
    def _stop_is_pending() -> bool:
        while (signum := take_signal(0)) is not None:
            if signum in STOP_SIGNALS:
                return True
        return False

    def _server_environment(self) -> dict[str, str]:
        kept_back = _NOT_INHERITED + (_OTHER_MASKS_OF_ROCM if self._spec.device == "rocm" else ())
        inherited = {k: v for k, v in self._environ.items() if not k.startswith(kept_back)}
        secrets = {name: path.read_text("utf-8").strip() for name, path in self._spec.secret_env.items()}
        # First, and nobody sets it again: setproctitle finds the memory of the title through the first
        # variable, and where a program has changed that one an engine keeps its anonymous name.
        own = {MARKER: self._spec.title, "PWD": str(self._spec.box)}
        # Where it would be without our TMPDIR: a cache must outlive the server that fills it.
        caches = {"TORCHINDUCTOR_CACHE_DIR": f"{tempfile.gettempdir()}/torchinductor_{user_name()}"}
        return own | caches | _INTERFACE_OF_GLOO | inherited | self._spec.env | secrets | own

    def _note_life(self) -> None:
        spec, noting = self._spec, self._voice.noting
        with noting("the notice of the last stop could not be removed"):
            spec.stopping.unlink(missing_ok=True)
        with noting("this life could not be recorded"):
            spec.identity.record_life()
        with noting("what is in /dev/shm could not be recorded"):
            spec.memory.begin()
        with noting("what this worker does could not be noted"):
            write_phase(spec.phase, Phase.STARTING)
        with noting("this start could not be counted"):
            count_start(spec.lives)

    def _forget_life(self) -> None:
        with self._voice.noting("the record of this life could not be removed"):
            self._spec.identity.forget_life()
