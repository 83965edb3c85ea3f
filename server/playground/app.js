// The page: asks the server what it can do, runs two requests side by side, keeps the link.

import { Answer, SHADES } from "./answer.js";
import { apiAddress, call, key, stream } from "./api.js";
import { Chart } from "./chart.js";
import { h, say } from "./dom.js";
import { SettingsPanel } from "./settings.js";
import { asCurl, asPython, fromFragment, requestBody, toFragment } from "./wire.js";

const SIDES = ["a", "b"];
const ALTERNATIVES = 5;
// The bundled model's kind of question, and a seed whose two answers differ (both right).
const FIRST_SEED = "4";
const FIRST_PROMPT =
  "Tom has 34 apples. He buys 3 boxes of 12 apples. He gives away 15. " +
  "How many apples does Tom have now?";

const $ = (id) => document.getElementById(id);
const panels = {};
const answers = {};
let about = null;
let running = null;
let chart = null;

/** Ask for everything that the page is drawn from; again when the key changes. */
async function connect() {
  try {
    const [described, models] = await Promise.all(
      ["v1/em_inf", "v1/models"].map(async (path) => (await call(path)).json()));
    say($("problem"), null);
    if (!about) build(described, models.data);
    $("server").textContent =
      `em-inf ${described.version} · vLLM ${described.vllm_version} · ` +
      `${described.runner} runner · ${described.backend} backend on ${described.device}`;
    $("run").disabled = running !== null;
  } catch (error) {
    $("run").disabled = true;
    $("server").textContent = "Not connected";
    say($("problem"), error.message);
    if (error.status === 401) $("key").focus();
  }
}

function build(described, models) {
  about = described;
  $("model").append(...models.map(({ id }) => h("option", { value: id }, id)));
  chart = new Chart($("chart"), (name, index) => answers[name].inspect(index));
  const phone = matchMedia("(max-width: 640px)").matches;
  for (const name of SIDES) {
    const root = $(name);
    root.append($("side").content.cloneNode(true));
    root.querySelector("h2").id = `${name}-title`;
    root.querySelector("h2").textContent = name.toUpperCase();
    root.querySelector(".settings").open = !phone;
    panels[name] = new SettingsPanel(root, about, () => {});
    answers[name] = new Answer(root, about.logprobs, (index) => {
      for (const side of SIDES) chart.mark(side, side === name ? index : null);
    });
    root.querySelector(".copy-curl").addEventListener("click", () => copyAs(asCurl, name, "curl"));
    root.querySelector(".copy-python").addEventListener(
      "click", () => copyAs(asPython, name, "Python"));
  }
  $("scale").append(...SHADES.map((low, i) => h("span", { class: `shade-${i}` },
    i + 1 < SHADES.length ? `${low} to ${SHADES[i + 1]}` : `${low} and more`)));
  setState(firstState(models));
  restore();
}

function firstState(models) {
  const { method, report: _, ...fields } = about.default_settings;
  const values = { ...fields, temperature: 1, top_p: 1 };
  const texts = Object.fromEntries(Object.entries(values).map(([n, v]) => [n, String(v)]));
  const preset = ["strong", ...Object.keys(about.presets)].find((n) => n in about.presets);
  return {
    prompt: FIRST_PROMPT, model: models[0].id, max_tokens: "256", seed: FIRST_SEED,
    a: { choice: "off", method, values: texts },
    b: { choice: preset ? `preset:${preset}` : "default", method, values: texts },
  };
}

function getState() {
  const plain = ["prompt", "model", "max_tokens", "seed"].map((id) => [id, $(id).value]);
  const sides = SIDES.map((name) => [name, panels[name].state]);
  return Object.fromEntries([...plain, ...sides]);
}

function setState(state) {
  if (![...$("model").options].some((option) => option.value === state.model)) {
    throw new Error(`this server has no model "${state.model}"`);
  }
  for (const id of ["prompt", "model", "max_tokens", "seed"]) $(id).value = state[id];
  for (const name of SIDES) panels[name].state = state[name];
}

/** Take over the state in the address, if there is one. */
function restore() {
  const fragment = location.hash.slice(1);
  if (!fragment || !about) return;
  try {
    setState(fromFragment(fragment, getState(), about));
    say($("problem"), null);
  } catch (error) {
    say($("problem"), `The link cannot be restored: ${error.message}.`);
  }
}

async function run() {
  if (running || $("run").disabled) return;
  running = new AbortController();
  $("run").disabled = true;
  $("stop").disabled = false;
  $("status").textContent = "Both answers are on their way.";
  showChart([]);
  const state = getState();
  const thresholds = Object.fromEntries(SIDES.map((name) => [name, panels[name].threshold]));
  const ends = await Promise.all(SIDES.map((name) => runSide(name, state, running.signal)));
  showChart(SIDES.filter((name) => answers[name].trace).map((name) => ({
    name, trace: answers[name].trace, threshold: thresholds[name],
  })));
  $("status").textContent = SIDES.map((name, i) => `${name.toUpperCase()} ${ends[i]}`).join(", ");
  running = null;
  $("stop").disabled = true;
  $("run").disabled = false;
}

/** Run one side; returns how it ended, in words. */
async function runSide(name, state, signal) {
  const answer = answers[name];
  const body = {
    ...requestBody(state, state[name], about.methods),
    stream: true,
    stream_options: { include_usage: true },
    logprobs: true,
    top_logprobs: about.logprobs.max < 0 ? ALTERNATIVES : Math.min(ALTERNATIVES, about.logprobs.max),
  };
  answer.clear(true);
  try {
    for await (const chunk of stream("v1/chat/completions", body, signal)) answer.add(chunk);
    answer.finish();
    return `is complete: ${answer.numTokens} tokens`;
  } catch (error) {
    if (signal.aborted) {
      answer.stopped();
      return "was stopped";
    }
    answer.fail(error.message);
    if (error.status === 401) $("key").focus();
    return "failed";
  }
}

function showChart(series) {
  chart.show(series);
  $("chart-empty").hidden = series.length > 0;
}

function copyAs(write, name, what) {
  const state = getState();
  const body = requestBody(state, state[name], about.methods);
  copy(write(apiAddress(), body, !!key.get()), `${name.toUpperCase()} as ${what}`);
}

/** Put a text on the clipboard; where the browser forbids it, into a dialog to copy from. */
async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    $("status").textContent = `Copied ${what}.`;
  } catch {
    $("copied-text").value = text;
    $("copied").showModal();
    $("copied-text").select();
  }
}

$("run").addEventListener("click", run);
$("stop").addEventListener("click", () => running?.abort());
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run();
});
$("next-seed").addEventListener("click", () => {
  const seed = Number($("seed").value);
  $("seed").value = Number.isSafeInteger(seed) ? seed + 1 : 1;
});
$("link").addEventListener("click", () => {
  history.replaceState(null, "", `#${toFragment(getState())}`);
  copy(location.href, "the link");
});
$("key").value = key.get();
$("key").addEventListener("change", () => {
  key.set($("key").value.trim());
  connect();
});
addEventListener("hashchange", restore);
connect();
