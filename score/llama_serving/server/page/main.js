// The page: what its controls do.

const $ = (id) => document.getElementById(id);
const MODES = ["completion", "infilling", "chat"];
const RUN = {completion: "Complete", infilling: "Fill in", chat: "Send"};
const ACCEPT = {completion: "Put it into the prompt", infilling: "Put it into the code"};
const LACKS = {
  completion: "it does not complete texts.",
  infilling: "it was not trained to fill in. Of Code Llama, 7B, 13B and 70B are, but not their Python models.",
  chat: "it has no dialog format. Use an Instruct or chat model.",
};
const NO_KEY = "This server needs a key. Type one of its keys into the field at the top.";
const WRONG_KEY = "This is not one of the server’s keys. Type another one into the field at the top.";
const INPUT = {completion: "prompt", infilling: "code", chat: "message"};

const state = {mode: "completion", key: "", model: null, openapi: null, running: null, dialog: [], result: null, retry: 0};
const form = new ParameterForm($("fields"), drawSnippet);

// --- the model ----------------------------------------------------------------------------------

async function connect() {
  try {
    const {key} = state;
    const [models, openapi] = await Promise.all(["/v1/models", "/openapi.json"].map(
      async (path) => (await ask(path, {key})).json()));
    Object.assign(state, {model: models.data[0], openapi});
    $("model").replaceChildren(element("strong", {}, state.model.id), ` · context ${state.model.max_model_len} tokens`);
    $("error").replaceChildren();
    select(offers(state.mode) ? state.mode : MODES.find(offers) ?? "completion");
  } catch (error) {
    $("model").textContent = {401: "needs a key", 503: "not ready"}[error.status] ?? "no connection";
    if (error.status === 401) Object.assign(error, {message: state.key ? WRONG_KEY : NO_KEY, input: $("key")});
    showError(error);
    clearTimeout(state.retry);
    if (!error.status || error.status === 503) state.retry = setTimeout(connect, (error.pause ?? 5) * 1000);
  }
}

function offers(mode) {
  return !state.model || (state.model.capabilities ?? MODES).includes(mode);
}

// --- modes --------------------------------------------------------------------------------------

function select(mode) {
  state.mode = mode;
  for (const one of MODES) {
    const chosen = one === mode, tab = $(`tab-${one}`);
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    tab.classList.toggle("lacking", !offers(one));
    $(`panel-${one}`).hidden = !chosen;
    $(`lack-${one}`).hidden = offers(one);
    $(`lack-${one}`).textContent = offers(one) ? "" : `Not with ${state.model.id}: ${LACKS[one]}`;
  }
  $("run-label").textContent = RUN[mode];
  $("result").hidden = state.result?.mode !== mode;
  $("token").hidden = true;
  if (state.openapi) form.show(parametersOf(state.openapi, ROUTES[mode]));
  enable();
  drawSnippet();
}

function enable() {
  const busy = state.running !== null;
  $("run").disabled = busy || !state.model || !offers(state.mode);
  $("stop").disabled = !busy;
  $("turns").hidden = busy || !state.dialog.length;
  $("accept").disabled = busy;
  for (const one of MODES) $(`tab-${one}`).disabled = busy && one !== state.mode;
}

// --- the request --------------------------------------------------------------------------------

/** Return the request as the page has it. Raises an error with `input`, the control at fault. */
function collect() {
  const {mode} = state, {values, problem, input} = form.read();
  if (problem) throw Object.assign(new Error(problem), {input});
  const request = {mode, model: state.model?.id ?? "MODEL", stream: $("stream").checked, parameters: values};
  const given = $(INPUT[mode]);
  if (mode === "completion") return {...request, prompt: given.value};
  if (mode === "chat") return {...request, messages: messages()};
  try {
    const [prefix, suffix] = aroundMark(given.value, given.selectionStart);
    return {...request, prefix, suffix};
  } catch (error) {
    throw Object.assign(error, {input: given});
  }
}

