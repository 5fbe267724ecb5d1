"""The named keys of clients, as they are written down: their digests, never a key itself.

The file outlives renders, and only the `keys` verbs write it. All here is pure; `key_store` has the disk.

A key is 256 random bits, so its plain SHA-256 is all that has to be kept: nobody can try them all, and
the salt and the slowness that protect a person's password would buy nothing, on the way of a request.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import chain, count
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from vllm_stack.errors import StackError, UsageError

# The most keys of a stack. Each has a place in the memory that the proxy's processes share.
MOST_NAMED = 16384
MOST_PER_MINUTE = 1_000_000
MOST_CONCURRENT = 1_000_000

_NAME = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}"
# What the proxy calls the keys that were given to `render`.
_OF_RENDER = re.compile(r"key-[0-9]+")

_Name = Annotated[str, Meta(pattern=rf"\A{_NAME}\Z")]
_Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Moment = Annotated[datetime, Meta(tz=True)]


class FormerKey(Struct, frozen=True, forbid_unknown_fields=True):
    """What a name had before it was given another key; it holds `until` then."""

    digest: _Digest
    until: _Moment


# A field that is not known may be a limit: who does not understand it must not let its key in.
class NamedKey(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One client: its key as SHA-256, and what it may have; None is no limit.

    Its `slot` is where its requests are counted.
    """

    name: _Name
    digest: _Digest
    slot: Annotated[int, Meta(ge=0, lt=MOST_NAMED)]
    created: _Moment
    expires: _Moment | None = None
    requests_per_minute: Annotated[int, Meta(ge=1, le=MOST_PER_MINUTE)] | None = None
    concurrent: Annotated[int, Meta(ge=1, le=MOST_CONCURRENT)] | None = None
    former: tuple[FormerKey, ...] = ()

    def has_expired(self, now: datetime) -> bool:
        return self.expires is not None and self.expires <= now


class KeyFile(Struct, frozen=True, forbid_unknown_fields=True):
    """All of them. `generation` grows with every change: by it the proxy's processes say what they know."""

    generation: Annotated[int, Meta(ge=0, le=2**53)] = 0
    next_slot: Annotated[int, Meta(ge=0, lt=MOST_NAMED)] = 0
    keys: Annotated[tuple[NamedKey, ...], Meta(max_length=MOST_NAMED)] = ()

    def named(self, name: str) -> NamedKey:
        """Give the key of that name; raises `StackError` if there is none."""
        for key in self.keys:
            if key.name == name:
                return key
        if _OF_RENDER.fullmatch(name):
            raise StackError(
                f"{name} was given to render, and is none of the named keys: leave it out of --api-key-file, "
                "render anew, and start the proxy anew"
            )
        near = difflib.get_close_matches(name, [key.name for key in self.keys], 1)
        hint = f": did you mean {near[0]}?" if near else ": `vllm-stack keys list` shows all"
        raise StackError(f"No key is called {name!r}{hint}")


def decode(text: bytes) -> KeyFile:
    """Read the file; raises `ValueError` in one line that shows no digest."""
    try:
        file = _decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    for what, values in (
        ("name", [key.name for key in file.keys]),
        ("slot", [key.slot for key in file.keys]),
        ("digest", [digest for key in file.keys for digest in digests(key)]),
    ):
        if len(set(values)) < len(values):
            raise ValueError(f"two keys have the same {what}")
    return file


_decode = msgspec.json.Decoder(KeyFile).decode


def encode(file: KeyFile) -> str:
    """Write the file down."""
    return msgspec.json.format(msgspec.json.encode(file), indent=2).decode() + "\n"


def digests(key: NamedKey) -> Iterator[str]:
    """Give the digest of a key, then those of the keys that its name had before."""
    return chain((key.digest,), (former.digest for former in key.former))


def check_name(name: str) -> str:
    """Give back a name that a key can have; raises `UsageError` for any other."""
    if re.fullmatch(_NAME, name) is None:
        raise UsageError(
            f"{name!a} cannot be the name of a key: use up to 64 letters, digits and . _ @ - of ASCII, "
            "a letter or a digit first"
        )
    if _OF_RENDER.fullmatch(name):
        raise UsageError(f"{name} is what the keys that were given to render are called: use another name")
    return name


def with_added(
    file: KeyFile,
    name: str,
    digest: bytes,
    now: datetime,
    expires: datetime | None = None,
    requests_per_minute: int | None = None,
    concurrent: int | None = None,
) -> KeyFile:
    """Give the file with one key more.

    Raises `UsageError` for a name that cannot be one, `StackError` for one that is taken, and for a key
    too many.
    """
    check_name(name)
    if any(key.name == name for key in file.keys):
        raise StackError(
            f"A key is called {name} already: `vllm-stack keys rotate {name}` gives it another one"
        )
    if len(file.keys) >= MOST_NAMED:
        raise StackError(f"There are {MOST_NAMED} keys, and there can be no more: revoke some")
    # A slot is given again after all others only: what is left in it of a key that was revoked should
    # not be counted for another.
    taken = {key.slot for key in file.keys}
    slot = next(slot for at in count(file.next_slot) if (slot := at % MOST_NAMED) not in taken)
    key = NamedKey(
        name=name,
        digest=digest.hex(),
        slot=slot,
        created=now,
        expires=expires,
        requests_per_minute=requests_per_minute,
        concurrent=concurrent,
    )
    return _changed(file, (*file.keys, key), now, (slot + 1) % MOST_NAMED)


def without(file: KeyFile, name: str, now: datetime) -> KeyFile:
    """Give the file without a key, and without those that its name had before; raises `StackError`."""
    gone = file.named(name)
    return _changed(file, tuple(key for key in file.keys if key is not gone), now, file.next_slot)


def with_rotated(
    file: KeyFile, name: str, digest: bytes, now: datetime, grace: timedelta, expires: datetime | None = None
) -> KeyFile:
    """Give the file with another key under the same name, the limits and the end of which stay.

    Those of before hold for `grace`, or to their own end; `expires` is a new end. Raises `StackError` for
    a name that is not there, and for a key that has come to its end and gets no new one.
    """
    old = file.named(name)
    if expires is None and old.has_expired(now):
        raise StackError(f"{name} expired at {shown(old.expires)}: say --expires for its next key")
    end = now + grace
    last = FormerKey(old.digest, end if old.expires is None else min(end, old.expires))
    earlier = (FormerKey(one.digest, min(end, one.until)) for one in old.former)
    new = msgspec.structs.replace(
        old,
        digest=digest.hex(),
        created=now,
        expires=expires or old.expires,
        former=(*earlier, last),
    )
    return _changed(file, tuple(new if key is old else key for key in file.keys), now, file.next_slot)


def shown(moment: datetime | None) -> str:
    """Show a moment as a person reads it, in UTC."""
    return "never" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}Z"


def _changed(file: KeyFile, keys: tuple[NamedKey, ...], now: datetime, next_slot: int) -> KeyFile:
    # By the clock, so that a file that was deleted and made anew is newer than what is remembered of it.
    generation = max(file.generation + 1, int(now.timestamp() * 1_000_000))
    return KeyFile(generation, next_slot, tuple(_without_ended(key, now) for key in keys))


def _without_ended(key: NamedKey, now: datetime) -> NamedKey:
    former = tuple(one for one in key.former if one.until > now)
    return key if len(former) == len(key.former) else msgspec.structs.replace(key, former=former)
