// AG-UI's own client for JavaScript: what it makes of the runs of three agents, as JSON.

import { HttpAgent } from "@ag-ui/client";

const AGENT = process.env.AGENT;

function agentAt(url, session = "npm-1") {
  return new HttpAgent({ url: `${url}/invocations`, threadId: `thread-${session}`, headers: { "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id": session } });
}

/** Runs an agent with one message of its user's, and tells what came of it. */
async function run(url, text, subscriber = {}) {
  const agent = agentAt(url);
  const types = [];
  const tools = [];
  agent.setMessages([{ id: "u-1", role: "user", content: text }]);
  let error = null;
  try {
    await agent.runAgent(
      {},
      {
        onEvent: ({ event }) => void types.push(event.type),
        onToolCallEndEvent: ({ toolCallName, toolCallArgs }) => void tools.push([toolCallName, toolCallArgs]),
        onRunErrorEvent: ({ event }) => void (error = [event.message, event.code ?? null]),
        ...subscriber,
      },
    );
  } catch (raised) {
    error ??= [String(raised.message ?? raised), null];
  }
  const said = agent.messages.slice(1).map(({ role, content, toolCalls }) => ({ role, content: content ?? null, calls: toolCalls?.map((call) => call.function) ?? [] }));
  return { said, types, tools, state: agent.state, error };
}

/** Leaves a run as soon as it has sent something. */
async function abort() {
  const agent = agentAt(AGENT, "npm-abort");
  agent.setMessages([{ id: "u-1", role: "user", content: "wait" }]);
  let events = 0;
  let ended = "finished";
  try {
    await agent.runAgent({}, { onCustomEvent: () => (++events === 3 ? agent.abortRun() : undefined) });
  } catch (error) {
    ended = error.name;
  }
  return { events, ended };
}

const told = {
  message: await run(AGENT, "hello"),
  tool: await run(AGENT, "call a tool"),
  state: await run(AGENT, "keep state"),
  ids: await run(AGENT, "say who you are"),
  raised: await run(AGENT, "raise"),
  raisedAtOnce: await run(AGENT, "raise at once"),
  failed: await run(AGENT, "fail"),
  abort: await abort(),
  pydanticAI: await run(process.env.PYDANTIC_AI, "look up Emma"),
  strands: await run(process.env.STRANDS, "look up Emma"),
};
console.log(JSON.stringify(told));
