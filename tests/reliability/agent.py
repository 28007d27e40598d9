"""The agent of these tests, on our runtime and with one import line changed on the official SDK: ``agent.py PORT``.

``HANDLER`` says which handler answers: ``async`` or ``plain``. ``JOURNAL`` names a file that gets a line for whatever
has begun, so that a test can tell what was accepted from what was not.
"""

import asyncio
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from litestar_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()

EVENTS = 20
DEEP = 100_000
"""Levels of nesting, beyond what the interpreter lets any code do."""

FORK_SECONDS = 0.1
STUBBORN_SECONDS = 2.0
"""How long the code that eats its cancellation goes on."""

_JOURNAL = os.open(os.environ["JOURNAL"], os.O_APPEND | os.O_CREAT | os.O_WRONLY) if "JOURNAL" in os.environ else None


def note(what: str, identity: object) -> None:
    if _JOURNAL is not None:
        os.write(_JOURNAL, f"{what} {identity}\n".encode())


class OpenGenerators:
    """How many generators have begun and not been closed yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.number = 0

    def __enter__(self) -> None:
        with self._lock:
            self.number += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.number -= 1


open_generators = OpenGenerators()


def answer_to(payload: dict[str, Any]) -> dict[str, Any]:
    return {"answer": payload.get("id")}


# -- What is asked in earnest


async def stream(payload: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    with open_generators:
        for number in range(payload.get("events", EVENTS)):
            yield {"number": number}
            await asyncio.sleep(payload.get("seconds", 0.1) / EVENTS)
    note("done", payload.get("id"))


def plain_stream(payload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    with open_generators:
        for number in range(payload.get("events", EVENTS)):
            yield {"number": number}
            time.sleep(payload.get("seconds", 0.1) / EVENTS)
    note("done", payload.get("id"))


@app.async_task
async def research(payload: dict[str, Any]) -> None:
    note("task", payload["id"])
    await asyncio.sleep(payload.get("seconds", 0.1))
    note("task-done", payload["id"])


def research_plainly(payload: dict[str, Any], task: int) -> None:
    time.sleep(payload.get("seconds", 0.1))
    note("task-done", payload["id"])
    app.complete_async_task(task)


def state() -> dict[str, Any]:
    return {"generators": open_generators.number, "threads": threading.active_count(), "pid": os.getpid()}


# -- Faults of async code


def exit_the_interpreter() -> None:
    sys.exit("a handler called sys.exit")


def recurse(depth: int) -> int:
    return recurse(depth + 1)


def deep_value() -> list[Any]:
    value: list[Any] = []
    for _ in range(DEEP):
        value = [value]
    return value


def overflow_the_stack() -> str:
    """What C code does once nothing holds it back."""
    sys.setrecursionlimit(10 * DEEP)
    return repr(deep_value())


async def exit_later() -> None:
    await asyncio.sleep(0.01)
    exit_the_interpreter()


async def never() -> None:
    await asyncio.Event().wait()


leaked: list[asyncio.Task[None]] = []


async def leak() -> str:
    leaked.extend(asyncio.create_task(never()) for _ in range(100))
    return "leaked"


async def leave_a_task_that_exits() -> str:
    leaked.append(asyncio.create_task(exit_later()))
    return "left"


async def leave_a_callback_that_exits() -> str:
    asyncio.get_running_loop().call_soon(exit_the_interpreter)
    return "left"


async def cancel_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(1)


async def delete_its_task() -> str:
    task = asyncio.current_task()
    assert task is not None
    asyncio.tasks._unregister_task(task)
    del task
    await asyncio.sleep(0.01)
    return "deleted"


async def eat_its_cancellation() -> AsyncIterator[int]:
    deadline, number = time.monotonic() + STUBBORN_SECONDS, 0
    with open_generators:
        while time.monotonic() < deadline:
            try:
                yield number
                await asyncio.sleep(0.02)
            except (asyncio.CancelledError, GeneratorExit):
                if number < 1000:
                    number = 1000
                    await asyncio.sleep(0.02)
            number += 1


async def stop_its_loop() -> str:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.01)
    return "stopped"


async def close_its_loop() -> None:
    asyncio.get_running_loop().close()
    await asyncio.sleep(0.01)


async def stop_and_close_its_loop() -> str:
    """Close it from a thread in the very moment in which it does not run."""
    loop = asyncio.get_running_loop()

    def close() -> None:
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline and not loop.is_closed():
            try:
                loop.close()
            except RuntimeError:
                continue

    threading.Thread(target=close, daemon=True).start()
    await asyncio.sleep(0.05)
    loop.stop()
    await asyncio.sleep(0.05)
    return "closed"


def fork_with_an_end() -> str:
    child = os.fork()
    if child == 0:
        time.sleep(FORK_SECONDS)
        os._exit(0)
    os.waitpid(child, 0)
    return "forked"


def fork_without_an_end() -> str:
    """Fork, and have the child return into the server's code as if it were the parent."""
    os.fork()
    return "forked"


