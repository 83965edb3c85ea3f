// Vercel AI SDK: settings in providerOptions, the report through a metadata extractor.
// EM_INF_URL=http://localhost:8000 node ai-sdk.js "PROMPT"
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const url = process.env.EM_INF_URL ?? "http://localhost:8000";
const apiKey = process.env.EM_INF_API_KEY ?? "none";

// providerMetadata.emInf.report of every answer.
const reported = (report) => (report ? { emInf: { report } } : undefined);
const metadataExtractor = {
  extractMetadata: async ({ parsedBody }) => reported(parsedBody?.em_inf),
  createStreamExtractor: () => {
    let report;
    return {
      processChunk: (chunk) => {
        report = chunk?.em_inf ?? report;
      },
      buildMetadata: () => reported(report),
    };
  },
};
const provider = createOpenAICompatible({
  name: "emInf",
  baseURL: `${url}/v1`,
  apiKey,
  metadataExtractor,
});

const listed = await fetch(`${url}/v1/models`, {
  headers: { Authorization: `Bearer ${apiKey}` },
});
const model = provider((await listed.json()).data[0].id);
const ask = {
  model,
  prompt: process.argv[2],
  seed: 1,
  providerOptions: { emInf: { em_inf: { preset: "strong", report: "trace" } } },
};

const whole = await generateText(ask);

const streamed = streamText(ask);
let text = "";
for await (const piece of streamed.textStream) text += piece;

let refused;
try {
  const providerOptions = { emInf: { em_inf: { threshold: -1 } } };
  await generateText({ ...ask, providerOptions, maxRetries: 0 });
} catch (error) {
  refused = {
    status: error.statusCode,
    field: JSON.parse(error.responseBody).error.param,
  };
}

console.log(
  JSON.stringify({
    whole: { text: whole.text, report: whole.providerMetadata.emInf.report },
    stream: { text, report: (await streamed.providerMetadata).emInf.report },
    refused,
  }),
);
