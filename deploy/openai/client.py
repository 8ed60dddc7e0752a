"""Uses the router's HTTP API with OpenAI's own client for Python, and prints one line per check.

    python deploy/openai/client.py http://127.0.0.1:8000/v1

A key comes from OPENAI_API_KEY, and with https:// the CA from SSL_CERT_FILE.

The server runs with `--model-alias gpt-4o-mini=storyteller`. The exit status is 1 if a check fails. What differs from
OpenAI on purpose is checked as it is documented; everything else is what the client or OpenAI's reference expects.
"""

import asyncio
import os
import sys
import time
import uuid

import openai
from openai import AsyncOpenAI, OpenAI

MODEL, ALIAS = "storyteller", "gpt-4o-mini"
PROMPT = "Once upon a time"
MESSAGES = [{"role": "user", "content": PROMPT}]

if len(sys.argv) != 2:
    sys.exit("usage: client.py http://HOST:PORT/v1")
# Retries would hide errors.
settings = {"base_url": sys.argv[1], "api_key": os.environ.get("OPENAI_API_KEY", "unused"), "max_retries": 0, "timeout": 60}
# Raises an error if a response does not have the client's types.
strict = OpenAI(**settings, _strict_response_validation=True)
# Those types are wrong in two places, where OpenAI sends null too: `finish_reason` in chunks of completions, and the
# log probability of the first token of a prompt that is repeated.
lenient = OpenAI(**settings)
checks = []


def check(what):
    """Adds a check, which fails if the function raises an exception. `what` is its line in the output."""
    return lambda run: checks.append((what, run))


def holds(condition, what):
    if not condition:
        raise AssertionError(what)


def equal(found, expected, what="found"):
    holds(found == expected, f"{what} {found!r}, expected {expected!r}")


def differ(one, other, what):
    holds(one != other, f"{what} makes no difference to {one!r}")


def chat(**fields):
    """A chat completion. Fields that OpenAI does not have go into `extra_body`."""
    return strict.chat.completions.create(**{"model": MODEL, "messages": MESSAGES, **fields})


def complete(**fields):
    return strict.completions.create(**{"model": MODEL, "prompt": PROMPT, **fields})


def content(**fields):
    return chat(**fields).choices[0].message.content


def text(**fields):
    return complete(**fields).choices[0].text


def joined(chunks):
    """The texts of a stream by choice."""
    texts = {}
    for chunk in chunks:
        for choice in chunk.choices:
            piece = choice.text if hasattr(choice, "text") else choice.delta.content
            texts[choice.index] = texts.get(choice.index, "") + (piece or "")
    return texts


def prompt_ids(prompt=PROMPT):
    """The token ids of a prompt, as the server reports them."""
    return complete(prompt=prompt, max_tokens=1, extra_body={"return_token_ids": True}).choices[0].prompt_token_ids


def adds_up(usage):
    equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens, "total_tokens")


# Models


@check("models.list has the model and its alias")
def _():
    models = strict.models.list()
    equal(models.object, "list")
    equal(sorted(model.id for model in models), sorted([MODEL, ALIAS]), "ids")
    for model in models:
        equal(model.object, "model")
        holds(0 < model.created <= time.time() + 5, f"created {model.created}")
        holds(model.owned_by, "owned_by is empty")


@check("models.retrieve finds the model, and its alias under its own name")
def _():
    for name in [MODEL, ALIAS]:
        equal(strict.models.retrieve(name).id, name)


# Chat completions


@check("chat: a plain response has all fields")
def _():
    response = chat(seed=1)
    equal(response.object, "chat.completion")
    holds(response.id.startswith("chatcmpl-"), f"id {response.id!r}")
    holds(abs(response.created - time.time()) < 60, f"created {response.created}")
    equal(response.model, MODEL, "model")
    equal(len(response.choices), 1, "choices")
    choice = response.choices[0]
    equal((choice.index, choice.finish_reason, choice.logprobs), (0, "stop", None))
    equal((choice.message.role, choice.message.refusal), ("assistant", None))
    holds(len(choice.message.content.split()) > 50, f"content {choice.message.content!r}")
    holds(response.usage.prompt_tokens > 0 and response.usage.completion_tokens > 50, f"usage {response.usage}")
    holds(response.usage.prompt_tokens_details.cached_tokens >= 0, "no cached_tokens")
    adds_up(response.usage)


