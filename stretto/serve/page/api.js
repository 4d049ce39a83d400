// The server, through fetch: errors as one class, events of a stream as an iterator. The key stays in this tab.

const BASE = new URL(".", document.baseURI);
const KEY = "stretto-key";

/** status 0: the server cannot be reached, or the connection broke. */
export class ApiError extends Error {
  constructor(status, message, code = null) {
    super(message);
    Object.assign(this, { status, code });
  }
  get isLoading() { return this.status === 503 && this.message === "Loading model"; }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (text) => (text ? sessionStorage.setItem(KEY, text) : sessionStorage.removeItem(KEY)),
};

async function ask(path, options = {}) {
  const headers = { ...(options.body ? { "content-type": "application/json" } : {}) };
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(new URL(path, BASE), { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new ApiError(0, "The server cannot be reached");
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  throw new ApiError(response.status, said?.error?.message ?? `The server answered ${response.status}`, said?.error?.code ?? null);
}

export const get = async (path, signal) => (await ask(path, { signal })).json();

/** The events of a streamed answer, as objects. Ends with [DONE]; anything else is an error. */
export async function* stream(path, body, signal) {
  const response = await ask(path, { method: "POST", body: JSON.stringify(body), signal });
  const reader = response.body.getReader(), decoder = new TextDecoder();
  let rest = "", isWhole = false, isRead = false;
  try {
    for (;;) {
      let found;
      try {
        found = await reader.read();
      } catch (problem) {
        if (problem.name === "AbortError") throw problem;
        throw new ApiError(0, "The connection broke in the middle of the answer");
      }
      isRead = found.done;
      if (isRead && isWhole) return;
      if (isRead) throw new ApiError(0, "The answer broke off");
      const blocks = (rest + decoder.decode(found.value, { stream: true })).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        if (!block.startsWith("data: ")) continue; // a comment that keeps the connection open
        const text = block.slice(6);
        if (text === "[DONE]") { isWhole = true; continue; }
        const event = JSON.parse(text);
        if (event.error) throw new ApiError(response.status, event.error.message, event.error.code);
        yield event;
      }
    }
  } finally {
    if (!isRead) reader.cancel().catch(() => {}); // whoever stops reading ends the request
  }
}
