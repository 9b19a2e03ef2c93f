// Copies the three files of onnxruntime-web that the page loads into ort/: what is served then needs no node_modules.

import { copyFile, mkdir } from "node:fs/promises";

const FILES = ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"];
const from = new URL("node_modules/onnxruntime-web/dist/", import.meta.url);
const to = new URL("ort/", import.meta.url);

await mkdir(to, { recursive: true });
await Promise.all(FILES.map((name) => copyFile(new URL(name, from), new URL(name, to))));
