"""The ways to the model: through the door, or straight to the workers."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_stack.address import Address, UnixAddress

PROXY = "proxy"
DIRECT = "direct"


@dataclass(frozen=True, slots=True)
class Server:
    """Something that is asked: a URL up to its port, perhaps over a unix socket, and the key it wants."""

    name: str
    url: str
    socket: str | None = None
    key: str | None = None

    @classmethod
    def worker(cls, name: str, address: Address, key: str) -> Server:
        if isinstance(address, UnixAddress):
            return cls(name, "http://localhost", address.path, key)
        return cls(name, f"http://{address}", None, key)

    @property
    def headers(self) -> dict[str, str]:
        key = {} if self.key is None else {"authorization": f"Bearer {self.key}"}
        return {"content-type": "application/json", **key}


@dataclass(frozen=True, slots=True)
class Way:
    """PROXY or DIRECT, and its servers, which get the same share of the requests each."""

    name: str
    servers: tuple[Server, ...]


def in_words(way: str) -> str:
    return "through the proxy" if way == PROXY else "directly"


def clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"