@check("chat: an alias gives the same text, and the response names the model")
def _():
    response = chat(model=ALIAS, seed=1, max_tokens=30)
    equal(response.model, MODEL, "model")
    equal(response.choices[0].message.content, content(seed=1, max_tokens=30))


@check("chat: a stream has the text of the plain response, and chunks in order")
def _():
    for fields in [{"seed": 2, "temperature": 1.0}, {"seed": 3, "temperature": 0.5, "max_tokens": 50}]:
        plain, chunks = chat(**fields), list(chat(**fields, stream=True))
        equal(joined(chunks), {0: plain.choices[0].message.content}, "text")
        equal({(c.id, c.object, c.created, c.model) for c in chunks},
              {(chunks[0].id, "chat.completion.chunk", chunks[0].created, MODEL)}, "heads")
        equal([c.choices[0].delta.role for c in chunks], ["assistant"] + [None] * (len(chunks) - 1), "roles")
        reasons = [c.choices[0].finish_reason for c in chunks]
        equal(reasons, [None] * (len(chunks) - 1) + [plain.choices[0].finish_reason], "finish reasons")
        holds(not any("usage" in c.model_fields_set for c in chunks), "a chunk has usage, without a request for it")


@check("chat: stream_options include_usage adds a last chunk with usage and no choices")
def _():
    plain = chat(seed=2)
    *chunks, last = chat(seed=2, stream=True, stream_options={"include_usage": True})
    equal(last.choices, [], "choices of the last chunk")
    for field in ["prompt_tokens", "completion_tokens", "total_tokens"]:
        equal(getattr(last.usage, field), getattr(plain.usage, field), field)
    for chunk in chunks:
        holds(chunk.choices and chunk.usage is None and "usage" in chunk.model_fields_set, f"chunk {chunk}")


@check("chat: stream_options include_obfuscation is accepted")
def _():
    options = {"include_usage": False, "include_obfuscation": False}
    equal(joined(chat(seed=2, stream=True, stream_options=options)), {0: content(seed=2)})


@check("chat: n=3 gives three choices, of which the first is that of n=1")
def _():
    response = chat(n=3, seed=4, extra_body={"return_token_ids": True})
    equal([choice.index for choice in response.choices], [0, 1, 2], "indexes")
    texts = [choice.message.content for choice in response.choices]
    equal(len(set(texts)), 3, "different texts")
    equal(texts[0], content(seed=4))
    equal(response.usage.completion_tokens, sum(len(choice.token_ids) for choice in response.choices), "tokens")
    equal(response.usage.prompt_tokens, len(response.prompt_token_ids), "prompt tokens")
    adds_up(response.usage)


