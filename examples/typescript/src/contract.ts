/** The API, loaded from `.proto` files at startup. */

import { join } from "node:path";

import { credentials, loadPackageDefinition } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

import type { ProtoGrpcType as Details } from "./generated/error_details.js";
import type { ProtoGrpcType as Api } from "./generated/inference.js";
import type { InferenceClient } from "./generated/stoker/v1/Inference.js";

/** The folder of `package.json`: this file runs from `dist`. */
const root = join(import.meta.dirname, "..");

const definition = loadSync(["stoker/v1/inference.proto", "google/rpc/error_details.proto"], {
    includeDirs: [join(root, "../../proto"), join(root, "proto")],
    // The generated types hold only with the same options there: see `generate` in `package.json`.
    // 64-bit integers are text, since a number would round a seed.
    longs: String,
    enums: String,
    defaults: true,
    oneofs: true,
});
const loaded = loadPackageDefinition(definition) as unknown as Api & Details;

/** The messages that errors carry. */
export const { BadRequest, RetryInfo, Status } = loaded.google.rpc;

/** Returns a client of `endpoint`, which connects with the first request. */
export function connect(endpoint: string): InferenceClient {
    return new loaded.stoker.v1.Inference(endpoint, credentials.createInsecure());
}
