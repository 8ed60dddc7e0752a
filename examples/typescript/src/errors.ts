/** The details of an error: the invalid fields, and the delay before a retry. */

import { status, type ServiceError } from "@grpc/grpc-js";

import { BadRequest, RetryInfo, Status } from "./contract.js";

interface Details {
    violations: { field: string; description: string }[];
    /** In milliseconds. */
    retryDelay?: number;
}

function isServiceError(error: unknown): error is ServiceError {
    return error instanceof Error && "code" in error && "details" in error && "metadata" in error;
}

function details(error: ServiceError): Details {
    const found: Details = { violations: [] };
    const [encoded] = error.metadata.get("grpc-status-details-bin");
    if (!Buffer.isBuffer(encoded)) return found;
    for (const { type_url: url, value } of Status.deserialize(encoded).details) {
        if (url.endsWith("/google.rpc.BadRequest")) {
            found.violations.push(...BadRequest.deserialize(value).fieldViolations);
        } else if (url.endsWith("/google.rpc.RetryInfo")) {
            const { retryDelay: delay } = RetryInfo.deserialize(value);
            found.retryDelay = Number(delay?.seconds ?? 0) * 1000 + (delay?.nanos ?? 0) / 1e6;
        }
    }
    return found;
}

/**
 * Returns after how many milliseconds a retry of a request makes sense, or undefined if it makes
 * none. Not for a request of which an event has arrived.
 */
export function retryDelay(error: unknown): number | undefined {
    if (!isServiceError(error)) return undefined;
    const temporary = [status.UNAVAILABLE, status.RESOURCE_EXHAUSTED].includes(error.code);
    return temporary ? details(error).retryDelay : undefined;
}

/** Returns the code, the message, the invalid fields and the retry delay of an error. */
export function explain(error: unknown): string {
    if (!isServiceError(error)) return error instanceof Error ? error.message : String(error);
    const { violations, retryDelay } = details(error);
    const lines = [`${status[error.code]}: ${error.details}`];
    lines.push(...violations.map(({ field, description }) => `  ${field}: ${description}`));
    if (retryDelay !== undefined) lines.push(`  try again in ${retryDelay / 1000} s`);
    return lines.join("\n");
}