def compute_in_a_process() -> str:
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(FORK_SECONDS,))
    process.start()
    process.join()
    return "computed"


async def fault_of(name: str) -> Any:  # noqa: C901 - one line a fault
    match name:
        case "raises":
            raise RuntimeError("a fault of the handler")
        case "calls sys.exit":
            exit_the_interpreter()
        case "raises KeyboardInterrupt":
            raise KeyboardInterrupt
        case "raises CancelledError":
            raise asyncio.CancelledError
        case "raises GeneratorExit":
            raise GeneratorExit
        case "cancels its own task":
            return await cancel_itself()
        case "deletes its own task":
            return await delete_its_task()
        case "hangs":
            return await never()
        case "blocks for a second":
            time.sleep(1)
            return "blocked"
        case "leaks 100 tasks":
            return await leak()
        case "leaves a task that calls sys.exit":
            return await leave_a_task_that_exits()
        case "leaves a callback that calls sys.exit":
            return await leave_a_callback_that_exits()
        case "eats its cancellation":
            return eat_its_cancellation()
        case "stops its loop":
            return await stop_its_loop()
        case "closes its loop":
            return await close_its_loop()
        case "closes its stopped loop from a thread":
            return await stop_and_close_its_loop()
    return plain_fault_of(name)


# -- Faults of plain code


def hang() -> None:
    threading.Event().wait(30)


def plain_fault_of(name: str) -> Any:  # noqa: C901 - one line a fault
    match name:
        case "raises":
            raise RuntimeError("a fault of the handler")
        case "calls sys.exit":
            exit_the_interpreter()
        case "raises KeyboardInterrupt":
            raise KeyboardInterrupt
        case "raises CancelledError":
            raise asyncio.CancelledError
        case "hangs":
            return hang()
        case "blocks for a second":
            time.sleep(1)
            return "blocked"
        case "forks, and the child exits":
            return fork_with_an_end()
        case "forks, and the child returns":
            return fork_without_an_end()
        case "uses multiprocessing (fork)":
            return compute_in_a_process()
        case "recurses without end":
            return recurse(0)
        case "returns what is nested too deep":
            return deep_value()
        case "has json recurse in C":
            return json.dumps(deep_value())
        case "overflows the C stack":
            return overflow_the_stack()
    raise ValueError(f"no such fault: {name}")


# -- The handlers


async def agent(payload: dict[str, Any]) -> Any:
    note("begun", payload.get("id"))
    match payload.get("do"):
        case "state":
            return state()
        case "fault":
            return await fault_of(payload["fault"])
        case "stream":
            return stream(payload)
        case "task":
            asyncio.create_task(research(payload))  # noqa: RUF006 - the service keeps it
        case _:
            await asyncio.sleep(payload.get("seconds", 0))
    note("done", payload.get("id"))
    return answer_to(payload)


def plain_agent(payload: dict[str, Any]) -> Any:
    note("begun", payload.get("id"))
    match payload.get("do"):
        case "state":
            return state()
        case "fault":
            return plain_fault_of(payload["fault"])
        case "stream":
            return plain_stream(payload)
        case "task":
            note("task", payload["id"])
            task = app.add_async_task("research", {"id": payload["id"]})
            threading.Thread(target=research_plainly, args=(payload, task), daemon=True).start()
        case _:
            time.sleep(payload.get("seconds", 0))
    note("done", payload.get("id"))
    return answer_to(payload)


@app.websocket
async def talk(websocket: Any, context: Any) -> None:
    """Echo each text message, until one says that it is the last."""
    await websocket.accept()
    while (message := await websocket.receive_text()) != "end":
        await websocket.send_text(message)
    await websocket.close()


HANDLERS: dict[str, Callable[[dict[str, Any]], Any]] = {"async": agent, "plain": plain_agent}
app.entrypoint(HANDLERS[os.environ.get("HANDLER", "async")])

if __name__ == "__main__":
    app.run(int(sys.argv[1]), "127.0.0.1", access_log=False)
