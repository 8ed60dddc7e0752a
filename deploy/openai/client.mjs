// Uses the router's HTTP API with OpenAI's own client for JavaScript, and prints one line per check.
//
//     npm ci --ignore-scripts --prefix deploy/openai
//     node deploy/openai/client.mjs http://127.0.0.1:8000/v1
//
// The server runs with `--model-alias gpt-4o-mini=storyteller`. The exit status is 1 if a check fails. client.py has
// more checks of the API itself; these are about what another client makes of it.
import assert from "node:assert/strict";
import OpenAI, { APIUserAbortError, BadRequestError, NotFoundError } from "openai";

if (process.argv.length !== 3) {
  console.error("usage: client.mjs http://HOST:PORT/v1");
  process.exit(1);
}
const [model, alias] = ["storyteller", "gpt-4o-mini"];
const messages = [{ role: "user", content: "Once upon a time" }];
const prompt = "Once upon a time";
// Retries would hide errors.
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "unused", maxRetries: 0, timeout: 60_000 });
const checks = [];
const check = (what, run) => checks.push([what, run]);

const chat = (fields, options) => client.chat.completions.create({ model, messages, ...fields }, options);
const complete = (fields) => client.completions.create({ model, prompt, ...fields });
const content = async (fields, options) => (await chat(fields, options)).choices[0].message.content;

