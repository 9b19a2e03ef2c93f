import assert from "node:assert/strict";
import test from "node:test";
import sharp from "sharp";
import { Classifier } from "../src/classifier.js";

const classifier = await Classifier.load();

const picture = (width, height) =>
  sharp({ create: { width, height, channels: 3, background: { r: 200, g: 120, b: 40 } } }).png().toBuffer();

test("the model says what it was trained for", () => {
  assert.ok(classifier.metadata.preprocess.height > 0);
  assert.equal(typeof classifier.metadata.model.name, "string");
});

for (const [width, height] of [[640, 480], [1, 1], [33, 1000]]) {
  test(`a picture of ${width} x ${height} is classified`, async () => {
    const { top, values = [], milliseconds } = await classifier.classify(await picture(width, height));
    assert.ok(top.length + values.length > 0 && milliseconds > 0);
    assert.ok(values.every(({ value }) => Number.isFinite(value)));
    const probabilities = top.map((entry) => entry.probability);
    assert.ok(probabilities.every((value) => value >= 0 && value <= 1));
    assert.deepEqual(probabilities, probabilities.toSorted((a, b) => b - a));
  });
}

test("what is no picture is refused", async () => {
  await assert.rejects(classifier.classify(Buffer.from("not a picture")));
});
