// The fields for parameters. What each accepts comes from the server's OpenAPI document.

// Shown in this order; other parameters of the document follow.
const ORDER = ["max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
  "frequency_penalty", "stop", "seed", "n", "logprobs", "top_logprobs", "min_tokens", "do_sample", "ignore_eos"];
// Fields that are no parameters, or that the page fills itself.
const OTHER = new Set(["prompt", "suffix", "messages", "model", "stream", "stream_options", "return_token_ids",
  "return_tokens_as_token_ids", "continue_final_message", "add_generation_prompt", "echo", "tools", "tool_choice",
  "parallel_tool_calls", "receipt"]);

/** A parameter: its name and what the document says of it. */
class Parameter {
  constructor(name, rule) {
    const types = [rule.type ?? []].flat();
    Object.assign(this, {name, rule, accepts: rule.description ?? ""});
    this.kind = types.includes("array") ? (rule.items?.type === "string" ? "list" : "numbers")
      : types.includes("integer") ? "integer"
      : types.includes("number") ? "number"
      : types.includes("boolean") ? "boolean" : "json";
  }

  /** Return `{value}` or `{problem}` for what was typed; `{}` for nothing. */
  read(text) {
    if (this.kind === "list") return this.#list(text);
    if (!text.trim()) return {};
    const value = this.kind === "boolean" ? text === "true" : this.kind === "json" ? parsed(text)
      : this.kind === "numbers" ? text.trim().split(/[\s,]+/).map(number) : number(text.trim());
    return this.#allows(value) ? {value} : {problem: `${this.name} must be ${this.accepts}.`};
  }

  /** What fits into an empty field: the limits. The whole description appears below it. */
  get limits() {
    const {minimum, maximum, exclusiveMinimum} = this.rule;
    if (this.kind === "numbers") return "1, 2, …";
    const low = minimum ?? (exclusiveMinimum === undefined ? "" : `> ${exclusiveMinimum}`);
    return low === "" ? "" : `${low} … ${maximum > 1e6 ? "" : maximum ?? ""}`.replace("-", "−");
  }

  #list(text) {
    const lines = text.split("\n").filter((line) => line);
    if (!lines.length) return {};
    if (lines.length > (this.rule.maxItems ?? Infinity)) return {problem: `${this.name} must be ${this.accepts}.`};
    return {value: lines.map(unescaped)};
  }

  #allows(value) {
    const {minimum, maximum, exclusiveMinimum} = this.rule;
    if (value === undefined || (this.kind === "numbers" && value.includes(undefined))) return false;
    if (typeof value !== "number" && typeof value !== "bigint") return true;
    if (this.kind === "integer" && typeof value === "number" && !Number.isInteger(value)) return false;
    // (A limit beyond 53 bits is rounded in JavaScript; the server knows it exactly.)
    return !(value < minimum) && !(value > maximum) && !(value <= exclusiveMinimum);
  }
}

function parsed(text) {
  try { return JSON.parse(text); } catch { return undefined; }
}

/** A stop string as typed: `\n`, `\t` and `\\` stand for a newline, a tab and a backslash. */
function unescaped(line) {
  return line.replace(/\\([nrt\\])/g, (_, sign) => ({n: "\n", r: "\r", t: "\t", "\\": "\\"})[sign]);
}

/** Return the parameters that a route's body takes, by the OpenAPI document. */
function parametersOf(openapi, route) {
  const body = follow(openapi, openapi.paths[route].post.requestBody.content["application/json"].schema).rule;
  const named = openapi.components.schemas.parameters.properties;
  const found = new Map(Object.entries(body.properties).map(([name, given]) => {
    const {rule, end} = follow(openapi, given);
    return [name, {rule, end: end ?? follow(openapi, named[name]).end}]; // a body may have a rule of its own for a name
  }));
  const supported = (name) => {
    const rule = found.get(name)?.rule;
    return rule?.description && !rule.enum && !OTHER.has(name) && !foreign(body.properties[name]);
  };
  const shown = ORDER.filter(supported);
  const known = new Set(shown.flatMap((name) => [name, found.get(name).end]).filter(Boolean));
  const more = [...found.keys()].filter((name) => supported(name) && !known.has(name) && !known.has(found.get(name).end));
  return [...shown, ...more].map((name) => new Parameter(name, found.get(name).rule));
}

