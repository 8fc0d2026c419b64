// A worker of text.upper in Node: convoke worker --pipe 'text.upper=node piped.mjs'
import { createInterface } from "node:readline";

for await (const line of createInterface({ input: process.stdin })) {
  const { id, data } = JSON.parse(line);
  const answer =
    typeof data === "string"
      ? { ok: data.toUpperCase() }
      : { error: { code: "invalid_argument", message: "not a text", retryable: false } };
  process.stdout.write(JSON.stringify({ id, ...answer }) + "\n");
}
