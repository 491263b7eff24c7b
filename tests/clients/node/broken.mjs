// Streams that break off with an error event: `node broken.mjs URL`. Prints one line for each that raised as it should.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "hi" }];
const streams = {
  chat: () => client.chat.completions.create({ model: "", messages, stream: true }),
  completions: () => client.completions.create({ model: "", prompt: "hi", max_tokens: 50, stream: true }),
  responses: () => client.responses.create({ model: "", input: "hi", stream: true }),
};

for (const [name, open] of Object.entries(streams)) {
  let events = 0;
  let raised = null;
  let failed = null;
  try {
    for await (const event of await open()) {
      events++;
      if (event.type === "error" || event.type === "response.failed") failed = event;
    }
  } catch (error) {
    raised = error;
  }
  assert(events > 0, `${name}: there was something before it broke`);
  if (name === "responses") assert(failed || raised, "an error event, or an exception");
  else assert(raised instanceof OpenAI.APIError, `${name}: ${raised}`);
  console.log(name);
}
