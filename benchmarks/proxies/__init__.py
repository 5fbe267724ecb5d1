"""The proxies that are compared: ours, and the others as their own documentation would run them."""

from benchmarks.proxies.base import Place, Proxy
from benchmarks.proxies.haproxy import Haproxy, HaproxyNoDelay
from benchmarks.proxies.litellm import LiteLLM
from benchmarks.proxies.nginx import Nginx
from benchmarks.proxies.ours import Ours
from benchmarks.proxies.routers import SglangRouter, Smg, VllmRouter

__all__ = ["DEFAULT", "KNOWN", "Ours", "Place", "Proxy"]

KNOWN: dict[str, Proxy] = {
    proxy.name: proxy
    for proxy in (
        Ours(),
        Ours(transport="unix"),
        Ours(native=False),
        Haproxy(),
        HaproxyNoDelay(),
        Nginx(),
        VllmRouter(),
        Smg(),
        SglangRouter(),
        LiteLLM(),
    )
}
# LiteLLM takes a hundred times the CPU of the others: its rows cost a minute and say nothing new.
DEFAULT = tuple(name for name in KNOWN if name != "litellm")
