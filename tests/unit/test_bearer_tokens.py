"""Bearer tokens: which let their bearer in, which do not, and what is asked of the issuer for it."""

import asyncio
import contextlib
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from litestar_agentcore import signing_keys
from litestar_agentcore.bearer_tokens import (
    LEEWAY_SECONDS,
    MAX_CACHED_TOKENS,
    MAX_TOKEN_CHARACTERS,
    BearerTokens,
    TokenRejectedError,
)
from litestar_agentcore.signing_keys import (
    WELL_KNOWN,
    DiscoveryError,
    KeysUnavailableError,
    SigningKeys,
    checked_url,
    fetch_keys,
)

from tests.issuer import Issuer, Key, issuing, segment


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuing() as issuer:
        yield issuer


@pytest.fixture
def tokens(issuer: Issuer) -> BearerTokens:
    return verifier(issuer)


def verifier(issuer: Issuer, audience: Any = ("agent",), clients: Any = (), scopes: Any = ()) -> BearerTokens:
    return BearerTokens(SigningKeys(issuer.discovery_url), audience, clients, scopes)


def claims_of(tokens: BearerTokens, token: str) -> dict[str, Any]:
    return asyncio.run(tokens.claims_of(token))


def rejected(tokens: BearerTokens, token: str) -> str:
    """Why a token does not let its bearer in."""
    with pytest.raises(TokenRejectedError) as caught:
        claims_of(tokens, token)
    assert token[:20] not in str(caught.value) or not token
    return caught.value.reason


def is_idle(keys: SigningKeys) -> bool:
    return keys._thread is None or not keys._thread.is_alive()


def fetched(keys: SigningKeys) -> None:
    """Fetch the keys now, however short ago that was done."""
    keys._fetched = float("-inf")
    fetch = keys.refresh()
    assert fetch is not None
    fetch.result(60)


# What lets its bearer in


@pytest.mark.parametrize("algorithm", ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "EdDSA"])
def test_a_token_of_each_asymmetric_algorithm_has_its_claims(issuer: Issuer, algorithm: str) -> None:
    issuer.keys = [Key("k", algorithm)]
    claims = claims_of(verifier(issuer), issuer.token(scope="a b", nested={"list": [1]}))
    assert claims["sub"] == "ann"
    assert claims["nested"] == {"list": [1]}


@pytest.mark.parametrize(("curve", "algorithm"), [(ec.SECP384R1(), "ES384"), (ec.SECP521R1(), "ES512")])
def test_each_curve_verifies_its_algorithm(issuer: Issuer, curve: Any, algorithm: str) -> None:
    issuer.keys = [Key("k", algorithm, ec.generate_private_key(curve))]
    assert claims_of(verifier(issuer), issuer.token())["sub"] == "ann"


@pytest.mark.parametrize("audience", ["agent", ["other", "agent"]])
def test_one_audience_of_the_token_must_be_allowed(tokens: BearerTokens, issuer: Issuer, audience: Any) -> None:
    assert claims_of(tokens, issuer.token(aud=audience))["aud"] == audience


@pytest.mark.parametrize("claim", ["client_id", "azp", "appid", "cid"])
def test_the_client_is_found_by_the_name_that_its_issuer_has_for_it(issuer: Issuer, claim: str) -> None:
    tokens = verifier(issuer, audience=(), clients=("one", "two"))
    allowed: dict[str, Any] = {claim: "two"}
    other: dict[str, Any] = {claim: "three"}
    assert claims_of(tokens, issuer.token(**allowed))[claim] == "two"
    assert rejected(tokens, issuer.token(**other)) == "client"


@pytest.mark.parametrize(
    "scopes", [{"scope": "a write"}, {"scope": ["write", "a"]}, {"scp": "a write"}, {"scp": ["write"]}]
)
def test_one_scope_of_the_token_must_be_allowed(issuer: Issuer, scopes: dict[str, Any]) -> None:
    tokens = verifier(issuer, scopes=("read", "write"))
    assert claims_of(tokens, issuer.token(**scopes))["sub"] == "ann"


