"""The proxy's admin door, as the verbs ask it."""

from __future__ import annotations

from typing import Any

import requests


def ask_admin(port: int, page: str, timeout: float) -> Any:
    """Get a page of JSON, within `timeout` seconds for each wait.

    From this machine, whatever `http_proxy` says of the way to others. Raises `requests.RequestException`,
    and `ValueError` for what is no JSON.
    """
    with requests.Session() as session:
        session.trust_env = False
        return session.get(f"http://127.0.0.1:{port}{page}", timeout=timeout).json()