@check("chat: a stream with n=3 has the texts of the plain response, and an end of each choice")
def _():
    chunks = list(chat(n=3, seed=4, stream=True))
    equal(joined(chunks), {c.index: c.message.content for c in chat(n=3, seed=4).choices})
    ends = [choice.index for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    equal(sorted(ends), [0, 1, 2], "ends")


def whole_logprobs(logprobs, candidates):
    """Checks the log probabilities of a choice, and returns their text."""
    for token in logprobs.content:
        # OpenAI has null for special tokens, which are not in the content.
        holds(token.bytes is None or bytes(token.bytes).decode(errors="replace") == token.token, f"bytes {token}")
        holds(token.logprob <= 0, f"logprob {token.logprob}")
        equal(len(token.top_logprobs), candidates, "top_logprobs")
        tops = [top.logprob for top in token.top_logprobs]
        equal(tops, sorted(tops, reverse=True), "order of top_logprobs")
        same = [top.logprob for top in token.top_logprobs if top.bytes == token.bytes]
        equal(same, [token.logprob] * len(same), "logprob among top_logprobs")
    return b"".join(bytes(token.bytes or []) for token in logprobs.content).decode()


@check("chat: logprobs have one entry per token, and their bytes join to the content")
def _():
    for candidates in [0, 1, 4, 20]:
        response = chat(seed=5, max_tokens=25, logprobs=True, top_logprobs=candidates)
        choice = response.choices[0]
        equal(whole_logprobs(choice.logprobs, candidates), choice.message.content)
        equal(len(choice.logprobs.content), response.usage.completion_tokens, "entries")


@check("chat: logprobs without top_logprobs have no candidates")
def _():
    whole_logprobs(chat(seed=5, max_tokens=5, logprobs=True).choices[0].logprobs, 0)


@check("chat: the bytes of logprobs join to the content of a story that ends by itself")
def _():
    choice = chat(seed=5, logprobs=True).choices[0]
    equal(choice.finish_reason, "stop")
    joint = whole_logprobs(choice.logprobs, 0)
    equal(joint[-40:], choice.message.content[-40:], "last characters")
    equal(joint, choice.message.content)


@check("chat: logprobs in a stream are those of the plain response")
def _():
    fields = {"seed": 5, "max_tokens": 25, "logprobs": True, "top_logprobs": 2}
    chunks = [chunk.choices[0] for chunk in chat(**fields, stream=True)]
    for choice in chunks:
        if choice.logprobs:
            tokens = "".join(token.token for token in choice.logprobs.content)
            equal(tokens, choice.delta.content, "tokens of a chunk")
    streamed = [token for choice in chunks if choice.logprobs for token in choice.logprobs.content]
    equal(streamed, chat(**fields).choices[0].logprobs.content)


@check("chat: a stop string ends the text before it, plain and streamed")
def _():
    whole = content(seed=6)
    stop = whole[40:47]
    for stops in [stop, ["not in any story", stop]]:
        choice = chat(seed=6, stop=stops).choices[0]
        equal((choice.message.content, choice.finish_reason), (whole[:whole.index(stop)], "stop"))
        equal(joined(chat(seed=6, stop=stops, stream=True)), {0: choice.message.content})


@check("chat: max_tokens and max_completion_tokens end with length")
def _():
    for fields in [{"max_tokens": 7}, {"max_completion_tokens": 7}, {"max_completion_tokens": 7, "max_tokens": 9}]:
        response = chat(seed=1, **fields)
        equal((response.choices[0].finish_reason, response.usage.completion_tokens), ("length", 7), f"{fields}")


@check("chat: temperature 0 is the same for every seed")
def _():
    texts = {content(temperature=0, seed=seed) for seed in [None, 1, 2]}
    equal(len(texts), 1, "different texts")


@check("chat: a seed is reproducible, and another one gives another text")
def _():
    equal(content(seed=7), content(seed=7))
    differ(content(seed=7), content(seed=8), "seed")
    differ(content(), content(), "drawing a seed")
    # The client's type is an integer of either sign.
    equal(content(seed=-1, max_tokens=20), content(seed=-1, max_tokens=20))


@check("chat: top_p restricts the candidates")
def _():
    equal(content(seed=7, top_p=0.0001), content(temperature=0))


@check("chat: logit_bias excludes and forces tokens")
def _():
    fields = {"temperature": 0, "max_tokens": 4, "extra_body": {"return_token_ids": True}}
    ids = chat(**fields).choices[0].token_ids
    without = chat(**fields, logit_bias={str(ids[0]): -100}).choices[0].token_ids
    holds(ids[0] not in without, f"{ids[0]} is in {without}")
    equal(chat(**fields, logit_bias={str(ids[2]): 100}).choices[0].token_ids, [ids[2]] * 4)


@check("chat: frequency_penalty and presence_penalty change the text")
def _():
    plain = content(temperature=0)
    differ(plain, content(temperature=0, frequency_penalty=2), "frequency_penalty")
    differ(plain, content(temperature=0, presence_penalty=2), "presence_penalty")
    equal(plain, content(temperature=0, frequency_penalty=0, presence_penalty=0), "without penalties")


@check("chat: fields of an account are accepted and change nothing")
def _():
    plain = content(seed=1, max_tokens=20)
    for fields in [{"user": "u"}, {"safety_identifier": "s"}, {"metadata": {"a": "b"}}, {"store": False},
                   {"service_tier": "auto"}, {"prompt_cache_key": "k"}, {"response_format": {"type": "text"}},
                   {"modalities": ["text"]}, {"parallel_tool_calls": True}, {"tool_choice": "none"}, {"tools": []}]:
        equal(content(seed=1, max_tokens=20, **fields), plain, f"with {fields}")


@check("chat: a content of text parts is a text")
def _():
    def parts(*texts):
        return [{"role": "user", "content": [{"type": "text", "text": text} for text in texts]}]
    equal(content(messages=parts(PROMPT), seed=1), content(seed=1))
    # As vLLM joins them.
    lines = [{"role": "user", "content": "One day\na fox"}]
    equal(content(messages=parts("One day", "a fox"), seed=1), content(messages=lines, seed=1))


@check("chat: system and developer messages, and a conversation of several turns, are accepted")
def _():
    for role in ["system", "developer"]:
        messages = [{"role": role, "content": "Tell stories."}, *MESSAGES]
        holds(content(messages=messages, max_tokens=20), "no content")
    turns = [*MESSAGES, chat(seed=1, max_tokens=20).choices[0].message, {"role": "user", "content": "One day"}]
    holds(content(messages=turns, max_tokens=20), "no content")


@check("chat: text beyond ASCII arrives whole")
def _():
    messages = [{"role": "user", "content": "Zoë 🦊 said „ja“ — 物語"}]
    equal(joined(chat(messages=messages, seed=1, stream=True)), {0: content(messages=messages, seed=1)})


@check("chat: the client's helper for streams collects the plain response")
def _():
    fields = {"model": MODEL, "messages": MESSAGES, "seed": 9, "n": 2, "logprobs": True}
    plain = chat(**fields)
    # The helper parses its snapshot, and has no strict types for it.
    with lenient.chat.completions.stream(**fields, stream_options={"include_usage": True}) as stream:
        done = [event.content for event in stream if event.type == "content.done"]
        final = stream.get_final_completion()
    texts = [choice.message.content for choice in plain.choices]
    equal(sorted(done), sorted(texts), "content.done")
    equal([choice.message.content for choice in final.choices], texts)
    equal([c.logprobs.content for c in final.choices], [c.logprobs.content for c in plain.choices], "logprobs")
    equal(final.usage.total_tokens, plain.usage.total_tokens, "total_tokens")


# Completions


@check("completions: a plain response has all fields, and 16 tokens unless more are wanted")
def _():
    response = complete(seed=1)
    equal(response.object, "text_completion")
    holds(response.id.startswith("cmpl-"), f"id {response.id!r}")
    equal((response.model, len(response.choices)), (MODEL, 1))
    choice = response.choices[0]
    equal((choice.index, choice.finish_reason, choice.logprobs), (0, "length", None))
    holds(choice.text, "no text")
    equal(response.usage.completion_tokens, 16, "completion_tokens")
    adds_up(response.usage)
    equal(complete(seed=1, max_tokens=1000).choices[0].finish_reason, "stop")


@check("completions: a list of strings gives the choices of each")
def _():
    prompts = [PROMPT, "The fox", "A small owl"]
    response = complete(prompt=prompts, seed=1)
    equal([choice.index for choice in response.choices], [0, 1, 2], "indexes")
    equal([choice.text for choice in response.choices], [text(prompt=prompt, seed=1) for prompt in prompts])
    usages = [complete(prompt=prompt, seed=1).usage for prompt in prompts]
    equal(response.usage.total_tokens, sum(usage.total_tokens for usage in usages), "total_tokens")
    adds_up(response.usage)


@check("completions: choices of several prompts with n=2 are in the order of the prompts")
def _():
    prompts = [PROMPT, "The fox"]
    choices = complete(prompt=prompts, n=2, seed=1).choices
    equal([choice.index for choice in choices], [0, 1, 2, 3], "indexes")
    expected = [choice.text for prompt in prompts for choice in complete(prompt=prompt, n=2, seed=1).choices]
    equal([choice.text for choice in choices], expected)


@check("completions: token ids, and a list of token id lists, are prompts")
def _():
    ids, fox = prompt_ids(), prompt_ids("The fox")
    equal(text(prompt=ids, seed=1), text(seed=1), "ids")
    texts = [choice.text for choice in complete(prompt=[ids, fox], seed=1).choices]
    equal(texts, [text(seed=1), text(prompt="The fox", seed=1)], "lists of ids")


@check("completions: echo repeats the prompt, of text and of token ids")
def _():
    plain = text(seed=1)
    equal(text(seed=1, echo=True), PROMPT + plain, "text")
    equal(text(prompt=prompt_ids(), seed=1, echo=True), PROMPT + plain, "token ids")
    equal([choice.text for choice in complete(n=2, seed=1, echo=True).choices],
          [PROMPT + choice.text for choice in complete(n=2, seed=1).choices], "n=2")


def aligned(choice):
    """Checks the log probabilities of a completion against its text."""
    logprobs = choice.logprobs
    lists = [logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset]
    equal([len(list) for list in lists], [len(logprobs.tokens)] * 4, "lengths")
    for token, offset in zip(logprobs.tokens, logprobs.text_offset):
        at = choice.text[offset:offset + len(token)]
        # Not in the text: special tokens, and parts of characters.
        skipped = token.startswith("<|") or "\ufffd" in token
        holds(at == token or skipped, f"token {token!r} at offset {offset} of the text, which has {at!r}")


@check("completions: logprobs have one entry per token, at the token's offset in the text")
def _():
    for candidates in [0, 3, 5]:
        response = complete(seed=1, logprobs=candidates)
        choice = response.choices[0]
        aligned(choice)
        equal("".join(choice.logprobs.tokens), choice.text, "tokens")
        equal(len(choice.logprobs.tokens), response.usage.completion_tokens, "entries")
        for token, logprob, top in zip(choice.logprobs.tokens, choice.logprobs.token_logprobs,
                                       choice.logprobs.top_logprobs):
            holds(max(1, candidates) <= len(top) <= candidates + 1, f"top_logprobs {top} of {candidates}")
            # The candidates have more digits.
            holds(abs(top[token] - logprob) < 1e-5, f"{token!r} {logprob}, and {top[token]} in top_logprobs")


@check("completions: tokens of logprobs join to the text of a story that ends by itself, but for its last token")
def _():
    choice = complete(seed=1, max_tokens=1000, logprobs=0).choices[0]
    equal(choice.finish_reason, "stop")
    *tokens, last = choice.logprobs.tokens
    equal("".join(tokens), choice.text)
    equal((last[:2], choice.logprobs.text_offset[-1]), ("<|", len(choice.text)), "special token and its offset")


@check("completions: echo with logprobs has the tokens of the prompt, the first without a log probability")
def _():
    fields = {"model": MODEL, "prompt": "The fox said", "seed": 1, "max_tokens": 5, "logprobs": 2}
    response = lenient.completions.create(**fields, echo=True)
    logprobs, plain = response.choices[0].logprobs, lenient.completions.create(**fields).choices[0].logprobs
    equal(len(logprobs.tokens), response.usage.total_tokens, "entries")
    equal((logprobs.token_logprobs[0], logprobs.top_logprobs[0]), (None, None), "first entries")
    holds(all(logprob is not None for logprob in logprobs.token_logprobs[1:]), f"{logprobs.token_logprobs}")
    equal((logprobs.tokens[-5:], logprobs.token_logprobs[-5:]), (plain.tokens, plain.token_logprobs), "of the response")


@check("completions: with echo and logprobs, offsets are those in the text")
def _():
    fields = {"model": MODEL, "prompt": "The fox said", "seed": 1, "max_tokens": 5, "logprobs": 2, "echo": True}
    aligned(lenient.completions.create(**fields).choices[0])


@check("completions: with echo and logprobs, offsets after characters of several tokens are those in the text")
def _():
    # No special token at the beginning, which is the check above.
    fields = {"max_tokens": 5, "logprobs": 2, "echo": True, "extra_body": {"add_special_tokens": False}}
    aligned(lenient.completions.create(model=MODEL, prompt="Once a fox 🦊 named Zoë said", **fields).choices[0])


@check("completions: echo with max_tokens=0 evaluates a prompt, without a new token")
def _():
    response = lenient.completions.create(model=MODEL, prompt=PROMPT, echo=True, max_tokens=0, logprobs=1)
    equal((response.choices[0].text, response.usage.completion_tokens), (PROMPT, 0))


@check("completions: a stream with n=2 has the texts of the plain response")
def _():
    fields = {"model": MODEL, "prompt": PROMPT, "n": 2, "seed": 3, "max_tokens": 40}
    expected = {choice.index: choice.text for choice in complete(**fields).choices}
    chunks = list(lenient.completions.create(**fields, stream=True))
    equal(joined(chunks), expected)
    ends = [choice.index for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    equal(sorted(ends), [0, 1], "ends")
    equal({(chunk.id, chunk.object, chunk.model) for chunk in chunks}, {(chunks[0].id, "text_completion", MODEL)})


@check("completions: a stream of two prompts with echo, logprobs and usage is the plain response")
def _():
    fields = {"model": MODEL, "prompt": [PROMPT, "The fox"], "n": 2, "seed": 3, "echo": True, "logprobs": 1}
    plain = lenient.completions.create(**fields)
    *chunks, last = lenient.completions.create(**fields, stream=True, stream_options={"include_usage": True})
    equal(joined(chunks), {choice.index: choice.text for choice in plain.choices})
    for choice in plain.choices:
        parts = [c.logprobs for chunk in chunks for c in chunk.choices if c.index == choice.index and c.logprobs]
        for field in ["tokens", "token_logprobs", "text_offset", "top_logprobs"]:
            equal([x for part in parts for x in getattr(part, field)], getattr(choice.logprobs, field), field)
    equal((last.choices, last.usage.total_tokens), ([], plain.usage.total_tokens), "last chunk")


# Fields of vLLM, with `extra_body`


@check("extra: top_k=1 and min_p=1 are greedy, and top_k=-1 is no limit")
def _():
    greedy = content(temperature=0)
    equal(content(seed=1, extra_body={"top_k": 1}), greedy, "top_k")
    equal(content(seed=1, extra_body={"min_p": 1}), greedy, "min_p")
    equal(content(seed=1, extra_body={"top_k": -1}), content(seed=1), "top_k=-1")


@check("extra: repetition_penalty changes the text")
def _():
    plain = content(temperature=0)
    differ(plain, content(temperature=0, extra_body={"repetition_penalty": 1.5}), "repetition_penalty")
    equal(content(temperature=0, extra_body={"repetition_penalty": 1}), plain)


@check("extra: ignore_eos and min_tokens go on after the end")
def _():
    usual = chat(seed=1).usage.completion_tokens
    response = chat(seed=1, max_tokens=usual + 20, extra_body={"ignore_eos": True})
    equal((response.choices[0].finish_reason, response.usage.completion_tokens), ("length", usual + 20), "ignore_eos")
    response = chat(seed=1, extra_body={"min_tokens": usual + 20})
    holds(response.usage.completion_tokens > usual + 20, f"min_tokens={usual + 20}, {response.usage}")


@check("extra: stop_token_ids end the text before the token")
def _():
    fields = {"temperature": 0, "max_tokens": 30}
    choice = chat(**fields, logprobs=True, extra_body={"return_token_ids": True}).choices[0]
    stop = choice.token_ids[10]
    first = choice.token_ids.index(stop)
    expected = "".join(token.token for token in choice.logprobs.content[:first])
    stopped = chat(**fields, extra_body={"stop_token_ids": [stop]}).choices[0]
    equal((stopped.message.content, stopped.finish_reason), (expected, "stop"))


@check("extra: include_stop_str_in_output keeps the stop string")
def _():
    whole = content(seed=6)
    stop = whole[40:47]
    found = content(seed=6, stop=stop, extra_body={"include_stop_str_in_output": True})
    equal(found, whole[:whole.index(stop) + len(stop)])


@check("extra: priority is accepted")
def _():
    for priority in [0, 100, 1000]:
        equal(content(seed=1, extra_body={"priority": priority}), content(seed=1), f"priority {priority}")


@check("extra: requests with another cache_salt share no cached prompt")
def _():
    prompt = PROMPT + " there was a fox who lived in a snug den." * 15

    def cached(salt):
        response = complete(prompt=prompt, max_tokens=1, extra_body={"cache_salt": salt})
        return response.usage.prompt_tokens_details.cached_tokens
    own, other = uuid.uuid4().hex, uuid.uuid4().hex
    equal(cached(own), 0, "first time")
    # There are several workers, each of which has its own cache.
    holds(max(cached(own) for _ in range(8)) > 0, "nothing is cached with the same salt")
    equal(cached(other), 0, "another salt")


@check("extra: return_token_ids returns the tokens of prompt and response, plain and streamed")
def _():
    def tokens(chunks):
        return [id for chunk in chunks for id in getattr(chunk.choices[0], "token_ids", None) or []]
    fields = {"seed": 1, "max_tokens": 12, "extra_body": {"return_token_ids": True}}
    response, chunks = chat(**fields), list(chat(**fields, stream=True))
    ids = response.choices[0].token_ids
    equal((len(response.prompt_token_ids), len(ids)), (response.usage.prompt_tokens, 12), "chat")
    equal((chunks[0].prompt_token_ids, tokens(chunks)), (response.prompt_token_ids, ids), "chat, streamed")
    fields |= {"model": MODEL, "prompt": PROMPT}
    response, chunks = complete(**fields), list(lenient.completions.create(**fields, stream=True))
    choice = response.choices[0]
    equal((len(choice.prompt_token_ids), len(choice.token_ids)), (response.usage.prompt_tokens, 12), "completion")
    equal((chunks[0].choices[0].prompt_token_ids, tokens(chunks)), (choice.prompt_token_ids, choice.token_ids),
          "completion, streamed")


# Errors


def refused(call, kind, param, code=None, message="", **fields):
    """Checks the error of a request. `param` is the field that it names; it may name a part, such as `stop[1]`."""
    try:
        call(**fields)
    except kind as error:
        name = error.param or ""
        equal(name.split("[")[0], param, "param")
        equal((error.type, error.code), ("invalid_request_error", code), "type and code")
        holds(message in error.message, f"message {error.message!r} without {message!r}")
        holds(error.request_id, "no request id")
        return
    raise AssertionError(f"no {kind.__name__}")


def bad(call, param, code=None, message="", **fields):
    refused(call, openai.BadRequestError, param, code, message, **fields)


@check("error: an unknown model is not found, and the message names those that are")
def _():
    for call in [chat, complete]:
        for stream in [False, True]:
            refused(call, openai.NotFoundError, "model", "model_not_found", MODEL, model="gpt-9", stream=stream)
    refused(strict.models.retrieve, openai.NotFoundError, "model", "model_not_found", ALIAS, model="gpt-9")


@check("error: an API that the server does not have is not found")
def _():
    for call, fields in [(strict.embeddings.create, {}), (strict.responses.create, {})]:
        refused(call, openai.NotFoundError, "", "unknown_url", "/v1/chat/completions", model=MODEL, input="x", **fields)


# A check for each field, so that each has its own line.
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {}}}
SCHEMA = {"name": "s", "schema": {"type": "object"}}
for field, call, fields in [
    ("tools", chat, {"tools": [{"type": "function", "function": FUNCTION}]}),
    ("functions", chat, {"functions": [FUNCTION]}),
    ("tool_choice", chat, {"tool_choice": "required"}),
    ("response_format", chat, {"response_format": {"type": "json_object"}}),
    ("response_format", chat, {"response_format": {"type": "json_schema", "json_schema": SCHEMA}}),
    ("modalities", chat, {"modalities": ["text", "audio"], "audio": {"format": "wav", "voice": "alloy"}}),
    ("prediction", chat, {"prediction": {"type": "content", "content": "x"}}),
    ("web_search_options", chat, {"web_search_options": {"search_context_size": "low"}}),
    ("best_of", complete, {"best_of": 2}),
    ("suffix", complete, {"suffix": "the end"}),
]:
    check(f"error: {field} is not supported: {fields[field]}")(
        lambda field=field, call=call, fields=fields: bad(call, field, "unsupported_parameter", field, **fields))
