// What goes over the wire and into links and snippets. Pure functions, no page.

const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;
const MANTISSAS = [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8];
export const SAMPLING = ["temperature", "top_p"];

/** What was typed, as JSON's number; as it was typed where it is none, for the server to refuse. */
export function typed(text) {
  const value = Number(text.trim());
  const exact = !Number.isInteger(value) || Number.isSafeInteger(value);
  return NUMBER.test(text.trim()) && Number.isFinite(value) && exact ? value : text.trim();
}

/** The values that a slider stops at, from a setting's JSON Schema. */
export function stops(schema) {
  const low = schema.minimum ?? schema.exclusiveMinimum ?? 0;
  const middle = schema.default || 1;
  const high = schema.maximum ?? 10 * middle;
  let values = [];
  if (schema.type === "integer") {
    for (let value = low; value <= high; value += 1) values.push(value);
  } else if (middle > 0 && high / middle > 50) {
    for (let decade = Math.floor(Math.log10(middle)) - 2; 10 ** decade <= high; decade += 1) {
      values.push(...MANTISSAS.map((mantissa) => mantissa * 10 ** decade));
    }
    values = [low, ...values, high];
  } else {
    // A smallest value close to 0 is an end of the slider, and no shift of all its stops.
    const first = low < high / 1000 ? 0 : low;
    for (let i = 1; i <= 100; i += 1) values.push(first + ((high - first) * i) / 100);
    values.unshift(low);
  }
  const inside = values
    .map((value) => Number(value.toPrecision(12)))
    .filter((value) => value >= low && value <= high && value !== schema.exclusiveMinimum);
  return [...new Set(inside)];
}

/** Index of the stop nearest to a value; 0 where it is no number. */
export function nearestStop(values, value) {
  let best = 0;
  values.forEach((stop, i) => {
    if (Math.abs(stop - value) < Math.abs(values[best] - value)) best = i;
  });
  return best;
}

/** A setting's range in words. */
export function rangeInWords({ minimum, exclusiveMinimum, maximum }) {
  if (minimum != null && maximum != null) return `${minimum} to ${maximum}`;
  const words = [];
  if (exclusiveMinimum != null) words.push(`above ${exclusiveMinimum}`);
  if (minimum != null) words.push(`at least ${minimum}`);
  if (maximum != null) words.push(`at most ${maximum}`);
  return words.join(", ");
}

/** Whether a typed value is inside a setting's range. */
export function isInside(schema, text) {
  const value = typed(text);
  if (typeof value !== "number") return false;
  return (
    !(schema.type === "integer" && !Number.isInteger(value)) &&
    !(value < schema.minimum || value > schema.maximum || value <= schema.exclusiveMinimum)
  );
}

/** The request field `em_inf` of one side; with a figure for each token. */
export function emInfField(side, methods) {
  const { choice, method, values } = side;
  const report = "trace";
  if (choice === "off") return { preset: "measure", report };
  if (choice === "default") return { report };
  if (choice.startsWith("preset:")) return { preset: choice.slice(7), report };
  const fields = methods[method].map((name) => [name, typed(values[name])]);
  return { method, ...Object.fromEntries(fields), report };
}

/** The body of one side's request, without what only the page's stream needs. */
export function requestBody(state, side, methods) {
  const sampling = SAMPLING.map((name) => [name, typed(side.values[name])]);
  return {
    model: state.model,
    messages: [{ role: "user", content: state.prompt }],
    max_tokens: typed(state.max_tokens),
    seed: typed(state.seed),
    ...Object.fromEntries(sampling),
    em_inf: emInfField(side, methods),
  };
}

/** A shell command that sends the body. The key is named, never written. */
export function asCurl(base, body, hasKey) {
  const quoted = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  const header = hasKey ? ` \\\n  -H "Authorization: Bearer $EM_INF_API_KEY"` : "";
  return (
    `curl -s '${base}/chat/completions' \\\n` +
    `  -H 'Content-Type: application/json'${header} \\\n  -d '${quoted}'\n`
  );
}

