// The page: what its controls do, and how calls, conversations and the agent's state are shown.

const SHOWN_EVENTS = 300;
const SHOWN_CHARACTERS = 200_000;
const ROW_CHARACTERS = 4_000;
const KEPT_CALLS = 30;

const $ = (id) => document.getElementById(id);
const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`).value;
const announce = (text) => void ($("announcer").textContent = text);
const seconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`);
const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

function age(s) {
  if (s < 60) return `${Math.floor(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Browsers give the clipboard to secure contexts alone; this way works in the others.
    const area = el("textarea", { class: "hidden-label", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  const before = button.textContent;
  button.textContent = "Copied";
  announce("Copied");
  setTimeout(() => (button.textContent = before), 1200);
}

// -- Light and dark

const storedTheme = localStorage.getItem("playground-theme");
if (storedTheme) document.documentElement.dataset.theme = storedTheme;
$("theme").addEventListener("click", () => {
  const isDark = getComputedStyle(document.documentElement).colorScheme === "dark" || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = isDark ? "light" : "dark";
  localStorage.setItem("playground-theme", document.documentElement.dataset.theme);
});

// -- The session, which each tab has for itself

$("session").value = sessionStorage.getItem("playground-session") ?? "";
if (!$("session").value) newSession();
$("session").addEventListener("input", keepSession);
$("session-new").addEventListener("click", () => {
  newSession();
  announce("A new session");
});
$("session-stop").addEventListener("click", stopSession);

function newSession() {
  $("session").value = `playground-${uuid()}`;
  keepSession();
}

function keepSession() {
  const session = $("session").value;
  const isValid = /^[\x21-\x7e]{0,256}$/.test(session);
  $("session").setAttribute("aria-invalid", String(!isValid));
  note("session-note", isValid ? (session ? "" : "Calls have no session.") : "An id has 1 to 256 visible ASCII characters.", !isValid);
  if (isValid) sessionStorage.setItem("playground-session", session);
  showCode();
}

function note(id, text, isBad = false) {
  $(id).textContent = text;
  $(id).classList.toggle("bad", isBad);
}

async function stopSession() {
  const [arn, session] = [encodeURIComponent(agent.runtime_arn), $("session").value];
  if (!session) return note("session-note", "There is no session to stop.", true);
  try {
    const headers = { "Content-Type": "application/json", [SESSION_HEADER]: session, ...credentials.headers() };
    const response = await fetch(urlOf(`/runtimes/${arn}/stopruntimesession`), { method: "POST", headers, body: JSON.stringify({ clientToken: uuid() }) });
    const errorType = response.headers.get("x-amzn-errortype");
    if (response.ok) note("session-note", "Stopped: what ran for the session was cancelled.");
    else if (response.status === 404 && errorType) note("session-note", "Nothing runs for this session, so there is nothing to stop.");
    else if (response.status === 404) note("session-note", "This server does not serve /runtimes, so the page cannot stop sessions.", true);
    else note("session-note", `Not stopped: ${errorOf(await response.text())} (${response.status})`, true);
  } catch {
    note("session-note", "Not stopped: the agent could not be reached.", true);
  }
  poll();
}

/** What an answer in JSON says went wrong. */
function errorOf(text) {
  const value = parsed(text);
  return [value?.error ?? value?.detail ?? value?.message, value?.details].filter((part) => typeof part === "string").join(": ") || text.slice(0, 300);
}

// -- Credentials, where the server asks for them

function askForCredentials(text) {
  $("credentials").hidden = false;
  note("secret-note", text, true);
}
$("credentials").addEventListener("submit", (event) => {
  event.preventDefault();
  credentials.kind = $("secret-kind").value;
  credentials.secret = $("secret").value.trim();
  note("secret-note", "Used from now on, and kept in this tab’s memory alone.");
  showCode();
  describe();
  poll();
});

// -- The payload

let agent = { runtime_arn: "", websocket: true, http: true, ag_ui_path: null };
let form = null;

async function describe() {
  try {
    const response = await fetch(`${urlOf(document.documentElement.dataset.path)}/agent`, { headers: credentials.headers() });
    if (response.status === 401 || response.status === 403) return askForCredentials(errorOf(await response.text()));
    if (response.ok) showAgent(await response.json());
  } catch {
    // The state, which is asked for all the time, tells that the agent is away, and leads here again.
  }
}

function showAgent(description) {
  agent = description;
  showModes();
  agent.isKnown = true;
  document.title = `${agent.name} · Playground`;
  $("agent-name").textContent = agent.name;
  $("agent-about").textContent = (agent.description ?? "").split("\n")[0];
  if (!agent.websocket) document.querySelector('input[value="socket"]').disabled = true;
  const schema = normalise(agent.payload_schema ?? {}, agent.payload_schema ?? {});
  const field = makeField(agent.payload_schema ?? {}, agent.payload_schema ?? {});
  form = field.isJson ? null : field;
  $("payload-about").textContent = schema.description ?? (form ? "" : "This agent takes any JSON.");
  if (form && !form.find) $("form").replaceChildren(el("div", { class: "field" }, el("span", { class: "hint" }, schema.type ?? ""), form.element));
  else $("form").replaceChildren(...(form ? [form.element] : []));
  form?.control?.setAttribute("aria-labelledby", "payload-title");
  $("view").hidden = form === null;
  if (!$("json-text").value) $("json-text").value = field.isJson && field.control.value.length > 2 ? field.control.value : '{\n  "prompt": "Hello"\n}';
  if (form === null) showView("json");
  showCode();
}

/** Offers what the agent speaks; where AG-UI is all, that. */
function showModes() {
  const isRun = agent.ag_ui_path !== null;
  $("mode-run").hidden = !isRun;
  for (const value of ["call", "socket"]) document.querySelector(`input[value="${value}"]`).closest("label").hidden = !agent.http;
  if (!agent.http && isRun) choose("mode", "run");
}

function showView(view) {
  document.querySelector(`input[name="view"][value="${view}"]`).checked = true;
  $("form").hidden = view !== "form";
  $("json").hidden = view !== "json";
}

$("view").addEventListener("change", () => {
  const view = chosen("view");
  try {
    if (view === "json") $("json-text").value = [...prettyTokens(JSON.stringify(form.read()))].map(([, text]) => text).join("");
    else {
      const text = jsonPayload();
      if (!keepsNumbers(text)) throw new FieldError("has a number that a form would change");
      form.write(JSON.parse(text));
    }
    clearErrors();
    showView(view);
  } catch (error) {
    showView(view === "json" ? "form" : "json");
    if (!(error instanceof FieldError)) throw error;
    showFieldError(error, view === "form" ? "The form cannot show this: " : "");
  }
  showCode();
});

/** The text of the JSON box. */
function jsonPayload() {
  const text = $("json-text").value;
  const wrong = findJsonError(text);
  if (wrong === null) return text;
  const error = new FieldError(`Line ${wrong.line}, column ${wrong.column}: expected ${wrong.expected}.`);
  Object.assign(error, { offset: wrong.offset, isWhole: true });
  throw error;
}

/** The body to send, as it is written. */
function payload() {
  return chosen("view") === "form" && form ? JSON.stringify(form.read()) : jsonPayload();
}

function clearErrors() {
  note("payload-error", "", true);
  document.querySelectorAll("#form .note.bad").forEach((element) => (element.textContent = ""));
  document.querySelectorAll("#call-panel [aria-invalid]").forEach((element) => element.removeAttribute("aria-invalid"));
}

function showFieldError(error, before = "") {
  clearErrors();
  const path = error.path ?? "";
  const member = chosen("view") === "form" ? form?.find?.(path) : undefined;
  const text = error.isWhole ? error.message : `${path.replace(/^\./, "") || "The payload"} ${error.message}.`;
  if (member) {
    member.error.textContent = before + text;
    member.field.control?.setAttribute("aria-invalid", "true");
    member.field.control?.focus();
  } else note("payload-error", before + text, true);
  if (chosen("view") === "json") {
    $("json-text").setAttribute("aria-invalid", "true");
    $("json-text").focus();
    if (error.offset !== undefined) $("json-text").setSelectionRange(error.offset, error.offset + 1);
  }
}

/** Shows at its field what the server did not like about a payload: ``Expected `int` - at `$.limit` ``. */
function showRefusal(text) {
  const details = parsed(text)?.details;
  const match = typeof details === "string" ? /^(.*?) - at `\$([^`]*)`/.exec(details) : null;
  const member = match && chosen("view") === "form" ? form?.find?.(match[2]) : undefined;
  if (!member) return;
  member.error.textContent = match[1];
  member.field.control?.setAttribute("aria-invalid", "true");
}

// -- Calls

let current = null;
let shown = null;
let drawn = 0;
let frame = null;
const calls = [];

function send() {
  if (current !== null || $("session").getAttribute("aria-invalid") === "true") return;
  clearErrors();
  try {
    begin(new Call(payload(), $("session").value, () => draw()));
  } catch (error) {
    if (!(error instanceof FieldError)) throw error;
    showFieldError(error);
  }
}

const threads = new Map();

/** The thread of the session, whose messages and state go with each run. */
function threadOf(session) {
  if (!threads.has(session)) threads.set(session, new Thread(session));
  return threads.get(session);
}

function sendRun() {
  const session = $("session").value;
  if (current !== null || $("session").getAttribute("aria-invalid") === "true") return;
  const thread = threadOf(session);
  const prompt = $("run-text").value;
  const call = new Call(thread.input(prompt), session, () => draw(), agent.ag_ui_path, (value) => thread.take(value));
  begin(Object.assign(call, { thread, label: prompt }));
}

function begin(call) {
  current = call;
  calls.unshift(call);
  calls.length = Math.min(calls.length, KEPT_CALLS);
  show(call);
  setRunning(true);
  announce("Sent");
  if ($("response").getBoundingClientRect().top > innerHeight - 120) $("response").scrollIntoView();
  call.run().then(() => {
    current = null;
    setRunning(false);
    if (call.status === 401 || call.status === 403) askForCredentials(errorOf(call.text));
    if (call.status === 400) showRefusal(call.text);
    announce(`${statusOf(call)} after ${seconds(call.duration)}`);
    showHistory();
    poll();
  });
  showHistory();
}

function setRunning(isRunning) {
  for (const id of ["send", "run-send"]) $(id).disabled = isRunning;
  for (const id of ["abort", "run-abort"]) $(id).disabled = !isRunning;
  $("response").setAttribute("aria-busy", String(isRunning));
}

$("send").addEventListener("click", send);
$("run-send").addEventListener("click", sendRun);
for (const id of ["abort", "run-abort"]) $(id).addEventListener("click", () => current?.abort());

function statusOf(call) {
  if (call.state === "aborted") return "Aborted";
  if (call.status === null) return call.state === "running" ? "Waiting" : "No answer";
  if (call.state === "running") return call.events ? "Streaming" : "Receiving";
  if (call.status < 400 && call.error) return "Stream failed";
  return `${call.status} ${call.statusText}`.trim();
}

/** Has what a call has brought be drawn with the next frame, however many events that is. */
function draw() {
  if (frame !== null) return;
  const drawNow = () => {
    frame = null;
    if (shown) drawCall(shown);
  };
  frame = document.hidden ? setTimeout(drawNow, 250) : requestAnimationFrame(drawNow);
}

function show(call) {
  shown = call;
  drawn = 0;
  $("events").replaceChildren();
  $("answer").replaceChildren();
  draw();
}

function drawCall(call) {
  $("empty").hidden = true;
  $("status").hidden = false;
  $("status").textContent = statusOf(call);
  $("status").dataset.health = { running: "busy", done: "good", aborted: "unknown", failed: "bad" }[call.state];
  const facts = { Took: call.duration === null ? null : seconds(call.duration), "First byte": call.firstAt === null ? null : seconds(call.firstAt) };
  if (call.events) facts.Events = (call.events.length + call.forgotten).toLocaleString("en");
  drawFacts({ ...facts, Trace: call.traceId, Request: call.requestId });
  $("body").hidden = call.events === null && call.text === "" && call.error === null;
  $("events").hidden = call.events === null;
  $("answer").hidden = call.events !== null;
  $("body-title").textContent = call.events ? "Events" : call.error ? "Error" : "Answer";
  drawThread(call.thread);
  const isSpoken = !call.thread && call.events !== null && call.spoken !== "" && call.events.length + call.forgotten > 1;
  $("spoken").hidden = !isSpoken;
  if (isSpoken) $("spoken-text").textContent = call.spoken.slice(-SHOWN_CHARACTERS);
  if (call.events) drawEvents(call.events, call.forgotten, (event) => eventRow(event));
  else if (call.state !== "running" && !$("answer").hasChildNodes()) drawAnswer(call.text || call.error || "");
}

function drawThread(thread) {
  $("run").hidden = !thread;
  if (!thread) return;
  const rows = thread.messages.map((message) => {
    const said = clipped(textOf(message), ROW_CHARACTERS);
    const tools = (message.toolCalls ?? []).map((tool) => el("p", { class: "code tool" }, clipped(`${tool.function.name}(${tool.function.arguments})`, ROW_CHARACTERS)));
    return el("li", { class: message.role }, el("span", { class: "muted" }, message.role), said && el("p", { class: message.role === "tool" ? "code spoken" : "spoken" }, said), ...tools);
  });
  $("run-messages").replaceChildren(...rows);
  $("run-state").hidden = thread.state === null || Object.keys(thread.state).length === 0;
  $("run-state-text").textContent = clipped(JSON.stringify(thread.state, null, 2), SHOWN_CHARACTERS);
}

function drawFacts(facts) {
  const entries = Object.entries(facts).filter(([, value]) => value !== null && value !== undefined);
  const key = JSON.stringify(entries);
  if ($("facts").dataset.key === key) return;
  $("facts").dataset.key = key;
  $("facts").hidden = false;
  const rows = entries.map(([name, value]) => {
    const isId = name === "Trace" || name === "Request";
    const button = isId ? el("button", { class: "copy", type: "button", "aria-label": `Copy the ${name.toLowerCase()} id`, click: (event) => copy(value, event.target) }, "Copy") : null;
    return el("div", {}, el("dt", {}, name), el("dd", { class: isId ? "code" : null }, el("span", { id: isId ? `${name.toLowerCase()}-id` : null }, value), button));
  });
  $("facts").replaceChildren(...rows);
}

/** Appends the rows of what has come since the last time; the list keeps the newest alone. */
function drawEvents(events, forgotten, rowOf) {
  const list = $("events");
  const total = events.length + forgotten;
  const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  const from = Math.max(drawn, total - SHOWN_EVENTS, forgotten);
  list.append(...events.slice(from - forgotten).map(rowOf));
  while (list.childElementCount > SHOWN_EVENTS) list.firstElementChild.remove();
  drawn = total;
  const hidden = total - list.childElementCount;
  $("more").hidden = hidden === 0;
  const where = forgotten ? `; the first ${forgotten.toLocaleString("en")} are no longer kept` : "; Copy has them too";
  $("more").textContent = `${counted(hidden, "earlier event")} not shown${where}.`;
  if (isAtEnd) list.scrollTop = list.scrollHeight;
}

function clipped(text, limit) {
  return text.length <= limit ? text : `${text.slice(0, limit)}\n… and ${(text.length - limit).toLocaleString("en")} more characters`;
}

function eventRow(event) {
  const kind = event.failed ? "failed" : event.kind;
  return el("li", { class: kind }, el("span", { class: "at" }, `+${seconds(event.at)}`), el("span", { class: "data" }, clipped(event.data, ROW_CHARACTERS)));
}

function drawAnswer(text) {
  const isReadable = text.length <= SHOWN_CHARACTERS && findJsonError(text) === null;
  const pieces = isReadable ? [...prettyTokens(text)].map(([kind, token]) => (kind ? el("span", { class: kind }, token) : token)) : [clipped(text, SHOWN_CHARACTERS)];
  $("answer").replaceChildren(...pieces);
}

$("copy-body").addEventListener("click", (event) => {
  const events = chosen("mode") === "socket" ? conversation.events : shown?.events;
  copy(events ? events.map(({ data }) => data).join("\n") : (shown?.text ?? ""), event.target);
});

function showHistory() {
  const rows = calls.map((call) => {
    const health = { running: "busy", done: "good", aborted: "unknown", failed: "bad" }[call.state];
    const when = call.when.toLocaleTimeString([], { hour12: false });
    const label = el("span", { class: "code preview" }, (call.label ?? call.body).replace(/\s+/g, " ").slice(0, 200));
    const facts = el("span", { class: "muted" }, `${when} · ${statusOf(call)}${call.duration === null ? "" : ` · ${seconds(call.duration)}`}`);
    return el("li", {}, el("button", { type: "button", class: "entry", click: () => recall(call) }, el("span", { class: "dot", "data-health": health }), el("span", {}, label, facts)));
  });
  $("history").replaceChildren(...rows);
}

/** Shows a call of the history again, and its payload, so that it can be sent once more. */
function recall(call) {
  choose("mode", call.thread ? "run" : "call");
  if (call.thread) {
    $("run-text").value = call.label;
    return show(call);
  }
  $("json-text").value = call.body;
  clearErrors();
  try {
    if (form === null || !keepsNumbers(call.body)) throw new FieldError();
    form.write(JSON.parse(call.body));
    showView("form");
  } catch (error) {
    if (!(error instanceof FieldError)) throw error;
    showView("json");
  }
  show(call);
  showCode();
}

// -- The same call as code

function showCode() {
  if (!$("code").open) return;
  try {
    const [body, session] = [payload(), $("session").value];
    $("code-text").textContent = chosen("language") === "curl" ? curlOf(body, session) : pythonSampleOf(body, session);
  } catch (error) {
    if (!(error instanceof FieldError)) throw error;
    $("code-text").textContent = "The payload is not complete yet.";
  }
}
for (const type of ["input", "change", "click"]) $("call-panel").addEventListener(type, showCode);
$("code").addEventListener("toggle", showCode);
document.querySelector('[data-copies="code-text"]').addEventListener("click", (event) => copy($("code-text").textContent, event.target));

// -- Conversations on /ws

const conversation = { socket: null, events: [], forgotten: 0, began: 0, status: "Not connected", health: "unknown" };

function record(kind, data) {
  conversation.events.push({ kind, data, at: performance.now() - conversation.began });
  if (conversation.events.length > KEPT_EVENTS) conversation.forgotten += conversation.events.splice(0, KEPT_EVENTS / 2).length;
  if (chosen("mode") === "socket") drawConversationSoon();
}

let conversationFrame = null;
function drawConversationSoon() {
  conversationFrame ??= setTimeout(() => {
    conversationFrame = null;
    if (chosen("mode") === "socket") drawConversation();
  }, 16);
}

function drawConversation() {
  const isOpen = conversation.socket?.readyState === WebSocket.OPEN;
  const isAny = conversation.events.length > 0;
  $("socket-connect").disabled = conversation.socket !== null;
  $("socket-send").disabled = !isOpen;
  $("socket-close").disabled = conversation.socket === null;
  $("empty").hidden = isAny;
  $("status").hidden = false;
  $("status").textContent = conversation.status;
  $("status").dataset.health = conversation.health;
  for (const id of ["facts", "run", "spoken", "answer"]) $(id).hidden = true;
  $("facts").dataset.key = "";
  $("body").hidden = $("events").hidden = !isAny;
  $("body-title").textContent = "Messages";
  drawEvents(conversation.events, conversation.forgotten, eventRow);
}

function setConversation(status, health) {
  Object.assign(conversation, { status, health });
  announce(status);
  drawConversationSoon();
}

function connect() {
  const session = $("session").value;
  const query = session ? `?${new URLSearchParams({ [SESSION_HEADER]: session })}` : "";
  const socket = new WebSocket(urlOf(`/ws${query}`, location.protocol === "https:" ? "wss:" : "ws:"), credentials.subprotocols());
  socket.binaryType = "arraybuffer";
  Object.assign(conversation, { socket, began: performance.now() });
  setConversation("Connecting", "busy");
  socket.addEventListener("open", () => {
    record("note", "Connected");
    setConversation("Connected", "good");
    poll();
  });
  socket.addEventListener("message", ({ data }) => record("received", typeof data === "string" ? data : `${counted(data.byteLength, "byte")} of binary data`));
  socket.addEventListener("close", ({ code, reason, wasClean }) => {
    conversation.socket = null;
    // The browser tells nothing more of a handshake that was refused.
    const why = reason || { 1006: "the connection was refused or lost", 1011: "the agent failed, or has no handler of /ws" }[code] || "";
    record(wasClean && code !== 1011 ? "note" : "failed", `Closed with ${code}${why ? `: ${why}` : ""}`);
    setConversation(`Closed, ${code}`, wasClean && code !== 1011 ? "unknown" : "bad");
    poll();
  });
}

function sendMessage() {
  if (conversation.socket?.readyState !== WebSocket.OPEN) return;
  conversation.socket.send($("socket-text").value);
  record("sent", $("socket-text").value);
}

$("socket-connect").addEventListener("click", connect);
$("socket-send").addEventListener("click", sendMessage);
$("socket-close").addEventListener("click", () => {
  const code = Number($("socket-code").value);
  const isValid = code === 1000 || (Number.isInteger(code) && code >= 3000 && code <= 4999);
  $("socket-code").setAttribute("aria-invalid", String(!isValid));
  if (isValid) conversation.socket?.close(code);
  else announce("A page may close with 1000, or with 3000 to 4999");
});

function choose(name, value) {
  const input = document.querySelector(`input[name="${name}"][value="${value}"]`);
  if (input.checked) return;
  input.checked = true;
  input.dispatchEvent(new Event("change", { bubbles: true }));
}

$("mode").addEventListener("change", () => {
  const isSocket = chosen("mode") === "socket";
  for (const [id, mode] of [["call-panel", "call"], ["run-panel", "run"], ["socket-panel", "socket"]]) $(id).hidden = chosen("mode") !== mode;
  $("response-title").textContent = isSocket ? "Conversation" : "Response";
  drawn = 0;
  $("events").replaceChildren();
  $("answer").replaceChildren();
  for (const id of ["status", "facts", "body", "run", "spoken", "more"]) $(id).hidden = true;
  $("empty").hidden = false;
  if (isSocket) drawConversation();
  else draw();
});

// -- What the agent does

let timer = null;
let failures = 0;

async function poll() {
  clearTimeout(timer);
  if (document.hidden) return;
  let wait = 1_500;
  try {
    const options = { headers: credentials.headers(), signal: AbortSignal.timeout(5_000), cache: "no-store" };
    const response = await fetch(`${urlOf(document.documentElement.dataset.path)}/state`, options);
    if (response.status === 401 || response.status === 403) {
      setHealth("unknown", "Needs credentials");
      askForCredentials(errorOf(await response.text()));
      return; // until there are some
    }
    if (!response.ok) throw new Error(String(response.status));
    showState(await response.json());
    if (failures > 0 || !agent.isKnown) describe();
    failures = 0;
    $("offline").hidden = true;
  } catch {
    failures += 1;
    wait = Math.min(15_000, 1_000 * 2 ** failures);
    setHealth("bad", "Away");
    $("offline").hidden = false;
    $("offline").textContent = `The agent does not answer. Next try in ${wait / 1000} s.`;
  }
  clearTimeout(timer);
  timer = setTimeout(poll, wait);
}
document.addEventListener("visibilitychange", poll);

function setHealth(health, text) {
  $("health").dataset.health = health;
  if ($("health-text").textContent !== text) $("health-text").textContent = text;
}

function showState({ ping, tasks, sessions, processes }) {
  setHealth(ping.status === "HealthyBusy" ? "busy" : "good", ping.status === "HealthyBusy" ? "Busy" : "Healthy");
  $("health").title = `${ping.status} since ${new Date(ping.time_of_last_update * 1000).toLocaleString()}`;
  $("task-count").textContent = tasks.active_count;
  $("session-count").textContent = sessions.length;
  fill("tasks", tasks.running_jobs.slice(0, 50).map((job) => el("li", {}, el("span", { class: "code" }, job.name), el("span", { class: "muted" }, age(job.duration)))));
  fill("sessions", sessions.slice(-50).reverse().map(sessionRow));
  $("sessions-note").hidden = processes === 1;
  $("sessions-note").textContent = `${processes} processes serve this agent; these are the sessions of the one that answered.`;
}

function sessionRow(session) {
  const kinds = { invocations: "invocation", streams: "stream", websockets: "socket", tasks: "task" };
  const work = Object.entries(kinds).filter(([kind]) => session[kind] > 0).map(([kind, noun]) => counted(session[kind], noun));
  const name = el("span", { class: "code preview", title: session.session_id }, session.session_id);
  const isOwn = session.session_id === $("session").value;
  return el("li", {}, el("span", {}, name, el("span", { class: "muted" }, `${work.join(", ") || `idle for ${age(session.idle)}`}${isOwn ? " · this tab" : ""}`)), el("span", { class: "muted" }, age(session.age)));
}

/** Fills a list, or says again that it is empty, as the page did at first. */
function fill(id, rows) {
  $(id).none ??= $(id).querySelector(".none");
  $(id).replaceChildren(...(rows.length > 0 ? rows : [$(id).none]));
}

// -- Keys

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    ({ call: send, run: sendRun, socket: sendMessage })[chosen("mode")]();
  } else if (event.key === "Escape") current?.abort();
});
if (/Mac|iPhone|iPad/.test(navigator.platform)) document.querySelectorAll("kbd").forEach((key) => (key.textContent = key.textContent.replace("Ctrl", "⌘")));

describe();
poll();
