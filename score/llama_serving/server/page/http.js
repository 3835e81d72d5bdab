// Requests to this server, and its errors.

/** What a server's error object says. */
class Refusal extends Error {
  constructor({message, code, param, request_id: id, retry_after: pause}, status) {
    super(message);
    Object.assign(this, {code, param, id, pause, status});
  }
}

/** Return this server's address, as the page has it: a proxy may have put a prefix before its path, with or without a last slash. */
function base() {
  const {origin, pathname} = new URL(document.baseURI);
  return origin + pathname.replace(/\/*$/, "/");
}

const CUT_OFF = "The connection ended before the text did. The text is incomplete.";
const AWAY = "The server does not answer. Check that it runs, and try again.";

/** Return the response to a request. Raises a `Refusal` for every other status than 200. */
async function ask(path, {key, body, signal} = {}) {
  const headers = key ? {Authorization: `Bearer ${key}`} : {};
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(base() + path.slice(1), {method: body ? "POST" : "GET", headers, body, signal});
  } catch (error) {
    throw error.name === "AbortError" ? error : new Refusal({message: AWAY});
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  throw new Refusal(said?.error ?? {message: `The server answered with status ${response.status}.`}, response.status);
}

/** Yield the events of a stream. Raises a `Refusal` if it holds an error, or ends before its end. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", ended = false;
  try {
    for (;;) {
      const {done, value} = await reader.read();
      if (done && ended) return;
      if (done) throw new Refusal({message: CUT_OFF});
      const whole = (rest + value).split(/\r?\n\r?\n/);
      rest = whole.pop();
      for (const data of whole.map(dataOf)) {
        ended ||= data === "[DONE]";
        if (!data || ended) continue;
        const said = JSON.parse(data);
        if (said.error) throw new Refusal(said.error);
        yield said;
      }
    }
  } catch (error) {
    throw error instanceof Refusal || error.name === "AbortError" ? error : new Refusal({message: CUT_OFF});
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Return the data of one event. */
function dataOf(event) {
  const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).trim()).join("\n");
}
