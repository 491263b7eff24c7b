// The AI SDK against a running server: `node frameworks.mjs URL`. Prints one line for each provider that works.
import assert from "node:assert/strict";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, Output, streamText, tool } from "ai";
import { z } from "zod";

const baseURL = `${process.argv[2]}/v1`;
const openai = createOpenAI({ baseURL, apiKey: "none" });
const compatible = createOpenAICompatible({ name: "motet", baseURL, apiKey: "none", supportsStructuredOutputs: true });
const providers = {
  responses: openai("pirate"),
  chat: openai.chat("pirate"),
  compatible: compatible("pirate"),
};
const limits = { maxOutputTokens: 60, temperature: 0, maxRetries: 0 };
const sea = z.object({ name: z.enum(["North Sea", "Baltic"]), deep: z.boolean() });
const tools = {
  weather: tool({
    description: "The weather in a city",
    inputSchema: z.object({ city: z.enum(["Bergen", "Oslo"]), more: z.record(z.string(), z.number()).optional() }),
    execute: async ({ city }) => `rain in ${city}`,
  }),
};

for (const [name, model] of Object.entries(providers)) {
  const first = await generateText({ model, prompt: "Tell me about the sea.", ...limits, maxOutputTokens: 8 });
  assert(first.text.length > 0 && first.usage.outputTokens === 8);
  // Earlier answers come back, with the default provider as references to what the server stored.
  const messages = [
    { role: "user", content: "Tell me about the sea." },
    ...first.response.messages,
    { role: "user", content: "And a ship?" },
  ];
  assert((await generateText({ model, messages, ...limits, maxOutputTokens: 8 })).text.length > 0);

  let text = "";
  for await (const piece of streamText({ model, prompt: "Hello", ...limits, maxOutputTokens: 8 }).textStream) text += piece;
  assert(text.length > 0);

  const named = { type: "tool", toolName: "weather" };
  const called = await generateText({ model, prompt: "Is it raining in Oslo?", tools, toolChoice: named, ...limits });
  assert.equal(called.toolResults[0]?.toolName, "weather");

  const output = Output.object({ schema: sea });
  const typed = await generateText({ model, prompt: "Name a sea.", tools, toolChoice: "none", output, ...limits });
  assert(["North Sea", "Baltic"].includes(typed.output.name));
  await generateText({ model, prompt: "Name a sea.", tools, output, ...limits });  // calls or a sea: the model's choice
  console.log(name);
}

const { embeddings } = await embedMany({ model: openai.embedding("pirate"), values: ["the sea", "a ship"] });
assert.deepEqual(embeddings.map((vector) => vector.length), [576, 576]);
console.log("embeddings");