for field, call, fields in [
    ("temperature", chat, {"temperature": 101}),
    ("temperature", chat, {"temperature": -0.1}),
    ("top_p", chat, {"top_p": 1.5}),
    ("frequency_penalty", chat, {"frequency_penalty": 2.5}),
    ("presence_penalty", chat, {"presence_penalty": -2.5}),
    ("n", chat, {"n": 0}),
    ("n", chat, {"n": 129}),
    ("max_tokens", chat, {"max_tokens": -1}),
    ("max_tokens", chat, {"max_tokens": "many"}),
    ("max_completion_tokens", chat, {"max_completion_tokens": 0}),
    ("seed", chat, {"seed": 0.5}),
    ("stop", chat, {"stop": 5}),
    ("stop", chat, {"stop": [""]}),
    ("stream_options", chat, {"stream_options": {"include_usage": True}}),
    ("top_logprobs", chat, {"top_logprobs": 3}),
    ("top_logprobs", chat, {"logprobs": True, "top_logprobs": 21}),
    ("logprobs", complete, {"logprobs": 21}),
    ("logit_bias", chat, {"logit_bias": {"x": 1}}),
    ("logit_bias", chat, {"logit_bias": {"5": 101}}),
    ("logit_bias", chat, {"logit_bias": {"99999999": 1}}),
    ("messages", chat, {"messages": []}),
    ("messages", chat, {"messages": [{"content": "no role"}]}),
    ("prompt", complete, {"prompt": ""}),
    ("prompt", complete, {"prompt": []}),
    ("prompt", complete, {"prompt": [[]]}),
    ("prompt", complete, {"prompt": [99999999]}),
    ("prompt", complete, {"prompt": {"a": "b"}}),
    ("min_p", chat, {"extra_body": {"min_p": 2}}),
    ("stop_token_ids", chat, {"extra_body": {"stop_token_ids": [99999999]}}),
    ("priority", chat, {"extra_body": {"priority": 1001}}),
    ("cache_salt", chat, {"extra_body": {"cache_salt": "a b"}}),
]:
    check(f"error: {field} is invalid: {fields}")(
        lambda field=field, call=call, fields=fields: bad(call, field, **fields))


