// Threads of AG-UI: the messages and the state that a run begins with, and what its events make of them.

class Thread {
  messages = [];
  state = {};

  constructor(session) {
    this.id = session || uuid();
  }

  /** The body of a run, with one more message of the user's. */
  input(prompt) {
    this.messages.push({ id: uuid(), role: "user", content: prompt });
    return JSON.stringify({ threadId: this.id, runId: uuid(), state: this.state, messages: this.messages, tools: [], context: [], forwardedProps: {} });
  }

  /** Takes in an event. One that makes no sense changes nothing. */
  take(event) {
    const own = typeof event?.type === "string" && Object.hasOwn(TAKES, event.type) ? TAKES[event.type] : null;
    if (own !== null) own(this, event);
  }

  /** The message of an id, made where it is not there yet. */
  message(id, role) {
    const found = this.messages.findLast((message) => (id === undefined ? message.role === role : message.id === id));
    if (found) return found;
    const made = { id: id ?? uuid(), role };
    this.messages.push(made);
    return made;
  }

  toolCall(id) {
    for (const message of this.messages) {
      const found = message.toolCalls?.find((call) => id === undefined || call.id === id);
      if (found) return found;
    }
    return null;
  }
}

function say(thread, { messageId, role, delta }) {
  const message = thread.message(messageId, role ?? "assistant");
  message.content = (message.content ?? "") + (delta ?? "");
}

function callTool(thread, { toolCallId, toolCallName, parentMessageId, delta }) {
  let call = thread.toolCall(toolCallId);
  if (call === null) {
    const message = thread.message(parentMessageId ?? toolCallId, "assistant");
    call = { id: toolCallId, type: "function", function: { name: toolCallName ?? "", arguments: "" } };
    (message.toolCalls ??= []).push(call);
  }
  call.function.arguments += delta ?? "";
}

const TAKES = {
  TEXT_MESSAGE_START: say,
  TEXT_MESSAGE_CONTENT: say,
  TEXT_MESSAGE_CHUNK: say,
  TOOL_CALL_START: callTool,
  TOOL_CALL_ARGS: callTool,
  TOOL_CALL_CHUNK: callTool,
  TOOL_CALL_RESULT: (thread, { messageId, toolCallId, content }) => void thread.messages.push({ id: messageId ?? uuid(), role: "tool", toolCallId, content }),
  MESSAGES_SNAPSHOT: (thread, { messages }) => void (thread.messages = Array.isArray(messages) ? messages : thread.messages),
  STATE_SNAPSHOT: (thread, { snapshot }) => void (thread.state = snapshot ?? {}),
  STATE_DELTA: (thread, { delta }) => void (thread.state = patched(thread.state, delta) ?? thread.state),
};

/** What a message says, as text: its content may be parts. */
function textOf({ content }) {
  if (typeof content === "string") return content;
  return Array.isArray(content) ? content.map((part) => part?.text ?? `[${part?.type ?? "part"}]`).join("") : "";
}

/** A copy of a value after a JSON Patch (RFC 6902); `null` where the patch does not fit it. */
function patched(value, operations) {
  const root = { value: structuredClone(value) };
  const stepsOf = (path) => ["value", ...path.split("/").slice(1).map((step) => step.replaceAll("~1", "/").replaceAll("~0", "~"))];
  const own = (holder, step) => (Object.hasOwn(holder, step) ? holder[step] : undefined);
  const holderOf = (steps) => steps.slice(0, -1).reduce(own, root);
  const get = (path) => own(holderOf(stepsOf(path)), stepsOf(path).at(-1));
  const remove = (path) => {
    const [holder, key] = [holderOf(stepsOf(path)), stepsOf(path).at(-1)];
    if (Array.isArray(holder)) holder.splice(Number(key), 1);
    else delete holder[key];
  };
  const put = (path, item, isAdded) => {
    const [holder, key] = [holderOf(stepsOf(path)), stepsOf(path).at(-1)];
    if (Array.isArray(holder)) holder.splice(key === "-" ? holder.length : Number(key), isAdded ? 0 : 1, item);
    else Object.defineProperty(holder, key, { value: item, writable: true, enumerable: true, configurable: true });
  };
  try {
    for (const { op, path, from, value: item } of operations) {
      if (op === "add" || op === "replace") put(path, item, op === "add");
      else if (op === "remove") remove(path);
      else if (op === "copy") put(path, structuredClone(get(from)), true);
      else if (op === "move") {
        const moved = get(from);
        remove(from);
        put(path, moved, true);
      } else if (op !== "test") return null;
    }
  } catch {
    return null;
  }
  return root.value;
}
