"""Uses the router's HTTP API through LangChain and LiteLLM, and prints one line per check.

    python deploy/openai/frameworks.py http://127.0.0.1:8000/v1

The exit status is 1 if a check fails. Both are used as their documentation says for a server with OpenAI's API. They
wrap OpenAI's client, and add fields of their own to requests, which is what this is about.
"""

import asyncio
import os
import sys

# LiteLLM would download a list of prices, and LangChain send traces.
os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false"}

import litellm
import openai
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from langchain_openai import OpenAI as CompletionOpenAI

MODEL, PROMPT = "storyteller", "Once upon a time"
MESSAGES = [{"role": "user", "content": PROMPT}]

if len(sys.argv) != 2:
    sys.exit("usage: frameworks.py http://HOST:PORT/v1")
URL = sys.argv[1]
litellm.suppress_debug_info = True
client = openai.OpenAI(base_url=URL, api_key="unused", max_retries=0)
checks = []


def check(what):
    """Adds a check, which fails if the function raises an exception. `what` is its line in the output."""
    return lambda run: checks.append((what, run))


def holds(condition, what):
    if not condition:
        raise AssertionError(what)


def equal(found, expected, what="found"):
    holds(found == expected, f"{what} {found!r}, expected {expected!r}")


def raises(kind, part, run):
    """Checks that an error of a class comes, with a message that has a part."""
    try:
        run()
    except kind as error:
        holds(part in str(error), f"message {error} without {part!r}")
        return
    raise AssertionError(f"no {kind.__name__}")


def expected(prompt=PROMPT, **fields):
    """What OpenAI's client gets."""
    fields = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], **fields}
    return client.chat.completions.create(**fields)


def content(prompt=PROMPT, **fields):
    return expected(prompt, **fields).choices[0].message.content


def langchain(**fields):
    return ChatOpenAI(**{"model": MODEL, "base_url": URL, "api_key": "unused", "max_retries": 0, "seed": 1, **fields})


def lite(**fields):
    fields = {"model": f"openai/{MODEL}", "api_base": URL, "api_key": "unused", "seed": 1, **fields}
    return litellm.completion(**{"messages": MESSAGES, "num_retries": 0, **fields})


# LangChain


@check("langchain: invoke has the text, the usage and the reason of the end")
def _():
    message, plain = langchain().invoke(PROMPT), expected(seed=1)
    equal(message.content, plain.choices[0].message.content)
    usage = message.usage_metadata
    equal((usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]),
          (plain.usage.prompt_tokens, plain.usage.completion_tokens, plain.usage.total_tokens), "usage")
    metadata = message.response_metadata
    equal((metadata["finish_reason"], metadata["model_name"]), ("stop", MODEL), "metadata")
    equal(langchain(max_tokens=5).invoke(PROMPT).response_metadata["finish_reason"], "length")


@check("langchain: stream has the text of invoke, and the usage")
def _():
    chunks = list(langchain(stream_usage=True).stream(PROMPT))
    holds(len(chunks) > 20, f"{len(chunks)} chunks")
    whole = sum(chunks[1:], chunks[0])
    equal(whole.content, content(seed=1))
    equal(whole.usage_metadata["total_tokens"], expected(seed=1).usage.total_tokens, "total_tokens")
    equal(whole.response_metadata["finish_reason"], "stop")


@check("langchain: batch runs several prompts")
def _():
    prompts = [PROMPT, "The fox", "One day", "A small owl"]
    equal([message.content for message in langchain().batch(prompts)], [content(prompt, seed=1) for prompt in prompts])


@check("langchain: generate with n=3 has three generations")
def _():
    generations = langchain(n=3).generate([[HumanMessage(PROMPT)]]).generations[0]
    equal([generation.text for generation in generations],
          [choice.message.content for choice in expected(seed=1, n=3).choices])


@check("langchain: a conversation, a chain with a template, and a parser")
def _():
    turns = [SystemMessage("Tell stories."), HumanMessage(PROMPT), AIMessage(" there was a fox."), HumanMessage("Then")]
    holds(langchain().invoke(turns).content, "no content")
    chain = ChatPromptTemplate.from_messages([("user", "The {animal}")]) | langchain() | StrOutputParser()
    equal(chain.invoke({"animal": "fox"}), content("The fox", seed=1))


@check("langchain: stop, temperature, top_p, penalties and logprobs")
def _():
    stop = content(seed=1)[40:47]
    equal(langchain().invoke(PROMPT, stop=[stop]).content, content(seed=1, stop=[stop]), "stop")
    sampling = {"temperature": 0.7, "top_p": 0.9, "presence_penalty": 0.5, "frequency_penalty": 0.5}
    equal(langchain(**sampling).invoke(PROMPT).content, content(seed=1, **sampling), f"{sampling}")
    message = langchain(logprobs=True, top_logprobs=2, max_tokens=5).invoke(PROMPT)
    tokens = message.response_metadata["logprobs"]["content"]
    equal("".join(token["token"] for token in tokens), message.content, "logprobs")


@check("langchain: fields of vLLM in extra_body")
def _():
    equal(langchain(extra_body={"top_k": 1}).invoke(PROMPT).content, content(temperature=0))


@check("langchain: ainvoke, astream and abatch")
def _():
    async def run():
        model = langchain()
        streamed = "".join([chunk.content async for chunk in model.astream(PROMPT)])
        return [(await model.ainvoke(PROMPT)).content, streamed,
                *[message.content for message in await model.abatch([PROMPT] * 3)]]
    equal(asyncio.run(run()), [content(seed=1)] * 5)


