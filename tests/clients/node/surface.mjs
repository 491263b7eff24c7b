// The openai package of npm against a running server: `node surface.mjs URL`. Prints one line for each thing that works.
import assert from "node:assert/strict";
import OpenAI, { toFile } from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Tell me about the sea in one sentence." }];
const weather = {
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather in a city",
    strict: true,
    parameters: {
      type: "object",
      properties: { city: { type: "string", enum: ["Bergen", "Oslo"] } },
      required: ["city"],
      additionalProperties: false,
    },
  },
};

const checks = {
  async models() {
    const ids = [];
    for await (const model of client.models.list()) ids.push(model.id);
    assert(ids.includes("demo:pirate"), ids.join());
    assert.equal((await client.models.retrieve("demo:pirate")).id, "demo:pirate");
  },

  async chat() {
    const answer = await client.chat.completions.create({ model: "pirate", messages, max_tokens: 12 });
    assert.equal(answer.model, "pirate");
    assert.equal(answer.usage.completion_tokens, 12);
    assert(answer.choices[0].message.content.length > 0);
  },

  async stream() {
    const options = { model: "pirate", messages, max_tokens: 12, temperature: 0 };
    const whole = await client.chat.completions.create(options);
    const stream = client.chat.completions.stream({ ...options, stream_options: { include_usage: true } });
    let text = "";
    stream.on("content", (delta) => (text += delta));
    const final = await stream.finalChatCompletion();
    assert.equal(text, whole.choices[0].message.content);
    assert.equal(final.choices[0].message.content, text);
    assert.equal((await stream.totalUsage()).completion_tokens, 12);
  },

  async tools() {
    const options = { model: "", messages, tools: [weather], tool_choice: "required", max_tokens: 64, parallel_tool_calls: false };
    const answer = await client.chat.completions.create(options);
    const [call] = answer.choices[0].message.tool_calls;
    assert.equal(call.function.name, "get_weather");
    assert(["Bergen", "Oslo"].includes(JSON.parse(call.function.arguments).city));
    assert.equal(answer.choices[0].finish_reason, "tool_calls");
    const final = await client.chat.completions.stream(options).finalChatCompletion();
    assert.equal(final.choices[0].message.tool_calls[0].function.name, "get_weather");
    JSON.parse(final.choices[0].message.tool_calls[0].function.arguments);
  },

  async parse() {
    const Sea = z.object({ name: z.enum(["North Sea", "Baltic"]), deep: z.boolean() });
    const answer = await client.chat.completions.parse({
      model: "",
      messages,
      max_tokens: 64,
      response_format: zodResponseFormat(Sea, "sea"),
    });
    assert(["North Sea", "Baltic"].includes(answer.choices[0].message.parsed.name));
    const response = await client.responses.parse({
      model: "",
      input: "Name a sea.",
      max_output_tokens: 64,
      text: { format: zodTextFormat(Sea, "sea") },
    });
    assert.equal(typeof response.output_parsed.deep, "boolean");
  },

  async logprobs() {
    const answer = await client.chat.completions.create({
      model: "",
      messages,
      max_tokens: 4,
      logprobs: true,
      top_logprobs: 3,
    });
    const tokens = answer.choices[0].logprobs.content;
    assert.equal(tokens.length, 4);
    for (const token of tokens) assert(token.logprob <= 0 && token.top_logprobs.length === 3);
  },

  async completions() {
    const answer = await client.completions.create({ model: "", prompt: ["One", "Two"], n: 2, max_tokens: 3 });
    assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1, 2, 3]);
  },

  async embeddings() {
    const input = ["the sea", "a ship"];
    const packed = await client.embeddings.create({ model: "", input });
    const plain = await client.embeddings.create({ model: "", input, encoding_format: "float" });
    assert.equal(packed.data.length, 2);
    packed.data[1].embedding.forEach((x, i) => assert(Math.abs(x - plain.data[1].embedding[i]) < 1e-5));
  },

  async responses() {
    const first = await client.responses.create({ model: "", input: "Name a sea.", max_output_tokens: 16 });
    assert(first.output_text.length > 0);
    assert.equal((await client.responses.retrieve(first.id)).id, first.id);
    const stream = client.responses.stream({
      model: "",
      input: "And another?",
      previous_response_id: first.id,
      max_output_tokens: 16,
    });
    let text = "";
    stream.on("response.output_text.delta", (event) => (text += event.delta));
    const final = await stream.finalResponse();
    assert.equal(final.output_text, text);
    const items = [];
    for await (const item of client.responses.inputItems.list(final.id)) items.push(item);
    assert(items.length > 0);
    await client.responses.delete(first.id);
    await assert.rejects(client.responses.retrieve(first.id), OpenAI.NotFoundError);
  },

  async batches() {
    const body = { model: "", messages, max_tokens: 3 };
    const lines = ["a", "b"].map((id) =>
      JSON.stringify({ custom_id: id, method: "POST", url: "/v1/chat/completions", body }),
    );
    const file = await client.files.create({ file: await toFile(Buffer.from(lines.join("\n")), "in.jsonl"), purpose: "batch" });
    assert.equal((await client.files.retrieve(file.id)).id, file.id);
    let batch = await client.batches.create({
      input_file_id: file.id,
      endpoint: "/v1/chat/completions",
      completion_window: "24h",
    });
    for (let i = 0; i < 600 && !["completed", "failed", "expired"].includes(batch.status); i++) {
      await new Promise((done) => setTimeout(done, 100));
      batch = await client.batches.retrieve(batch.id);
    }
    assert.equal(batch.status, "completed");
    const output = await (await client.files.content(batch.output_file_id)).text();
    const ids = output.trim().split("\n").map((line) => JSON.parse(line).custom_id);
    assert.deepEqual(ids.sort(), ["a", "b"]);
    await client.files.delete(file.id);
  },

  async errors() {
    await assert.rejects(client.chat.completions.create({ model: "no such", messages }), (error) => {
      assert(error instanceof OpenAI.NotFoundError);
      assert.equal(error.code, "model_not_found");
      return true;
    });
    await assert.rejects(
      client.chat.completions.create({ model: "", messages, temperature: -1 }),
      (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature",
    );
  },
};

for (const [name, check] of Object.entries(checks)) {
  await check();
  console.log(name);
}
