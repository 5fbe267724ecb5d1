"""nginx, as one would put it before vLLM: no buffering, kept connections to the workers."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.proxies.base import Place, Proxy, file_limit, find_program, output_of

_CONFIG = """\
daemon off;
{user}
worker_processes 1;
worker_rlimit_nofile {files};
pid nginx.pid;
error_log error.log;
events {{
    worker_connections {connections};
}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    keepalive_timeout 300s;
    keepalive_requests 100000000;
    upstream workers {{
        least_conn;
{servers}
        keepalive 4096;
        keepalive_requests 100000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=8192;
        location / {{
            proxy_pass http://workers;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 900s;
        }}
    }}
}}
"""


class Nginx(Proxy):
    name = "nginx"
    settings = "1 worker, least_conn, keepalive to the workers, proxy_buffering off"

    def missing(self) -> str | None:
        return None if find_program("nginx") else "nginx is not installed (make bench-install)"

    def version(self) -> str:
        return output_of(find_program("nginx") or "nginx", "-v").strip().rpartition("/")[2]

    def prepare(self, place: Place) -> None:
        servers = "\n".join(f"        server 127.0.0.1:{port};" for port in place.backends)
        # Started by root it would become a user who may not enter our directory.
        user = "user root;" if os.getuid() == 0 else ""
        files = file_limit()
        text = _CONFIG.format(
            port=place.port, servers=servers, user=user, files=files, connections=min(18000, files - 100)
        )
        (place.directory / "nginx.conf").write_text(text)

    def argv(self, place: Place) -> list[str | Path]:
        nginx = find_program("nginx") or "nginx"
        return [nginx, "-p", place.directory, "-c", "nginx.conf", "-e", "error.log"]