/** A Python script that sends the body through OpenAI's SDK. */
export function asPython(base, body, hasKey) {
  const { em_inf: emInf, ...fields } = body;
  const lines = Object.entries(fields).map(
    ([name, value]) => `    ${name}=${pythonLiteral(value)},\n`);
  return (
    `${hasKey ? "import os\n\n" : ""}from openai import OpenAI\n\n` +
    `client = OpenAI(base_url=${pythonLiteral(base)}, api_key=` +
    `${hasKey ? 'os.environ["EM_INF_API_KEY"]' : '"none"'})\n` +
    `answer = client.chat.completions.create(\n${lines.join("")}` +
    `    extra_body={"em_inf": ${pythonLiteral(emInf)}},\n)\n` +
    "print(answer.choices[0].message.content)\n" +
    'print(answer.model_extra["em_inf"]["choices"][0])\n'
  );
}

function pythonLiteral(value) {
  if (Array.isArray(value)) return `[${value.map(pythonLiteral).join(", ")}]`;
  if (value && typeof value === "object") {
    const pairs = Object.entries(value).map(
      ([name, inner]) => `${JSON.stringify(name)}: ${pythonLiteral(inner)}`);
    return `{${pairs.join(", ")}}`;
  }
  if (value == null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  return JSON.stringify(value);
}

const PLAIN = ["prompt", "model", "max_tokens", "seed"];

/** The whole state as a URL's fragment. */
export function toFragment(state) {
  const plain = PLAIN.map((name) => [name, state[name]]);
  const sides = ["a", "b"].map((name) => [name, JSON.stringify(state[name])]);
  return new URLSearchParams([...plain, ...sides]).toString();
}

/**
 * The state that a fragment holds, laid over `state`.
 * Throws an Error whose message says what in the link cannot be read.
 */
export function fromFragment(fragment, state, about) {
  const read = { ...state };
  for (const [name, text] of new URLSearchParams(fragment)) {
    if (PLAIN.includes(name)) read[name] = text;
    else if (name === "a" || name === "b") read[name] = readSide(name, text, state[name], about);
    else throw new Error(`${name} is unknown`);
  }
  return read;
}

function readSide(name, text, known, { presets, methods }) {
  let side;
  try {
    side = JSON.parse(text);
  } catch {
    throw new Error(`${name} is not JSON`);
  }
  const { choice, method, values } = side ?? {};
  const isPreset = typeof choice === "string" && choice.startsWith("preset:");
  if (isPreset && !Object.hasOwn(presets, choice.slice(7))) {
    throw new Error(`this server has no preset "${choice.slice(7)}", which ${name} names`);
  }
  if (!isPreset && !["off", "default", "custom"].includes(choice)) {
    throw new Error(`${name} does not say which settings it takes`);
  }
  if (!Object.hasOwn(methods, method)) throw new Error(`${name} has no known method`);
  for (const [field, value] of Object.entries(values ?? {})) {
    if (!Object.hasOwn(known.values, field) || typeof value !== "string") {
      throw new Error(`${name} has ${field}, which is unknown or no text`);
    }
  }
  return { choice, method, values: { ...known.values, ...values } };
}

/**
 * What each token of a chunk added to the text, and nothing lost of it.
 * A token that ends inside a character adds nothing; the one that completes it adds it all.
 */
export function splitText(text, entries) {
  if (entries.length <= 1) return [text];
  let rest = text;
  const pieces = entries.map(({ token }) => {
    const piece = token && rest.startsWith(token) ? token : "";
    rest = rest.slice(piece.length);
    return piece;
  });
  let last = pieces.length - 1;
  while (last > 0 && !pieces[last]) last -= 1;
  pieces[last] += rest;
  return pieces;
}
