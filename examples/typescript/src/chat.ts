/** A conversation: sends each line of standard input as a turn, and streams the response. */

import { createInterface } from "node:readline";

import { connect } from "./contract.js";
import { explain } from "./errors.js";
import { flags } from "./flags.js";
import type { ChatMessage } from "./generated/stoker/v1/ChatMessage.js";
import { print } from "./print.js";
import { respond } from "./respond.js";

const { endpoint, request } = flags("Usage: chat.js [OPTIONS]", 0);
const client = connect(endpoint);
// The cluster keeps no conversations: every request has the whole one.
const history: ChatMessage[] = [];

/** Sends a turn of the user. It becomes part of the history if its response is complete. */
async function turn(content: string): Promise<void> {
    const messages = [...history, { role: "user", content }];
    const cancelled = new AbortController();
    const cancel = () => cancelled.abort();
    // Ctrl-C cancels the response. Pressed once more, or between two turns, it ends the program.
    process.once("SIGINT", cancel);
    try {
        const parts = respond(client, { ...request, chat: { messages } }, cancelled.signal);
        const text = await print(parts);
        history.push(...messages.slice(-1), { role: "assistant", content: text });
    } catch (error) {
        if (cancelled.signal.aborted) return;
        console.error(explain(error));
        process.exitCode = 1;
    } finally {
        process.off("SIGINT", cancel);
    }
}

const ask = process.stdin.isTTY ? "> " : "";
process.stdout.write(ask);
for await (const line of createInterface({ input: process.stdin })) {
    if (line.trim()) await turn(line);
    process.stdout.write(ask);
}
if (ask) process.stdout.write("\n");
client.close();
