// A request, and its body for each protocol.

const MARK = "<FILL_ME>";
const ROUTES = {completion: "/v1/completions", infilling: "/v1/completions", chat: "/v1/chat/completions"};

/** Return the texts around the mark; without one, around the cursor. */
function aroundMark(text, cursor) {
  const parts = text.split(MARK);
  if (parts.length > 2) throw new Error(`The code holds ${MARK} ${parts.length - 1} times. Leave one of them.`);
  return parts.length === 2 ? parts : [text.slice(0, cursor), text.slice(cursor)];
}

/**
 * Return OpenAI's body.
 * @param request `{mode, model, stream, parameters}` and `prompt`, or `prefix` and `suffix`, or `messages`.
 */
function openaiBody({mode, model, stream, parameters, ...given}) {
  const input = mode === "chat" ? {messages: given.messages}
    : mode === "infilling" ? {prompt: given.prefix, suffix: given.suffix} : {prompt: given.prompt};
  const streamed = stream ? {stream: true, stream_options: {include_usage: true}} : {};
  return {model, ...input, ...parameters, ...streamed};
}

/** Return the body of Azure's /score. */
function azureBody(request) {
  const input = request.mode === "chat" ? request.messages
    : [request.mode === "infilling" ? {prefix: request.prefix, suffix: request.suffix} : request.prompt];
  return {input_data: {input_string: input, parameters: ownParameters(request)}};
}

/** Return the row of a batch file. */
function batchRow(request) {
  const {mode, prompt, prefix, suffix, messages} = request;
  const input = mode === "chat" ? {messages} : mode === "infilling" ? {prefix, suffix} : {prompt};
  const parameters = ownParameters(request);
  return Object.keys(parameters).length ? {...input, parameters} : input;
}

/** Return the parameters as /score and batch rows take them; `logprobs` is a number there, and ids end no text. */
function ownParameters({mode, parameters}) {
  const {stop_token_ids, ...own} = parameters;
  if (mode !== "chat") return own;
  const {logprobs, top_logprobs, ...rest} = own;
  return logprobs ? {...rest, logprobs: top_logprobs ?? 0} : rest;
}
