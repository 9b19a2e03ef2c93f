#!/usr/bin/env node
// Pictures enter as file names; what the model says of them leaves on stdout. --json gives one JSON document, with the logits.

import { Classifier } from "./src/classifier.js";

const words = process.argv.slice(2);
const json = words.includes("--json");
const files = words.filter((word) => word !== "--json");
if (!files.length) {
  console.error("usage: node classify.js [--json] PICTURE...");
  process.exit(2);
}

const classifier = await Classifier.load();
const answers = [];
for (const file of files) {
  try {
    answers.push({ file, ...(await classifier.classify(file)) });
  } catch (error) {
    console.error(`${file}: ${error.message}`);
    process.exitCode = 1;
  }
}

if (json) {
  console.log(JSON.stringify(answers));
} else {
  for (const { file, top, values = [], milliseconds } of answers) {
    console.log(`${file}  (${milliseconds.toFixed(1)} ms)`);
    // Of labels that exclude no other those are shown that the picture has.
    for (const { label, probability } of top.filter(({ isTrue }) => isTrue !== false)) {
      const bar = "█".repeat(Math.round(probability * 30));
      console.log(`  ${(probability * 100).toFixed(2).padStart(6)} %  ${label}  ${bar}`.trimEnd());
    }
    for (const { label, value } of values) console.log(`  ${value.toPrecision(5)}  ${label}`);
  }
}
