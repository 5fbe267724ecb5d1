"""How often the kernel's OOM killer struck while a server lived."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class OomCounter:
    """The kernel's counts of OOM kills at one moment; None where there is no such count.

    Every kill is in `host`; those of processes in our own control group (version 2) and below it, for
    whatever reason, are in `group` too. The two are never added up.
    """

    host: int | None
    group: int | None

    @classmethod
    def read(cls, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> OomCounter:
        """Read the counts as they are now; never raises."""
        group = _own_group(proc)
        return cls(
            host=_count(proc / "vmstat"),
            group=_count(cgroups / group / "memory.events") if group is not None else None,
        )

    def kills_until(self, later: OomCounter) -> int:
        """Give how many processes were killed between this reading and a later one.

        Our group's own count is preferred: the host's has the kills in other people's containers too.
        """
        if self.group is not None and later.group is not None:
            return max(0, later.group - self.group)
        if self.host is not None and later.host is not None:
            return max(0, later.host - self.host)
        return 0


def _own_group(proc: Path) -> str | None:
    """Give the path of our control group (version 2) below the mount; None without one."""
    try:
        lines = (proc / "self" / "cgroup").read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    return next((line.removeprefix("0::").lstrip("/") for line in lines if line.startswith("0::")), None)


def _count(path: Path) -> int | None:
    """Read `oom_kill` from a file of names and numbers."""
    try:
        words = [line.split() for line in path.read_text("utf-8", "replace").splitlines()]
        return next((int(line[1]) for line in words if len(line) == 2 and line[0] == "oom_kill"), None)
    except (OSError, ValueError):
        return None