/** Return the dialog up to a user's message: the typed one, or else the last that was sent. */
function messages() {
  const system = $("system").value, typed = $("message").value;
  const told = typed ? [...state.dialog, {role: "user", content: typed}]
    : state.dialog.at(-1)?.role === "assistant" ? state.dialog.slice(0, -1) : state.dialog;
  return [...(system ? [{role: "system", content: system}] : []), ...told];
}

function drawSnippet() {
  if (!$("elsewhere").open) return;
  const url = base().slice(0, -1);
  try {
    $("snippet").textContent = SNIPPETS[$("form").value](collect(), {url, key: state.key});
  } catch (error) {
    $("snippet").textContent = error.message;
  }
}

// --- running ------------------------------------------------------------------------------------

async function run() {
  if ($("run").disabled) return;
  $("error").replaceChildren();
  let request;
  try {
    if (state.mode === "chat" && !$("message").value) throw Object.assign(new Error("Write a message first."), {input: $("message")});
    request = collect();
  } catch (error) {
    return showError(error);
  }
  state.running = new AbortController();
  const atButton = document.activeElement === $("run"), pace = new Pace();
  const view = request.mode === "chat" ? beginTurn() : beginResult(request);
  enable();
  if (atButton) $("stop").focus();
  $("status").textContent = "Generating …";
  const ticking = setInterval(() => { $("speed").textContent = pace.live(); }, 250);
  let failed = null;
  try {
    const {usage, reason} = await generate(request, {
      key: state.key, signal: state.running.signal, view, pace, panel: $("token"), onPiece: () => keepInView(view)});
    $("status").textContent = pace.ended(usage, reason);
  } catch (error) {
    failed = error;
    $("status").textContent = error.name === "AbortError" ? pace.ended(null, "stopped") : "";
    if (error.name !== "AbortError") showError(error);
  }
  clearInterval(ticking);
  $("speed").textContent = "";
  view.endAll();
  if (request.mode === "chat") endTurn(view, failed);
  else if (failed && !view.texts.join("")) { state.result = null; $("result").hidden = true; }
  const atStop = document.activeElement === $("stop");
  state.running = null;
  enable();
  if (atStop) $("run").focus();
  drawSnippet();
}

/** Keep the end of a growing dialog in view if it was. */
function keepInView(view) {
  const bottom = view.container.getBoundingClientRect().bottom;
  if (state.mode === "chat" && bottom > innerHeight && bottom < innerHeight + 80) view.container.scrollIntoView({block: "end"});
}

function stop() {
  state.running?.abort();
}

function beginResult(request) {
  const {mode, prefix = "", suffix = ""} = request;
  const view = new AnswerView($("output"), {before: prefix, after: suffix});
  state.result = {mode, view, prefix, suffix};
  $("accept").textContent = ACCEPT[mode];
  $("result").hidden = false;
  $("token").hidden = true;
  return view;
}

function accept() {
  const {mode, view, prefix, suffix} = state.result, [text] = view.texts, box = $(INPUT[mode]);
  box.value = mode === "infilling" ? prefix + text + suffix : box.value + text;
  box.focus();
  const end = mode === "infilling" ? (prefix + text).length : box.value.length;
  box.setSelectionRange(end, end);
  drawSnippet();
}

// --- the dialog ---------------------------------------------------------------------------------

function beginTurn() {
  state.dialog.push({role: "user", content: $("message").value});
  $("message").value = "";
  $("token").hidden = true;
  drawDialog();
  const body = element("div"), item = element("li", {}, element("h2", {}, "Model"), body);
  $("dialog").append(item);
  return new AnswerView(body, {fenced: true});
}

function endTurn(view, failed) {
  const [content] = view.texts;
  if (content || !failed) {
    state.dialog.push({role: "assistant", content});
  } else { // nothing came: the message goes back to where it was written
    $("message").value ||= state.dialog.pop().content;
    drawDialog();
  }
  enable();
}

