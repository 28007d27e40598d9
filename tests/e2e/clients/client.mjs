// What the client of npm sees, as JSON on standard output.
import { randomUUID } from "node:crypto";

import {
  BedrockAgentCoreClient,
  GetAgentCardCommand,
  InvokeAgentRuntimeCommand,
  InvokeAgentRuntimeCommandCommand,
  StopRuntimeSessionCommand,
} from "@aws-sdk/client-bedrock-agentcore";
import * as model from "@aws-sdk/client-bedrock-agentcore";

const { ARN, ENDPOINT, GUARDED, EMPTY } = process.env;
const TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const agent = new BedrockAgentCoreClient({ endpoint: ENDPOINT });

const invoke = (client, content, options = {}) =>
  client.send(
    new InvokeAgentRuntimeCommand({ agentRuntimeArn: ARN, payload: JSON.stringify(content), ...options }),
  );
const stop = (client, runtimeSessionId, options = {}) =>
  client.send(new StopRuntimeSessionCommand({ agentRuntimeArn: ARN, runtimeSessionId, ...options }));
const json = async (answer) => JSON.parse(await answer.response.transformToString());

async function* linesOf(answer) {
  let rest = "";
  for await (const chunk of answer.response) {
    const lines = (rest + Buffer.from(chunk).toString()).split("\n");
    rest = lines.pop();
    yield* lines.filter((line) => line !== "");
  }
}

/** The name of the exception of the client's own that a call raises, and its message. */
async function raised(call) {
  try {
    await call();
  } catch (error) {
    if (!(error instanceof model[error.name])) throw error;
    return [error.name, error.message];
  }
  return ["nothing", ""];
}

async function unary() {
  const session = randomUUID();
  const answer = await invoke(
    agent,
    { prompt: "hi" },
    { runtimeSessionId: session, qualifier: "DEFAULT", traceParent: TRACEPARENT },
  );
  const madeUp = await invoke(agent, { prompt: "hi" });
  const byId = await invoke(agent, {}, { agentRuntimeArn: ARN.split("/").pop(), accountId: ARN.split(":")[4] });
  return {
    status: answer.statusCode,
    contentType: answer.contentType,
    session: answer.runtimeSessionId === session,
    madeUp: madeUp.runtimeSessionId.length,
    byId: byId.statusCode,
    traceParent: answer.traceParent,
    requestId: Boolean(answer.$metadata.requestId),
    seen: await json(answer),
  };
}

async function streamed() {
  const began = performance.now();
  const answer = await invoke(agent, { do: "stream" });
  const events = [];
  for await (const line of linesOf(answer)) {
    events.push([(performance.now() - began) / 1000, line]);
    if (events.length === 1) {
      await new Promise((resolve) => setTimeout(resolve, 310));
      await fetch(`${ENDPOINT}/go`, { method: "POST" });
    }
  }
  return { contentType: answer.contentType, events };
}

async function stoppedStream() {
  const session = randomUUID();
  const lines = linesOf(await invoke(agent, { do: "wait in a stream" }, { runtimeSessionId: session }));
  const first = (await lines.next()).value;
  const clientToken = randomUUID();
  const statuses = [];
  for (let repeat = 0; repeat < 2; repeat++) statuses.push((await stop(agent, session, { clientToken })).statusCode);
  const rest = [];
  for await (const line of lines) rest.push(line);
  const ended = (await json(await invoke(agent, { do: "ended" }))).includes(session);
  return { first, statuses, rest, ended, again: await raised(() => stop(agent, session)) };
}

async function conflict() {
  const session = randomUUID();
  const waiting = raised(() => invoke(agent, { do: "wait" }, { runtimeSessionId: session }));
  for (const deadline = performance.now() + 60_000; ; ) {
    const [name] = await raised(() => stop(agent, session));
    if (name === "nothing") return waiting;
    if (performance.now() > deadline) throw new Error("the session never began");
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

async function errors() {
  const guarded = new BedrockAgentCoreClient({ endpoint: GUARDED });
  const empty = new BedrockAgentCoreClient({ endpoint: EMPTY });
  const wrong = { agentRuntimeArn: ARN, payload: "{" };
  const found = {
    validation: await raised(() => agent.send(new InvokeAgentRuntimeCommand(wrong))),
    "not found": await raised(() => invoke(agent, {}, { agentRuntimeArn: ARN.replace("runtime/", "runtime/other-") })),
    runtime: await raised(() => invoke(agent, { do: "fail" })),
    card: await raised(() => agent.send(new GetAgentCardCommand({ agentRuntimeArn: ARN }))),
    command: await raised(() =>
      agent.send(new InvokeAgentRuntimeCommandCommand({ agentRuntimeArn: ARN, body: { command: "ls" } })),
    ),
    denied: await raised(() => invoke(guarded, {})),
    unauthorized: await raised(() => stop(guarded, randomUUID())),
    internal: await raised(() => invoke(empty, {})),
  };
  await agent.send(new InvokeAgentRuntimeCommand(wrong)).catch((error) => {
    found.reason = [error.reason, error.fieldList[0].name];
  });
  const session = randomUUID();
  const waiting = await invoke(agent, { do: "wait in a stream" }, { runtimeSessionId: session });
  found.throttled = await raised(() => invoke(agent, {}));
  await stop(agent, session);
  await waiting.response.transformToString();
  found.conflict = await conflict();
  return found;
}

const seen = {
  unary: await unary(),
  stream: await streamed(),
  stopped: await stoppedStream(),
  errors: await errors(),
};
process.stdout.write(JSON.stringify(seen));
