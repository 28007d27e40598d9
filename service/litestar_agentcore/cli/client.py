"""HTTP to a running agent: where it is, what goes with each request, and each failure's sentence and exit code."""

import functools
import ipaddress
import os
import re
import socket
import ssl
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import httpx
import msgspec
import rich_click as click

from litestar_agentcore.cli.terminal import discard_standard_output, open_standard_output, printable, say
from litestar_agentcore.version import __version__

DEFAULT_URL = "http://127.0.0.1:8080"

CONNECT_SECONDS = 10.0
"""How long a connection may take to be made."""

ANSWER_SECONDS = 900.0
"""For how long an agent may say nothing, by default: as long as AgentCore lets a synchronous request take."""

LONGEST_ERROR = 64 * 1024
"""How many bytes of an error's body are shown."""

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
_TOKEN = re.compile(r"[\x21-\x7e]+")
_HINTS = {
    401: "Give a token or an API key with --token, or in AGENTCORE_TOKEN.",
    403: "The token is valid, and not for this agent.",
}


class ExitCode(IntEnum):
    """What a command's exit code says; documented in docs/command-line.md."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    CLIENT_ERROR = 4
    SERVER_ERROR = 5
    ERROR_EVENT = 6
    CUT_OFF = 7
    TIMEOUT = 8
    NO_AGENT = 9
    INTERRUPTED = 130
    BROKEN_PIPE = 141


class CallError(Exception):
    """A call that did not succeed.

    Args:
        message: What happened, in sentences. May quote the server.
        exit_code: What the command ends with.
        body: What the server said of it, if anything.
    """

    def __init__(self, message: str, exit_code: ExitCode, body: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.body = body

    def show(self) -> None:
        """Say on standard error what happened."""
        say(f"Error: {self.message}", style="red")
        if self.body:
            say(self.body)


class Connection(msgspec.Struct, frozen=True):
    """Where an agent is, and what goes with each request."""

    url: httpx.URL
    headers: list[tuple[str, bytes]]
    """Those of the options ``--token`` and ``--header``."""

    timeout: float
    """For how many seconds the server may be silent; 0 for any time."""

    @property
    def shown_url(self) -> str:
        """The URL as it may be shown: without credentials."""
        return str(self.url.copy_with(userinfo=b"")).rstrip("/")

    def client(self) -> httpx.Client:
        """Make a client, whose requests have paths relative to the URL.

        Proxies of the environment are used, except to this machine.

        Raises:
            CallError: A proxy or a certificate file of the environment makes no sense.
        """
        limits = httpx.Timeout(self.timeout or None, connect=CONNECT_SECONDS)
        headers = {"user-agent": f"litestar-agent/{__version__}", "accept-encoding": "identity"}
        try:
            transport = httpx.HTTPTransport() if _is_loopback(self.url.host) else None
            client = httpx.Client(base_url=self.url, headers=headers, timeout=limits, transport=transport)
        except (ImportError, ValueError, httpx.InvalidURL, OSError) as error:
            raise CallError(
                f"The proxy or certificate settings of the environment make no sense: {error}", ExitCode.FAILED
            ) from None
        for name in {name.lower() for name, _ in self.headers}:
            client.headers.pop(name, None)
        client.headers = httpx.Headers([*client.headers.raw, *((name.encode(), value) for name, value in self.headers)])
        return client

    def get(self, path: str) -> httpx.Response:
        """Ask for something, and read all of the answer.

        Args:
            path: Where it is, from the URL on.

        Returns:
            The answer, of any status.

        Raises:
            CallError: There is none.
        """
        with self.errors_explained(), self.client() as client:
            return client.get(path)

    @contextmanager
    def errors_explained(self, in_answer: Callable[[], str | None] = lambda: None) -> Iterator[None]:
        """Turn what goes wrong between here and the server into a :class:`CallError`.

        Args:
            in_answer: Says what was being received, once the answer has begun.
        """
        try:
            yield
        except httpx.ConnectTimeout:
            raise CallError(
                f"{self.shown_url} does not answer: no connection within {CONNECT_SECONDS:g} s.", ExitCode.UNREACHABLE
            ) from None
        except httpx.TimeoutException:
            what = in_answer() or "There was no answer"
            raise CallError(
                f"{what}: nothing came from {self.shown_url} for {self.timeout:g} s (--timeout).", ExitCode.TIMEOUT
            ) from None
        except (httpx.ConnectError, httpx.ProxyError) as error:
            raise CallError(self._unreachable(error), ExitCode.UNREACHABLE) from None
        except httpx.RemoteProtocolError as error:
            if (text := in_answer()) is not None:
                raise CallError(f"{text}: the connection was closed before its end.", ExitCode.CUT_OFF) from None
            if "disconnected" in str(error):
                raise CallError(
                    f"{self.shown_url} closed the connection without an answer in HTTP.", ExitCode.CUT_OFF
                ) from None
            raise CallError(
                f"What listens at {self.shown_url} does not speak HTTP: {error}.", ExitCode.NO_AGENT
            ) from None
        except httpx.NetworkError as error:
            what = in_answer() or "There was no answer"
            raise CallError(
                f"{what}: the connection to {self.shown_url} broke ({_reason(error)}).", ExitCode.CUT_OFF
            ) from None
        except (httpx.LocalProtocolError, httpx.DecodingError) as error:
            raise CallError(f"The request cannot be sent, or its answer not read: {error}.", ExitCode.FAILED) from None

    def _unreachable(self, error: Exception) -> str:
        if proxy := self._proxy():
            return f"{self.shown_url} cannot be reached through the proxy {proxy} of the environment: {_reason(error)}."
        cause = _cause(error)
        if isinstance(cause, ConnectionRefusedError):
            return (
                f"Nothing listens at {self.shown_url}. Start an agent there (litestar-agent run agent.py), "
                "or say where one is with --url or AGENTCORE_URL."
            )
        if isinstance(cause, socket.gaierror):
            return (
                f"There is no host {self.url.host!r}: {_reason(error)}. --url or AGENTCORE_URL says where the agent is."
            )
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"The certificate of {self.shown_url} is not trusted: {cause.verify_message}. "
                "SSL_CERT_FILE may name a file of authorities that are."
            )
        if isinstance(cause, ssl.SSLError):
            return f"{self.shown_url} does not speak TLS as expected: {_reason(error)}. Is it http:// rather than https://?"
        return f"{self.shown_url} cannot be reached: {_reason(error)}."

    def _proxy(self) -> str | None:
        if _is_loopback(self.url.host) or urllib.request.proxy_bypass(self.url.host):
            return None
        proxies = urllib.request.getproxies()
        if (proxy := proxies.get(self.url.scheme) or proxies.get("all")) is None:
            return None
        return proxy.rpartition("@")[2]


def refused(connection: Connection, response: httpx.Response, *, with_body: bool = True) -> CallError:
    """Make the error of an answer that is not 2xx.

    Args:
        connection: Where the answer is from.
        response: The answer. Its body is read where that has not been done.
        with_body: Whether the body is part of the error.
    """
    status = f"{response.status_code} {response.reason_phrase}".strip()
    where = f"{connection.shown_url}{response.request.url.path.removeprefix(connection.url.path.rstrip('/'))}"
    if response.is_redirect:
        target = response.headers.get("location", "nowhere")
        return CallError(
            f"{where} answered {status}, a redirect to {target}, which is not followed: --url says where the agent is.",
            ExitCode.NO_AGENT,
        )
    body = _beginning(response).decode(response.encoding or "utf-8", "replace").strip() if with_body else ""
    message = f"{where} answered {status}."
    if hint := _HINTS.get(response.status_code):
        message += f" {hint}"
    exit_code = ExitCode.SERVER_ERROR if response.is_server_error else ExitCode.CLIENT_ERROR
    return CallError(message, exit_code if response.is_error else ExitCode.NO_AGENT, body)


def _beginning(response: httpx.Response) -> bytes:
    if response.is_closed:
        return response.content[:LONGEST_ERROR]
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > LONGEST_ERROR:
            break
    return bytes(body[:LONGEST_ERROR])


@contextmanager
def errors_as_exit_codes() -> Iterator[None]:
    """End the command with a sentence and an exit code, and without a traceback, whatever stops it."""
    open_standard_output()
    try:
        yield
        sys.stdout.flush()
    except CallError as error:
        error.show()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("Interrupted")
        sys.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        discard_standard_output()
        sys.exit(ExitCode.BROKEN_PIPE)
    except OSError as error:  # the network's are a CallError by now
        discard_standard_output()
        say(f"Error: The output cannot be written: {error.strerror or error}.", style="red")
        sys.exit(ExitCode.FAILED)


def connection_options(timeout: float) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options that say where the agent is, and the argument ``connection`` in their place.

    Args:
        timeout: The default of ``--timeout``, in seconds.

    Returns:
        A decorator of the command's function.
    """
    options = (
        click.option(
            "--url",
            default=DEFAULT_URL,
            envvar="AGENTCORE_URL",
            show_default=True,
            show_envvar=True,
            metavar="URL",
            callback=_read_url,
            help="Where the agent is. May have a path, below which its endpoints are.",
        ),
        click.option(
            "--token",
            envvar="AGENTCORE_TOKEN",
            show_envvar=True,
            metavar="TOKEN",
            callback=_read_token,
            help="A bearer token, or an API key. Better in the variable, since processes can see each other's options.",
        ),
        click.option(
            "--header",
            "-H",
            "headers",
            multiple=True,
            metavar="'NAME: VALUE'",
            callback=_read_headers,
            help="A header of the requests, instead of the command's own of that name. Can be given more than once.",
        ),
        click.option(
            "--timeout",
            type=click.FloatRange(min=0),
            default=timeout,
            show_default=True,
            metavar="SECONDS",
            help="For how long the server may be silent (a stream's keep-alives count); 0 for any time.",
        ),
    )

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def command(
            *args: Any,
            url: httpx.URL,
            token: str | None,
            headers: list[tuple[str, bytes]],
            timeout: float,
            **kwargs: Any,
        ) -> None:
            if token is not None and not any(name.lower() == "authorization" for name, _ in headers):
                headers = [*headers, ("Authorization", f"Bearer {token}".encode())]
            with errors_as_exit_codes():
                function(*args, connection=Connection(url, headers, timeout), **kwargs)

        decorated: Callable[..., None] = command
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