@pytest.mark.parametrize("kind", ["JWT", "jwt", "at+jwt", "application/at+JWT"])
def test_the_types_of_access_tokens_are_accepted(tokens: BearerTokens, issuer: Issuer, kind: str) -> None:
    assert claims_of(tokens, issuer.token(header={"typ": kind}))["sub"] == "ann"


@pytest.mark.parametrize(
    "claims", [{"exp": -LEEWAY_SECONDS / 2}, {"nbf": LEEWAY_SECONDS / 2}, {"iat": LEEWAY_SECONDS / 2}]
)
def test_clocks_may_be_a_little_apart(tokens: BearerTokens, issuer: Issuer, claims: dict[str, float]) -> None:
    changes: dict[str, Any] = {name: int(time.time() + seconds) for name, seconds in claims.items()}
    assert claims_of(tokens, issuer.token(**changes))["sub"] == "ann"


# What does not


@pytest.mark.parametrize(
    ("reason", "claims"),
    [
        ("expired", {"exp": 1_000_000_000}),
        ("expired", {"exp": 0}),
        ("not_yet_valid", {"nbf": 4_000_000_000}),
        ("not_yet_valid", {"iat": 4_000_000_000}),
        ("claims", {"exp": None}),
        ("claims", {"iss": None}),
        ("issuer", {"iss": "https://other.example"}),
        ("malformed", {"exp": "soon"}),
        ("malformed", {"exp": float("inf")}),
        ("malformed", {"exp": float("nan")}),
        ("malformed", {"exp": [1]}),
        ("malformed", {"nbf": {}}),
        ("audience", {"aud": "other"}),
        ("audience", {"aud": None}),
        ("audience", {"aud": []}),
        ("audience", {"aud": ["agents", "agen", ""]}),
        ("audience", {"aud": {"agent": 1}}),
        ("audience", {"aud": 5}),
    ],
)
def test_a_claim_that_is_not_right_keeps_the_bearer_out(
    tokens: BearerTokens, issuer: Issuer, reason: str, claims: dict[str, Any]
) -> None:
    assert rejected(tokens, issuer.token(**claims)) == reason


def test_the_issuer_may_be_no_list_that_has_it(tokens: BearerTokens, issuer: Issuer) -> None:
    key = issuer.keys[0]
    header = segment({"alg": key.algorithm, "kid": key.key_id})
    payload = segment(issuer.claims(iss=[issuer.url, "https://other.example"]))
    signer = jwt.get_algorithm_by_name(key.algorithm)
    signature = segment(signer.sign(f"{header}.{payload}".encode(), key.private))
    assert rejected(tokens, f"{header}.{payload}.{signature}") in {"issuer", "malformed"}


@pytest.mark.parametrize(
    "client", [{}, {"client_id": None, "azp": 5}, {"client_id": ["one"]}, {"client_id": "three", "azp": "one"}]
)
def test_a_client_that_is_not_allowed_or_not_said_is_kept_out(issuer: Issuer, client: dict[str, Any]) -> None:
    assert rejected(verifier(issuer, audience=(), clients=("one",)), issuer.token(**client)) == "client"


@pytest.mark.parametrize(
    "scopes", [{}, {"scope": ""}, {"scope": "reader"}, {"scope": {"read": 1}}, {"scp": [5]}, {"scope": None}]
)
def test_a_token_without_an_allowed_scope_is_kept_out(issuer: Issuer, scopes: dict[str, Any]) -> None:
    assert rejected(verifier(issuer, scopes=("read", "write")), issuer.token(**scopes)) == "scope"


def test_each_list_that_is_set_must_be_satisfied(issuer: Issuer) -> None:
    tokens = verifier(issuer, ("agent",), ("one",), ("read",))
    assert claims_of(tokens, issuer.token(client_id="one", scope="read"))["sub"] == "ann"
    assert rejected(tokens, issuer.token(client_id="one", scope="read", aud="x")) == "audience"
    assert rejected(tokens, issuer.token(client_id="x", scope="read")) == "client"
    assert rejected(tokens, issuer.token(client_id="one", scope="x")) == "scope"


