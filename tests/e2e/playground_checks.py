"""What the playground does in a browser. Run by ``test_playground.py`` in the environment that has Playwright."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect, sync_playwright

URL, GUARDED, MOUNTED, AG_UI = (
    os.environ.get(f"PLAYGROUND_{name}", "") for name in ("URL", "GUARDED_URL", "MOUNTED_URL", "AG_UI_URL")
)
PYTHON = os.environ.get("PLAYGROUND_PYTHON", "")
KEY = os.environ.get("PLAYGROUND_KEY", "")
PATIENCE = 20_000
"""Milliseconds after which what should have happened long ago counts as not happening."""

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NASTY = """It's "$HOME" `id` \\ \\n !! %s
é 😀 {0} '\\''"""

expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ["PLAYGROUND_CHROMIUM"], args=FLAGS)
        yield browser
        browser.close()


class Complaints(list[str]):
    """What the browser's console complains of; ``expected`` are those that a test provokes."""

    def __init__(self) -> None:
        super().__init__()
        self.expected: list[str] = []

    def listen(self, page: Page) -> None:
        page.on("console", lambda message: self.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.append(str(error)))

    @property
    def unexpected(self) -> list[str]:
        return [text for text in self if not any(expected in text for expected in self.expected)]


@pytest.fixture
def complaints() -> Iterator[Complaints]:
    complaints = Complaints()
    yield complaints
    assert complaints.unexpected == []


Open = Callable[..., Page]


@pytest.fixture
def context(browser: Browser, complaints: Complaints) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    context.set_default_timeout(PATIENCE)
    context.on("page", complaints.listen)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return opened(context)


def opened(context: BrowserContext, url: str = URL) -> Page:
    page = context.new_page()
    page.goto(f"{url}/playground")
    expect(page.locator("#agent-name")).to_have_text("trip_planner")
    return page


def ask(page: Page, mode: str, prompt: str = "A lake") -> None:
    page.get_by_label("prompt").fill(prompt)
    page.get_by_label("mode", exact=True).select_option(label=mode)
    page.locator("#send").click()


def status(page: Page, text: str) -> None:
    expect(page.locator("#status")).to_have_text(text)


def answer(page: Page) -> dict[str, Any]:
    expect(page.locator("#answer")).not_to_be_empty()
    value: dict[str, Any] = page.evaluate("JSON.parse(document.getElementById('answer').textContent)")
    return value


def test_a_stream_is_shown_as_it_comes_with_the_time_of_each_event(page: Page) -> None:
    ask(page, "wait")
    status(page, "Streaming")
    expect(page.locator("#events .data")).to_have_text(['"first"'])
    page.locator("#abort").click()
    ask(page, "stream")
    status(page, "200 OK")
    rows = page.locator("#events li")
    assert rows.count() == 40
    times = [as_ms(text) for text in page.locator("#events .at").all_text_contents()]
    assert times == sorted(times)
    assert times[-1] - times[0] > 500
    expect(page.locator("#spoken-text")).to_contain_text("Take the night train to Ljubljana, walk along the river")


def as_ms(text: str) -> float:
    number, unit = text.removeprefix("+").split()
    return float(number) * (1000 if unit == "s" else 1)


def test_escape_aborts_a_stream_and_the_agent_is_told(page: Page) -> None:
    ask(page, "wait")
    status(page, "Streaming")
    expect(page.locator("#sessions")).to_contain_text("1 stream · this tab")
    page.keyboard.press("Escape")
    status(page, "Aborted")
    expect(page.locator("#sessions")).to_contain_text("Nothing runs for any session.")
    expect(page.locator("#send")).to_be_enabled()


def test_an_error_is_shown_with_its_status_and_its_details(page: Page, complaints: Complaints) -> None:
    complaints.expected = ["status of 409"]
    ask(page, "fail")
    status(page, "409 Conflict")
    assert answer(page) == {"error": "The trip is over"}


def test_a_stream_that_fails_is_told_from_one_that_ends(page: Page) -> None:
    ask(page, "break")
    status(page, "Stream failed")
    expect(page.locator("#events .failed")).to_contain_text("the map is lost")


