// Talking to the server that served this page: the key, errors, and its event streams.

const KEY = "em-inf-api-key";

/** The API key of this tab. It goes nowhere but into the header of `call`. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) =>
    value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY),
};

/** Where the API is, also below a root path: beside this page. */
export function apiAddress(path = "v1") {
  return new URL(path, document.baseURI).href;
}

/** What went wrong, as a sentence for people. */
export class ServerError extends Error {
  constructor(sentence, status = 0) {
    super(sentence);
    this.status = status;
  }
}

/**
 * Ask the server: GET, or POST where there is a body.
 * Throws a ServerError, or the AbortError of `signal`.
 */
export async function call(path, { body, signal } = {}) {
  const headers = {};
  if (body) headers["Content-Type"] = "application/json";
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(apiAddress(path), {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
      signal,
    });
  } catch (error) {
    throw signal?.aborted ? error : unreachable();
  }
  if (response.ok) return response;
  throw new ServerError(sentence(response.status, await response.text(), !!key.get()),
    response.status);
}

function unreachable() {
  return new ServerError(
    `The server at ${location.origin} does not answer. Is it still running?`);
}

/** The sentence in an error's body, or one about its status. */
export function sentence(status, text, hasKey = false) {
  if (status === 401) {
    return hasKey
      ? "The server does not accept this API key."
      : "The server wants an API key: enter it at the top of the page.";
  }
  let body = {};
  try {
    body = JSON.parse(text);
  } catch {
    // Not ours: a proxy's page, perhaps.
  }
  const said = body?.error?.message ?? body?.detail;
  return typeof said === "string" && said
    ? plainly(said)
    : `The server answered with status ${status} and did not say why.`;
}

/** vLLM's list of what is wrong in its own fields, one Python dict a line, as sentences. */
function plainly(message) {
  const one = /'loc': 'body\.([^']+)', 'msg': (['"])(.+?)\2, 'input': (.*)}$/gm;
  const found = [...message.matchAll(one)].map(
    ([, field, , reason, input]) => `${field}: ${input} is not allowed. ${reason}.`);
  return found.length ? found.join(" ") : message;
}

/** Reads server-sent events from text that arrives in arbitrary pieces. */
export class EventReader {
  #rest = "";

  /** Data of the events that `text` completes. */
  push(text) {
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop();
    return lines
      .filter((line) => line.startsWith("data:"))
      .map((line) => line.slice(5).trim());
  }
}

/**
 * The chunks of a streaming completion, parsed.
 * Throws a ServerError where the stream reports one or breaks off.
 */
export async function* stream(path, body, signal) {
  const response = await call(path, { body, signal });
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  const events = new EventReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      for (const data of events.push(decoder.decode(value, { stream: true }))) {
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ServerError(sentence(chunk.error.code, data));
        yield chunk;
      }
    }
  } catch (error) {
    if (signal.aborted || error instanceof ServerError) throw error;
  }
  throw new ServerError("The stream broke off before its end. Is the server still running?");
}
