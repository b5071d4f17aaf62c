"""HTTP to an address that a user gave: looked up once, checked, and connected to as it was checked.

A name that answers differently the second time gains nothing. No redirect is followed, no proxy of
the environment is used, and no more of an answer is read than is asked for.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPMessage
from urllib.parse import SplitResult, urlsplit

from kb.addresses import is_public

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_PORTS = {"http": 80, "https": 443}


class NoAnswer(Exception):
    """The other side was not reached, or said nothing in time; the message says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; of the body at most as many bytes as were asked for, and one more."""

    status: int
    headers: HTTPMessage
    body: bytes

    @property
    def retry_after_s(self) -> float | None:
        """Seconds or a date (RFC 9110, 10.2.3); None when it is neither."""
        text = (self.headers.get("Retry-After") or "").strip()
        if text.isdecimal() and len(text) < 10:
            return float(text)
        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
        except (ValueError, TypeError, OverflowError):
            return None


class PinnedHttp:
    """Posts to users' addresses; see the module for what it refuses. Safe for threads.

    Args:
        allow_private: also speak to addresses that are not public.
        setting: what allows that, for messages.
        trusted: certificates; None: those of this machine.
    """

    def __init__(
        self, *, allow_private: bool, setting: str, trusted: ssl.SSLContext | None = None
    ) -> None:
        self._allow_private, self._setting = allow_private, setting
        self._trusted = trusted

    def post(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        timeout_s: float,
        read_bytes: int = 0,
    ) -> Answer:
        """One attempt.

        Args:
            timeout_s: for all of it, from the look-up of the address to the last byte that is read.
        Raises:
            NoAnswer: there is none.
        """
        parts = urlsplit(url)
        addresses = self._addresses(parts)
        connection = _Pinned(parts, addresses, timeout_s, self._tls(parts))
        # Who sends a byte now and then would never run into a socket's own timeout.
        cut = threading.Timer(timeout_s, connection.cut)
        cut.daemon = True
        cut.start()
        try:
            connection.request("POST", _target(parts), body=body, headers=dict(headers))
            answer = connection.getresponse()
            read = answer.read(read_bytes + 1) if read_bytes else b""
            if connection.was_cut:  # what was cut off looks like an answer that ended early
                raise TimeoutError
            return Answer(answer.status, answer.headers, read)
        except (OSError, HTTPException, ValueError) as exc:
            if connection.was_cut or isinstance(exc, TimeoutError):
                raise NoAnswer(f"no answer within {timeout_s:g} s") from exc
            raise NoAnswer(f"no answer: {_reason(exc)}") from exc
        finally:
            cut.cancel()
            connection.close()

    def _tls(self, parts: SplitResult) -> ssl.SSLContext | None:
        if parts.scheme != "https":
            return None
        if self._trusted is None:
            self._trusted = ssl.create_default_context()
        return self._trusted

    def _addresses(self, parts: SplitResult) -> Sequence[tuple[int, Address]]:
        """Port and address, as the name is at this moment.

        Raises:
            NoAnswer: the name is not known, or one of its addresses may not be spoken to.
        """
        host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:
            raise NoAnswer(f"no address for {host!r}: {_reason(exc)}") from exc
        addresses = list(dict.fromkeys(ipaddress.ip_address(str(info[4][0])) for info in found))
        forbidden = [address for address in addresses if not is_public(address)]
        if forbidden and not self._allow_private:
            raise NoAnswer(
                f"{host!r} is {forbidden[0]}, which is not a public address; "
                f"{self._setting}=true allows it"
            )
        return [(port, address) for address in addresses]


class _Pinned(HTTPConnection):
    """A connection to the first of these addresses that accepts one."""

    def __init__(
        self,
        parts: SplitResult,
        addresses: Sequence[tuple[int, Address]],
        timeout_s: float,
        tls: ssl.SSLContext | None,
    ) -> None:
        # Of the URL, not of the address: this is what the header `Host` says.
        super().__init__(parts.hostname or "", parts.port or _PORTS[parts.scheme])
        self.default_port = _PORTS[parts.scheme]
        self._name, self._addresses = parts.hostname or "", addresses
        self._ends = time.monotonic() + timeout_s
        self._tls_context = tls
        self.was_cut = False

    def connect(self) -> None:
        """Open it; the certificate must be the name's, not the address's."""
        plain = self._open()
        self.sock = plain
        if self._tls_context is not None:
            self.sock = self._tls_context.wrap_socket(
                plain, server_hostname=self._name, do_handshake_on_connect=False
            )
            self.sock.do_handshake()

    def _open(self) -> socket.socket:
        failure: OSError | None = None
        for port, address in self._addresses:
            left = self._ends - time.monotonic()
            if left <= 0:
                raise TimeoutError
            try:
                return socket.create_connection((str(address), port), timeout=left)
            except OSError as exc:
                failure = exc
        raise failure or OSError("no address")

    def cut(self) -> None:
        """End whatever it waits for, from another thread."""
        self.was_cut = True
        if self.sock is not None:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)


def _target(parts: SplitResult) -> str:
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _reason(exc: Exception) -> str:
    return getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
