/** The flags of the programs. */

import { parseArgs } from "node:util";

import type { GenerateRequest } from "./generated/stoker/v1/GenerateRequest.js";

const OPTIONS = `
Options:
  --endpoint ADDR       address of the cluster [default: 127.0.0.1:50051]
  --max-tokens TOKENS   maximum length of a response [default: 200]
  --temperature NUMBER  [default: 0.5]
  --seed NUMBER         gives the same response again
  --help                print help
`;

interface Flags {
    endpoint: string;
    /** The request so far, without its input. */
    request: GenerateRequest;
    positionals: string[];
}

/** Returns a number as text. The conversion to the type of a field would wrap it silently. */
function whole(flag: string, text: string, bits: bigint): string {
    if (/^\d+$/.test(text) && BigInt(text) < 2n ** bits) return text;
    throw new Error(`${flag} ${text}: not a whole number of at most ${bits} bits`);
}

function parse(count: number): Flags | undefined {
    const { values, positionals } = parseArgs({
        allowPositionals: true,
        options: {
            endpoint: { type: "string", default: "127.0.0.1:50051" },
            "max-tokens": { type: "string", default: "200" },
            temperature: { type: "string", default: "0.5" },
            seed: { type: "string" },
            help: { type: "boolean" },
        },
    });
    if (values.help) return undefined;
    if (positionals.length !== count) {
        throw new Error(`arguments besides options: ${positionals.length} instead of ${count}`);
    }
    if (!values.endpoint) throw new Error("--endpoint: empty");
    const temperature = Number(values.temperature || NaN);
    if (Number.isNaN(temperature)) {
        throw new Error(`--temperature ${values.temperature}: not a number`);
    }
    return {
        endpoint: values.endpoint,
        request: {
            sampling: {
                temperature,
                seed: values.seed === undefined ? undefined : whole("--seed", values.seed, 64n),
            },
            stopping: { maxTokens: Number(whole("--max-tokens", values["max-tokens"], 32n)) },
        },
        positionals,
    };
}

/** Returns the flags and `count` other arguments, or ends the program with its usage. */
export function flags(usage: string, count: number): Flags {
    try {
        const parsed = parse(count);
        if (parsed) return parsed;
        console.log(usage + OPTIONS);
        process.exit(0);
    } catch (error) {
        console.error(`${error instanceof Error ? error.message : error}\n\n${usage}`);
        process.exit(2);
    }
}
