/** Streams the completion of a prompt. */

import { connect } from "./contract.js";
import { explain } from "./errors.js";
import { flags } from "./flags.js";
import { print } from "./print.js";
import { respond } from "./respond.js";

const { endpoint, request, positionals } = flags("Usage: generate.js [OPTIONS] PROMPT", 1);
const client = connect(endpoint);
try {
    await print(respond(client, { ...request, prompt: positionals[0] }));
} catch (error) {
    console.error(explain(error));
    process.exitCode = 1;
}
client.close();
