// Log-probabilities: the tokens of a text, each with its probability and the alternatives.

/** Return the tokens of a completion: `{text, logprob, top}`, `top` as pairs of text and log-probability. */
function completionTokens(text, {tokens, token_logprobs: logprobs, top_logprobs: tops, text_offset: offsets}) {
  const signs = [...text]; // offsets count code points
  const found = tokens.map((_, index) => ({
    text: signs.slice(offsets[index], offsets[index + 1] ?? signs.length).join(""),
    logprob: logprobs[index],
    top: Object.entries(tops?.[index] ?? {}),
  }));
  return [{text: signs.slice(0, offsets[0]).join("")}, ...found].filter((token) => token.text);
}

/** Return the tokens of a chat's answer. Those that share a character are shown as one. */
function chatTokens(text, {content}) {
  const raw = new TextEncoder().encode(text), decoder = new TextDecoder("utf-8", {fatal: true});
  const found = [];
  let begin = 0, end = 0;
  for (const token of content) {
    end = Math.min(raw.length, end + token.bytes.length);
    let part;
    try { part = decoder.decode(raw.subarray(begin, end)); } catch { continue; }
    if (part) found.push({text: part, logprob: token.logprob, top: token.top_logprobs.map((one) => [one.token, one.logprob])});
    begin = end;
  }
  return found;
}

/** Return the class of a probability's colour; the likely tokens have none. */
function shade(logprob) {
  const probability = Math.exp(logprob);
  return probability >= 0.8 ? "" : probability >= 0.5 ? "p3" : probability >= 0.2 ? "p2" : probability >= 0.05 ? "p1" : "p0";
}

function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  return `${share >= 9.95 ? share.toFixed(0) : share >= 0.01 ? share.toPrecision(2) : "< 0.01"} %`;
}

/** Show tokens in `box`, and the one under the pointer or the arrow keys in `panel`. */
function showTokens(box, tokens, panel) {
  const spans = tokens.map((token) => element("span", {textContent: token.text, className: token.top ? shade(token.logprob) : "given"}));
  const select = (index) => {
    if (!tokens[index]?.top) return;
    box.querySelector(".current")?.classList.remove("current");
    spans[index].classList.add("current");
    box.dataset.current = index;
    panel.replaceChildren(...described(tokens[index]));
  };
  spans.forEach((span, index) => {
    if (!tokens[index].top) return;
    span.dataset.token = index;
    span.addEventListener("pointerenter", () => select(index));
  });
  const steps = {ArrowLeft: (at) => at - 1, ArrowRight: (at) => at + 1, Home: () => 0, End: () => tokens.length - 1};
  box.addEventListener("keydown", (event) => {
    if (!steps[event.key]) return;
    event.preventDefault();
    select(steps[event.key](Number(box.dataset.current ?? -1)));
    box.querySelector(".current")?.scrollIntoView({block: "nearest"});
  });
  Object.assign(box, {tabIndex: 0, role: "group", ariaLabel: "Text by tokens. The arrow keys go through their probabilities."});
  box.replaceChildren(...spans);
  panel.hidden = false;
  panel.replaceChildren("Point at the text, or focus it and use the arrow keys, to see each token’s probability.");
}

function described({text, logprob, top}) {
  const shown = (one, value) => element("span", {}, element("code", {}, JSON.stringify(one)), ` ${percent(value)}`);
  const others = top.filter(([, value]) => value !== logprob).map(([one, value]) => shown(one, value));
  const chosen = shown(text, logprob);
  chosen.append(` (ln ${logprob.toFixed(3).replace("-", "−")})`);
  return [chosen, ...(others.length ? [element("span", {}, "others:"), ...others] : [])];
}
