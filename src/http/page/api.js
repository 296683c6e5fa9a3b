// Asks the process: JSON, actions, and log streams. Addresses are relative, so that the page also works below a path.

const PATIENCE_MS = 5000;

/** An answer that says no, with its HTTP status. */
export class Refusal extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

/** The value, and the server's clock in milliseconds: cluster times must not be held against this machine's clock. */
export async function getJson(path) {
  const response = await ask(path, { signal: AbortSignal.timeout(PATIENCE_MS) });
  const clock = Date.parse(response.headers.get("date"));
  return { value: await response.json(), clock: Number.isNaN(clock) ? Date.now() : clock };
}

/** Has something done about a spoke; resolves with what the process said. */
export async function act(zone, action) {
  const path = `spokes/${encodeURIComponent(zone)}/${action}`;
  const response = await ask(path, { method: "POST", signal: AbortSignal.timeout(2 * PATIENCE_MS) });
  return (await response.json()).status;
}

/** The lines of an actor, one object each, until the stream ends or the signal aborts it. */
export async function* streamLog(actor, level, signal) {
  const query = new URLSearchParams({ actor, level, follow: "true" });
  const response = await ask(`logs?${query}`, { signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    yield lines.filter((line) => line.trim()).map((line) => JSON.parse(line));
  }
}

async function ask(path, options) {
  const response = await fetch(address(path), { cache: "no-store", ...options });
  if (!response.ok) throw new Refusal(response.status, await readError(response));
  return response;
}

/** Without the name and password that the page itself may have been asked for with, which fetch refuses. */
function address(path) {
  const address = new URL(`api/v1/${path}`, document.baseURI);
  address.username = "";
  address.password = "";
  return address;
}

async function readError(response) {
  const body = await response.json().catch(() => null);
  return body?.error ?? `${response.status} ${response.statusText}`;
}