function drawDialog() {
  $("dialog").replaceChildren(...state.dialog.map(({role, content}) => {
    const body = element("div"), user = role === "user";
    const view = new AnswerView(body, {fenced: !user});
    view.add(0, content);
    view.endAll();
    return element("li", {className: role}, element("h2", {}, user ? "You" : "Model"), body);
  }));
}

function undo() {
  const last = state.dialog.findLastIndex(({role}) => role === "user");
  $("message").value ||= state.dialog[last]?.content ?? "";
  state.dialog.length = Math.max(0, last);
  drawDialog();
  enable();
  drawSnippet();
  $("message").focus();
}

function clear() {
  state.dialog = [];
  drawDialog();
  enable();
  drawSnippet();
  $("message").focus();
}

// --- errors -------------------------------------------------------------------------------------

function showError(error) {
  const about = [error.code, error.id && `request ${error.id}`].filter(Boolean).join(" · ");
  $("error").replaceChildren(element("p", {}, error.message), ...(about ? [element("p", {}, about)] : []));
  const input = error.input ?? (error.param && (form.blame(error.param) ?? inputOf(error.param)));
  if (input) {
    input.setAttribute("aria-invalid", "true");
    input.addEventListener("input", () => input.removeAttribute("aria-invalid"), {once: true});
    $("parameters").open ||= $("parameters").contains(input);
    input.focus();
  }
}

function inputOf(param) {
  return /^(prompt|suffix|messages)\b/.test(param) ? $(INPUT[state.mode]) : null;
}

// --- controls -----------------------------------------------------------------------------------

function mark() {
  const box = $("code"), at = box.selectionStart;
  const before = box.value.slice(0, at).replaceAll(MARK, ""), after = box.value.slice(box.selectionEnd).replaceAll(MARK, "");
  box.value = before + MARK + after;
  box.focus();
  box.setSelectionRange(before.length, before.length + MARK.length);
  drawSnippet();
}

function moveTab(event) {
  const steps = {ArrowLeft: -1, ArrowRight: 1}, at = MODES.indexOf(state.mode);
  const next = event.key in steps ? (at + steps[event.key] + MODES.length) % MODES.length : {Home: 0, End: MODES.length - 1}[event.key];
  if (next === undefined || state.running) return;
  event.preventDefault();
  select(MODES[next]);
  $(`tab-${MODES[next]}`).focus();
}

function shortcut(event) {
  if (event.isComposing) return; // an input method's own key
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); run(); }
  else if (event.key === "Escape" && state.running) { event.preventDefault(); stop(); }
  else if (event.code === "KeyM" && event.altKey && state.mode === "infilling") { event.preventDefault(); mark(); }
}

function listen() {
  const clicks = {run, stop, accept, mark, undo, clear, reset: () => form.reset(),
    "copy-text": () => copied(state.result.view.texts.join("\n\n"), $("copy-text")),
    "copy-code": () => copied($("snippet").textContent, $("copy-code"))};
  for (const [id, action] of Object.entries(clicks)) $(id).addEventListener("click", action);
  for (const mode of MODES) $(`tab-${mode}`).addEventListener("click", () => select(mode));
  document.querySelector("[role=tablist]").addEventListener("keydown", moveTab);
  document.addEventListener("keydown", shortcut);
  $("access").addEventListener("submit", (event) => { event.preventDefault(); state.key = $("key").value.trim(); connect(); });
  for (const id of ["prompt", "code", "system", "message", "stream", "form"]) $(id).addEventListener("input", drawSnippet);
  for (const id of ["code"]) $(id).addEventListener("selectionchange", drawSnippet);
  $("elsewhere").addEventListener("toggle", drawSnippet);
}

$("prompt").value = 'def is_palindrome(text: str) -> bool:\n    """Tell whether a text reads the same backwards."""\n';
$("code").value = `def mean(values: list[float]) -> float:\n    ${MARK}\n    return total / len(values)\n`;
if (/Mac|iPhone|iPad/.test(navigator.platform)) $("run-key").textContent = "⌘ ↵";
if (matchMedia("(max-width: 56rem)").matches) $("parameters").open = false;
listen();
enable();
connect();
