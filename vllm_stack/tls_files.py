"""The certificate and the key of the public door: checked before anything starts, loaded by the proxy."""

from __future__ import annotations

import os
import ssl
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from vllm_stack.errors import UsageError
from vllm_stack.given import absolute
from vllm_stack.regular_file import MOST_KEYS, read_regular

# Automatic renewals come 30 days before the end: with fewer than these left, one has failed.
_WARN_DAYS = 14
_DAY = 86400


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Two PEM files: the certificate with its chain, and the private key."""

    certificate: Path
    key: Path


def check_tls_files(certificate: Path | None, key: Path | None) -> tuple[Path, Path]:
    """Give the absolute paths of both files.

    Raises `UsageError` for one without the other, a file that cannot be read, a key that others can
    read, and two that do not belong together.
    """
    if certificate is None or key is None:
        given, missing = ("--tls-cert", "--tls-key") if key is None else ("--tls-key", "--tls-cert")
        raise UsageError(f"{given} {certificate or key} needs {missing} as well: TLS takes both")
    files = TlsFiles(absolute(certificate), absolute(key))
    _read("--tls-cert", files.certificate, "CERTIFICATE")
    _check_key(files.key)
    server_context(files)
    return files.certificate, files.key


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Load both for a server that speaks TLS 1.2 and 1.3; raises `UsageError` if they do not fit."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # costs the server far more than the client
    context.set_alpn_protocols(["http/1.1"])
    try:
        # A password, or OpenSSL would ask for one at the terminal.
        context.load_cert_chain(files.certificate, files.key, password="")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UsageError(
            f"--tls-cert {files.certificate} and --tls-key {files.key} cannot be used: "
            f"{_in_words(str(reason))}"
        ) from None
    return context


def expiry_warning(files: TlsFiles, now: float | None = None) -> str | None:
    """Say what is wrong with the certificate's dates, None if nothing is."""
    try:
        ends = _end_of_validity(files)
    except ssl.SSLCertVerificationError as error:
        return f"Clients will refuse {files.certificate}: {error.verify_message}"
    days = (ends - (time.time() if now is None else now)) / _DAY
    if days > _WARN_DAYS:
        return None
    return f"{files.certificate} expires in {days:.0f} days: renew it, then `supervisorctl signal HUP proxy`"


def _read(option: str, path: Path, marker: str) -> str:
    try:
        text = read_regular(path, MOST_KEYS).decode("utf-8", "replace")
    except OSError as error:
        raise UsageError(f"{option} {path} cannot be read: {error.strerror}") from None
    if f"{marker}-----" not in text:
        raise UsageError(f"{option} {path} holds no {marker.lower()} in PEM form")
    return text


def _check_key(path: Path) -> None:
    text = _read("--tls-key", path, "PRIVATE KEY")
    status = path.stat()
    # A key of somebody else that we may read through a group is how Debian hands them out (ssl-cert).
    ours = status.st_uid == os.geteuid()
    if status.st_mode & (stat.S_IRWXO | (stat.S_IRWXG if ours else 0)):
        raise UsageError(f"--tls-key {path} can be read by others: chmod 600 {path}")
    if "ENCRYPTED" in text:
        raise UsageError(
            f"--tls-key {path} is encrypted, and nobody is there to type its passphrase: "
            f"write it without one (openssl pkey -in {path} -out plain.pem)"
        )


def _in_words(reason: str) -> str:
    words = {
        "KEY_VALUES_MISMATCH": "the key is not the certificate's",
        "EE_KEY_TOO_SMALL": "the key is too short",
        "KEY_TYPE_MISMATCH": "the key is not the certificate's",
    }
    return words.get(reason, reason.replace("_", " ").lower())


def _end_of_validity(files: TlsFiles) -> float:
    """Give the certificate's last moment (Unix time), by shaking hands with ourselves.

    The standard library tells a certificate's fields only to a peer that has verified it. Raises
    `ssl.SSLCertVerificationError` if it does not hold now.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(files.certificate)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the certificate vouches for itself
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(to_client, to_server)
    server = server_context(files).wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    fields = client.getpeercert()
    return ssl.cert_time_to_seconds(str((fields or {})["notAfter"]))
