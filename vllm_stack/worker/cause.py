"""Why a vLLM server ended, in one plain sentence; nothing where it is not known.

What is taken for evidence, and what is not:

* **A signal from outside** (KILL, TERM, INT, HUP, QUIT) has nothing to do with the output: a server
  that meets an error of its own says so and ends by itself. Then only the signal, the phase and the
  kernel's count of OOM kills decide, and no line does, however alarming.
* **Only errors count**: lines that vLLM logged as ERROR or CRITICAL, and lines without a level, which
  are how Python, CUDA and NCCL speak when it is too late to log. INFO and WARNING lines are full of
  harmless "OSError" and "CUDA error". What vLLM says of its own end is the one exception.
* **Only how an error begins counts** (`ValueError: No available memory ...`), never a word inside a
  line: what clients send comes back in error messages, but behind vLLM's own words.
* **Only errors near the end count**: what was logged more than two minutes before the newest line was
  survived.
* **A server that had become ready** cannot die of its options, its model or the hub, and the errors of
  its API server are those of requests (an image that cannot be fetched): they kill nothing.

The rules are asked in the order of `rules.RULES`: causes before their effects. An engine that died is said
to have died only where nothing says why.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from vllm_stack.worker.rules import LAST_WORDS, OUTSIDE, READY, RULES, Rule

# Seconds: how much older than the newest line an error may be. An engine that fails takes the server
# with it in well under a minute.
_NEAR = 120.0
_YEAR = 366 * 86400.0
_FAULTS = frozenset({signal.SIGILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV})
_PROCESS = r"(?:\((?P<process>[^()]{1,80}) pid=\d+[^()]{0,40}\) ?)?"
_PREFIX = re.compile(
    rf"{_PROCESS}(?:(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL)"
    r"(?: (?P<stamp>\d\d-\d\d \d\d:\d\d:\d\d) \[[^\]]{1,200}\] ?|:\s+))?"
)
_DECISIVE_LEVELS = (None, "ERROR", "CRITICAL")
# How processes of the server say which of them ended, and how.
_PART_ENDED = re.compile(
    r"Worker proc \S+ died unexpectedly \(exit code: (-\d+)\)"
    r"|RuntimeError: Engine core initialization failed\..*?Failed core proc\(s\): \{[^}]*?: (-\d+)"
    r"|RuntimeError: Process \S+ \(PID: \d+\) died with exit code (-\d+)"
)

_ARGUMENTS = re.compile(r"non-default args: \{")
_MODEL = re.compile(r"'model': '([^']{1,200})'")
_PORT = re.compile(r"'port': (\d+)")
_SOCKET = re.compile(r"'uds': '([^']{1,200})'")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A cause that was recognised: the name of its rule, and the sentence."""

    name: str
    sentence: str


@dataclass(frozen=True, slots=True)
class _End:
    """What is known of one end, brought into the form that rules ask for."""

    phase: str
    oom_kills: int
    ends: frozenset[int]
    errors: tuple[str, ...]  # newest first: an older one may have been survived
    facts: Mapping[str, str]


def find_cause(returncode: int, phase: str, lines: Sequence[str], oom_kills: int = 0) -> str | None:
    """Say in one sentence why a server ended and what helps; None if it is not known.

    `returncode` is as `subprocess` gives it; `phase` says how far the server was ("starting", "ready",
    "stopping"). `lines` are the last of what this server wrote, newest last and without colour codes:
    nothing of an earlier life. `oom_kills`: how many processes the kernel's OOM killer ended meanwhile.
    """
    diagnosis = diagnose(returncode, phase, lines, oom_kills)
    return diagnosis.sentence if diagnosis else None


def diagnose(returncode: int, phase: str, lines: Sequence[str], oom_kills: int = 0) -> Diagnosis | None:
    """Do as `find_cause`, and name the rule too."""
    end = _examine(returncode, phase, lines, oom_kills)
    for rule in RULES:
        if (values := _holds(rule, end)) is not None:
            return Diagnosis(rule.name, rule.sentence.format_map({**end.facts, **values}))
    return None


