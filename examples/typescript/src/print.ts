/** Prints the text of a response as it arrives. */

// A reader that is gone, such as `head`, ends the program.
process.stdout.on("error", () => process.exit(1));

/** Prints the parts of a text as they arrive, and returns the whole. */
export async function print(parts: AsyncIterable<string>): Promise<string> {
    let text = "";
    try {
        for await (const part of parts) {
            text += part;
            process.stdout.write(part);
        }
    } finally {
        // What comes next, such as an error, begins on a line of its own.
        if (text) process.stdout.write("\n");
    }
    return text;
}
