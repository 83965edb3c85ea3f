// openai-node: an extra field of the body is sent as it is, and what comes back is there.
// EM_INF_URL=http://localhost:8000 node openai.js "PROMPT"
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: `${process.env.EM_INF_URL ?? "http://localhost:8000"}/v1`,
  apiKey: process.env.EM_INF_API_KEY ?? "none",
});
const model = (await client.models.list()).data[0].id;
const body = {
  model,
  messages: [{ role: "user", content: process.argv[2] }],
  seed: 1,
  em_inf: { preset: "strong", report: "trace" }, // TypeScript: `as any` on the body.
};

const answer = await client.chat.completions.create(body);

let text = "";
let report;
for await (const chunk of await client.chat.completions.create({ ...body, stream: true })) {
  text += chunk.choices[0]?.delta.content ?? "";
  report = chunk.em_inf ?? report; // In the last chunk.
}

let refused;
try {
  await client.chat.completions.create({ ...body, em_inf: { threshold: -1 } });
} catch (error) {
  refused = { status: error.status, field: error.param };
}

console.log(
  JSON.stringify({
    whole: { text: answer.choices[0].message.content, report: answer.em_inf },
    stream: { text, report },
    refused,
  }),
);
