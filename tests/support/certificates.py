"""Certificates for tests: an authority of our own, files as an operator has them, a client's trust."""

from __future__ import annotations

import datetime
import ssl
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import trustme

# ssl.OP_IGNORE_UNEXPECTED_EOF, which has a name since Python 3.12; 3.11 sets it, in its earlier releases.
_IGNORE_UNEXPECTED_EOF = 1 << 7


@dataclass(frozen=True)
class Certificate:
    """A certificate for localhost in files, and the clients that trust it."""

    certificate: Path
    key: Path
    authority: str

    @cached_property
    def client(self) -> ssl.SSLContext:
        return self.new_client()

    def new_client(self) -> ssl.SSLContext:
        """Give a client's context of its own, to be changed; it tells an end from a cut."""
        context = ssl.create_default_context(cadata=self.authority)
        context.options &= ~_IGNORE_UNEXPECTED_EOF
        return context

    @property
    def options(self) -> dict[str, Path]:
        """What `Options` takes."""
        return {"tls_cert": self.certificate, "tls_key": self.key}


def make_certificate(directory: Path, days: float = 365, name: str = "door") -> Certificate:
    """Write a fresh certificate that ends in `days` (began before that), and its key."""
    authority = trustme.CA()
    now = datetime.datetime.now(datetime.UTC)
    issued = authority.issue_cert(
        "localhost",
        "127.0.0.1",
        not_before=now - datetime.timedelta(days=1000),
        not_after=now + datetime.timedelta(days=days),
    )
    certificate, key = directory / f"{name}.pem", directory / f"{name}-key.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.touch(0o600)
    key.write_bytes(issued.private_key_pem.bytes())
    return Certificate(certificate, key, authority.cert_pem.bytes().decode())
