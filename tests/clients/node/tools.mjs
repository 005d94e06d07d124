// Tool calls and thoughts, as the official Node client and the Vercel AI SDK see them, against the scripted model:
// node tools.mjs URL.
import assert from "node:assert/strict";
import OpenAI, { APIError } from "openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const baseURL = process.argv[2] + "/v1";
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const say = content => [{ role: "user", content }];
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const weather = { name: "weather", description: "Tells the weather.", parameters };
const tools = [{ type: "function", function: weather }];
const cities = ["Paris", "Rome"];

// Whole, and through the helper that puts a stream together.
const whole = await client.chat.completions.create({ model, messages: say("both"), tools });
const args = message => message.tool_calls.map(call => JSON.parse(call.function.arguments).city);
assert.deepEqual(args(whole.choices[0].message), cities);
const streamed = await client.chat.completions.stream({ model, messages: say("both"), tools }).finalChatCompletion();
assert.deepEqual(args(streamed.choices[0].message), cities);
assert.equal(streamed.choices[0].finish_reason, "tool_calls");

// The helper that calls the functions itself, and goes on with their results; what they return is the script's next cue.
const asked = [];
const callable = { ...weather, parse: JSON.parse, function: ({ city }) => { asked.push(city); return "hello"; } };
for (const stream of [false, true]) {
  const runner = client.chat.completions.runTools({ model, messages: say("both"), tools: [{ type: "function", function: callable }], stream });
  assert.equal(await runner.finalContent(), "Hello there.");
}
assert.deepEqual(asked, [...cities, ...cities]);

// Thoughts, and an error in the middle of a stream.
const thought = await client.chat.completions.create({ model, messages: say("think") });
assert.deepEqual([thought.choices[0].message.reasoning_content, thought.choices[0].message.content], ["The fox asks.", "It is a fox."]);
const drain = async stream => { for await (const _ of await stream); };
await assert.rejects(drain(client.chat.completions.create({ model, messages: say("crash"), stream: true })), APIError);
await assert.rejects(drain(client.responses.create({ model, input: "crash", stream: true })), APIError);

// Responses.
const first = await client.responses.create({ model, input: "look", tools: [{ type: "function", strict: false, ...weather }] });
assert.equal(first.output_text, "A look.\n");
const call = first.output.find(item => item.type === "function_call");
assert.equal(JSON.parse(call.arguments).city, "Paris");
const result = { type: "function_call_output", call_id: call.call_id, output: "hello" };
const second = await client.responses.create({ model, input: [...say("look"), ...first.output, result] });
assert.equal(second.output_text, "Hello there.");
const followed = await client.responses.stream({ model, input: "both", tools: [{ type: "function", strict: false, ...weather }] }).finalResponse();
assert.deepEqual(followed.output.map(item => JSON.parse(item.arguments).city), cities);

// Vercel's AI SDK: it calls the tools and goes on by itself.
const provider = createOpenAICompatible({ name: "canvasd", baseURL });
const heard = [];
const own = { weather: tool({ description: "Tells the weather.", inputSchema: z.object({ city: z.string() }), execute: async ({ city }) => { heard.push(city); return "hello"; } }) };
const settings = { model: provider(model), tools: own, stopWhen: stepCountIs(3), maxRetries: 0 };
assert.equal((await generateText({ ...settings, prompt: "both" })).text, "Hello there.");
let flowed = "";
for await (const piece of streamText({ ...settings, prompt: "both" }).textStream) flowed += piece;
assert.equal(flowed, "Hello there.");
assert.deepEqual(heard, [...cities, ...cities]);
const reasoned = await generateText({ model: provider(model), prompt: "think", maxRetries: 0 });
assert.deepEqual([reasoned.reasoningText, reasoned.text], ["The fox asks.", "It is a fox."]);
console.log("all Node clients pass");
