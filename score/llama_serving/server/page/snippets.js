// The request as code for other programs.

// Arguments of the openai package; what else the server takes travels in `extra_body`.
const OPENAI_ARGUMENTS = new Set(["model", "prompt", "suffix", "messages", "max_tokens", "temperature", "top_p", "n", "stream",
  "stream_options", "logprobs", "top_logprobs", "echo", "stop", "presence_penalty", "frequency_penalty", "seed"]);

const SNIPPETS = {
  curl(request, {url, key}) {
    const lines = [`curl ${request.stream ? "-N " : ""}${quoted(url + ROUTES[request.mode])}`, `-H 'Content-Type: application/json'`];
    if (key) lines.push(`-H "Authorization: Bearer $OPENAI_API_KEY"`);
    return [...lines, `-d ${quoted(encode(openaiBody(request), {indent: 2}))}`].join(" \\\n  ");
  },

  python(request, {url, key}) {
    const format = {words: PYTHON_WORDS, indent: 4, margin: 4};
    const body = openaiBody(request);
    const extra = Object.fromEntries(Object.entries(body).filter(([name]) => !OPENAI_ARGUMENTS.has(name)));
    const given = Object.entries(body).filter(([name]) => OPENAI_ARGUMENTS.has(name));
    if (Object.keys(extra).length) given.push(["extra_body", extra]);
    const chat = request.mode === "chat";
    const piece = chat ? ".delta.content" : ".text";
    return [
      "from openai import OpenAI",
      "",
      `client = OpenAI(base_url=${encode(url + "/v1")}${key ? "" : `, api_key="none"`})${key ? "  # the key is in OPENAI_API_KEY" : ""}`,
      `answer = client.${chat ? "chat." : ""}completions.create(`,
      ...given.map(([name, value]) => `    ${name}=${encode(value, format)},`),
      ")",
      ...(request.stream ? [
        "for event in answer:",
        "    for choice in event.choices:",
        `        print(choice${piece} or "", end="", flush=True)`,
      ] : ["for choice in answer.choices:", `    print(choice.${chat ? "message.content" : "text"})`]),
    ].join("\n");
  },

  az(request) {
    return [
      "cat > request.json <<'JSON'",
      encode(azureBody(request), {indent: 2}),
      "JSON",
      "az ml online-endpoint invoke --name ENDPOINT --request-file request.json",
    ].join("\n");
  },

  row(request) {
    return escapedLines(encode(batchRow(request)));
  },
};

/** Return a word for a POSIX shell. */
function quoted(text) {
  return /^[\w:/.@%+=-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

/** Escape what some programs take for the end of a line. */
function escapedLines(json) {
  return json.replace(/[\u0085\u2028\u2029]/g, (sign) => "\\u" + sign.charCodeAt(0).toString(16).padStart(4, "0"));
}
