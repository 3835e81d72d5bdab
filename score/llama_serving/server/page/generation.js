// One generation: the request is sent, its texts arrive, and it is timed.

const ENDS = {
  stop: "ended",
  length: "cut off by max_tokens or the context",
  deadline: "cut off by the server’s time limit",
  content_filter: "blocked by the content filter",
};

/** Times and counts of one generation. A piece of text has at least one token; the exact count comes with the end. */
class Pace {
  constructor() {
    Object.assign(this, {started: performance.now(), first: null, pieces: 0});
  }

  piece() {
    this.first ??= performance.now();
    this.pieces += 1;
  }

  get seconds() {
    return (performance.now() - this.started) / 1000;
  }

  /** Return tokens a second behind the first text, or of all if they came at once. */
  rate(tokens) {
    const since = this.first === null || tokens < 2 ? this.seconds : (performance.now() - this.first) / 1000;
    const counted = this.first === null || tokens < 2 ? tokens : tokens - 1;
    return since > 0 ? counted / since : 0;
  }

  live() {
    return `${this.seconds.toFixed(1)} s · at least ${this.rate(this.pieces).toFixed(0)} tokens/s`;
  }

  ended(usage, reason) {
    const first = this.first === null ? "" : ` · first text after ${((this.first - this.started) / 1000).toFixed(2)} s`;
    const counted = usage ? `${usage.completion_tokens} tokens · ${this.rate(usage.completion_tokens).toFixed(1)} tokens/s`
      : `at least ${this.pieces} tokens · ${this.rate(this.pieces).toFixed(0)} tokens/s`;
    return `${counted} · ${this.seconds.toFixed(1)} s${first} · ${reason}`;
  }
}

/**
 * Send a request and show its texts as they come.
 * @returns `{usage, reason}` at its end. Raises what `ask` and `events` raise.
 */
async function generate(request, {key, signal, view, pace, panel, onPiece}) {
  const response = await ask(ROUTES[request.mode], {key, signal, body: encode(openaiBody(request))});
  const end = {usage: null, reason: ""};
  const tokensOf = request.mode === "chat" ? chatTokens : completionTokens;
  const take = (choice, text) => {
    while (view.texts.length <= choice.index) view.add(view.texts.length, "");
    if (text) view.add(choice.index, text);
    if (!choice.finish_reason) return;
    end.reason = ENDS[choice.stop_reason ?? choice.finish_reason];
    view.end(choice.index, choice.logprobs && tokensOf(view.texts[choice.index], choice.logprobs), panel);
  };
  if (!request.stream) {
    const answer = await response.json();
    for (const choice of answer.choices) take(choice, choice.message?.content ?? choice.text);
    return {...end, usage: answer.usage};
  }
  for await (const event of events(response)) {
    for (const choice of event.choices) {
      const text = choice.delta?.content ?? choice.text ?? "";
      if (text) pace.piece();
      take(choice, text);
      onPiece();
    }
    end.usage = event.usage ?? end.usage;
  }
  return end;
}
