"""A conversation: sends each line of standard input as a turn, and streams the response."""

import argparse
import sys

import grpc
from contract import add_connection_flags, channel, explain, messages, services

flags = argparse.ArgumentParser(description=__doc__)
add_connection_flags(flags)
flags.add_argument("--max-tokens", type=int, default=200, metavar="TOKENS")
flags.add_argument("--temperature", type=float, default=0.5, metavar="NUMBER")
flags.add_argument("--seed", type=int, metavar="NUMBER")
flags = flags.parse_args()


def lines():
    """Yields the lines of standard input, each after a prompt if it is a terminal."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            yield input(prompt)
        except EOFError:
            return
        except KeyboardInterrupt:
            sys.exit(130)


def respond(stub, conversation: list) -> str:
    """Prints the response to a conversation as it arrives, and returns it."""
    request = messages.GenerateRequest(
        chat=messages.Chat(messages=conversation),
        sampling=messages.Sampling(temperature=flags.temperature, seed=flags.seed),
        stopping=messages.Stopping(max_tokens=flags.max_tokens),
    )
    call, text, complete = stub.Generate(request, timeout=60), "", False
    try:
        for event in call:
            text += event.token.text
            print(event.token.text, end="", flush=True)
            complete |= event.finished.HasField("usage")
    finally:
        call.cancel()  # a call that has ended ignores it
        if text:
            print()
    if not complete:
        raise EOFError("incomplete: the stream ended without its last event")
    return text


# The cluster keeps no conversations: every request has the whole one.
history, failed = [], False
with channel(flags) as connection:
    for line in filter(str.strip, lines()):
        turn = messages.ChatMessage(role="user", content=line)
        try:
            text = respond(services.InferenceStub(connection), [*history, turn])
        except KeyboardInterrupt:
            continue  # cancels the response, and not the program
        except (grpc.RpcError, EOFError) as error:
            print(explain(error) if isinstance(error, grpc.RpcError) else error, file=sys.stderr)
            failed = True
        else:
            # A turn without a complete response is not part of the conversation.
            history += [turn, messages.ChatMessage(role="assistant", content=text)]
sys.exit(1 if failed else 0)