def _examine(returncode: int, phase: str, lines: Sequence[str], oom_kills: int) -> _End:
    own = _unshelled(returncode)
    errors = () if -own in OUTSIDE else tuple(_errors(lines, phase))
    parts = {int(next(filter(None, match.groups()))) for line in errors if (match := _PART_ENDED.match(line))}
    # A server ends its processes with TERM: that of a part says nothing.
    fatal = {own, *(end for end in parts if -end in {signal.SIGKILL, *_FAULTS})}
    return _End(phase, oom_kills, frozenset(fatal), errors, _facts(own, lines, oom_kills))


def _holds(rule: Rule, end: _End) -> dict[str, str] | None:
    """Give the values that a rule found if it holds, None if it does not."""
    if end.phase not in rule.phases or (rule.oom and end.oom_kills <= 0):
        return None
    if rule.ends and not rule.ends & end.ends:
        return None
    if rule.pattern is None:
        return {}
    for line in end.errors:
        if match := rule.pattern.match(line):
            return {name: value.strip() for name, value in match.groupdict().items() if value}
    return None


def _unshelled(returncode: int) -> int:
    """Undo what a shell makes of a signal: 128 + n, where the command is a script around vLLM."""
    return 128 - returncode if returncode - 128 in {*OUTSIDE, *_FAULTS} else returncode


def _errors(lines: Sequence[str], phase: str) -> Iterator[str]:
    """Give what the lines near the end say that may decide, without their prefixes, newest first."""
    newest: float | None = None
    age = 0.0
    for line in reversed(lines):
        prefix = _PREFIX.match(line)
        if prefix is None:
            continue
        if (stamp := _stamp(prefix)) is not None:
            newest = stamp if newest is None else newest
            age = _apart(stamp, newest)
        # A line without a stamp is taken for as new as the next one that has one.
        text = line[prefix.end() :]
        if age <= _NEAR and (_may_decide(prefix, phase) or LAST_WORDS.match(text)):
            yield text


def _may_decide(prefix: re.Match[str], phase: str) -> bool:
    """Tell from the prefix of a line whether its text counts."""
    of_a_request = phase == READY and (prefix["process"] or "").lower().startswith("apiserver")
    return prefix["level"] in _DECISIVE_LEVELS and not of_a_request


def _stamp(prefix: re.Match[str]) -> float | None:
    """Give the second of the year at which vLLM wrote a line; None if it has no stamp."""
    if prefix["stamp"] is None:
        return None
    try:
        # The stamps have no year: a leap year, for 29 February.
        return datetime.strptime(f"2000-{prefix['stamp']}+0000", "%Y-%m-%d %H:%M:%S%z").timestamp()
    except ValueError:
        return None


def _apart(one: float, other: float) -> float:
    """Give the seconds between two stamps, also around New Year.

    Several processes write at once, so that a line may be newer than the one behind it.
    """
    return min((one - other) % _YEAR, (other - one) % _YEAR)


def _facts(own: int, lines: Sequence[str], oom_kills: int) -> dict[str, str]:
    """Give what sentences may name: what the server was told to be, as far as the lines show it."""
    told = next((line for line in reversed(lines) if _ARGUMENTS.search(line)), "")
    model, port, path = _MODEL.search(told), _PORT.search(told), _SOCKET.search(told)
    address = f"the socket {path[1]}" if path else f"port {port[1]}" if port else "its port"
    return {
        "model": f"the model {model[1]}" if model else "the model",
        "model_name": f"model {model[1]}" if model else "such model",
        "address": address,
        "oom_kills": str(oom_kills),
        "victim": "it" if own < 0 else "one of its processes",
        "signal": signal.Signals(-own).name if -own in OUTSIDE else "",
    }
