"""The head of a request: what it says, and the rules of a head that llhttp leaves to us."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

from vllm_stack.proxy.caller import Caller
from vllm_stack.proxy.refusal import Refusal
from vllm_stack.proxy.routes import Route

MAX_ID = 128
METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS"})
# RFC 9110 section 15.5.6: who refuses a method says which there are.
_ALLOW = (("allow", ", ".join(sorted(method.decode() for method in METHODS))),)
_BAD_IN_PATH = (b"//", b"\\", b"\0")
_BROKEN_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_AUTHORITY = re.compile(rb"[^/?#]*")
# With one of these a request takes a course of its own, or names itself (and its trace): it is parsed in
# full, because no other one has the same head, and it would push those out that are remembered.
_OWN_COURSE = frozenset(
    {
        b"b3",
        b"expect",
        b"idempotency-key",
        b"sentry-trace",
        b"traceparent",
        b"transfer-encoding",
        b"uber-trace-id",
        b"upgrade",
        b"x-amzn-trace-id",
        b"x-b3-traceid",
        b"x-cloud-trace-context",
        b"x-request-id",
    }
)


class RequestHead:
    """All that the head of a request says but its length: the same bytes make the same head.

    Filled in by llhttp; complete and checked before anybody else sees it, and not changed after.
    What others conclude from it is kept with it: its `route`, the digest of its key and whose that is,
    and the lines that go to a worker (`forwarded`).
    """

    __slots__ = (
        "_named",
        "caller",
        "expects_continue",
        "forwarded",
        "given_id",
        "headers",
        "http_1_1",
        "keep_alive",
        "key_digest",
        "method",
        "passed",
        "path",
        "route",
        "target",
    )

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        self.path = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.http_1_1 = True
        self.keep_alive = True
        self.expects_continue = False
        self._named: dict[bytes, list[bytes]] = {}
        # What the client calls this request, if that is a plain word.
        self.given_id = b""
        self.route: Route | None = None
        self.key_digest: bytes | None = None
        self.forwarded: bytes | None = None
        # Whose key it has; None while any key is good.
        self.caller: Caller | None = None
        # The epoch of the keyring in which its key was found good, and its route open.
        self.passed = 0

    def add(self, name: bytes, value: bytes) -> None:
        """Take one header as it came."""
        self.headers.append((name, value))
        self._named.setdefault(name.lower(), []).append(value)

    def values(self, name: bytes) -> Sequence[bytes]:
        """Give the values of a header, by its lower-case name, in the order they came."""
        return self._named.get(name, ())

    @property
    def may_recur(self) -> bool:
        """Tell whether a later request may be told by these bytes alone: plain framing, no upgrade."""
        return not (self._named.keys() & _OWN_COURSE)


def bad_request(message: str, status: int = 400, code: str = "bad_request") -> Refusal:
    """Give the refusal of a request that is not well-formed; its connection cannot go on."""
    return Refusal(status, code, message, close=True)


def _not_allowed(message: str) -> Refusal:
    return Refusal(405, "method_not_allowed", message, headers=_ALLOW, close=True)


def check_head(head: RequestHead, version: str) -> None:
    """Apply what llhttp leaves open, and note what follows from it; raises `Refusal`."""
    if version not in ("1.1", "1.0"):
        raise bad_request(f"HTTP/{version} is not spoken here", 505, "http_version_not_supported")
    head.http_1_1 = version == "1.1"
    if head.method not in METHODS:
        raise _not_allowed("This method is not allowed here")
    _check_framing(head)
    hosts = head.values(b"host")
    if len(hosts) > 1 or (head.http_1_1 and not hosts):
        raise bad_request("Exactly one Host header is required")
    expect = [value.lower() for value in head.values(b"expect")]
    if expect and (expect != [b"100-continue"] or not head.http_1_1):
        raise bad_request("This expectation cannot be met", 417, "expectation_failed")
    head.expects_continue = bool(expect)
    head.target = _origin_form(head.target)
    head.path = check_path(head.target.partition(b"?")[0])
    ids = head.values(b"x-request-id")
    if len(ids) == 1 and 0 < len(ids[0]) <= MAX_ID and ids[0].translate(None, b"-_.:").isalnum():
        head.given_id = ids[0]


def _check_framing(head: RequestHead) -> None:
    encodings = head.values(b"transfer-encoding")
    if not encodings:
        return
    if not head.http_1_1:
        raise bad_request("Transfer-Encoding does not exist in HTTP/1.0")
    if head.values(b"content-length"):
        raise bad_request("Content-Length and Transfer-Encoding exclude each other")
    codings = [word.strip().lower() for value in encodings for word in value.split(b",")]
    if any(coding != b"chunked" for coding in codings):
        raise bad_request("Only the transfer coding 'chunked' is understood", 501, "not_implemented")
    if len(codings) > 1:
        raise bad_request("The transfer coding 'chunked' was named twice")


def _origin_form(target: bytes) -> bytes:
    """Reduce an absolute-form target to path and query: requests are routed by path alone."""
    if target == b"*":
        raise _not_allowed("OPTIONS * is not answered here")
    if not target.startswith(b"/"):
        scheme, separator, rest = target.partition(b"://")
        if not separator or scheme.lower() not in (b"http", b"https"):
            raise bad_request("The request target is not a path")
        target = rest[len(_AUTHORITY.match(rest)[0]) :]  # type: ignore[index]  # matches anything
        if not target.startswith(b"/"):
            target = b"/" + target
    if b"#" in target:
        raise bad_request("The request target has a fragment")
    return target


def check_path(raw: bytes) -> bytes:
    """Decode a path, refusing every spelling that a rule and a worker could read differently.

    Raises `Refusal` for dot segments, empty segments, encoded slashes, back slashes, control
    characters and broken percent signs; the path that passes means the same to both.
    """
    if _BROKEN_PERCENT.search(raw):
        raise bad_request("The path has a broken percent sign")
    if b"%2f" in raw.lower() or b"%25" in raw:
        raise bad_request("The path has an encoded slash or percent sign")
    path = unquote_to_bytes(raw)
    segments = path.split(b"/")
    unclear = any(part in path for part in _BAD_IN_PATH) or b"." in segments or b".." in segments
    if unclear or any(byte < 32 or byte == 127 for byte in path):
        raise bad_request("The path is not in its plain form")
    return path
