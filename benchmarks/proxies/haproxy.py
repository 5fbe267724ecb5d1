"""HAProxy, the yardstick: C, and nothing but proxying; with its defaults, and as streams need it.

By default it holds events back for up to 200 ms, in the hope of more (`MSG_MORE`), and sends them
in bunches: that is cheaper, and the first token is late. `http-no-delay` is what one would set.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.proxies.base import Place, Proxy, file_limit, find_program, output_of

_CONFIG = """\
global
    nbthread 1
    maxconn {connections}
defaults
    mode http
    timeout connect 5s
    timeout client 900s
    timeout server 900s
    timeout http-request 60s
    timeout http-keep-alive 300s
    http-reuse always
    {option}
frontend door
    bind 127.0.0.1:{port} backlog 8192
    default_backend workers
backend workers
    balance leastconn
    option httpchk GET /health
{servers}
"""


class Haproxy(Proxy):
    name = "haproxy"
    option = ""
    settings = "1 thread, leastconn, http-reuse always, health checks"

    def missing(self) -> str | None:
        return None if find_program("haproxy") else "haproxy is not installed (make bench-install)"

    def version(self) -> str:
        return output_of(find_program("haproxy") or "haproxy", "-v").split()[2]

    def prepare(self, place: Place) -> None:
        servers = "\n".join(
            f"    server worker-{index} 127.0.0.1:{port} check" for index, port in enumerate(place.backends)
        )
        # Two descriptors a connection, and some for itself; it refuses to start with too few.
        connections = min(9000, (file_limit() - 500) // 2)
        text = _CONFIG.format(port=place.port, servers=servers, connections=connections, option=self.option)
        (place.directory / "haproxy.cfg").write_text(text)

    def argv(self, place: Place) -> list[str | Path]:
        return [find_program("haproxy") or "haproxy", "-db", "-f", place.directory / "haproxy.cfg"]


class HaproxyNoDelay(Haproxy):
    name = "haproxy-no-delay"
    rows = ("streams",)
    option = "option http-no-delay"
    settings = "the same, with http-no-delay"