@pytest.mark.parametrize("kind", ["logout+jwt", "dpop+jwt", "secevent+jwt", "", 5])
def test_a_token_for_other_ends_is_kept_out(tokens: BearerTokens, issuer: Issuer, kind: Any) -> None:
    header = segment({"alg": "ES256", "kid": "first", "typ": kind})
    assert rejected(tokens, f"{header}.{segment(issuer.claims())}.{segment(b'x' * 64)}") == "malformed"


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "a.b",
        "Ä.ö.ü",
        "\ud800",
        "null",
        "{}",
        "e30.e30.e30",
        f"{segment([])}.e30.",
        f"{segment(5)}.e30.",
        f"{segment(b'[' * 9000)}.e30.x",
        f"{segment(bytes(200))}.e30.x",
        "." * 1000,
        f"{segment({'alg': 'RSA-OAEP', 'enc': 'A256GCM'})}.a.b.c.d",
        f"{segment({'alg': 'ES256', 'kid': 'first', 'crit': ['exp']})}.e30.eA",
        f"{segment({'alg': 'ES256', 'kid': 'first', 'b64': False, 'crit': ['b64']})}.e30.eA",
    ],
)
def test_garbage_is_kept_out_and_asks_nothing_of_the_issuer(tokens: BearerTokens, issuer: Issuer, token: str) -> None:
    assert rejected(tokens, token) in {"malformed", "algorithm"}
    assert issuer.requests == []


def test_a_token_that_is_very_long_is_kept_out(tokens: BearerTokens, issuer: Issuer) -> None:
    assert rejected(tokens, issuer.token(more="x" * MAX_TOKEN_CHARACTERS)) == "malformed"


# Algorithms and keys


def forged(issuer: Issuer, header: dict[str, Any], secret: bytes = b"") -> str:
    """A token whose signature is made of what everybody has."""
    signing_input = f"{segment({'kid': 'first'} | header)}.{segment(issuer.claims())}"
    signature = jwt.get_algorithm_by_name("HS256").sign(signing_input.encode(), secret) if secret else b""
    return f"{signing_input}.{segment(signature)}"


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", None, 5, [], {}, "HS256", "HS512", "RSA1_5"])
def test_an_algorithm_that_is_not_asymmetric_is_kept_out(tokens: BearerTokens, issuer: Issuer, algorithm: Any) -> None:
    assert rejected(tokens, forged(issuer, {"alg": algorithm})) in {"algorithm", "malformed"}
    assert issuer.requests == []


@pytest.mark.parametrize("form", ["pem", "der", "jwk"])
@pytest.mark.parametrize("algorithm", ["HS256", "RS256"])
def test_a_signature_made_with_the_public_key_as_a_secret_is_kept_out(
    issuer: Issuer, algorithm: str, form: str
) -> None:
    issuer.keys = [Key("first", "RS256")]
    public = issuer.keys[0].private.public_key()
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    secret = {
        "pem": public.public_bytes(serialization.Encoding.PEM, info),
        "der": public.public_bytes(serialization.Encoding.DER, info),
        "jwk": json.dumps(issuer.keys[0].public).encode(),
    }[form]
    reason = rejected(verifier(issuer), forged(issuer, {"alg": algorithm}, secret))
    assert reason == ("algorithm" if algorithm == "HS256" else "signature")


def test_a_key_verifies_the_algorithm_that_it_is_for_alone(issuer: Issuer) -> None:
    key = Key("first", "RS256")
    issuer.keys = [key]
    other = Key("first", "PS256", key.private)
    assert rejected(verifier(issuer), issuer.token(other)) == "algorithm"
    assert rejected(verifier(issuer), issuer.token(Key("first", "ES256"))) == "algorithm"


def test_another_key_of_the_same_kind_does_not_do(tokens: BearerTokens, issuer: Issuer) -> None:
    assert rejected(tokens, issuer.token(Key("first"))) == "signature"
    issuer.keys.append(Key("second"))
    fetched(tokens.keys)
    assert rejected(tokens, issuer.token(issuer.keys[0], {"kid": "second"})) == "signature"