/** Return whether a rule is another protocol's: the body's own are in it, or among the parameters. */
function foreign({$ref: reference}) {
  return Boolean(reference) && !reference.startsWith("#/components/schemas/parameters/");
}

/** Return a rule behind its references, and the last of these: names of one parameter have it in common. */
function follow(openapi, rule) {
  let end = null;
  while (rule?.$ref) {
    end = rule.$ref.slice(rule.$ref.lastIndexOf("/") + 1);
    rule = rule.$ref.slice(2).split("/").reduce((node, key) => node[key], openapi);
  }
  return {rule, end};
}

/** The form of all parameters. What was typed stays when the route changes. */
class ParameterForm {
  constructor(container, onChange) {
    Object.assign(this, {container, onChange, parameters: [], typed: new Map()});
  }

  show(parameters) {
    this.parameters = parameters;
    this.container.replaceChildren(...parameters.map((one) => this.#field(one)));
    for (const one of parameters) if (this.typed.get(one.name)) this.#check(one);
  }

  reset() {
    this.typed.clear();
    this.show(this.parameters);
    this.onChange();
  }

  /** Return `{values, problem, input}`: the parameters to send, or the first problem and its input. */
  read() {
    const values = {};
    for (const one of this.parameters) {
      const {value, problem} = one.read(this.typed.get(one.name) ?? "");
      if (problem) return {values, problem, input: this.#input(one.name)};
      if (value !== undefined) values[one.name] = value;
    }
    return {values};
  }

  /** Mark the input of the parameter that the server complains of; return it. */
  blame(name) {
    const input = this.#input(name);
    input?.setAttribute("aria-invalid", "true");
    return input;
  }

  #input(name) {
    return this.container.querySelector(`#parameter-${CSS.escape(name)}`);
  }

  #field(one) {
    const id = `parameter-${one.name}`;
    const wide = one.kind === "list" || one.kind === "json";
    const input = one.kind === "boolean" ? element("select", {}, ...["", "true", "false"].map(
      (value) => element("option", {value}, value || "default")))
      : wide ? element("textarea", {spellcheck: false})
      : element("input", {type: "text", inputMode: "decimal", autocomplete: "off", placeholder: one.limits});
    input.id = id;
    input.value = this.typed.get(one.name) ?? "";
    input.setAttribute("aria-describedby", `${id}-hint`);
    const accepts = one.kind === "list" ? "one on each line; \\n is a newline, \\t a tab"
      : one.kind === "json" ? `JSON: ${one.accepts}` : one.accepts;
    const hint = element("span", {id: `${id}-hint`, className: "hint"}, accepts);
    input.addEventListener("input", () => {
      this.typed.set(one.name, input.value);
      input.removeAttribute("aria-invalid");
      hint.classList.remove("problem");
      this.onChange();
    });
    input.addEventListener("change", () => this.#check(one));
    const label = element("label", {htmlFor: id}, one.name);
    return element("div", {className: wide ? "field wide" : "field"}, label, input, hint);
  }

  #check(one) {
    const wrong = Boolean(one.read(this.typed.get(one.name) ?? "").problem);
    const input = this.#input(one.name);
    input.toggleAttribute("aria-invalid", false);
    if (wrong) input.setAttribute("aria-invalid", "true");
    input.parentElement.querySelector(".hint").classList.toggle("problem", wrong);
  }
}

/** Return a new element. Text is always text: nothing here parses HTML. */
function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}
