// Pixels enter as messages; what the model says of them leaves. Off the page's own thread, so that it stays responsive.

import { answer, withoutAlpha } from "./answer.js";
import { readMetadata } from "./metadata.js";
import * as ort from "./ort/ort.wasm.min.mjs";

// Threads need memory that is shared, which browsers allow only to pages that are isolated from others.
const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, 4) : 1;
ort.env.wasm.numThreads = threads;
ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;

async function load() {
  const response = await fetch("./model.onnx");
  if (!response.ok) throw new Error(`model.onnx could not be loaded (${response.status}).`);
  const total = Number(response.headers.get("Content-Length"));
  const parts = [];
  let received = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    received += value.length;
    self.postMessage({ kind: "progress", received, total });
  }
  const bytes = new Uint8Array(await new Blob(parts).arrayBuffer());
  const metadata = readMetadata(bytes);
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  // The first run allocates memory; its time says nothing about the next ones.
  const { height, width } = metadata.preprocess;
  await answer(ort, session, metadata, { rgb: new Uint8Array(height * width * 3), height, width });
  self.postMessage({ kind: "ready", metadata, threads });
  return { session, metadata };
}

const loaded = load();
loaded.catch((error) => self.postMessage({ kind: "failed", message: error.message }));

self.addEventListener("message", async ({ data: { id, rgba, height, width } }) => {
  try {
    const { session, metadata } = await loaded;
    const result = await answer(ort, session, metadata, { rgb: withoutAlpha(rgba), height, width });
    self.postMessage({ kind: "answer", id, ...result });
  } catch (error) {
    self.postMessage({ kind: "failed", id, message: error.message });
  }
});
