// The official Node client and the Vercel AI SDK against a running server: node clients.mjs URL.
import assert from "node:assert/strict";
import OpenAI, { BadRequestError, NotFoundError } from "openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const baseURL = process.argv[2] + "/v1";
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const say = content => [{ role: "user", content }];

// Chat, whole, streamed, streamed with progress, and through the helper: one text.
const ask = { model, messages: say("Tell me a story."), seed: 1 };
const whole = await client.chat.completions.create(ask);
const text = whole.choices[0].message.content;
assert.ok(text.length > 20);
assert.equal(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens);
for (const progress of [false, true]) {
  let streamed = "", frames = 0, usage = null;
  const options = { include_usage: true, include_diffusion_progress: progress };
  for await (const chunk of await client.chat.completions.create({ ...ask, stream: true, stream_options: options })) {
    streamed += chunk.choices[0]?.delta?.content ?? "";
    frames += chunk.diffusion ? 1 : 0;
    usage = chunk.usage ?? usage;
  }
  assert.equal(streamed, text);
  assert.equal(frames > 0, progress);
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
}
const helper = client.chat.completions.stream(ask);
assert.equal((await helper.finalChatCompletion()).choices[0].message.content, text);
const { data, response } = await client.chat.completions.create(ask).withResponse();
assert.equal(data.choices[0].message.content, text);
assert.ok(response.headers.get("x-request-id"));

// Completions and errors.
const completion = await client.completions.create({ model, prompt: "The capital of France is", seed: 1 });
assert.match(completion.choices[0].text, /Paris/);
await assert.rejects(client.chat.completions.create({ ...ask, model: "nobody" }), NotFoundError);
await assert.rejects(client.chat.completions.create({ ...ask, temperature: 9 }), error => {
  return error instanceof BadRequestError && error.param === "temperature";
});

// Responses.
const answer = await client.responses.create({ model, input: "What is the capital of France?" });
assert.match(answer.output_text, /Paris/);
let spoken = "", last = "";
for await (const event of await client.responses.create({ model, input: "What is the capital of France?", stream: true })) {
  if (event.type === "response.output_text.delta") spoken += event.delta;
  last = event.type;
}
assert.match(spoken, /Paris/);
assert.equal(last, "response.completed");

// Vercel's AI SDK.
const provider = createOpenAICompatible({ name: "canvasd", baseURL });
const generated = await generateText({ model: provider(model), prompt: "What is the capital of Spain?", maxRetries: 0 });
assert.match(generated.text, /Madrid/);
let flowed = "";
for await (const piece of streamText({ model: provider(model), prompt: "Tell me a story.", maxRetries: 0 }).textStream) flowed += piece;
assert.ok(flowed.length > 20);
console.log("all Node clients pass");
