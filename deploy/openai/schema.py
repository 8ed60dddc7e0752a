"""Validates responses of the router's HTTP API against OpenAI's published schema, and prints one line per check.

    python deploy/openai/schema.py http://127.0.0.1:8000/v1 openapi.yaml

The schema is `openapi.yaml` of https://github.com/openai/openai-openapi, which is not part of this project. Every
response, and every chunk of a stream, is validated, with unknown fields as errors except those that a check names. The
exit status is 1 if a check fails.
"""

import copy
import json
import sys
import urllib.error
import urllib.request

import yaml
from jsonschema import Draft202012Validator

MODEL, PROMPT = "storyteller", "Once upon a time"
MESSAGES = [{"role": "user", "content": PROMPT}]

if len(sys.argv) != 3:
    sys.exit("usage: schema.py http://HOST:PORT/v1 openapi.yaml")
URL = sys.argv[1]
with open(sys.argv[2], encoding="utf-8") as file:
    # The loader in C takes seconds where the other one takes a minute.
    document = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def as_json_schema(node):
    """Converts OpenAPI's `nullable`, and refuses fields that a schema does not name."""
    if isinstance(node, list):
        return [as_json_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    converted = {name: as_json_schema(value) for name, value in node.items()}
    if "properties" in node:
        converted.setdefault("additionalProperties", False)
    return {"anyOf": [converted, {"type": "null"}]} if node.get("nullable") is True else converted


def chunks_of_completions(schemas):
    """OpenAI's schema for chunks of completions, which is the one for plain responses, as its document describes them.

    The document contradicts the schema in two places, and is checked for that: its example of a chunk has null as
    `finish_reason`, and chunks before the last one have null as `usage` if usage is included.
    """
    examples = document["paths"]["/completions"]["post"]["x-oaiMeta"]["examples"]
    if not any('"finish_reason": null' in str(example.get("response")) for example in examples):
        sys.exit("the example of a chunk has another finish_reason now: read chunks_of_completions again")
    options = " ".join(yaml.dump(schemas["ChatCompletionStreamOptions"], width=1 << 20).replace("\\n", " ").split())
    if "include a `usage` field, but with a null value" not in options:
        sys.exit("the description of include_usage is another one now: read chunks_of_completions again")
    chunk = copy.deepcopy(schemas["CreateCompletionResponse"])
    chunk["properties"]["choices"]["items"]["properties"]["finish_reason"]["nullable"] = True
    chunk["properties"]["usage"] = {**chunk["properties"]["usage"], "nullable": True}
    return chunk


def allow_first_token_without_logprob(schemas):
    """Makes log probabilities nullable: the first token of a prompt that is repeated has none, and null is in its place."""
    choice = schemas["CreateCompletionResponse"]["properties"]["choices"]["items"]["properties"]
    for name in ("token_logprobs", "top_logprobs"):
        items = choice["logprobs"]["anyOf"][0]["properties"][name]["items"]
        items["nullable"] = True


schemas = document["components"]["schemas"]
allow_first_token_without_logprob(schemas)
schemas["ChunkOfCompletion"] = chunks_of_completions(schemas)
schemas = as_json_schema(schemas)


def causes(error):
    """The errors of the first alternative: of those used here, the second one is null."""
    first = [cause for cause in error.context or [] if cause.schema_path[0] == 0]
    for cause in first:
        yield from causes(cause)
    if not first:
        yield error


def violations(name, values):
    """How values violate the schema `name`, and which fields they have that it does not."""
    validator = Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}})
    found, unknown = {}, set()
    for value in values:
        for error in [cause for error in validator.iter_errors(value) for cause in causes(error)]:
            if error.validator == "additionalProperties":
                unknown |= set(error.instance) - set(error.schema["properties"])
                continue
            # The same violation in every chunk is one.
            place = "/".join("*" if isinstance(part, int) else part for part in error.absolute_path)
            what = f"{place or 'the whole'}: {error.message[:200]}"
            found[what] = found.get(what, 0) + 1
    return [f"{what} ({times} times)" for what, times in found.items()], unknown


def send(path, fields=None, method=None, content_type="application/json"):
    """Returns the status, the type and the body of a response."""
    body = None if fields is None else json.dumps(fields).encode()
    request = urllib.request.Request(URL + path, body, {"Content-Type": content_type}, method=method)
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        return response.status, response.headers["content-type"], response.read().decode()


