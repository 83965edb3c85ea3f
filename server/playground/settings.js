// The settings of one side: presets, method, and a slider with a box for each number.

import { h } from "./dom.js";
import { emInfField, isInside, nearestStop, rangeInWords, SAMPLING, stops, typed } from "./wire.js";

// vLLM's own sampling parameters, which /v1/em_inf does not describe. The ends are those
// of the sliders only: the boxes take anything, and the server judges it.
const SAMPLING_SLIDERS = {
  temperature: {
    type: "number", minimum: 0, maximum: 2, default: 1, judgedByServer: true,
    description: "Acts after EM-INF; 0 takes the likeliest token.",
  },
  top_p: {
    type: "number", exclusiveMinimum: 0, maximum: 1, default: 1, judgedByServer: true,
    description: "Samples among the likeliest tokens that have this much probability together.",
  },
};

const WHAT_CHOICES_DO = {
  off: "The logits stay as they are. Sent as the preset measure: entropies are reported.",
  default: "What this server does when a request says no more than true.",
};

export class SettingsPanel {
  #root;
  #about;
  #changed;
  #fields = {};
  #choice;
  #methods = {};

  /**
   * @param root the side's section, filled from the template.
   * @param about what GET /v1/em_inf answered.
   * @param changed called after every change.
   */
  constructor(root, about, changed) {
    this.#root = root;
    this.#about = about;
    this.#changed = changed;
    this.#buildChoice();
    this.#buildMethods();
    const names = Object.keys(about.fields).filter((name) =>
      Object.values(about.methods).some((fields) => fields.includes(name)));
    for (const name of names) this.#buildField(name, about.fields[name]);
    for (const name of SAMPLING) this.#buildField(name, SAMPLING_SLIDERS[name]);
    this.#root.addEventListener("focusin", (event) => this.#hint(event.target));
    this.#root.addEventListener("pointerover", (event) => this.#hint(event.target));
  }

  /** The side's part of the page's state; values are texts, as typed. */
  get state() {
    const boxes = Object.entries(this.#fields).map(([name, { box }]) => [name, box.value]);
    return {
      choice: this.#choice.value,
      method: Object.values(this.#methods).find((radio) => radio.checked).value,
      values: Object.fromEntries(boxes),
    };
  }

  set state({ choice, method, values }) {
    this.#choice.value = choice;
    this.#methods[method].checked = true;
    for (const [name, text] of Object.entries(values)) this.#write(name, text);
    if (choice !== "custom") this.#takeChoice();
    this.#show();
  }

  #buildChoice() {
    const select = this.#root.querySelector(".choice");
    select.id = `${this.#root.id}-choice`;
    this.#root.querySelector(".choice-box label").htmlFor = select.id;
    const presets = Object.keys(this.#about.presets);
    select.append(
      h("option", { value: "off" }, "off"),
      h("option", { value: "default" }, "server's default"),
      ...presets.map((name) => h("option", { value: `preset:${name}` }, `preset ${name}`)),
      h("option", { value: "custom" }, "custom"),
    );
    select.addEventListener("change", () => {
      this.#takeChoice();
      this.#show();
      this.#changed();
    });
    this.#choice = select;
  }

  #buildMethods() {
    const fieldset = this.#root.querySelector(".methods");
    for (const name of Object.keys(this.#about.methods)) {
      const radio = h("input", { type: "radio", name: `${this.#root.id}-method`, value: name });
      radio.addEventListener("change", () => this.#edited());
      fieldset.append(h("label", {}, radio, h("span", {}, name.replaceAll("_", " "))));
      this.#methods[name] = radio;
    }
  }

  #buildField(name, schema) {
    const id = `${this.#root.id}-${name}`;
    const values = stops(schema);
    const box = h("input", {
      id, type: "text", autocomplete: "off", "aria-describedby": `${id}-note`,
      inputmode: schema.type === "integer" ? "numeric" : "decimal",
    });
    const slider = h("input", {
      type: "range", min: 0, max: values.length - 1, step: 1, "aria-label": `${name}, slider`,
    });
    const note = h("span", { id: `${id}-note`, class: "unseen" });
    const row = h("div", { class: "field", "data-name": name },
      h("label", { for: id }, name), box, slider, note);
    this.#fields[name] = { row, box, slider, note, schema, values };
    box.addEventListener("input", () => this.#edited(name));
    slider.addEventListener("input", () => {
      box.value = values[slider.value];
      this.#edited(name);
    });
    this.#root.querySelector(".fields").append(row);
  }

  #edited(name) {
    if (name) this.#write(name, this.#fields[name].box.value);
    if (!SAMPLING.includes(name)) this.#choice.value = "custom";
    this.#show();
    if (name) this.#hint(this.#fields[name].box);
    this.#changed();
  }

  /** Show a value in box and slider; the box keeps what was typed. */
  #write(name, text) {
    const { box, slider, note, schema, values } = this.#fields[name];
    if (box.value !== text) box.value = text;
    slider.value = nearestStop(values, Number(text));
    slider.setAttribute("aria-valuetext", text);
    const inside = schema.judgedByServer || isInside(schema, text);
    box.setAttribute("aria-invalid", String(!inside));
    const range = schema.judgedByServer ? "" : ` Allowed: ${rangeInWords(schema)}.`;
    note.textContent = schema.description + range +
      (inside ? "" : ` The server will refuse ${text || "nothing"}.`);
  }

  /** Take over the values of the preset, or the server's default. */
  #takeChoice() {
    const choice = this.#choice.value;
    const preset = choice.startsWith("preset:") ? this.#about.presets[choice.slice(7)] : null;
    const taken = preset ?? (choice === "default" ? this.#about.default_settings : {});
    if (taken.method) this.#methods[taken.method].checked = true;
    for (const [name, value] of Object.entries(taken)) {
      if (name in this.#fields) this.#write(name, String(value));
    }
  }

  /** Only the fields that the method reads; none where EM-INF is off. */
  #show() {
    const { choice, method, values } = this.state;
    const off = choice === "off";
    const read = off ? SAMPLING : [...this.#about.methods[method], ...SAMPLING];
    for (const [name, { row }] of Object.entries(this.#fields)) row.hidden = !read.includes(name);
    this.#root.querySelector(".methods").hidden = off;
    const words = read.map((name) => `${name} ${values[name]}`);
    this.#root.querySelector(".values").textContent = words.join(" · ");
    this.#hint(null);
  }

  /** What the field under the pointer or the focus means. */
  #hint(target) {
    const name = target?.closest?.(".field")?.dataset.name;
    if (target && !name) return;
    const { choice } = this.state;
    const line = this.#root.querySelector(".hint");
    line.textContent = name
      ? this.#fields[name].note.textContent
      : (WHAT_CHOICES_DO[choice] ??
        `Sent as ${JSON.stringify(emInfField(this.state, this.#about.methods))}`);
  }

  /** The threshold that this side ran with, where one was sent. */
  get threshold() {
    const value = typed(this.#fields.threshold?.box.value ?? "");
    return this.#choice.value === "off" || typeof value !== "number" ? null : value;
  }
}