// Array.fromAsync, which Node 20 does not have.
async function all(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

/** The texts of a stream by choice. */
function joined(chunks) {
  const texts = [];
  for (const { index, text, delta } of chunks.flatMap((chunk) => chunk.choices)) {
    texts[index] = (texts[index] ?? "") + (text ?? delta?.content ?? "");
  }
  return texts;
}

check("models: the list has the model and its alias, and each is found by its name", async () => {
  const ids = (await all(client.models.list())).map(({ id }) => id);
  assert.deepEqual(ids.sort(), [model, alias].sort());
  for (const name of ids) {
    const { id, object, created, owned_by } = await client.models.retrieve(name);
    assert.deepEqual([id, object, typeof created, typeof owned_by], [name, "model", "number", "string"]);
  }
});

check("chat: a plain response has all fields", async () => {
  const response = await chat({ seed: 1 });
  assert.match(response.id, /^chatcmpl-/);
  assert.deepEqual([response.object, response.model, response.choices.length], ["chat.completion", model, 1]);
  assert.ok(Math.abs(response.created - Date.now() / 1000) < 60, `created ${response.created}`);
  const { index, message, logprobs, finish_reason } = response.choices[0];
  assert.deepEqual([index, logprobs, finish_reason], [0, null, "stop"]);
  assert.deepEqual([message.role, message.refusal], ["assistant", null]);
  assert.ok(message.content.length > 200, message.content);
  const { prompt_tokens, completion_tokens, total_tokens } = response.usage;
  assert.ok(prompt_tokens > 0 && completion_tokens > 50, `${prompt_tokens} ${completion_tokens}`);
  assert.equal(total_tokens, prompt_tokens + completion_tokens);
  assert.equal(await content({ seed: 1, model: alias }), message.content);
});

check("chat: a stream has the text of the plain response, and usage in its last chunk", async () => {
  const plain = await chat({ seed: 2, temperature: 0.8 });
  const stream = { stream: true, stream_options: { include_usage: true } };
  const chunks = await all(await chat({ seed: 2, temperature: 0.8, ...stream }));
  assert.deepEqual(joined(chunks), [plain.choices[0].message.content]);
  assert.equal(chunks[0].choices[0].delta.role, "assistant");
  const last = chunks.pop();
  assert.deepEqual(last.choices, []);
  assert.equal(last.usage.total_tokens, plain.usage.total_tokens);
  assert.equal(chunks.at(-1).choices[0].finish_reason, plain.choices[0].finish_reason);
  for (const { id, object, usage } of chunks) {
    assert.deepEqual([id, object, usage], [last.id, "chat.completion.chunk", null]);
  }
});

check("chat: n=3 gives three choices, plain and streamed", async () => {
  const texts = (await chat({ n: 3, seed: 4 })).choices.map((choice) => choice.message.content);
  assert.equal(new Set(texts).size, 3);
  assert.equal(texts[0], await content({ seed: 4 }));
  assert.deepEqual(joined(await all(await chat({ n: 3, seed: 4, stream: true }))), texts);
});

check("chat: logprobs have an entry per token, whose bytes join to the content, plain and streamed", async () => {
  const fields = { seed: 5, max_tokens: 25, logprobs: true, top_logprobs: 3 };
  const { choices, usage } = await chat(fields);
  const tokens = choices[0].logprobs.content;
  assert.equal(tokens.length, usage.completion_tokens);
  assert.ok(tokens.every((token) => token.logprob <= 0 && token.top_logprobs.length === 3));
  const bytes = Uint8Array.from(tokens.flatMap((token) => token.bytes));
  assert.equal(new TextDecoder().decode(bytes), choices[0].message.content);
  const chunks = await all(await chat({ ...fields, stream: true }));
  assert.deepEqual(chunks.flatMap((chunk) => chunk.choices[0].logprobs?.content ?? []), tokens);
});

check("chat: stop, max_completion_tokens, temperature 0, seeds and logit_bias have their effect", async () => {
  const whole = await content({ seed: 6 });
  const stop = whole.slice(40, 47);
  assert.equal(await content({ seed: 6, stop }), whole.slice(0, whole.indexOf(stop)));
  const short = await chat({ max_completion_tokens: 7 });
  assert.deepEqual([short.choices[0].finish_reason, short.usage.completion_tokens], ["length", 7]);
  const greedy = await content({ temperature: 0 });
  assert.equal(await content({ temperature: 0, seed: 1 }), greedy);
  assert.equal(await content({ seed: 7 }), await content({ seed: 7 }));
  assert.notEqual(await content({ seed: 7 }), await content({ seed: 8 }));
  const [first] = (await chat({ temperature: 0, return_token_ids: true })).choices[0].token_ids;
  assert.notEqual(await content({ temperature: 0, logit_bias: { [first]: -100 } }), greedy);
});

check("chat: the client's helper for streams has the events and the result", async () => {
  const plain = await chat({ seed: 9 });
  const runner = client.chat.completions.stream({ model, messages, seed: 9, stream_options: { include_usage: true } });
  let text = "";
  runner.on("content", (delta) => (text += delta));
  const final = await runner.finalChatCompletion();
  assert.equal(text, plain.choices[0].message.content);
  assert.equal(final.choices[0].message.content, text);
  assert.equal(final.choices[0].finish_reason, "stop");
  assert.equal(final.usage.total_tokens, plain.usage.total_tokens);
});

check("chat: a content of text parts is a text", async () => {
  const parts = [{ role: "user", content: [{ type: "text", text: prompt }] }];
  assert.equal(await content({ messages: parts, seed: 1 }), await content({ seed: 1 }));
});

check("completions: several prompts, echo, and a stream with n=2", async () => {
  const prompts = [prompt, "The fox"];
  const { choices, usage } = await complete({ prompt: prompts, seed: 1, echo: true });
  assert.equal(usage.completion_tokens, 32);
  for (const [i, { index, text, finish_reason }] of choices.entries()) {
    assert.deepEqual([index, finish_reason], [i, "length"]);
    assert.equal(text, prompts[i] + (await complete({ prompt: prompts[i], seed: 1 })).choices[0].text);
  }
  const texts = (await complete({ n: 2, seed: 3 })).choices.map((choice) => choice.text);
  assert.deepEqual(joined(await all(await complete({ n: 2, seed: 3, stream: true }))), texts);
});

check("completions: logprobs are lists of equal length", async () => {
  const { text, logprobs } = (await complete({ logprobs: 2 })).choices[0];
  assert.equal(logprobs.tokens.join(""), text);
  const lists = [logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset];
  assert.deepEqual(lists.map((list) => list.length), [16, 16, 16]);
});

check("error: an unknown model is a NotFoundError that names the known ones", async () => {
  const expected = (error) => {
    assert.ok(error instanceof NotFoundError, `${error}`);
    assert.deepEqual([error.status, error.code, error.param], [404, "model_not_found", "model"]);
    assert.match(error.message, new RegExp(model));
    return true;
  };
  await assert.rejects(chat({ model: "gpt-9" }), expected);
  await assert.rejects(chat({ model: "gpt-9", stream: true }), expected);
  await assert.rejects(client.models.retrieve("gpt-9"), expected);
});

const part = { type: "image_url", image_url: { url: "https://example.com/a.png" } };
const long = "there was a fox ".repeat(1000);
for (const [param, code, fields] of [
  ["tools", "unsupported_parameter", { tools: [{ type: "function", function: { name: "f", parameters: {} } }] }],
  ["functions", "unsupported_parameter", { functions: [{ name: "f" }] }],
  ["response_format", "unsupported_parameter", { response_format: { type: "json_object" } }],
  ["foo", "unknown_parameter", { foo: 1 }],
  ["temperature", null, { temperature: 101 }],
  ["top_logprobs", null, { top_logprobs: 2 }],
  ["messages", null, { messages: [] }],
  ["messages", null, { messages: [{ role: "assistant", content: "I begin" }] }],
  ["messages", null, { messages: [{ role: "user", content: [part] }] }],
  ["messages", "context_length_exceeded", { messages: [{ role: "user", content: long }] }],
]) {
  check(`error: ${JSON.stringify(fields).slice(0, 90)} is a BadRequestError about ${param}`, async () => {
    await assert.rejects(chat(fields), (error) => {
      assert.ok(error instanceof BadRequestError, `${error}`);
      // The name may be that of a part of the field.
      assert.deepEqual([error.param.split("[")[0], error.code, error.type], [param, code, "invalid_request_error"]);
      assert.ok(error.requestID, "no request id");
      return true;
    });
  });
}

check("headers: the client reads the id of the request, and a given one comes back", async () => {
  const { data, request_id } = await chat({ max_tokens: 2 }).withResponse();
  assert.equal(data.id, `chatcmpl-${request_id}`);
  assert.equal(data._request_id, request_id);
  const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
  const headers = { "X-Request-Id": "check-js", traceparent };
  assert.equal((await chat({ max_tokens: 2, stream: true }, { headers }).withResponse()).request_id, "check-js");
});

check("streams: those that an AbortController or a break ends do not disturb the next request", async () => {
  const endless = { stream: true, n: 4, max_tokens: 1000, ignore_eos: true };
  const expected = await content({ seed: 1 });
  for (let i = 0; i < 10; i++) {
    const controller = new AbortController();
    let chunks = 0;
    for await (const _ of await chat(endless, { signal: controller.signal })) {
      chunks += 1;
      if (chunks === 3) controller.abort();
    }
    // What was received before may still be read.
    assert.ok(chunks < 1000, `${chunks} chunks`);
    for await (const _ of await chat(endless)) break;
  }
  assert.equal(await content({ seed: 1 }), expected);
});

check("streams: a request that is aborted before its response is an APIUserAbortError", async () => {
  const controller = new AbortController();
  const request = chat({ n: 16, max_tokens: 1000, ignore_eos: true }, { signal: controller.signal });
  controller.abort();
  await assert.rejects(request, APIUserAbortError);
});

check("streams: 20 at once have the texts of plain responses", async () => {
  const seeds = [...Array(20).keys()];
  const streamed = async (seed) => joined(await all(await chat({ seed, stream: true })))[0];
  assert.deepEqual(await Promise.all(seeds.map(streamed)), await Promise.all(seeds.map((seed) => content({ seed }))));
});

let failed = 0;
for (const [what, run] of checks) {
  try {
    await run();
    console.log(`ok    ${what}`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL  ${what}: ${`${error}`.replace(/\s+/g, " ").slice(0, 600)}`);
  }
}
console.log(`${checks.length - failed} of ${checks.length} checks passed`);
process.exitCode = failed ? 1 : 0;