def test_a_payload_that_was_changed_is_kept_out(tokens: BearerTokens, issuer: Issuer) -> None:
    header, _, signature = issuer.token().split(".")
    assert rejected(tokens, f"{header}.{segment(issuer.claims(sub='root'))}.{signature}") == "signature"
    assert rejected(tokens, f"{header}.{segment(issuer.claims())}.") in {"signature", "malformed"}


@pytest.mark.parametrize(
    "key_id",
    [
        "../../../../dev/null",
        "first' OR '1'='1",
        "first\x00",
        "FIRST",
        " first",
        "x" * 8000,
        "http://169.254.169.254/",
        "",
        "%",
        "ä",
    ],
)
def test_a_key_id_is_a_name_that_is_compared_and_nothing_else(
    tokens: BearerTokens, issuer: Issuer, key_id: str
) -> None:
    assert rejected(tokens, issuer.token(header={"kid": key_id})) == "unknown_key"
    assert set(issuer.requests) <= {WELL_KNOWN, "/keys"}


@pytest.mark.parametrize("key_id", [5, ["first"], {"first": 1}, True])
def test_a_key_id_that_is_no_text_is_kept_out(tokens: BearerTokens, issuer: Issuer, key_id: Any) -> None:
    header = segment({"alg": "ES256", "kid": key_id})
    assert rejected(tokens, f"{header}.{segment(issuer.claims())}.{segment(b'x' * 64)}") in {"malformed", "unknown_key"}
    assert issuer.requests == []


def test_a_token_without_a_key_id_is_of_the_only_key(tokens: BearerTokens, issuer: Issuer, hasty: None) -> None:
    token = jwt.encode(issuer.claims(), issuer.keys[0].private, "ES256")
    assert claims_of(tokens, token)["sub"] == "ann"
    assert rejected(tokens, jwt.encode(issuer.claims(), Key("first").private, "ES256")) == "signature"
    issuer.keys.append(Key("second"))
    fetched(tokens.keys)
    asked = issuer.fetches
    assert rejected(tokens, token) == "unknown_key"
    assert issuer.fetches == asked


def test_a_token_cannot_bring_its_key_along(tokens: BearerTokens, issuer: Issuer) -> None:
    mine = Key("first")
    with issuing() as other:
        other.keys = [mine]
        for header in (
            {"jwk": mine.public},
            {"jku": f"{other.url}/keys"},
            {"x5u": f"{other.url}/keys"},
            {"x5c": ["MII="]},
            {"jku": f"{other.url}/keys", "kid": "mine"},
        ):
            assert rejected(tokens, issuer.token(mine, header)) in {"signature", "unknown_key"}
        token = jwt.encode(issuer.claims(), mine.private, "ES256", {"jwk": mine.public, "jku": f"{other.url}/keys"})
        assert rejected(tokens, token) == "signature"
        assert other.requests == []


@pytest.mark.parametrize(
    "change",
    [
        {"use": "enc"},
        {"kid": None},
        {"kid": 5},
        {"alg": "HS256"},
        {"alg": "ES384"},
        {"alg": 5},
        {"kty": "oct", "k": "eA"},
        {"kty": None},
        {"crv": "P-1"},
        {"crv": []},
        {"x": "AA"},
        {"x": None},
        {"d": "AA"},
        {"key_ops": ["sign"]},
        {"key_ops": 5},
    ],
)
def test_a_key_that_is_not_for_verifying_is_left_out(issuer: Issuer, change: dict[str, Any]) -> None:
    bad, good = Key("bad"), Key("good")
    issuer.answers["/keys"] = answering({"keys": [bad.public | change, 5, None, good.public]})
    assert set(fetch_keys(issuer.discovery_url).keys) == {"good"}


def test_a_short_rsa_key_is_left_out(issuer: Issuer) -> None:
    issuer.keys = [Key("short", "RS256", rsa.generate_private_key(65537, 1024)), Key("good")]
    assert set(fetch_keys(issuer.discovery_url).keys) == {"good"}


# Rotation, and issuers that are not there


