// A picture's pixels and a session of ONNX Runtime enter; what the model says of them leaves. Resizing, cropping,
// normalization, probabilities and ranking are in the model.

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
 * @param {{labels: string[] | null, task?: string, threshold?: number}} metadata  names are in the order of the outputs,
 *   null where they are numbered
 * @param {{rgb: Uint8Array, height: number, width: number}} picture
 * @returns classes or labels in `top`, the most probable first, and of a regression the numbers in `values`. Labels do not
 *   exclude each other: `isTrue` says which of them the picture has.
 */
export async function answer(ort, session, { labels, task, threshold }, picture) {
  const image = new ort.Tensor("uint8", picture.rgb, [1, picture.height, picture.width, 3]);
  const start = performance.now();
  const outputs = await session.run({ image });
  const milliseconds = performance.now() - start;
  const name = (index) => (labels ? labels[index] : String(index));
  if (task === "regression") {
    const values = Array.from(outputs.values.data, (value, index) => ({ label: name(index), value }));
    return { top: [], values, logits: null, milliseconds };
  }
  const probabilities = outputs.probabilities.data;
  const top = Array.from(outputs.top_indices.data, Number).map((index) => ({
    label: name(index),
    probability: probabilities[index],
    ...(task === "multi-label" && { isTrue: probabilities[index] >= threshold }),
  }));
  return { top, logits: outputs.logits ? Array.from(outputs.logits.data) : null, milliseconds };
}
