// A picture's pixels and a session of ONNX Runtime enter; the likeliest classes leave. Resizing, cropping, normalization,
// softmax and ranking are in the model.

/** The bytes of RGBA without their A. */
export function withoutAlpha(rgba) {
  const rgb = new Uint8Array((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
    rgb[to] = rgba[from];
    rgb[to + 1] = rgba[from + 1];
    rgb[to + 2] = rgba[from + 2];
  }
  return rgb;
}

/**
 * @param {object} ort  the module of ONNX Runtime
 * @param {object} session  with the model
 * @param {string[] | null} labels  in the order of the logits; null where they are numbered
 * @param {{rgb: Uint8Array, height: number, width: number}} picture
 */
export async function answer(ort, session, labels, picture) {
  const image = new ort.Tensor("uint8", picture.rgb, [1, picture.height, picture.width, 3]);
  const start = performance.now();
  const outputs = await session.run({ image });
  const milliseconds = performance.now() - start;
  const probabilities = outputs.probabilities.data;
  const top = Array.from(outputs.top_indices.data, Number).map((index) => ({
    label: labels ? labels[index] : String(index),
    probability: probabilities[index],
  }));
  return { top, logits: outputs.logits ? Array.from(outputs.logits.data) : null, milliseconds };
}
