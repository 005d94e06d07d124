// The page at / in a document of its own making: what it sends after a question that failed. node playground.mjs URL.
import assert from "node:assert/strict";

const url = process.argv[2];
const page = await (await fetch(url + "/")).text();
const [, script] = page.match(/<script>([^]*?)<\/script>/);

const element = () => ({ value: "", textContent: "", hidden: false, append() {}, scrollIntoView() {} });
const elements = {};
const document = { getElementById: id => (elements[id] ??= element()), createElement: element };
const sent = [];
const send = (path, options) => {
  sent.push(JSON.parse(options.body).messages.map(message => message.content));
  return fetch(url + "/" + path, options);
};
const ask = new Function("document", "fetch", script + "; return ask;")(document, send);
document.getElementById("effort").value = "balanced";

for (const [text, temperature] of [["hello", 1], ["hello", 9], ["crash", 9], ["hello", 1]]) {
  document.getElementById("temperature").value = temperature;
  await ask(text);
}
const answered = ["hello", "Hello there."];
assert.deepEqual(sent, [["hello"], [...answered, "hello"], [...answered, "crash"], [...answered, "hello"]]);
console.log("the page passes");
