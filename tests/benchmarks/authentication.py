"""What authentication costs, and whether a wrong key can be told from a right one by its time.

python -m tests.benchmarks.authentication
"""

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from litestar_agentcore.api_keys import ApiKeys
from litestar_agentcore.bearer_tokens import BearerTokens
from litestar_agentcore.signing_keys import SigningKeys

from tests.issuer import Key, issuing

ROUNDS, CALLS = 400, 50
KEY = "5f0c8a1b" * 8
KINDS = {
    "right": KEY,
    "first character wrong": "6" + KEY[1:],
    "last character wrong": KEY[:-1] + "9",
    "all wrong": "0" * len(KEY),
}


def microseconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - began) / CALLS * 1e6


def compare_keys() -> None:
    """The kinds take turns in random order, so that whatever else the machine does meets all of them alike."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "keys"
        path.write_text("\n".join([KEY, *(f"other-key-{number:060}" for number in range(99))]))
        keys = ApiKeys(str(path))
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(ROUNDS):
            for kind in random.sample(list(KINDS), len(KINDS)):
                times[kind].append(microseconds(lambda key=KINDS[kind]: keys.name_of(key)))  # type: ignore[misc]
    right = statistics.median(times["right"])
    print(f"API keys, 100 in the file, {ROUNDS} rounds of {CALLS} calls, microseconds a call:")
    for kind, measured in times.items():
        median = statistics.median(measured)
        quarter, _, three_quarters = statistics.quantiles(measured, n=4)
        print(f"  {kind:22} median {median:.3f} ({quarter:.3f} to {three_quarters:.3f}), {median - right:+.3f}")


def compare_tokens() -> None:
    """A token that is verified, one that was before, and one with a wrong signature."""

    async def measure(tokens: BearerTokens, texts: list[str]) -> float:
        began = time.perf_counter()
        for text in texts:
            await tokens.claims_of(text)
        return (time.perf_counter() - began) / len(texts) * 1e6

    with issuing() as issuer:
        for algorithm in ("RS256", "ES256", "EdDSA"):
            issuer.keys = [Key(algorithm, algorithm)]
            tokens = BearerTokens(SigningKeys(issuer.discovery_url), ("agent",), (), ())
            fresh = [issuer.token(sub=str(number)) for number in range(500)]
            asyncio.run(tokens.claims_of(issuer.token()))
            first, again = asyncio.run(measure(tokens, fresh)), asyncio.run(measure(tokens, fresh))
            print(f"{algorithm}: verified in {first:.0f} microseconds, remembered in {again:.1f}")


if __name__ == "__main__":
    compare_keys()
    compare_tokens()
