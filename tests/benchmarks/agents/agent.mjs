// The agent on the TypeScript runtime: node agent.mjs PORT HANDLER
import { setTimeout as sleep } from 'node:timers/promises'
import { BedrockAgentCoreApp } from 'bedrock-agentcore/runtime'

const EVENTS = 100

function unary(payload) {
  return { echo: payload.prompt }
}

async function unaryAsync(payload) {
  await new Promise(setImmediate)
  return { echo: payload.prompt }
}

async function unaryOneStep(payload) {
  return { echo: payload.prompt }
}

async function* stream() {
  for (let number = 0; number < EVENTS; number++) yield { token: `token ${number}` }
}

async function sleeper(payload) {
  await sleep(1000)
  return { echo: payload.prompt }
}

// What an event says is when it was due, on the machine's monotonic clock.
async function* clock() {
  const monotonic = () => Number(process.hrtime.bigint()) / 1e9
  const start = monotonic()
  for (let second = 0; ; second++) {
    await sleep(Math.max(0, (start + second - monotonic()) * 1000))
    yield { due: start + second }
  }
}

const handlers = {
  'unary-async': unaryAsync,
  'unary-one-step': unaryOneStep,
  'unary-sync': unary,
  'stream-async': stream,
  sleepers: sleeper,
  'open-streams': clock,
}
const [port, handler] = process.argv.slice(2)

new BedrockAgentCoreApp({
  invocationHandler: { process: handlers[handler] },
  config: { logging: { disableRequestLogging: true } }, // its access log
}).run({ port: Number(port), host: '127.0.0.1' })
