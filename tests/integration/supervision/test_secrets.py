"""After all a stack does with secrets none is in `out/`, in /proc or in what is printed but where it must."""

from __future__ import annotations

import http.client
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.integration.conftest import CHAT, Stack, ask
from tests.support.certificates import make_certificate
from tests.support.polling import until
from tests.support.ports import free_ports

RENDERED, FOREIGN = "sk-rendered-5f1c0a", "sk-upstream-99ab3d"
WRONG, IN_QUERY = "sk-wrong-0e77b2", "sk-query-7d1e"
# What every verb that only looks prints, and every page of the admin door.
VERBS = (
    ["status"],
    ["status", "--json"],
    ["logs"],
    ["logs", "requests"],
    ["logs", "--json"],
    ["keys", "list"],
)
PAGES = ("/metrics", "/workers", "/keys", "/traffic", "/state", "/failures", "/logs?worker=proxy")
# supervisord writes these by the umask of whoever started it. Nobody else comes as far as there.
OF_SUPERVISORD = ("logs/*.log*", "run/supervisord.pid")


class Lived(NamedTuple):
    """A stack that runs, and the secrets it knows or has heard of."""

    stack: Stack
    secrets: dict[str, bytes]

    @property
    def internal(self) -> bytes:
        return self.stack.layout.internal_key.read_bytes().strip()


def private(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def status_of(one: Stack, client: ssl.SSLContext, key: str, query: str = "") -> int:
    """Ask through the public door, and give the status."""
    connection = http.client.HTTPSConnection("localhost", one.door, timeout=10, context=client)
    try:
        head = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        connection.request("POST", CHAT + query, '{"model": "m", "messages": [], "fake": {}}', head)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lived]:
    place = tmp_path_factory.mktemp("secrets")
    tls = make_certificate(place)
    (nobody,) = free_ports(1)
    with Stack(
        place / "stack/out",
        workers=2,
        proxy_processes="2",
        api_key_file=private(place / "keys.txt", RENDERED),
        upstream=f"http://127.0.0.1:{nobody}",
        upstream_key_file=private(place / "upstream-keys.txt", FOREIGN),
        tls_cert=str(tls.certificate),
        tls_key=str(tls.key),
    ) as one:
        one.up()
        named = one.vllm_stack("keys", "add", "alice").stdout.strip()
        assert [status_of(one, tls.client, key) for key in (RENDERED, named, WRONG)] == [200, 200, 401]
        assert status_of(one, tls.client, WRONG, f"?api_key={IN_QUERY}") == 401
        rotated = one.vllm_stack("keys", "rotate", "alice").stdout.strip()
        one.supervisorctl("signal", "HUP", "proxy")
        assert status_of(one, tls.client, rotated) == 200
        # A failure is recorded with its last words.
        one.kill(one.tree(0).server)
        until(lambda: one.failure(0), 10, "the failure is recorded")
        until(one.is_ready, 30, "it is back")
        yield Lived(
            one,
            {
                "the rendered key": RENDERED.encode(),
                "the named key": named.encode(),
                "the rotated key": rotated.encode(),
                "the key of the upstream": FOREIGN.encode(),
                "a wrong key": WRONG.encode(),
                "a key in a query": IN_QUERY.encode(),
                "the private key of TLS": tls.key.read_bytes().splitlines()[1],
            },
        )


def files_of(one: Stack) -> list[Path]:
    return [path for path in one.layout.out.rglob("*") if stat.S_ISREG(path.lstat().st_mode)]


def test_no_file_of_the_stack_has_a_secret_but_the_internal_key_in_its_own(lived: Lived) -> None:
    assert len(files_of(lived.stack)) > 20
    for path in files_of(lived.stack):
        text = path.read_bytes()
        for name, secret in lived.secrets.items():
            assert secret not in text, f"{name} is in {path}"
        if path != lived.stack.layout.internal_key:
            assert lived.internal not in text, f"the internal key is in {path}"


def test_nobody_else_may_enter_or_read_anything_of_the_stack(lived: Lived) -> None:
    out = lived.stack.layout.out
    for path in (out, *out.rglob("*")):
        mode = path.lstat().st_mode
        if not stat.S_ISLNK(mode) and not any(path.match(pattern) for pattern in OF_SUPERVISORD):
            assert not mode & 0o077, f"{path} has mode {mode & 0o777:o}"


def test_no_process_shows_a_secret_to_others(lived: Lived) -> None:
    """A command line is everybody's to read, an environment its owner's: there the internal key has to be."""
    processes = lived.stack.processes()
    assert len(processes) >= 10
    told = 0
    for process in processes:
        arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        environment = Path(f"/proc/{process.pid}/environ")
        assert not environment.stat().st_mode & 0o077
        variables = environment.read_bytes()
        told += lived.internal in variables
        for name, secret in lived.secrets.items():
            assert secret not in arguments + variables, f"{name}: {process}"
        assert lived.internal not in arguments, process
    assert told, "vLLM is told the internal key by its environment"


def test_no_verb_and_no_page_shows_a_secret(lived: Lived) -> None:
    shown = {" ".join(words): lived.stack.vllm_stack(*words) for words in VERBS}
    texts = {name: (done.stdout + done.stderr).encode() for name, done in shown.items()}
    for page in PAGES:
        status, texts[page] = ask(lived.stack.admin, path=page)
        assert status == 200, page
    texts["supervisorctl"] = lived.stack.supervisorctl("status").stdout.encode()
    texts["what supervisord printed"] = (lived.stack.home / "supervisord.out").read_bytes()
    for where, text in texts.items():
        assert text, where
        for name, secret in {**lived.secrets, "the internal key": lived.internal}.items():
            assert secret not in text, f"{name} is in {where}"


def test_a_key_of_the_command_line_is_rendered_into_no_file(lived: Lived) -> None:
    assert lived.stack.render(api_key=RENDERED) == 0
    assert not [path for path in files_of(lived.stack) if RENDERED.encode() in path.read_bytes()]