@check("langchain: errors are those of OpenAI's client, and name the field")
def _():
    raises(openai.NotFoundError, MODEL, lambda: langchain(model="gpt-9").invoke(PROMPT))
    raises(openai.BadRequestError, "tools", lambda: langchain().bind_tools([raises]).invoke(PROMPT))
    schema = {"title": "Story", "description": "A story.", "type": "object", "properties": {"end": {"type": "string"}}}
    structured = langchain().with_structured_output(schema)
    raises(openai.BadRequestError, "response_format", lambda: structured.invoke(PROMPT))


@check("langchain: a prompt that is too long is a ContextOverflowError, on which programs shorten it")
def _():
    raises(ContextOverflowError, "", lambda: langchain().invoke("there was a fox " * 1000))
    raises(ContextOverflowError, "", lambda: list(langchain().stream("there was a fox " * 1000)))


@check("langchain: the class for completions: invoke, stream, batch and token usage")
def _():
    model = CompletionOpenAI(model=MODEL, base_url=URL, api_key="unused", max_retries=0, seed=1, max_tokens=30)

    def plain(prompt):
        fields = {"model": MODEL, "prompt": prompt, "max_tokens": 30, "seed": 1, "temperature": model.temperature}
        return client.completions.create(**fields)
    equal(model.invoke(PROMPT), plain(PROMPT).choices[0].text, "invoke")
    equal("".join(model.stream(PROMPT)), plain(PROMPT).choices[0].text, "stream")
    prompts = [PROMPT, "The fox"]
    # A batch is one request with several prompts.
    result = model.generate(prompts)
    equal([generations[0].text for generations in result.generations],
          [plain(prompt).choices[0].text for prompt in prompts], "generate")
    equal(result.llm_output["token_usage"]["total_tokens"],
          sum(plain(prompt).usage.total_tokens for prompt in prompts), "total_tokens")


# LiteLLM


@check("litellm: completion has the text, the usage and the reason of the end")
def _():
    response, plain = lite(), expected(seed=1)
    equal(response.choices[0].message.content, plain.choices[0].message.content)
    equal(response.choices[0].finish_reason, "stop")
    equal(response.usage.total_tokens, plain.usage.total_tokens, "total_tokens")
    equal(lite(max_tokens=5).choices[0].finish_reason, "length")


@check("litellm: a stream has the text of the plain response, and usage")
def _():
    chunks = list(lite(stream=True, stream_options={"include_usage": True}))
    equal("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), content(seed=1))
    usages = [chunk.usage.total_tokens for chunk in chunks if getattr(chunk, "usage", None)]
    equal(usages, [expected(seed=1).usage.total_tokens], "total_tokens")
    built = litellm.stream_chunk_builder(chunks)
    equal((built.choices[0].message.content, built.choices[0].finish_reason), (content(seed=1), "stop"), "built")


@check("litellm: n, stop, logprobs, penalties, user, and fields of vLLM")
def _():
    equal([choice.message.content for choice in lite(n=3).choices],
          [choice.message.content for choice in expected(seed=1, n=3).choices], "n=3")
    stop = content(seed=1)[40:47]
    fields = {"stop": [stop], "temperature": 0.9, "top_p": 0.95, "presence_penalty": 0.1, "frequency_penalty": 0.1}
    equal(lite(**fields, user="u").choices[0].message.content, content(seed=1, **fields), f"{fields}")
    choice = lite(logprobs=True, top_logprobs=2, max_tokens=5).choices[0]
    equal("".join(token.token for token in choice.logprobs.content), choice.message.content, "logprobs")
    equal(lite(extra_body={"top_k": 1}).choices[0].message.content, content(temperature=0), "extra_body")
    # LiteLLM passes on what OpenAI does not have.
    equal(lite(top_k=1).choices[0].message.content, content(temperature=0), "top_k")


@check("litellm: text_completion, plain and streamed, with several prompts")
def _():
    fields = {"model": f"text-completion-openai/{MODEL}", "api_base": URL, "api_key": "unused", "seed": 1}
    prompts = [PROMPT, "The fox"]
    plain = client.completions.create(model=MODEL, prompt=prompts, seed=1, max_tokens=20)
    response = litellm.text_completion(**fields, prompt=prompts, max_tokens=20)
    equal([choice.text for choice in response.choices], [choice.text for choice in plain.choices])
    equal(response.usage.total_tokens, plain.usage.total_tokens, "total_tokens")
    chunks = litellm.text_completion(**fields, prompt=PROMPT, max_tokens=20, stream=True)
    equal("".join(chunk.choices[0].text or "" for chunk in chunks), plain.choices[0].text, "streamed")


@check("litellm: acompletion, plain and streamed, many at once")
def _():
    async def one(seed, stream):
        response = await litellm.acompletion(model=f"openai/{MODEL}", api_base=URL, api_key="unused", seed=seed,
                                             messages=MESSAGES, stream=stream)
        if not stream:
            return response.choices[0].message.content
        return "".join([chunk.choices[0].delta.content or "" async for chunk in response])

    async def run():
        return await asyncio.gather(*[one(seed, stream) for stream in [False, True] for seed in range(8)])
    equal(asyncio.run(run()), [content(seed=seed) for seed in range(8)] * 2)


@check("litellm: errors have the classes on which programs act")
def _():
    raises(litellm.NotFoundError, MODEL, lambda: lite(model="openai/gpt-9"))
    raises(litellm.BadRequestError, "temperature", lambda: lite(temperature=101))
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    raises(litellm.BadRequestError, "tools", lambda: lite(tools=tools))


@check("litellm: a prompt that is too long is a ContextWindowExceededError, on which programs shorten it")
def _():
    long = [{"role": "user", "content": "there was a fox " * 1000}]
    raises(litellm.ContextWindowExceededError, "", lambda: lite(messages=long))
    raises(litellm.ContextWindowExceededError, "", lambda: list(lite(messages=long, stream=True)))


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