def test_a_new_key_is_found_when_a_token_has_it(tokens: BearerTokens, issuer: Issuer, hasty: None) -> None:
    assert claims_of(tokens, issuer.token())["sub"] == "ann"
    old = issuer.keys[0]
    issuer.keys = [Key("second")]
    assert claims_of(tokens, issuer.token())["sub"] == "ann"
    assert rejected(tokens, issuer.token(old)) == "unknown_key"


def test_a_token_that_was_verified_before_is_verified_anew_once_the_keys_have_changed(
    tokens: BearerTokens, issuer: Issuer
) -> None:
    token = issuer.token()
    assert claims_of(tokens, token)["sub"] == "ann"
    issuer.keys = [Key("second")]
    fetched(tokens.keys)
    assert rejected(tokens, token) == "unknown_key"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time between two fetches."""
    monkeypatch.setattr(signing_keys, "RETRY_SECONDS", 0.0)


def test_thousands_of_unknown_keys_are_one_fetch(
    tokens: BearerTokens, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing_keys, "RETRY_SECONDS", 3600.0)
    assert claims_of(tokens, issuer.token())["sub"] == "ann"
    tokens.keys._fetched = float("-inf")
    header, claims = {"alg": "ES256"}, segment(issuer.claims())

    async def reasons() -> set[str]:
        async def reason(number: int) -> str:
            try:
                await tokens.claims_of(f"{segment(header | {'kid': f'{number}'})}.{claims}.{segment(b'x' * 64)}")
            except TokenRejectedError as error:
                return error.reason
            return "let in"

        return set(await asyncio.gather(*map(reason, range(2000))))

    assert asyncio.run(reasons()) == {"unknown_key"}
    assert asyncio.run(reasons()) == {"unknown_key"}
    assert issuer.fetches == 2
    assert claims_of(tokens, issuer.token())["sub"] == "ann"


def test_an_issuer_that_is_down_at_the_start_is_asked_again(caplog: pytest.LogCaptureFixture, hasty: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    keys = SigningKeys(f"http://127.0.0.1:{port}{WELL_KNOWN}")
    tokens = BearerTokens(keys, ("agent",), (), ())
    somebodys = f"{segment({'alg': 'ES256', 'kid': 'first'})}.e30.{segment(b'x' * 64)}"
    assert rejected(tokens, somebodys) == "unavailable"
    assert rejected(tokens, somebodys) == "unavailable"
    assert len([line for line in caplog.messages if "cannot be fetched" in line]) == 1
    with issuing(port) as issuer:
        assert claims_of(tokens, issuer.token())["sub"] == "ann"


def test_while_no_key_is_there_the_issuer_is_not_asked_for_each_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing_keys, "RETRY_SECONDS", 3600.0)
    with issuing() as issuer:
        issuer.answers[WELL_KNOWN] = status(503)
        tokens = verifier(issuer)
        assert {rejected(tokens, issuer.token(sub=str(number))) for number in range(50)} == {"unavailable"}
        assert issuer.fetches == 1


def test_when_the_issuer_goes_down_the_keys_that_are_there_go_on_working(
    caplog: pytest.LogCaptureFixture, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing_keys, "REFRESH_SECONDS", 0.0)
    with issuing() as issuer:
        tokens = verifier(issuer)
        assert claims_of(tokens, issuer.token())["sub"] == "ann"
    for number in range(20):
        assert claims_of(tokens, issuer.token(sub=str(number)))["sub"] == str(number)
    assert rejected(tokens, issuer.token(Key("new"))) == "unknown_key"
    complaints = [line for line in caplog.messages if "go on working" in line]
    assert len(complaints) == 1
    settle(tokens.keys)


def settle(keys: SigningKeys) -> None:
    """Wait until nothing is being fetched."""
    if keys._thread is not None:
        keys._thread.join(60)
    assert is_idle(keys)


def test_old_keys_are_fetched_again_without_a_caller_waiting(
    tokens: BearerTokens, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = issuer.token()
    assert claims_of(tokens, token)["sub"] == "ann"
    assert claims_of(tokens, token)["sub"] == "ann"
    assert issuer.fetches == 1
    tokens.keys._fetched -= signing_keys.REFRESH_SECONDS
    current = tokens.keys.current
    assert claims_of(tokens, token)["sub"] == "ann"
    settle(tokens.keys)
    assert issuer.fetches == 2
    assert tokens.keys.current is current  # and what was verified with the same keys still is


def test_keys_that_make_no_sense_do_not_replace_those_that_do(
    tokens: BearerTokens, issuer: Issuer, hasty: None
) -> None:
    token = issuer.token()
    assert claims_of(tokens, token)["sub"] == "ann"
    issuer.answers["/keys"] = answering({"keys": []})
    fetched(tokens.keys)
    assert claims_of(tokens, issuer.token(sub="bob"))["sub"] == "bob"


def test_who_no_longer_waits_does_not_stop_a_fetch(tokens: BearerTokens, issuer: Issuer) -> None:
    async def leave() -> None:
        task = asyncio.create_task(tokens.claims_of(issuer.token()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    settle(tokens.keys)
    assert claims_of(tokens, issuer.token())["sub"] == "ann"
    assert issuer.fetches == 1


# Documents that are not what they should be

Answer = Callable[[BaseHTTPRequestHandler], None]


def answering(document: Any, **headers: str) -> Answer:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        with contextlib.suppress(OSError):  # who asked has had enough
            handler.wfile.write(body)

    return answer


def status(code: int, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()

    return answer


def problem(issuer: Issuer) -> str:
    with pytest.raises(DiscoveryError) as caught:
        fetch_keys(issuer.discovery_url)
    return str(caught.value)


@pytest.mark.parametrize("name", ["https://other.example", "", None, 5, "{url}/realm", "{url}x", "{url}//", ["{url}"]])
def test_a_configuration_that_lies_about_its_issuer_is_not_used(issuer: Issuer, name: Any) -> None:
    issuer.configuration["issuer"] = name.format(url=issuer.url) if isinstance(name, str) else name
    assert "issuer is not the URL" in problem(issuer)
    assert issuer.requests == [WELL_KNOWN]


def test_an_issuer_may_end_with_a_slash(issuer: Issuer) -> None:
    issuer.configuration["issuer"] = f"{issuer.url}/"
    tokens = verifier(issuer)
    assert claims_of(tokens, issuer.token(iss=f"{issuer.url}/"))["sub"] == "ann"
    assert rejected(tokens, issuer.token()) == "issuer"


@pytest.mark.parametrize(
    "uri",
    [
        "http://other.example/keys",
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "/keys",
        "",
        None,
        5,
        "https://user@127.0.0.1/",
        "https:///keys",
        "http://127.0.0.1:x/",
    ],
)
def test_keys_are_fetched_over_https_alone(issuer: Issuer, uri: Any) -> None:
    issuer.configuration["jwks_uri"] = uri
    assert "jwks_uri" in problem(issuer)


@pytest.mark.parametrize("path", [WELL_KNOWN, "/keys"])
@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (status(500), "status 500"),
        (status(404), "status 404"),
        (status(302, location="http://169.254.169.254/"), "status 302"),
        (answering(b""), "not JSON"),
        (answering(b"<html>"), "not JSON"),
        (answering(b"\xff\xfe\x00"), "not JSON"),
        (answering(b"[" * 100_000), "not JSON"),
        (answering([1]), "no JSON object"),
        (answering(None), "no JSON object"),
        (answering(b"{}"), "its"),
        (answering(b'{"a": "' + b"x" * (2 * signing_keys.MAX_DOCUMENT_BYTES)), "larger than"),
        (answering(b"1", content_length="99999999999"), "cannot be read"),
    ],
)
def test_an_answer_that_is_no_document_is_not_used(issuer: Issuer, path: str, answer: Answer, told: str) -> None:
    issuer.answers[path] = answer
    assert told in problem(issuer).replace("it has no", "its").replace("issuer is not", "its")


def test_an_answer_in_drops_is_given_up(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing_keys, "FETCH_SECONDS", 0.5)

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        try:
            while True:
                handler.wfile.write(b"x: y\r\n")
                time.sleep(0.05)
        except OSError:
            handler.close_connection = True

    def body_in_drops(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b" ")
                time.sleep(0.05)
        except OSError:
            handler.close_connection = True

    for answer in (body_in_drops, drip):
        issuer.answers[WELL_KNOWN] = answer
        began = time.monotonic()
        told = problem(issuer)
        assert "not answered within" in told or "cannot be read" in told
        assert time.monotonic() - began < 30


def test_an_issuer_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing_keys, "FETCH_SECONDS", 0.3)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(DiscoveryError, match="not answered within"),
    ):
        fetch_keys(f"http://127.0.0.1:{silent.getsockname()[1]}{WELL_KNOWN}")


@pytest.mark.parametrize(
    "url",
    [
        "http://id.example/",
        "http://localhost.example/",
        "http://10.0.0.1/",
        "ftp://id.example/",
        "id.example",
        "",
        "https://",
        "https:///x",
        "https://user:pass@id.example/",
        "https://id.example/?a=b",
        "https://id.example/#a",
        "https://id.example/a b",
        "https://id.example/\n",
        "https://id.example:port/",
        "https://[::1/",
        "https://idé.example/",
        "javascript:alert(1)",
        "file:///etc/passwd",
    ],
)
def test_an_address_that_is_not_safe_is_refused(url: str) -> None:
    with pytest.raises(DiscoveryError):
        checked_url(url)


@pytest.mark.parametrize(
    "url", ["https://id.example/", "http://127.0.0.1:8/x", "http://[::1]/", "http://localhost:9000/"]
)
def test_an_address_that_is_safe_is_taken(url: str) -> None:
    assert checked_url(url).geturl() == url


# Tokens that are remembered


def test_a_verified_token_is_verified_once(
    tokens: BearerTokens, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = issuer.token()
    first = claims_of(tokens, token)
    monkeypatch.setattr(jwt, "decode", None)
    first["sub"] = "changed by a handler"
    assert claims_of(tokens, token)["sub"] == "ann"
    assert rejected(tokens, issuer.token(sub="bob")) == "malformed"  # which is not remembered


def test_a_remembered_token_is_forgotten_when_it_expires(
    tokens: BearerTokens, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    expires = int(time.time()) + 60
    token = issuer.token(exp=expires)
    assert claims_of(tokens, token)["sub"] == "ann"
    monkeypatch.setattr("litestar_agentcore.bearer_tokens.time", lambda: expires + 1.0)
    verified = []
    decode = jwt.decode

    def noting(*args: Any, **options: Any) -> Any:
        verified.append(args)
        return decode(*args, **options)

    monkeypatch.setattr(jwt, "decode", noting)
    assert claims_of(tokens, token)["sub"] == "ann"
    assert len(verified) == 1


def test_what_is_remembered_is_bounded(tokens: BearerTokens, issuer: Issuer) -> None:
    async def verify_many() -> None:
        for number in range(MAX_CACHED_TOKENS + 50):
            await tokens.claims_of(issuer.token(sub=str(number)))

    asyncio.run(verify_many())
    assert len(tokens._verified) == MAX_CACHED_TOKENS


def test_a_token_that_is_refused_is_not_remembered(issuer: Issuer) -> None:
    tokens = verifier(issuer, scopes=("write",))
    rejected(tokens, issuer.token())
    rejected(tokens, issuer.token(exp=1))
    assert tokens._verified == {}


def test_no_log_line_has_anything_of_a_token(
    tokens: BearerTokens, issuer: Issuer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for token in (issuer.token(), issuer.token(exp=1), issuer.token(Key("other")), "garbage.of.somebody"):
        with contextlib.suppress(TokenRejectedError):
            claims_of(tokens, token)
        assert not any(part in caplog.text for part in token.split(".") if part)


def test_without_keys_a_key_is_not_found() -> None:
    async def find() -> None:
        with pytest.raises(KeysUnavailableError):
            await SigningKeys(f"http://127.0.0.1:9{WELL_KNOWN}").find("first")

    asyncio.run(find())