def _read_url(_: click.Context, __: click.Parameter, text: str) -> httpx.URL:
    text = text.strip()
    try:
        url = httpx.URL(text if "://" in text else f"http://{text}")
    except httpx.InvalidURL as error:
        raise click.BadParameter(f"{printable(text)!r} is not a URL: {error}.") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise click.BadParameter(f"{printable(text)!r} is not an http:// or https:// URL.")
    if url.query or url.fragment:
        raise click.BadParameter("the URL is where the endpoints begin, and has no ?query and no #fragment.")
    return url


def _read_token(_: click.Context, __: click.Parameter, token: str | None) -> str | None:
    if token is None:
        return None
    token = token.strip()
    if not _TOKEN.fullmatch(token):
        raise click.BadParameter("a token is visible ASCII characters without spaces.")
    return token


def _read_headers(_: click.Context, __: click.Parameter, lines: tuple[str, ...]) -> list[tuple[str, bytes]]:
    headers = []
    for number, line in enumerate(lines, 1):
        name, colon, value = line.partition(":")
        name, value = name.strip(), value.strip()
        if not colon or not _HEADER_NAME.fullmatch(name):
            raise click.BadParameter(f"the header number {number} is not of the form 'Name: value'.")
        if not _HEADER_VALUE.fullmatch(value):
            raise click.BadParameter(f"the value of {name} has control characters.")
        headers.append((name, value.encode("utf-8", "surrogateescape")))
    return headers


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _cause(error: BaseException) -> BaseException:
    """The operating system's error behind one of the client's."""
    while not isinstance(error, OSError) and (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _reason(error: Exception) -> str:
    cause = _cause(error)
    if isinstance(cause, OSError) and cause.errno and not isinstance(cause, ssl.SSLError | socket.gaierror):
        return os.strerror(cause.errno)
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(cause) or type(cause).__name__
