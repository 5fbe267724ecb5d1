"""The keys that the door takes now: those that were given to `render`, and those of the file of named keys.

Every process looks at the file once a second and takes it anew when it has changed: no signal and no socket,
so nothing is half done whoever is killed. What cannot be read changes nothing. A door that has asked for keys
never opens: not when the last one is revoked, nor when the file is gone.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass

import gevent

from vllm_stack.errors import StackError
from vllm_stack.keys.named import KeyFile, NamedKey
from vllm_stack.keys.store import Unreadable, Version, read_keys, version_of
from vllm_stack.proxy.caller import Caller
from vllm_stack.proxy.key_usage import NO_FILE, KeyRow, KeyUsage, rendered_slot
from vllm_stack.proxy.settings import KeySettings

# Seconds between two looks: so long may a key hold that was revoked, or has come to its end.
INTERVAL = 1.0


@dataclass(slots=True)
class _Held:
    """A key in the ring; `until` is a Unix time, None for ever."""

    digest: bytes
    caller: Caller
    until: float | None


class Keyring:
    """The keys of one process. `epoch` is another number whenever one of them may not hold any more."""

    def __init__(self, settings: KeySettings, row: KeyRow, log: logging.Logger) -> None:
        self.epoch = 1
        self.generation = NO_FILE
        self.file = settings.named.file
        self.required = bool(settings.required or settings.rendered or settings.named.in_use or row.closed)
        self._row = row
        self._log = log
        # A file that should be there and is not is news.
        self._version: Version | None = () if settings.named.in_use else None
        # What was wrong with it the last time.
        self._trouble = ""
        # When the next of them comes to its end, and when we saw which have (Unix times).
        self._next_end: float | None = None
        self._dropped = 0.0
        self._rendered = [
            _Held(digest, Caller(row, f"key-{number + 1}", rendered_slot(number)), None)
            for number, digest in enumerate(settings.rendered)
        ]
        self._all: tuple[_Held, ...] = ()
        self._held: dict[bytes, _Held] = {}
        self._hold(KeyFile())
        self.look()
        row.publish(self.generation)

    @property
    def usage(self) -> KeyUsage:
        """What all processes have counted."""
        return self._row.usage

    @property
    def callers(self) -> list[Caller]:
        """Those who may call, each name once."""
        return list({held.caller.name: held.caller for held in self._held.values()}.values())

    def find(self, digest: bytes) -> Caller | None:
        """Give who has the key with this digest, None if nobody has.

        They are found by their hash, not one after another: the time may tell how a digest compares with
        those that are here, but who learnt one from it would still have to find a key that has it.
        """
        held = self._held.get(digest)
        if held is None or not hmac.compare_digest(held.digest, digest):
            return None
        return held.caller

    def watch(self) -> None:
        """Keep up with the file and the clock; runs for ever."""
        while True:
            gevent.sleep(INTERVAL)
            self.look()

    def look(self) -> None:
        """Take the file if it has changed, and let go of what has come to its end."""
        version = version_of(self.file)
        if version != self._version:
            self._version = version
            self._take()
        if self._row.closed and not self.required:  # another process saw a key before it was gone
            self._close()
        now = time.time()
        # A clock that was ahead had ended keys that hold.
        if now < self._dropped or (self._next_end is not None and now >= self._next_end):
            self._drop_ended()

    def _take(self) -> None:
        try:
            file, self._version = read_keys(self.file)
        except FileNotFoundError:
            self._keep(f"{self.file} is gone")
        except Unreadable as error:
            self._version = ()  # it is there all the same, and may say that a key was revoked: try again
            self._keep(str(error))
        except StackError as error:
            self._keep(str(error))
        else:
            self._trouble = ""
            if not self.required:
                self._log.warning("A named key was made: from now on the door asks for one")
            self._close()
            self._hold(file)
            self.generation = file.generation
            self._row.publish(file.generation)
            self._log.info("Named keys: %d", len(file.keys))

    def _keep(self, trouble: str) -> None:
        # Who has never read the file has none of its keys; what the master read when it started may
        # have been revoked since.
        self._close()
        if trouble == self._trouble:
            return
        self._trouble = trouble
        before = "those it named before hold" if self.generation != NO_FILE else "no named key holds"
        self._log.error("%s: %s", trouble, before)

    def _close(self) -> None:
        """Ask for keys from now on, in this process and in those to come."""
        if not self.required:
            self.epoch += 1  # heads that passed had no key
        self.required = self._row.closed = True

    def _hold(self, file: KeyFile) -> None:
        self._all = (*self._rendered, *self._named(file))
        self._drop_ended()

    def _named(self, file: KeyFile) -> Iterator[_Held]:
        for key in file.keys:
            caller = Caller(self._row, key.name, key.slot, key.concurrent, key.requests_per_minute)
            for digest, until in _digests(key):
                yield _Held(digest, caller, until)

    def _drop_ended(self) -> None:
        now = self._dropped = time.time()
        self._held = {held.digest: held for held in self._all if held.until is None or held.until > now}
        self._next_end = min(
            (held.until for held in self._held.values() if held.until is not None), default=None
        )
        self.epoch += 1


def _digests(key: NamedKey) -> Iterator[tuple[bytes, float | None]]:
    """Give each digest with the Unix time of its end."""
    yield bytes.fromhex(key.digest), key.expires.timestamp() if key.expires else None
    for former in key.former:
        yield bytes.fromhex(former.digest), former.until.timestamp()