@check("error: a field that the API does not have")
def _():
    for call in [chat, complete]:
        bad(call, "foo", "unknown_parameter", "foo", extra_body={"foo": 1})


@check("error: a part of a message that is not text")
def _():
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    parts = [{"role": "user", "content": [{"type": "text", "text": "what is this"}, image]}]
    bad(chat, "messages", None, "image_url", messages=parts)


@check("error: a prompt that is too long has the code on which clients shorten it, plain and streamed")
def _():
    long = "there was a fox " * 1000
    for stream in [False, True]:
        bad(chat, "messages", "context_length_exceeded", messages=[{"role": "user", "content": long}], stream=stream)
        bad(complete, "prompt", "context_length_exceeded", prompt=long, stream=stream)


@check("error: one prompt of several is too long")
def _():
    bad(complete, "prompt", "context_length_exceeded", prompt=[PROMPT, "there was a fox " * 1000])


@check("error: roles that the chat template refuses")
def _():
    bad(chat, "messages", messages=[{"role": "assistant", "content": "I begin"}, *MESSAGES])
    bad(chat, "messages", messages=[*MESSAGES, {"role": "tool", "content": "x", "tool_call_id": "a"}])


@check("error: a body that is too large")
def _():
    try:
        content(messages=[{"role": "user", "content": "x" * (5 << 20)}])
    except openai.APIStatusError as error:
        equal((error.status_code, error.type), (413, "invalid_request_error"))
        return
    raise AssertionError("no error")


