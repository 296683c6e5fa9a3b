// Requests to the process: JSON, actions, and log streams. Relative addresses let the page work below a path, too.

const PATIENCE_MS = 5000;

/** A refusal by the process, with the HTTP status. */
export class Refusal extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

/** Returns the value, and the process's clock in ms: the browser's clock may differ too much from cluster times. */
export async function getJson(path) {
  const response = await ask(path, { signal: AbortSignal.timeout(PATIENCE_MS) });
  const clock = Date.parse(response.headers.get("date"));
  return { value: await response.json(), clock: Number.isNaN(clock) ? Date.now() : clock };
}

/** Sends a command for a spoke; resolves with the process's status text. */
export async function act(zone, action) {
  const path = `spokes/${encodeURIComponent(zone)}/${action}`;
  const response = await ask(path, { method: "POST", signal: AbortSignal.timeout(2 * PATIENCE_MS) });
  return (await response.json()).status;
}

/** Yields an actor's log lines, one object per line, until the stream ends or the signal aborts the request. */
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

/** Removes user name and password of the page's own address, because fetch rejects addresses with credentials. */
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