def test_what_the_server_refuses_is_shown_at_its_field(page: Page, complaints: Complaints) -> None:
    complaints.expected = ["status of 400"]
    days = page.get_by_label("days", exact=True)
    days.fill("99")
    ask(page, "answer")
    status(page, "400 Bad Request")
    expect(days).to_have_attribute("aria-invalid", "true")
    expect(days).to_have_accessible_description(re.compile("Expected `int` <= 30"))
    days.fill("two")
    page.locator("#send").click()
    expect(days).to_have_accessible_description(re.compile("days needs a number"))
    days.fill("3")
    page.locator("#send").click()
    status(page, "200 OK")
    expect(days).not_to_have_attribute("aria-invalid", "true")


def test_the_form_holds_all_of_a_payload(page: Page) -> None:
    page.get_by_label("style", exact=True).select_option(label="packed")
    page.get_by_role("button", name="Add an item").click()
    page.get_by_label("Item", exact=True).fill("water")
    page.get_by_label("Send traveller").check()
    page.get_by_label("vegetarian").check()
    page.get_by_label("Send budget").check()
    page.get_by_label("budget", exact=True).fill("12.5")
    ask(page, "answer")
    asked = answer(page)["asked"]
    assert asked["traveller"] == {"name": "Ann", "vegetarian": True}
    assert (asked["tags"], asked["style"], asked["budget"], asked["days"]) == (["water"], "packed", 12.5, 2)


def test_switching_between_form_and_json_keeps_what_was_typed_and_tells_where_json_is_wrong(page: Page) -> None:
    json_text, error = page.get_by_label("Payload as JSON"), page.locator("#payload-error")
    page.get_by_label("prompt").fill("Lake")
    page.locator("#view").get_by_text("JSON").click()
    expect(json_text).to_have_value(re.compile('"prompt": "Lake"'))
    json_text.fill('{\n  "prompt": "River",\n  "days" 3\n}')
    page.locator("#view").get_by_text("Form").click()
    expect(error).to_contain_text("Line 3, column 10: expected `:`")
    expect(json_text).to_be_focused()
    json_text.fill('{"prompt": "River", "days": 3, "wine": true}')
    page.locator("#view").get_by_text("Form").click()
    expect(error).to_contain_text("`wine`")
    json_text.fill('{"prompt": "River", "days": 3}')
    page.locator("#view").get_by_text("Form").click()
    expect(page.get_by_label("prompt")).to_have_value("River")
    expect(page.get_by_label("days", exact=True)).to_have_value("3")


def test_a_background_task_turns_the_badge_and_back(page: Page) -> None:
    page.get_by_label("days", exact=True).fill("4")
    expect(page.locator("#health")).to_have_text("Healthy")
    ask(page, "research")
    expect(page.locator("#health")).to_have_text("Busy")
    expect(page.locator("#tasks")).to_contain_text("compare_trains")
    expect(page.locator("#health")).to_have_text("Healthy")
    expect(page.locator("#tasks")).to_have_text("No background task runs.")


def test_a_conversation_on_a_websocket(page: Page) -> None:
    session = page.locator("#session").input_value()
    page.locator("#mode").get_by_text("WebSocket").click()
    page.locator("#socket-connect").click()
    status(page, "Connected")
    page.locator("#socket-text").fill("hello")
    page.locator("#socket-send").click()
    expect(page.locator("#events .received")).to_contain_text(f'{{"echo":"hello","session":"{session}"}}')
    page.locator("#socket-text").fill("bye")
    page.keyboard.press("Control+Enter")
    status(page, "Closed, 4000")
    expect(page.locator("#events li").last).to_contain_text("Closed with 4000: as you like")
    page.locator("#socket-connect").click()
    status(page, "Connected")
    page.locator("#socket-close").click()
    status(page, "Closed, 1000")


def test_two_tabs_have_two_sessions_that_stay_theirs(context: BrowserContext) -> None:
    tabs = [opened(context), opened(context)]
    sessions = [tab.locator("#session").input_value() for tab in tabs]
    assert sessions[0] != sessions[1]
    for tab, session in zip(tabs, sessions, strict=True):
        ask(tab, "answer")
        assert answer(tab)["session"] == session
        tab.reload()
        expect(tab.locator("#session")).to_have_value(session)
    tabs[0].locator("#session-new").click()
    expect(tabs[0].locator("#session")).not_to_have_value(sessions[0])


