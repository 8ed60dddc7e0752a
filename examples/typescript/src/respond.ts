/** Sends a request, and yields the text of its response as it arrives. */

import { setTimeout as sleep } from "node:timers/promises";

import { retryDelay } from "./errors.js";
import type { GenerateRequest } from "./generated/stoker/v1/GenerateRequest.js";
import type { GenerateResponse__Output } from "./generated/stoker/v1/GenerateResponse.js";
import type { InferenceClient } from "./generated/stoker/v1/Inference.js";

/** For the whole response, with all attempts, in milliseconds. */
const DEADLINE = 60_000;
const ATTEMPTS = 4;

/** Yields the text of a response. Throws if it is not complete, or `signal` cancels it. */
export async function* respond(
    client: InferenceClient,
    request: GenerateRequest,
    signal?: AbortSignal,
): AsyncGenerator<string, void, undefined> {
    // The cluster knows the deadline too, and refuses what cannot meet it.
    const deadline = Date.now() + DEADLINE;
    for (let attempt = 1; ; attempt++) {
        const call = client.generate(request, { deadline });
        const cancel = () => call.cancel();
        signal?.addEventListener("abort", cancel);
        let [started, complete] = [false, false];
        try {
            for await (const event of call as AsyncIterable<GenerateResponse__Output>) {
                started = true;
                if (event.token) yield event.token.text;
                if (event.finished?.usage) complete = true;
            }
            if (complete) return;
            throw new Error("incomplete: the stream ended without its last event");
        } catch (error) {
            // Text that was shown cannot be taken back: only a refused request is sent again.
            const delay = started ? undefined : retryDelay(error);
            if (delay === undefined || attempt === ATTEMPTS || Date.now() + delay >= deadline) {
                throw error;
            }
            await sleep(delay, undefined, { signal });
        } finally {
            signal?.removeEventListener("abort", cancel);
            // For a caller that stopped reading: a call that has ended ignores it.
            cancel();
        }
    }
}
