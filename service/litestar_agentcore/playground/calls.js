// Calls of the agent: ids, credentials, reading what comes back, and the same call as code.

const HEADER_PREFIX = "X-Amzn-Bedrock-AgentCore-Runtime-";
const SESSION_HEADER = `${HEADER_PREFIX}Session-Id`;
const REQUEST_HEADER = `${HEADER_PREFIX}Request-Id`;
const KEPT_EVENTS = 20_000;
const KEPT_CHARACTERS = 20_000_000;

/** Where the application is mounted: the page's own address without the path that the server gave it. */
const BASE = location.pathname.replace(/\/+$/, "").slice(0, -document.documentElement.dataset.path.length);

function urlOf(path, scheme = location.protocol) {
  return `${scheme}//${location.host}${BASE}${path}`;
}

function randomHex(bytes) {
  return [...crypto.getRandomValues(new Uint8Array(bytes))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A UUID of version 4; `crypto.randomUUID` is there in secure contexts alone. */
function uuid() {
  const hex = randomHex(16);
  const variant = "89ab"[parseInt(hex[16], 16) % 4];
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-4${hex.slice(13, 16)}-${variant}${hex.slice(17, 20)}-${hex.slice(20)}`;
}

/** The credentials of this tab. They are in memory alone. */
const credentials = {
  kind: "Authorization",
  secret: "",
  /** The headers that carry them; with a variable of the shell's in the secret's place, for code. */
  headers(secret = this.secret) {
    if (this.secret === "") return {};
    return { [this.kind]: this.kind === "Authorization" ? `Bearer ${secret}` : secret };
  },
  /** The subprotocols that carry them, since a browser sets no header on a WebSocket. */
  subprotocols() {
    if (this.secret === "") return [];
    const base64 = btoa(this.secret).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
    return [`base64UrlBearerAuthorization.${base64}`, "base64UrlBearerAuthorization"];
  },
};

/** Splits server-sent events off a stream of text, and gives the data of each (HTML standard, section 9.2). */
class EventParser {
  #rest = "";
  #data = [];

  *feed(text) {
    // A line may end with CR, LF or both, so a CR at the end waits for what follows.
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) this.#data.push(line.slice(line[5] === " " ? 6 : 5));
      else if (line === "data") this.#data.push("");
      else if (line === "" && this.#data.length > 0) yield this.#data.splice(0).join("\n");
    }
  }
}

/** One call of an agent, and what has come of it so far. Changes are told to `onChange`. */
class Call {
  state = "running";
  status = null;
  events = null;
  forgotten = 0;
  text = "";
  spoken = "";
  requestId = null;
  firstAt = null;
  duration = null;
  error = null;
  #characters = 0;
  #controller = new AbortController();

  /** `onValue`, where it is given, is told the value of each event. */
  constructor(body, session, onChange, path = "/invocations", onValue = null) {
    Object.assign(this, { body, session, onChange, path, onValue, traceId: randomHex(16), when: new Date() });
    this.began = performance.now();
  }

  get headers() {
    const own = { "Content-Type": "application/json", traceparent: `00-${this.traceId}-${randomHex(8)}-01` };
    return { ...own, ...(this.session ? { [SESSION_HEADER]: this.session } : {}), ...credentials.headers() };
  }

  abort() {
    this.#controller.abort();
  }

  async run() {
    try {
      const { signal } = this.#controller;
      const response = await fetch(urlOf(this.path), { method: "POST", headers: this.headers, body: this.body, signal });
      this.status = response.status;
      this.statusText = response.statusText;
      this.type = response.headers.get("content-type") ?? "";
      this.requestId = response.headers.get(REQUEST_HEADER);
      if (this.type.startsWith("text/event-stream")) this.events = [];
      this.onChange();
      await this.#read(response.body);
      this.state = response.ok && this.error === null ? "done" : "failed";
    } catch (error) {
      this.state = this.#controller.signal.aborted ? "aborted" : "failed";
      if (this.state === "failed") this.error = this.status === null ? "The agent could not be reached." : `The connection was lost: ${error.message}`;
    }
    this.duration = performance.now() - this.began;
    this.onChange();
  }

  async #read(stream) {
    const decoder = new TextDecoder();
    const parser = new EventParser();
    const pieces = [];
    for (let reader = stream.getReader(), step = await reader.read(); !step.done; step = await reader.read()) {
      this.firstAt ??= performance.now() - this.began;
      const piece = decoder.decode(step.value, { stream: true });
      if (this.events === null) pieces.push(piece);
      else for (const data of parser.feed(piece)) this.#keep(data);
      this.onChange();
    }
    if (this.events === null) this.text = pieces.join("") + decoder.decode();
    else for (const data of parser.feed("\n\n")) this.#keep(data);
  }

  #keep(data) {
    const event = { at: performance.now() - this.began, data, failed: false };
    const value = parsed(data);
    if (typeof value?.error === "string" && typeof value.error_type === "string") {
      event.failed = true;
      this.error = `${value.error_type}: ${value.error}`;
    } else if (value?.type === "RUN_ERROR") {
      event.failed = true;
      this.error = [value.code, value.message].filter(Boolean).join(": ");
    }
    this.onValue?.(value);
    this.events.push(event);
    this.#characters += data.length;
    if (this.spoken.length < KEPT_CHARACTERS) this.spoken += spokenBy(value);
    if (this.events.length > KEPT_EVENTS || (this.#characters > KEPT_CHARACTERS && this.events.length > 1)) {
      const dropped = this.events.splice(0, Math.ceil(this.events.length / 2));
      this.forgotten += dropped.length;
      this.#characters -= dropped.reduce((sum, { data: text }) => sum + text.length, 0);
    }
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** The text that an event adds to a stream of text: itself, or what is under a name that models' tokens have. */
function spokenBy(value) {
  if (typeof value === "string") return value;
  if (typeof value !== "object" || value === null) return "";
  const found = ["token", "text", "delta", "content", "chunk", "data"].map((name) => value[name]).find((part) => typeof part === "string");
  return found ?? "";
}

/** A word for a shell of Unix, whatever is in it. */
function shellQuoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** A JSON text as Python's expression of the same value. */
function pythonOf(json) {
  const words = { true: "True", false: "False", null: "None" };
  const tokens = [...prettyTokens(json)];
  return tokens.map(([kind, text]) => (kind === "string" || kind === "name" ? JSON.stringify(JSON.parse(text)) : (words[text] ?? text))).join("");
}

/** The headers of a call that its code has too: not the trace, which is new for each. */
function sampleHeaders(session, secret) {
  return { "Content-Type": "application/json", ...(session ? { [SESSION_HEADER]: session } : {}), ...credentials.headers(secret) };
}

function curlOf(body, session) {
  const secret = "\0";
  const headers = Object.entries(sampleHeaders(session, secret)).map(([name, value]) => {
    return `-H ${shellQuoted(`${name}: ${value}`).replace(secret, `'"$AGENT_SECRET"'`)}`;
  });
  return [`curl --no-buffer ${shellQuoted(urlOf("/invocations"))}`, ...headers, `--data-raw ${shellQuoted(body)}`].join(" \\\n  ");
}

function pythonSampleOf(body, session) {
  const secret = "\0";
  const headers = Object.entries(sampleHeaders(session, secret)).slice(1).map(([name, value]) => {
    const [before, after] = value.split(secret);
    const literal = after === undefined ? JSON.stringify(value) : `${before ? `${JSON.stringify(before)} + ` : ""}os.environ["AGENT_SECRET"]`;
    return `    ${JSON.stringify(name)}: ${literal},\n`;
  });
  return `${credentials.secret ? "import os\n\n" : ""}import httpx

payload = ${pythonOf(body)}
headers = {${headers.length ? `\n${headers.join("")}` : ""}}
with httpx.stream("POST", ${JSON.stringify(urlOf("/invocations"))}, json=payload, headers=headers, timeout=None) as response:
    for line in response.iter_lines():
        print(line, flush=True)
`;
}
