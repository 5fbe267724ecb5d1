"""The certificate and the key are looked at before anything starts."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.certificates import Certificate, make_certificate
from tests.unit.boxes import inventory, options, plan_for
from vllm_stack.errors import UsageError
from vllm_stack.tls_files import TlsFiles, check_tls_files, expiry_warning, server_context


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


def copy(good: Certificate, tmp_path: Path) -> Certificate:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    certificate.write_bytes(good.certificate.read_bytes())
    key.touch(0o600)
    key.write_bytes(good.key.read_bytes())
    return Certificate(certificate, key, good.authority)


def test_a_pair_that_fits_is_taken_by_its_absolute_paths(
    good: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(good.key.parent)
    assert check_tls_files(Path(good.certificate.name), Path(good.key.name)) == (good.certificate, good.key)


def test_the_door_speaks_tls_1_2_and_newer_and_http_1_1(good: Certificate) -> None:
    context = server_context(TlsFiles(good.certificate, good.key))
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def other_key(files: Certificate, tmp_path: Path) -> None:
    files.key.write_bytes(make_certificate(tmp_path, name="other").key.read_bytes())


def encrypt(files: Certificate, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as s

    key = s.load_pem_private_key(files.key.read_bytes(), None)
    pem, form = s.Encoding.PEM, s.PrivateFormat.PKCS8
    files.key.write_bytes(key.private_bytes(pem, form, s.BestAvailableEncryption(b"secret")))


BROKEN: dict[str, tuple[Callable[[Certificate, Path], object], tuple[str, ...]]] = {
    "another key": (other_key, ("k.pem", "the key is not the certificate's")),
    "no certificate": (lambda f, _: f.certificate.unlink(), ("--tls-cert", "c.pem", "No such file")),
    "no key": (lambda f, _: f.key.unlink(), ("--tls-key", "k.pem", "No such file")),
    "an empty certificate": (lambda f, _: f.certificate.write_text(""), ("c.pem", "no certificate in PEM")),
    "not text": (lambda f, _: f.certificate.write_bytes(b"\xff\xfe"), ("c.pem", "no certificate in PEM")),
    "the two exchanged": (
        lambda f, _: f.certificate.write_bytes(f.key.read_bytes()),
        ("c.pem", "no certificate in PEM"),
    ),
    "a directory": (lambda f, d: (f.key.unlink(), f.key.mkdir()), ("k.pem", "Is a directory")),
    "a key for all to read": (lambda f, _: f.key.chmod(0o644), ("k.pem", "chmod 600")),
    "a key for the group to read": (lambda f, _: f.key.chmod(0o640), ("k.pem", "chmod 600")),
    "a key with a passphrase": (encrypt, ("k.pem", "passphrase", "openssl pkey")),
}


@pytest.mark.parametrize(("break_it", "names"), BROKEN.values(), ids=BROKEN)
def test_what_cannot_serve_is_refused_in_one_line(
    good: Certificate,
    tmp_path: Path,
    break_it: Callable[[Certificate, Path], object],
    names: tuple[str, ...],
) -> None:
    files = copy(good, tmp_path)
    break_it(files, tmp_path)
    with pytest.raises(UsageError) as caught:
        check_tls_files(files.certificate, files.key)
    assert all(name in str(caught.value) for name in names), str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_without_the_other_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--tls-cert c\.pem needs --tls-key"):
        check_tls_files(Path("c.pem"), None)
    with pytest.raises(UsageError, match=r"--tls-key k\.pem needs --tls-cert"):
        check_tls_files(None, Path("k.pem"))


@pytest.mark.parametrize(
    ("days", "says"), [(365.0, None), (15.0, None), (3.0, "expires in 3 days"), (-1.0, "has expired")]
)
def test_a_certificate_near_its_end_is_said_aloud(tmp_path: Path, days: float, says: str | None) -> None:
    files = make_certificate(tmp_path, days)
    warning = expiry_warning(TlsFiles(files.certificate, files.key))
    assert (warning is None) if says is None else (warning is not None and says in warning)
    plan = plan_for(options(**files.options), inventory(tls_warning=warning))
    assert (warning in plan.notes) == (warning is not None)
