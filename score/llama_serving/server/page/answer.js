// The texts of an answer on the page: they grow, and end.

/** One or several texts in a container. */
class AnswerView {
  /**
   * @param container where they are shown.
   * @param options `before` and `after` surround the text; `fenced` shows code between ``` apart.
   */
  constructor(container, {before = "", after = "", fenced = false} = {}) {
    Object.assign(this, {container, before, after, fenced, texts: [], boxes: [], pending: false});
    container.replaceChildren();
    this.add(0, "");
  }

  add(index, text) {
    while (this.texts.length <= index) this.#begin();
    this.texts[index] += text;
    if (this.fenced && this.texts[index].includes("```")) this.#later(index);
    else this.boxes[index].text.appendData(text);
  }

  /** Show the whole text, by its tokens where their log-probabilities are known. */
  end(index, tokens, panel) {
    const {box} = this.boxes[index];
    box.classList.remove("running");
    if (!tokens) return this.#draw(index);
    const parts = element("span");
    showTokens(parts, tokens, panel);
    box.replaceChildren(...this.#around(parts));
  }

  endAll() {
    this.boxes.forEach((_, index) => this.boxes[index].box.classList.contains("running") && this.end(index));
  }

  #begin() {
    const text = document.createTextNode("");
    const middle = element("span", {className: this.before || this.after ? "middle" : ""}, text);
    const box = element("div", {className: "answer running"}, ...this.#around(middle));
    this.texts.push("");
    this.boxes.push({box, text, middle});
    this.container.append(box);
  }

  #around(middle) {
    const given = (text) => (text ? [element("span", {className: "given"}, text)] : []);
    return [...given(this.before), middle, ...given(this.after)];
  }

  #later(index) {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      if (this.boxes[index].box.classList.contains("running")) this.#draw(index);
    });
  }

  #draw(index) {
    const {middle} = this.boxes[index];
    middle.replaceChildren(...(this.fenced ? blocks(this.texts[index]) : [this.texts[index]]));
  }
}

/** Return nodes for a text, with code between ``` in blocks of its own. */
function blocks(text) {
  return segments(text).map(({code, language, content}) => {
    if (!code) return document.createTextNode(content);
    const copy = element("button", {type: "button"}, "Copy");
    copy.addEventListener("click", () => copied(content, copy));
    return element("div", {className: "fenced"},
      element("div", {}, element("span", {}, language || "code"), copy),
      element("pre", {tabIndex: 0, role: "group", ariaLabel: `Code: ${language || "no language"}`}, content));
  });
}

/** Split a text at its fences; a fence that is not closed yet is code to the end. */
function segments(text) {
  const found = [];
  const fence = /^ {0,3}(`{3,})([^`\n]*)\n?/gm;
  let at = 0;
  for (let open; (open = fence.exec(text)); ) {
    const close = new RegExp(`^ {0,3}${open[1]}\`*[ \\t]*$\\n?`, "gm");
    close.lastIndex = fence.lastIndex;
    const end = close.exec(text);
    if (open.index > at) found.push({content: text.slice(at, open.index)});
    const content = text.slice(fence.lastIndex, end ? end.index : text.length);
    found.push({code: true, language: open[2].trim(), content: content.replace(/\n$/, "")});
    at = fence.lastIndex = end ? close.lastIndex : text.length;
    if (!end) break;
  }
  if (at < text.length) found.push({content: text.slice(at)});
  return found;
}

/** Copy a text, and say so on the button. */
async function copied(text, button) {
  const label = button.dataset.label ??= button.textContent;
  const done = await writeClipboard(text);
  button.textContent = done ? "Copied" : "Select and copy it";
  setTimeout(() => { button.textContent = label; }, 1500);
}

async function writeClipboard(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
  const area = element("textarea", {value: text}); // without https, but for localhost
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}