@check("error: a body that is no JSON object")
def _():
    bad(lambda: strict.post("/chat/completions", cast_to=object, body=[1]), "")


# Headers and connections


@check("headers: with_raw_response shows x-request-id, which is in the id of the response")
def _():
    raw = strict.chat.completions.with_raw_response.create(model=MODEL, messages=MESSAGES, max_tokens=2)
    equal(raw.headers["content-type"], "application/json")
    id = raw.headers["x-request-id"]
    equal((raw.request_id, raw.parse()._request_id), (id, id), "request ids")
    equal(raw.parse().id, f"chatcmpl-{id}")


@check("headers: a given X-Request-Id comes back, plain and streamed")
def _():
    id = f"check-{uuid.uuid4()}"
    for stream in [False, True]:
        raw = strict.chat.completions.with_raw_response.create(
            model=MODEL, messages=MESSAGES, max_tokens=2, stream=stream, extra_headers={"X-Request-Id": id})
        equal(raw.headers["x-request-id"], id)
        if stream:
            list(raw.parse())


@check("headers: a traceparent is accepted")
def _():
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    equal(content(seed=1, extra_headers=trace), content(seed=1))


@check("streams: the bytes are server-sent events and end with [DONE]")
def _():
    create = strict.chat.completions.with_streaming_response.create
    with create(model=MODEL, messages=MESSAGES, max_tokens=3, stream=True) as response:
        holds(response.headers["content-type"].startswith("text/event-stream"), response.headers["content-type"])
        lines = [line for line in response.iter_lines() if line]
    holds(all(line.startswith("data: {") for line in lines[:-1]), f"lines {lines}")
    equal(lines[-1], "data: [DONE]")


@check("streams: a client that closes streams early does not disturb the next request")
def _():
    expected = content(seed=1)
    for _ in range(20):
        stream = chat(stream=True, n=4, max_tokens=1000, extra_body={"ignore_eos": True})
        next(stream)
        stream.close()
    equal(content(seed=1), expected)


@check("async: 20 concurrent streams have the texts of plain responses")
def _():
    async def run():
        async with AsyncOpenAI(**settings, _strict_response_validation=True) as client:
            async def one(seed):
                fields = {"model": MODEL, "messages": MESSAGES, "seed": seed, "stream": True}
                return "".join([chunk.choices[0].delta.content or ""
                                async for chunk in await client.chat.completions.create(**fields)])
            return await asyncio.gather(*[one(seed) for seed in range(20)])
    equal(asyncio.run(run()), [content(seed=seed) for seed in range(20)])


failed = 0
for what, run in checks:
    try:
        run()
        print(f"ok    {what}", flush=True)
    except Exception as error:
        failed += 1
        print(f"FAIL  {what}: {type(error).__name__}: {' '.join(str(error).split())[:600]}", flush=True)
print(f"{len(checks) - failed} of {len(checks)} checks passed")
sys.exit(1 if failed else 0)