def test_everything_works_with_the_keyboard_alone(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the request")).to_be_focused()
    page.keyboard.press("Enter")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('#form textarea')"):
            break
    expect(page.get_by_label("prompt")).to_be_focused()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.type("By train")
    page.keyboard.press("Control+Enter")
    status(page, "200 OK")
    expect(page.locator("#history")).to_contain_text("By train")
    expect(page.locator("#announcer")).to_contain_text("200 OK after")


def test_light_and_dark_follow_the_system_and_the_switch(page: Page) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="light")
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(ground)
    assert light != dark
    page.locator("#theme").click()
    assert page.evaluate(ground) == light
    page.reload()
    assert page.evaluate(ground) == light
    page.locator("#theme").click()
    assert page.evaluate(ground) == dark


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_axe_finds_no_serious_fault(browser: Browser, scheme: Any, width: int) -> None:
    axe = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800}, bypass_csp=True)
    page = opened(context)
    faults: list[tuple[str, str, str]] = []

    def look(what: str) -> None:
        page.evaluate(f"{axe}; 0")
        found = page.evaluate("axe.run()")["violations"]
        faults.extend(
            (what, fault["id"], node["html"])
            for fault in found
            if fault["impact"] in ("serious", "critical")
            for node in fault["nodes"]
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= width, what

    look("at first")
    page.get_by_label("Send traveller").check()
    page.get_by_role("button", name="Add an item").click()
    page.locator("#code summary").click()
    ask(page, "break")
    status(page, "Stream failed")
    look("a stream that failed")
    ask(page, "answer")
    status(page, "200 OK")
    page.locator("#view").get_by_text("JSON").click()
    page.get_by_label("Payload as JSON").fill("{")
    page.locator("#send").click()
    look("an answer, and JSON that is wrong")
    page.locator("#mode").get_by_text("WebSocket").click()
    page.locator("#socket-connect").click()
    status(page, "Connected")
    page.locator("#socket-send").click()
    expect(page.locator("#events .received")).to_be_visible()
    look("a conversation")
    context.close()
    assert faults == []


def test_thousands_of_events_leave_the_page_quick(page: Page) -> None:
    ask(page, "flood")
    status(page, "200 OK")
    expect(page.locator("#facts")).to_contain_text("20,000")
    assert page.locator("#events li").count() <= 300
    expect(page.locator("#events .data").last).to_have_text('{"number":19999}')
    expect(page.locator("#more")).to_contain_text("19,700 earlier events not shown")


def test_what_an_agent_says_is_text_and_never_markup(page: Page) -> None:
    ask(page, "answer", prompt="<b id=injected>x</b>")
    expect(page.locator("#answer")).to_contain_text("<img src=x onerror=alert(1)>")
    assert page.locator("#injected, main img").count() == 0


def test_the_trace_id_is_the_one_that_was_sent_and_can_be_copied(context: BrowserContext, page: Page) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    with page.expect_request("**/invocations") as sent:
        ask(page, "answer")
    traceparent = sent.value.headers["traceparent"]
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", traceparent)
    expect(page.locator("#trace-id")).to_have_text(traceparent.split("-")[1])
    page.get_by_role("button", name="Copy the trace id").click()
    expect(page.get_by_role("button", name="Copy the trace id")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == traceparent.split("-")[1]


def test_the_same_call_as_code_gives_the_same_answer(page: Page) -> None:
    ask(page, "answer", prompt=NASTY)
    expected = answer(page)
    assert expected["asked"]["prompt"] == NASTY
    page.locator("#code summary").click()
    expect(page.locator("#code-text")).to_contain_text("curl")
    curl = page.locator("#code-text").inner_text()
    page.locator("#language").get_by_text("Python").click()
    expect(page.locator("#code-text")).to_contain_text("import httpx")
    python = page.locator("#code-text").inner_text()
    for command in (["bash", "-c", curl], [PYTHON, "-c", python]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert page.evaluate("text => JSON.parse(text)", done.stdout) == expected


def test_a_call_of_the_history_comes_back_with_its_payload(page: Page) -> None:
    ask(page, "answer", prompt="First")
    status(page, "200 OK")
    ask(page, "answer", prompt="Second")
    expect(page.locator("#history .entry")).to_have_count(2)
    status(page, "200 OK")
    page.locator("#history .entry").last.click()
    expect(page.get_by_label("prompt")).to_have_value("First")
    assert answer(page)["asked"]["prompt"] == "First"


def test_credentials_are_asked_for_used_and_kept_nowhere(context: BrowserContext, complaints: Complaints) -> None:
    complaints.expected = ["status of 401"]
    page = context.new_page()
    page.goto(f"{GUARDED}/playground")
    expect(page.locator("#health")).to_have_text("Needs credentials")
    page.get_by_label("Kind of credentials").select_option(label="API key")
    page.get_by_label("Credentials", exact=True).fill(KEY)
    page.get_by_role("button", name="Use").click()
    expect(page.locator("#agent-name")).to_have_text("trip_planner")
    expect(page.locator("#health")).to_have_text("Healthy")
    page.locator("#code summary").click()
    ask(page, "answer")
    status(page, "200 OK")
    expect(page.locator("#code-text")).to_contain_text("X-Api-Key: '\"$AGENT_SECRET\"'")
    page.locator("#mode").get_by_text("WebSocket").click()
    page.locator("#socket-connect").click()
    status(page, "Connected")
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}]) + document.cookie + location.href")
    assert KEY not in kept


