// Values as JSON and as Python. Integers may be BigInts: a seed has up to 63 bits, a JavaScript number 53.

const JSON_WORDS = {true: "true", false: "false", null: "null"};
const PYTHON_WORDS = {true: "True", false: "False", null: "None"};

/** Return `value` as text; with `indent` each entry on a line of its own, that many spaces further in than `margin`. */
function encode(value, {words = JSON_WORDS, indent = 0, margin = 0} = {}) {
  if (typeof value === "string") return JSON.stringify(value);
  if (typeof value === "number" || typeof value === "bigint") return String(value);
  if (value === null || typeof value === "boolean") return words[value];
  const inner = {words, indent, margin: margin + indent};
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const entries = Array.isArray(value)
    ? value.map((item) => encode(item, inner))
    : Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}: ${encode(item, inner)}`);
  if (!indent || !entries.length) return open + entries.join(", ") + close;
  const line = "\n" + " ".repeat(margin + indent);
  return open + line + entries.join("," + line) + "\n" + " ".repeat(margin) + close;
}

/** Return the number in a text as JSON has it, an integer exactly; undefined if it is none. */
function number(text) {
  if (/^[+-]?\d+$/.test(text)) {
    const exact = BigInt(text);
    return Number.isSafeInteger(Number(exact)) ? Number(exact) : exact;
  }
  const value = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) ? Number(text) : NaN;
  return Number.isFinite(value) ? value : undefined;
}
