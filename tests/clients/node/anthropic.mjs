// The @anthropic-ai/sdk package of npm against a running server: `node anthropic.mjs URL`. Prints one line for each thing that works.
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Tell me about the sea in one sentence." }];
const weather = {
  name: "get_weather",
  description: "The weather in a city",
  input_schema: {
    type: "object",
    properties: { city: { type: "string", enum: ["Bergen", "Oslo"] } },
    required: ["city"],
    additionalProperties: false,
  },
};

const checks = {
  async models() {
    const ids = [];
    for await (const model of client.models.list({ limit: 2 })) ids.push(model.id);
    assert(ids.includes("demo:pirate"), ids.join());
    assert.equal((await client.models.retrieve("demo:pirate")).display_name, "pirate");
  },

  async messages() {
    const answer = await client.messages.create({ model: "pirate", max_tokens: 12, messages });
    assert.equal(answer.content[0].type, "text");
    assert.equal(answer.stop_reason, "max_tokens");
    assert.equal(answer.usage.output_tokens, 12);
    assert(answer._request_id.startsWith("req_"));
  },

  async stream() {
    const options = { model: "pirate", max_tokens: 12, temperature: 0, messages };
    const whole = await client.messages.create(options);
    let text = "";
    const stream = client.messages.stream(options).on("text", (delta) => (text += delta));
    const final = await stream.finalMessage();
    assert.equal(text, whole.content[0].text);
    assert.equal(final.content[0].text, text);
    assert.equal(final.usage.output_tokens, 12);
  },

  async tools() {
    const options = { model: "", max_tokens: 64, temperature: 0, tools: [weather] };
    const tool_choice = { type: "any", disable_parallel_tool_use: true };
    const answer = await client.messages.create({ ...options, messages, tool_choice });
    const [call] = answer.content;
    assert.equal(answer.stop_reason, "tool_use");
    assert(["Bergen", "Oslo"].includes(call.input.city));
    const final = await client.messages.stream({ ...options, messages, tool_choice }).finalMessage();
    assert.deepEqual(final.content[0].input, call.input);
    const result = { type: "tool_result", tool_use_id: call.id, content: "rain" };
    const history = [...messages, { role: "assistant", content: answer.content }, { role: "user", content: [result] }];
    await client.messages.create({ ...options, max_tokens: 8, messages: history });
  },

  async counting() {
    const options = { model: "", messages, tools: [weather] };
    const { input_tokens } = await client.messages.countTokens(options);
    assert.equal((await client.messages.create({ ...options, max_tokens: 1 })).usage.input_tokens, input_tokens);
  },

  async errors() {
    await assert.rejects(client.messages.create({ model: "demo:nobody", max_tokens: 4, messages }), (error) => {
      assert(error instanceof Anthropic.NotFoundError);
      assert.equal(error.error.error.type, "not_found_error");
      assert.equal(error.requestID, error.error.request_id);
      return true;
    });
    await assert.rejects(
      client.messages.create({ model: "", max_tokens: 4, messages, temperature: -1 }),
      (error) => error instanceof Anthropic.BadRequestError && error.message.includes("temperature"),
    );
  },
};

for (const [name, check] of Object.entries(checks)) {
  await check();
  console.log(name);
}