def test_the_page_finds_the_agent_below_a_prefix(context: BrowserContext) -> None:
    page = opened(context, MOUNTED)
    ask(page, "answer")
    status(page, "200 OK")
    page.locator("#mode").get_by_text("WebSocket").click()
    page.locator("#socket-connect").click()
    status(page, "Connected")


def test_an_agent_that_is_away_is_said_to_be_and_asked_again(page: Page, complaints: Complaints) -> None:
    complaints.expected = ["ERR_FAILED"]
    page.route("**/playground/state", lambda route: route.abort())
    expect(page.locator("#health")).to_have_text("Away")
    expect(page.locator("#offline")).to_contain_text("The agent does not answer. Next try in")
    page.unroute("**/playground/state")
    expect(page.locator("#health")).to_have_text("Healthy")
    expect(page.locator("#offline")).to_be_hidden()


@pytest.mark.parametrize(
    ("code", "headers", "said"),
    [
        (200, {}, "Stopped"),
        (404, {"x-amzn-errortype": "ResourceNotFoundException"}, "Nothing runs for this session"),
        (404, {}, "does not serve /runtimes"),
        (429, {"x-amzn-errortype": "ThrottlingException"}, "Not stopped: busy (429)"),
    ],
)
def test_what_comes_of_stopping_a_session_is_told(
    page: Page, complaints: Complaints, code: int, headers: dict[str, str], said: str
) -> None:
    complaints.expected = [f"status of {code}"]
    sent = []

    def reply(route: Route) -> None:
        sent.append(route.request)
        route.fulfill(status=code, headers=headers, body='{"message": "busy"}', content_type="application/json")

    page.route("**/stopruntimesession", reply)
    page.locator("#session-stop").click()
    expect(page.locator("#session-note")).to_contain_text(said)
    (request,) = sent
    assert "/runtimes/arn%3Aaws%3Abedrock-agentcore%3Alocal%3A000000000000%3Aruntime%2Flocal/" in request.url
    assert len(request.post_data_json["clientToken"]) >= 33
    session = request.headers["x-amzn-bedrock-agentcore-runtime-session-id"]
    assert session == page.locator("#session").input_value()
    assert 33 <= len(session) <= 256


# AG-UI


@pytest.fixture
def runs(context: BrowserContext) -> Page:
    page = context.new_page()
    page.goto(f"{AG_UI}/playground")
    expect(page.get_by_label("Your message")).to_be_visible()
    expect(page.locator("#mode").get_by_text("Invoke")).to_be_hidden()
    return page