def events(body):
    """The chunks of a stream."""
    *datas, done, rest = body.split("\n\n")
    if done != "data: [DONE]" or rest or not all(data.startswith("data: {") for data in datas):
        raise AssertionError(f"not a stream of server-sent events: {body[-200:]!r}")
    return [json.loads(data.removeprefix("data: ")) for data in datas]


failed = total = 0


def check(what, name, path, fields=None, status=200, extensions=(), **request):
    """Sends a request, and validates the response. `extensions` are the fields that it has beyond OpenAI's."""
    global failed, total
    total += 1
    try:
        stream = status == 200 and bool(fields) and "stream" in fields
        found, content_type, body = send(path, fields, **request)
        expected = "text/event-stream" if stream else "application/json"
        if (found, content_type) != (status, expected):
            raise AssertionError(f"{found} {content_type}, expected {status} {expected}: {body[:200]}")
        values = events(body) if stream else [json.loads(body)]
        errors, unknown = violations(name, values)
        if unknown != set(extensions):
            errors.append(f"fields beyond the schema {sorted(unknown)}, expected {sorted(extensions)}")
        if errors:
            raise AssertionError("; ".join(errors))
        print(f"ok    {what}: {len(values)} x {name}", flush=True)
    except Exception as error:
        failed += 1
        print(f"FAIL  {what}: {name}: {' '.join(str(error).split())[:900]}", flush=True)


def chat(what, name="CreateChatCompletionResponse", extensions=(), **fields):
    if fields.get("stream"):
        name = "CreateChatCompletionStreamResponse"
    check(f"chat, {what}", name, "/chat/completions", {"model": MODEL, "messages": MESSAGES, **fields},
          extensions=extensions)


def complete(what, extensions=(), **fields):
    name = "ChunkOfCompletion" if fields.get("stream") else "CreateCompletionResponse"
    check(f"completions, {what}", name, "/completions", {"model": MODEL, "prompt": PROMPT, **fields},
          extensions=extensions)


def refuse(what, status, path="/chat/completions", fields=None, **request):
    check(f"error, {what}", "ErrorResponse", path, fields, status, **request)


usage = {"stream": True, "stream_options": {"include_usage": True}}
chat("plain")
chat("two choices with candidates of tokens", n=2, logprobs=True, top_logprobs=3, max_tokens=20)
chat("log probabilities to the end of the story", logprobs=True)
chat("token ids", return_token_ids=True, max_tokens=5, extensions=["prompt_token_ids", "token_ids"])
chat("stream", stream=True)
chat("stream with usage, three choices and log probabilities", n=3, logprobs=True, top_logprobs=2, **usage)
chat("stream that a stop string ends", stream=True, stop=["."])
chat("stream with token ids", stream=True, return_token_ids=True, extensions=["prompt_token_ids", "token_ids"])
complete("plain")
complete("several prompts with two choices", prompt=[PROMPT, "The fox"], n=2, echo=True)
complete("log probabilities", logprobs=3)
complete("log probabilities with echo", logprobs=3, echo=True)
complete("token ids", return_token_ids=True, extensions=["prompt_token_ids", "token_ids"])
complete("stream", stream=True)
complete("stream with usage, two choices and log probabilities", n=2, logprobs=1, **usage)
complete("stream with log probabilities and echo", logprobs=1, echo=True, stream=True)
# As vLLM describes models.
models = ["max_model_len", "root"]
check("models", "ListModelsResponse", "/models", extensions=models)
check("model", "Model", f"/models/{MODEL}", extensions=models)
refuse("unknown model", 404, fields={"model": "gpt-9", "messages": MESSAGES})
refuse("unknown model, streamed", 404, fields={"model": "gpt-9", "messages": MESSAGES, "stream": True})
refuse("unknown model to look up", 404, "/models/gpt-9")
refuse("invalid field", 400, fields={"model": MODEL, "messages": MESSAGES, "temperature": 101})
refuse("unsupported field", 400, fields={"model": MODEL, "messages": MESSAGES, "tools": [{"type": "function"}]})
refuse("body that is no object", 400, fields=[1])
refuse("body of another type", 415, fields={"model": MODEL, "messages": MESSAGES}, content_type="text/plain")
refuse("unknown path", 404, "/responses", fields={"model": MODEL, "input": "x"})
refuse("unknown method", 405, method="DELETE")
print(f"{total - failed} of {total} checks passed")
sys.exit(1 if failed else 0)
