// A picture file enters; what the model says of it leaves: classes, labels or values.

import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import ort from "onnxruntime-node";
import sharp from "sharp";
import { answer } from "./answer.js";
import { readMetadata } from "./metadata.js";

const MODEL = fileURLToPath(new URL("../model.onnx", import.meta.url));

export class Classifier {
  /** Load the model; `options` are those of ort.InferenceSession. */
  static async load(file = MODEL, options = {}) {
    const bytes = await readFile(file);
    return new Classifier(await ort.InferenceSession.create(bytes, options), readMetadata(bytes));
  }

  constructor(session, metadata) {
    this.session = session;
    this.metadata = metadata;
  }

  /** @param {string | Buffer} picture  file name, or an encoded picture (JPEG, PNG, WebP, …) */
  async classify(picture) {
    return answer(ort, this.session, this.metadata, await decode(picture));
  }
}

/** 8-bit sRGB pixels, upright where the picture's EXIF says how it was held. */
async function decode(picture) {
  const decoded = sharp(picture).autoOrient().toColourspace("srgb").removeAlpha();
  const { data, info } = await decoded.raw({ depth: "uchar" }).toBuffer({ resolveWithObject: true });
  return { rgb: new Uint8Array(data.buffer, data.byteOffset, data.length), height: info.height, width: info.width };
}