def say(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.locator("#run-send").click()


def test_a_run_shows_its_messages_and_keeps_them_in_the_thread(runs: Page) -> None:
    with runs.expect_request("**/invocations") as first:
        say(runs, "hello")
    status(runs, "200 OK")
    messages = runs.locator("#run-messages li")
    expect(messages).to_have_text(["userhello", "assistantHello wörld 😀\n"])
    with runs.expect_request("**/invocations") as second:
        say(runs, "say who you are")
    status(runs, "200 OK")
    inputs = [request.value.post_data_json for request in (first, second)]
    session = runs.get_by_label("Session", exact=True).input_value()
    assert [each["threadId"] for each in inputs] == [session, session]
    assert inputs[0]["runId"] != inputs[1]["runId"]
    assert [message["role"] for message in inputs[1]["messages"]] == ["user", "assistant", "user"]
    expect(messages.last).to_contain_text(f"{session} True")


def test_a_run_shows_what_tools_are_called_with_and_give(runs: Page) -> None:
    say(runs, "call a tool")
    status(runs, "200 OK")
    expect(runs.locator("#run-messages")).to_contain_text('weather({"city": "Oslo"})')
    expect(runs.locator("#run-messages li.tool")).to_contain_text("snow")


def test_a_run_shows_its_state_which_goes_with_the_next(runs: Page) -> None:
    say(runs, "keep state")
    status(runs, "200 OK")
    state = {"count": 2, "steps": ["packed"]}
    text = runs.locator("#run-state-text")
    expect(text).to_be_visible()
    assert runs.evaluate("JSON.parse(document.getElementById('run-state-text').textContent)") == state
    with runs.expect_request("**/invocations") as asked:
        say(runs, "hello")
    assert asked.value.post_data_json["state"] == state


def test_a_run_that_fails_is_told_from_one_that_ends(runs: Page) -> None:
    say(runs, "fail")
    status(runs, "Stream failed")
    expect(runs.locator("#events .failed")).to_contain_text("no more credit")
    say(runs, "hello")
    status(runs, "200 OK")


def test_escape_aborts_a_run(runs: Page) -> None:
    say(runs, "wait")
    status(runs, "Streaming")
    runs.keyboard.press("Escape")
    status(runs, "Aborted")
    expect(runs.locator("#sessions")).to_contain_text("Nothing runs for any session.")


def test_a_new_session_is_a_new_thread_and_old_runs_come_back(runs: Page) -> None:
    say(runs, "hello")
    status(runs, "200 OK")
    runs.get_by_role("button", name="New", exact=True).click()
    say(runs, "keep state")
    status(runs, "200 OK")
    expect(runs.locator("#run-messages li")).to_have_text(["userkeep state"])
    runs.locator("#history button").last.click()
    expect(runs.locator("#run-messages li")).to_have_count(2)
    expect(runs.get_by_label("Your message")).to_have_value("hello")


@pytest.mark.parametrize(
    ("patch", "becomes"),
    [
        ([{"op": "add", "path": "/a/1", "value": 9}], {"a": [1, 9, 2], "b": {"c~/": 3}}),
        ([{"op": "remove", "path": "/a/0"}, {"op": "add", "path": "/a/-", "value": 3}], {"a": [2, 3], "b": {"c~/": 3}}),
        ([{"op": "replace", "path": "/b/c~0~1", "value": None}], {"a": [1, 2], "b": {"c~/": None}}),
        ([{"op": "move", "from": "/b", "path": "/d"}], {"a": [1, 2], "d": {"c~/": 3}}),
        ([{"op": "copy", "from": "/a", "path": "/b/e"}], {"a": [1, 2], "b": {"c~/": 3, "e": [1, 2]}}),
        ([{"op": "replace", "path": "", "value": 5}], 5),
        ([{"op": "add", "path": "/x/y", "value": 1}], None),
        ([{"op": "add", "path": "/__proto__/polluted", "value": 1}], None),
        ([{"op": "what", "path": "/a"}], None),
        ("nonsense", None),
    ],
)
def test_changes_of_state_are_json_patches(patch: Any, becomes: Any, page: Page) -> None:
    source = page.evaluate("document.querySelector('script[type=module]').textContent")
    start = source.index("function patched(")
    own = source[start : source.index("\n}\n", start) + 2]
    done = page.evaluate(
        f"""(patch) => {{ {own}; const found = patched({{ a: [1, 2], b: {{ "c~/": 3 }} }}, patch);
        return [found, Object.prototype.polluted ?? null]; }}""",
        patch,
    )
    assert done == [becomes, None]
