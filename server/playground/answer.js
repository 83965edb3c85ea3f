// One answer: its tokens as they arrive, their figures at the end, and what is under a token.

import { h, highest, say, shown } from "./dom.js";
import { splitText } from "./wire.js";

/** Lower ends of the classes of shading, in nats. */
export const SHADES = [0, 0.05, 0.3, 0.7, 1.2, 2];

export class Answer {
  #root;
  #list;
  #inspector;
  #logprobs;
  #cells = [];
  #active = 0;
  #inspected = false;
  #times = {};
  #pointed;

  /**
   * @param root the side's section, filled from the template.
   * @param logprobs what GET /v1/em_inf says of the server's logprobs.
   * @param pointed called with the index of the token under pointer or focus, or null.
   */
  constructor(root, logprobs, pointed) {
    this.#root = root;
    this.#logprobs = logprobs;
    this.#pointed = pointed;
    this.#list = root.querySelector(".tokens");
    this.#inspector = root.querySelector(".inspector");
    this.#list.setAttribute("aria-label", `Tokens of answer ${root.id.toUpperCase()}`);
    this.#list.addEventListener("keydown", (event) => this.#move(event));
    this.#list.addEventListener("focusin", (event) => this.#inspectElement(event.target));
    this.#list.addEventListener("pointerover", (event) => this.#inspectElement(event.target));
    const table = root.querySelector(".table");
    table.addEventListener("toggle", () => this.#fillTable());
    table.querySelector(".scroll").setAttribute(
      "aria-label", `Figures of every token of answer ${root.id.toUpperCase()}`);
    this.clear();
  }

  /** Forget everything; `running` while an answer is on its way. */
  clear(running = false) {
    this.#cells = [];
    this.#active = 0;
    this.#inspected = false;
    this.#times = { start: performance.now() };
    this.report = null;
    this.usage = null;
    this.#list.replaceChildren();
    this.#list.hidden = true;
    this.#list.classList.toggle("running", running);
    const empty = this.#root.querySelector(".empty");
    empty.hidden = false;
    empty.textContent = running ? "Waiting for the first token" : "The answer appears here.";
    this.#root.querySelector(".figures").replaceChildren();
    this.#root.querySelector(".table").hidden = true;
    this.#root.querySelector(".table").open = false;
    this.fail(null);
    this.#explain();
  }

  /** Show why there is no answer, or no more of it. */
  fail(sentence) {
    say(this.#root.querySelector(":scope > .error"), sentence);
    if (sentence && !this.#cells.length) this.#root.querySelector(".empty").hidden = true;
    if (sentence) this.#list.classList.remove("running");
  }

  get numTokens() {
    return this.#cells.filter((cell) => cell.entry).length;
  }

  /** The figures of every token, null until they are there. */
  get trace() {
    return this.report?.trace ?? null;
  }

  /** Take a chunk of the stream. */
  add(chunk) {
    const choice = chunk.choices[0];
    if (choice) {
      const entries = choice.logprobs?.content ?? [];
      const delta = choice.delta ?? {};
      const text = (delta.reasoning ?? delta.reasoning_content ?? "") + (delta.content ?? "");
      if (text || entries.length) {
        this.#times.first ??= performance.now();
        const { scrollHeight, scrollTop, clientHeight } = this.#list;
        splitText(text, entries).forEach((piece, i) => this.#addCell(piece, entries[i]));
        // A long answer stays at its end, unless the reader scrolled away from it.
        if (scrollHeight - scrollTop - clientHeight < 40) {
          this.#list.scrollTop = this.#list.scrollHeight;
        }
      }
    }
    if (chunk.em_inf) this.report = chunk.em_inf.choices[0];
    if (chunk.usage) this.usage = chunk.usage;
  }

  #addCell(text, entry) {
    const element = h("span", { role: "option", tabindex: this.#cells.length ? -1 : 0,
      "aria-selected": "false", class: "token" });
    const name = entry?.token || text;
    // A token without text of its own: the end, or a part of a character.
    if (!text) element.classList.add("ghost");
    element.textContent = text || entry?.token || "·";
    element.setAttribute("aria-label", JSON.stringify(name));
    this.#cells.push({ element, entry, text, name });
    this.#list.append(element);
    this.#list.hidden = false;
    this.#inspector.hidden = false;
    this.#root.querySelector(".empty").hidden = true;
  }

  /** The stream is complete: shade the tokens and show the figures. */
  finish() {
    this.#times.end = performance.now();
    this.#list.classList.remove("running");
    const { report, trace } = this;
    const tokens = this.#cells.filter((cell) => cell.entry);
    if (report?.error) {
      this.fail(`The answer is whole, but its entropies are missing: ${report.error}.`);
    } else if (trace && trace.entropy_before.length !== tokens.length) {
      this.fail(`The server reports on ${trace.entropy_before.length} tokens and streamed ` +
        `${tokens.length}: which is which cannot be told, so none is shaded.`);
      this.report = { ...report, trace: null };
    } else if (trace) {
      tokens.forEach((cell, i) => this.#shade(cell, figuresOf(trace, i)));
    }
    this.#showFigures();
    this.#root.querySelector(".table").hidden = !this.trace;
    if (this.#inspected) this.inspect(this.#active);
    else if (this.trace) this.inspect(this.#leastDecided());
  }

  /** The user stopped it: what came stays, without figures. */
  stopped() {
    const count = this.numTokens;
    this.fail(`Stopped after ${count} ${count === 1 ? "token" : "tokens"}. ` +
      "Entropies come with the end of a stream, so there are none.");
  }

  #shade(cell, figures) {
    cell.figures = figures;
    const { before, after, touched } = figures;
    if (before == null) return;
    const shade = SHADES.findLastIndex((low) => before >= low);
    cell.element.classList.add(`shade-${shade}`);
    cell.element.classList.toggle("touched", touched);
    cell.element.setAttribute("aria-label",
      `${JSON.stringify(cell.name)}, entropy ${shown(before)} before, ${shown(after)} after` +
      (touched ? `, ${figures.work}` : ", left alone"));
  }

  #showFigures() {
    const { report } = this;
    const seconds = (this.#times.end - this.#times.start) / 1000;
    const first = (this.#times.first - this.#times.start) / 1000;
    const tokens = report?.tokens ?? this.usage?.completion_tokens ?? this.numTokens;
    const rows = [["tokens", String(tokens)]];
    if (report && !report.error) {
      const share = tokens ? ` (${Math.round((100 * report.tokens_minimized) / tokens)} %)` : "";
      const { mean_entropy_before: before, mean_entropy_after: after } = report;
      rows.push(
        ["touched", `${report.tokens_minimized}${share}`],
        ["mean entropy, nats", `${shown(before)} → ${shown(after)}`],
      );
    }
    rows.push(
      ["time", `${seconds.toFixed(2)} s`, `first token after ${first.toFixed(2)} s`],
      ["tokens per second", (tokens / seconds).toFixed(1)],
    );
    this.#root.querySelector(".figures").replaceChildren(...rows.map(([name, value, more]) =>
      h("div", { title: more }, h("dt", {}, name), h("dd", {}, value))));
  }

  #move(event) {
    const last = this.#cells.length - 1;
    const to = {
      ArrowRight: this.#active + 1, ArrowDown: this.#active + 1,
      ArrowLeft: this.#active - 1, ArrowUp: this.#active - 1,
      Home: 0, End: last,
    }[event.key];
    if (to == null) return;
    event.preventDefault();
    this.#cells[Math.min(Math.max(to, 0), last)].element.focus();
  }

  #inspectElement(element) {
    const index = this.#cells.findIndex((cell) => cell.element === element);
    if (index >= 0) this.inspect(index);
  }

  /** Show what is known of a token, and mark it. */
  inspect(index) {
    const cell = this.#cells[index];
    if (!cell) return;
    this.#inspected = true;
    const old = this.#cells[this.#active].element;
    old.tabIndex = -1;
    old.setAttribute("aria-selected", "false");
    this.#active = index;
    cell.element.tabIndex = 0;
    cell.element.setAttribute("aria-selected", "true");
    this.#inspector.replaceChildren(this.#about(cell, index), this.#alternatives(cell));
    this.#pointed(index);
  }

  #leastDecided() {
    const high = highest(this.#cells.map((cell) => cell.figures?.before ?? 0));
    return this.#cells.findIndex((cell) => cell.figures?.before === high);
  }

  #explain() {
    this.#inspector.hidden = true;
    this.#inspector.replaceChildren(h("p", { class: "empty" },
      "Point at a token, or move to one with Tab and the arrow keys, to see its figures."));
  }

  #about({ name, figures }, index) {
    const place = `token ${index + 1} of ${this.#cells.length}`;
    const about = h("div", { class: "about" },
      h("p", { class: "name" }, h("code", {}, JSON.stringify(name)), " ", h("span", {}, place)));
    if (!figures) {
      about.append(h("p", { class: "empty" }, "Its entropies come with the end of the stream."));
      return about;
    }
    about.append(h("dl", {},
      ...[["before", shown(figures.before)], ["after", shown(figures.after)],
        [figures.workName, figures.workShown]].map(([label, value]) =>
        h("div", {}, h("dt", {}, label), h("dd", {}, value)))));
    return about;
  }

  /** The likeliest tokens in this place, as the server's logprobs mode has them. */
  #alternatives({ entry }) {
    const [stage, form] = this.#logprobs.mode.split("_");
    const when = stage === "raw" ? "before EM-INF" : "after EM-INF and sampling's filters";
    const list = h("ol", {});
    for (const { token, logprob } of entry?.top_logprobs ?? []) {
      const chosen = token === entry.token && logprob === entry.logprob;
      const item = h("li", { class: chosen && "chosen" }, h("code", {}, JSON.stringify(token)));
      if (form === "logprobs") {
        const bar = h("i", { class: "bar" });
        bar.style.setProperty("--share", Math.exp(logprob));
        item.append(bar, h("span", {}, percent(logprob)));
      } else {
        item.append(h("i"), h("span", {}, shown(logprob)));
      }
      list.append(item);
    }
    return h("div", { class: "alternatives" }, h("p", {}, `Likeliest tokens, ${when}`), list);
  }

  #fillTable() {
    const table = this.#root.querySelector(".table");
    if (!table.open || !this.trace) return;
    const cells = this.#cells.filter((cell) => cell.figures);
    const head = ["", "token", "before", "after", cells[0]?.figures.workName, "alternatives"];
    const body = cells.map(({ name, figures, entry }, i) => h("tr", {},
      h("td", {}, String(i + 1)), h("td", {}, h("code", {}, JSON.stringify(name))),
      h("td", {}, shown(figures.before)), h("td", {}, shown(figures.after)),
      h("td", {}, figures.workShown),
      h("td", {}, entry.top_logprobs.map((other) => JSON.stringify(other.token)).join(" "))));
    table.querySelector(".scroll").replaceChildren(h("table", {},
      h("thead", {}, h("tr", {}, ...head.map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, ...body)));
  }
}

function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  return share > 0 && share < 0.01 ? "< 0.01 %" : `${shown(share)} %`;
}

/** One token's figures; the method says whether its work is steps or a temperature. */
function figuresOf(trace, i) {
  const before = trace.entropy_before[i];
  const after = trace.entropy_after[i];
  if (trace.grad_steps) {
    const steps = trace.grad_steps[i];
    const work = `${steps} ${steps === 1 ? "step" : "steps"}`;
    return { before, after, touched: steps > 0, work, workName: "steps",
      workShown: steps == null ? "not recorded" : String(steps) };
  }
  const temperature = trace.temperature[i];
  return { before, after, touched: temperature != null && temperature < 1,
    work: `temperature ${shown(temperature)}`, workName: "temperature",
    workShown: shown(temperature) };
}
