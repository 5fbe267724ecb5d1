"""The options of `render` as the command line spells them, and how an option is declared."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

_Function = TypeVar("_Function", bound=Callable[..., Any])
ENVIRONMENT = "VLLM_STACK_"


def option(*names: str, **settings: Any) -> Callable[[_Function], _Function]:
    """Declare an option of the stack, which can also be set as VLLM_STACK_<NAME> for all verbs that have it.

    What a verb has for itself is a `click.option`; its variable names the verb (`verbs.group`).
    """
    variable = ENVIRONMENT + names[0].removeprefix("--").replace("-", "_").upper()
    return click.option(*names, envvar=variable, show_envvar=True, **settings)


def _header_name(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Take a header's name (RFC 9110 token). One with an underscore never reaches the proxy's rules."""
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^`|~-]+", value):
        raise click.BadParameter(f"{value!r} is no name of a header; letters, digits and dashes make one")
    return value.lower()


def _stagger(context: click.Context, parameter: click.Parameter, value: str) -> str:
    number = re.fullmatch(r"[0-9]+(\.[0-9]+)?", value)
    if value not in ("auto", "none") and not (number and math.isfinite(float(value))):
        raise click.BadParameter(f"{value!r} is neither auto nor none nor a number of seconds")
    return value


class Seconds(click.FloatRange):
    """A finite number: `nan` is in no order to any bound, and no clock comes to `inf`."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        seconds = float(super().convert(value, parameter, context))
        if not math.isfinite(seconds):
            self.fail(f"{value} is not a finite number of seconds", parameter, context)
        return seconds


class CountOrAuto(click.ParamType[int | Literal["auto"]]):
    """A number, or `auto`."""

    name = "count"

    def __init__(self, least: int, most: int) -> None:
        self._count = click.IntRange(least, most)

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> int | Literal["auto"]:
        return "auto" if value == "auto" else int(self._count.convert(value, parameter, context))

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "N|auto"


class WorkerCount(CountOrAuto):
    """A number, `auto`, or the bounds between which Ray may choose, which stay as they are spelled."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        least, colon, most = str(value).partition(":")
        if not colon:
            return super().convert(value, parameter, context)
        bounds = [int(super(WorkerCount, self).convert(word, parameter, context)) for word in (least, most)]
        if not 1 <= bounds[0] < bounds[1]:
            self.fail(f"{value} is no range: write MIN:MAX with 1 <= MIN < MAX", parameter, context)
        return f"{bounds[0]}:{bounds[1]}"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "N|auto|MIN:MAX"


out_option = option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("out"),
    show_default=True,
    help="The stack's directory.",
)


def render_options(function: _Function) -> _Function:
    """Declare all options of `render`, in the order of its help."""
    for declare in reversed(_RENDER_OPTIONS):
        function = declare(function)
    return function


_RENDER_OPTIONS = (
    option(
        "--workers",
        type=WorkerCount(least=0, most=1024),
        default=1,
        show_default=True,
        help="vLLM servers to run; 0 runs none and sends everything to --upstream; auto: as many as the free "
        "GPUs make; MIN:MAX, with --target ray: as many as the load asks for.",
    ),
    option(
        "--tensor-parallel-size",
        type=CountOrAuto(least=1, most=64),
        default=1,
        show_default=True,
        help="GPUs of each worker; auto: the fewest that hold the model.",
    ),
    option(
        "--pipeline-parallel-size",
        type=click.IntRange(1, 64),
        default=1,
        show_default=True,
        metavar="N",
        help="With --target ray: stages of each worker, of as many GPUs each as --tensor-parallel-size says. "
        "They may be on different boxes, so a model can be larger than one.",
    ),
    option("--revision", help="Branch, tag or commit of the model on the hub."),
    option(
        "--target",
        type=click.Choice(["supervisord", "ray"]),
        default="supervisord",
        show_default=True,
        help="What runs the workers: supervisord, on this box; or Ray Serve, on all boxes that `vllm-stack "
        "join` the cluster whose head this box is. supervisord holds up the head and the door then.",
    ),
    option(
        "--ray-host",
        metavar="ADDRESS",
        help="With --target ray: the address of this box by which other boxes join it.  [default: none can, "
        "the cluster is this box]",
    ),
    option(
        "--ray-port",
        type=click.IntRange(1, 65535),
        default=6379,
        show_default=True,
        help="Port of the Ray cluster's head, which boxes join.",
    ),
    option(
        "--ray-dashboard-port",
        type=click.IntRange(1, 65535),
        default=8265,
        show_default=True,
        help="Port of Ray's dashboard, loopback only.",
    ),
    option(
        "--base-port",
        type=click.IntRange(1, 65535),
        default=5001,
        show_default=True,
        help="Port of worker-0; with --target ray that of Ray Serve.",
    ),
    option(
        "--worker-transport",
        type=click.Choice(["tcp", "unix"]),
        default="tcp",
        show_default=True,
        help="How the proxy reaches the workers. With unix each listens on a socket instead of a port, "
        "in a directory that only you may enter: no other user of the machine can reach it.",
    ),
    option(
        "--port",
        type=click.IntRange(1, 65535),
        default=8000,
        show_default=True,
        help="Port of the public door.",
    ),
    option(
        "--host",
        help="Address of the public door.  [default: 0.0.0.0 with a key or --require-key, else 127.0.0.1]",
    ),
    option(
        "--admin-port",
        type=click.IntRange(1, 65535),
        default=9000,
        show_default=True,
        help="Admin door, loopback only.",
    ),
    option(
        "--tls-cert",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Certificate of the public door with its chain (PEM): with --tls-key the door speaks HTTPS.",
    ),
    option(
        "--tls-key",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Its private key, without a passphrase and readable by its owner alone. Both files stay "
        "where they "
        "are: after a renewal, `supervisorctl signal HUP proxy` takes the new ones, and open "
        "answers end first.",
    ),
    option(
        "--api-key",
        "api_keys",
        multiple=True,
        help="A key clients must send; may be repeated. Shows in `ps`: prefer --api-key-file.",
    ),
    option(
        "--api-key-file",
        type=click.Path(path_type=Path),
        help="File with one client key per line, readable by its owner alone.",
    ),
    option(
        "--require-key",
        is_flag=True,
        help="Ask for a key although none is given here: `vllm-stack keys add` makes them, now or later. The "
        "door opens as with a key.",
    ),
    option(
        "--upstream",
        "upstreams",
        multiple=True,
        metavar="URL",
        help="A server elsewhere that joins the choice: http://host:port of another vllm-stack, or of any "
        "OpenAI-compatible server with the same model and a /health; may be repeated.",
    ),
    option(
        "--upstream-key-file",
        type=click.Path(path_type=Path),
        help="The keys upstreams ask for, readable by its owner alone. A line is a key for all of them, or "
        "`URL KEY` for one. It stays where it is: the proxy reads it at every start.",
    ),
    option(
        "--device",
        type=click.Choice(["auto", "cuda", "cpu"]),
        default="auto",
        show_default=True,
        help="cpu runs vLLM's CPU build.",
    ),
    option(
        "--allow-busy",
        is_flag=True,
        help="Use GPUs on which other programs compute, or which have less free memory than vLLM asks for.",
    ),
    option("--gpus", help="GPUs to use, e.g. 0,1,4,5.  [default: all of CUDA_VISIBLE_DEVICES, else all]"),
    option(
        "--policy",
        type=click.Choice(["prefix", "session", "least-loaded", "round-robin", "random"]),
        default="prefix",
        show_default=True,
        help="How the proxy chooses a worker. prefix: the turns of a conversation go where their prefix "
        "is cached, unless that worker is far busier than the others; a new conversation goes to one that "
        "is not. session: requests with the same --session-header stay together, however busy their "
        "worker. least-loaded: the fewest requests in flight. Requests without a prefix or a session go to "
        "the least loaded worker.",
    ),
    option(
        "--session-header",
        default="x-session-id",
        show_default=True,
        metavar="NAME",
        callback=_header_name,
        help="The header that names a session, for --policy session.",
    ),
    option(
        "--proxy-processes",
        type=click.IntRange(1, 64),
        metavar="N",
        help="Processes of the proxy.  [default: one for two workers, on an eighth of the CPU cores at most]",
    ),
    option(
        "--open-route",
        "open_routes",
        multiple=True,
        metavar="PATH",
        help="Open one of vLLM's control routes, e.g. /metrics; may be repeated.",
    ),
    option(
        "--cors-origin",
        "cors_origins",
        multiple=True,
        metavar="ORIGIN",
        help="Let web pages of this origin use the door from a browser, e.g. https://app.example.com, "
        "or * for "
        "all pages; may be repeated. The page must still know a key.",
    ),
    option(
        "--max-body",
        type=click.IntRange(1, 1024 * 1024),
        default=64,
        show_default=True,
        metavar="MIB",
        help="Largest request.",
    ),
    option(
        "--max-inflight-per-worker",
        type=click.IntRange(min=1),
        metavar="N",
        help="Send a worker no more requests at a time; further ones wait in line.  [default: no limit, vLLM "
        "has a line of its own]",
    ),
    option(
        "--queue-timeout",
        type=Seconds(min=0),
        default=10.0,
        show_default=True,
        metavar="SECONDS",
        help="How long a request waits for a worker that is starting, or at its limit, before it is "
        "refused with "
        "503 or 429.",
    ),
    option(
        "--response-timeout",
        type=Seconds(min=1),
        default=900.0,
        show_default=True,
        metavar="SECONDS",
        help="Longest silence of a worker in the middle of a request.",
    ),
    option(
        "--restart-delay",
        type=Seconds(min=0),
        default=30.0,
        show_default=True,
        metavar="SECONDS",
        help="Pause before a failed worker starts again.",
    ),
    option(
        "--restart-delay-max",
        type=Seconds(min=0),
        default=0.0,
        metavar="SECONDS",
        help="Let the pause double with every failure in a row, up to this.  [default: it never grows]",
    ),
    option(
        "--start-timeout",
        type=Seconds(min=0),
        default=1800.0,
        show_default=True,
        metavar="SECONDS",
        help="A worker that is not ready so long after its start is killed and started again; 0 waits "
        "for ever.",
    ),
    option(
        "--start-stagger",
        default="auto",
        show_default=True,
        metavar="auto|none|SECONDS",
        callback=_stagger,
        help="auto: the first worker starts alone, downloads the model and fills vLLM's caches; the others "
        "follow when it is ready. Once that was so, all start together. SECONDS: so much between "
        "any two starts.",
    ),
    option(
        "--wedge-timeout",
        type=Seconds(min=0),
        default=120.0,
        show_default=True,
        metavar="SECONDS",
        help="A worker with requests in flight whose engine makes no step for so long is killed and started "
        "again; five times as long while it computes (long prefills, compilation). 0 switches this off.",
    ),
    option(
        "--drain-timeout",
        type=Seconds(min=0),
        default=15.0,
        show_default=True,
        metavar="SECONDS",
        help="How long a stop lets open requests finish.",
    ),
    option(
        "--skip-check",
        "skip_checks",
        multiple=True,
        metavar="NAME",
        help="Leave out a check of `vllm-stack check`, by its name; may be repeated. The files then say so.",
    ),
    option(
        "--no-access-log",
        is_flag=True,
        help="Write no logs/requests.jsonl, which has a line for every request: time, key's name, route, "
        "model, worker, status, sizes and times; never a header, a body or a key.",
    ),
    option("--vllm-command", default="vllm", show_default=True, help="The vLLM to run."),
    option(
        "--systemd",
        is_flag=True,
        help="Write a systemd unit, too, which starts the stack with the machine and runs it as you; how to "
        "install it is said at the end.",
    ),
)
