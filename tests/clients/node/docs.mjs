// The page at /docs in a document of its own making: what it shows of the API. node docs.mjs URL.
import assert from "node:assert/strict";

const url = process.argv[2];
const page = await (await fetch(url + "/docs")).text();
const [, script] = page.match(/<script>([^]*?)<\/script>/);
const api = await (await fetch(url + "/openapi.json")).json();

const element = tag => ({ tag, children: [], textContent: "", append(...parts) { this.children.push(...parts); } });
const text = part => typeof part === "string" ? part : part.textContent + part.children.map(text).join("");
const elements = Object.fromEntries(["about", "paths", "types"].map(id => [id, element()]));
const document = { getElementById: id => elements[id] ?? null, createElement: element };
const read = path => fetch(url + "/" + path);
new Function("document", "fetch", "location", "addEventListener", script)(document, read, { hash: "" }, () => {});
const { about, paths, types } = elements;
for (let tries = 0; !about.textContent && tries < 1000; tries++) await new Promise(resolve => setTimeout(resolve, 5));
assert.ok(!about.textContent.includes("cannot be read"), about.textContent);

const boxes = types.children;
assert.deepEqual(boxes.map(type => type.id), Object.keys(api.components.schemas));
for (const box of boxes) assert.ok(text(box.children[1]), box.id + " is empty");
const shown = id => text(boxes.find(box => box.id === id).children[1]);
const holds = (id, ...words) => { for (const word of words) assert.ok(shown(id).includes(word), `${id} lacks ${word}: ${shown(id)}`); };
holds("Answers_ChatChoice", "system_fingerprint *", "choices *", "message *", "usage *");
holds("Answers_CompletionChoice", "created *", "text *");
holds("Chunk_ChunkChoice", "delta *", "ProgressFrame");
holds("Chunk_CompletionChoice", "finish_reason *");
holds("OutputItem", "summary *", "role *", "arguments *");
holds("Content", "string or array of ContentPart");

const operations = paths.children.map(text);
const stream = (path, ...words) => {
  const [, events] = operations.find(box => box.includes(path)).split("text/event-stream: ");
  for (const word of words) assert.ok(events.includes(word), `${path} lacks ${word}: ${events}`);
};
stream("/v1/chat/completions", "Chunk_ChunkChoice", "ErrorBody", '"[DONE]"');
stream("/v1/completions", "Chunk_CompletionChoice", '"[DONE]"');
stream("/v1/responses", "ResponseEvent", "ErrorBody");
console.log("the page passes");
