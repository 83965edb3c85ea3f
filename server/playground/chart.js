// Entropy over position for both answers: bars before, bars after, the threshold.

import { highest, shown, svg } from "./dom.js";

const MARGIN = { left: 42, right: 10, top: 20, bottom: 24 };
const PANEL = 110;

export class Chart {
  #root;
  #series = [];
  #pointed;

  /**
   * @param root where the chart goes; its width is the chart's.
   * @param pointed called with a side's name and a token's index under the pointer.
   */
  constructor(root, pointed) {
    this.#root = root;
    this.#pointed = pointed;
    new ResizeObserver(() => this.#draw()).observe(root);
  }

  /** Draw [{name, trace, threshold}], one below the other, on the same scales. */
  show(series) {
    this.#series = series;
    this.#draw();
  }

  /** Mark a token, or none where index is null. */
  mark(name, index) {
    for (const line of this.#root.querySelectorAll(".mark")) {
      const here = line.dataset.side === name && index != null;
      line.toggleAttribute("hidden", !here);
      if (here) line.setAttribute("x", MARGIN.left + (index + 0.5) * this.#step() - 1);
    }
  }

  #longest() {
    return highest([1, ...this.#series.map(({ trace }) => trace.entropy_before.length)]);
  }

  #step() {
    const width = this.#root.clientWidth - MARGIN.left - MARGIN.right;
    return Math.max(width, 1) / this.#longest();
  }

  #draw() {
    if (!this.#series.length || !this.#root.clientWidth) {
      this.#root.replaceChildren();
      return;
    }
    const width = this.#root.clientWidth;
    const height = this.#series.length * (PANEL + MARGIN.top) + MARGIN.bottom;
    const values = this.#series.flatMap(({ trace, threshold }) =>
      [...trace.entropy_before, ...trace.entropy_after, threshold ?? 0]);
    const ticks = niceTicks(highest([0.1, ...values]), 3);
    const chart = svg("svg", { role: "img", width, height, viewBox: `0 0 ${width} ${height}`,
      "aria-labelledby": "chart-svg-title chart-svg-desc" },
    svg("title", { id: "chart-svg-title" }, "Entropy of each token before and after EM-INF"),
    svg("desc", { id: "chart-svg-desc" }, this.#series.map(describe).join(" ") +
      " Every figure is in the tables above."));
    this.#series.forEach((one, i) =>
      chart.append(this.#panel(one, i * (PANEL + MARGIN.top) + MARGIN.top, width, ticks)));
    chart.append(...this.#positions(height));
    this.#root.replaceChildren(chart);
  }

  #panel({ name, trace, threshold }, top, width, ticks) {
    const base = top + PANEL;
    const y = (value) => base - (value / ticks.at(-1)) * (PANEL - 8);
    const right = width - MARGIN.right;
    const step = this.#step();
    const panel = svg("g", { "data-side": name });
    // Bars of a few pixels have no room for a narrower one in front.
    const front = step < 9 ? 0.84 : 0.5;
    for (const tick of ticks) {
      panel.append(
        svg("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y(tick), y2: y(tick) }),
        svg("text", { class: "tick", x: MARGIN.left - 8, y: y(tick) + 4,
          "text-anchor": "end" }, shown(tick)));
    }
    panel.append(
      svg("text", { class: "name", x: MARGIN.left, y: top - 4 }, `${name.toUpperCase()}, nats`),
      svg("path", { class: "before", d: bars(trace.entropy_before, step, y, base, 0.84) }),
      svg("path", { class: "after", d: bars(trace.entropy_after, step, y, base, front) }));
    if (threshold != null) {
      panel.append(svg("line", { class: "threshold", x1: MARGIN.left, x2: right,
        y1: y(threshold), y2: y(threshold) }));
    }
    const area = svg("rect", { class: "area", x: MARGIN.left, y: top, height: PANEL,
      width: right - MARGIN.left });
    area.addEventListener("pointermove", (event) => {
      const index = Math.floor((event.clientX - area.getBoundingClientRect().left) / step);
      if (index < trace.entropy_before.length) this.#pointed(name, Math.max(index, 0));
    });
    panel.append(svg("rect", { class: "mark", "data-side": name, y: top, width: 2,
      height: PANEL, hidden: "" }), area);
    return panel;
  }

  #positions(height) {
    const ticks = niceTicks(this.#longest(), 6).filter((n) => n > 0 && n <= this.#longest());
    return ticks.filter(Number.isInteger).map((n) => svg("text", { class: "tick",
      x: MARGIN.left + (n - 0.5) * this.#step(), y: height - 6, "text-anchor": "middle" },
    String(n)));
  }
}

function bars(values, step, y, base, share) {
  const width = Math.max(step * share, 0.5);
  return values.map((value, i) => {
    if (value == null) return "";
    const x = MARGIN.left + (i + 0.5) * step - width / 2;
    return `M${x.toFixed(2)} ${base}V${y(value).toFixed(2)}h${width.toFixed(2)}V${base}z`;
  }).join("");
}

/** Round ticks from 0 to at least `high`, about `count` of them. */
export function niceTicks(high, count) {
  const rough = high / count;
  const decade = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((m) => m * decade >= rough) * decade;
  const number = Math.ceil(high / step - 1e-9);
  return Array.from({ length: number + 1 }, (_, i) => Number((i * step).toPrecision(12)));
}

function describe({ name, trace }) {
  const before = trace.entropy_before;
  const high = highest(before);
  return `Answer ${name.toUpperCase()}: ${before.length} tokens, the highest entropy before is ` +
    `${shown(high)} nats at token ${before.indexOf(high) + 1}.`;
}
