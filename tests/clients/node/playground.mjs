// The page at / in a document of its own making: what it sends, and when. node playground.mjs URL.
import assert from "node:assert/strict";

const url = process.argv[2];
const page = await (await fetch(url + "/")).text();
const [, script] = page.match(/<script>([^]*?)<\/script>/);

const element = () => ({ value: "", textContent: "", hidden: false, append() {}, scrollIntoView() {} });
const elements = {};
const document = { getElementById: id => (elements[id] ??= element()), createElement: element };
const get = document.getElementById;
const sent = [];
const send = (path, options) => {
  sent.push({ ...JSON.parse(options.body), signal: options.signal });
  return fetch(url + "/" + path, options);
};
const ask = new Function("document", "fetch", script + "; return ask;")(document, send);
get("effort").value = "balanced";
const contents = () => sent.map(request => request.messages.map(message => message.content));
const submit = text => { get("text").value = text; get("ask").onsubmit({ preventDefault() {} }); };
const until = async condition => { while (!condition()) await new Promise(resolve => setTimeout(resolve, 5)); };

// A question that failed is forgotten.
for (const [text, temperature] of [["hello", "1"], ["hello", "9"], ["crash", "9"], ["hello", "1"]]) {
  get("temperature").value = temperature;
  await ask(text);
}
const answered = ["hello", "Hello there."];
const before = [["hello"], [...answered, "hello"], [...answered, "crash"], [...answered, "hello"]];
assert.deepEqual(contents(), before);
assert.deepEqual(sent.map(request => request.temperature), [1, 9, 9, 1]);

// An empty field says nothing.
get("temperature").value = "";
await ask("hello");
assert.ok(!("temperature" in sent.at(-1)) && !("seed" in sent.at(-1)));

// While a question is being answered there is no other, and the answer can be stopped.
const asked = sent.length;
submit("babble");
submit("hello");
assert.equal(get("text").value, "hello");
await until(() => sent.length > asked);
assert.equal(sent.length, asked + 1);
assert.equal(sent.at(-1).messages.at(-1).content, "babble");
get("stop").onclick();
assert.ok(sent.at(-1).signal.aborted);
await until(() => get("stop").hidden);
submit("hello");
await until(() => sent.length > asked + 1 && get("stop").hidden);
assert.equal(sent.at(-1).messages.at(-1).content, "hello");
console.log("the page passes");
