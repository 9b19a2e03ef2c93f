// Bytes of an ONNX file enter; the entries that vitexport put into its metadata leave, by name, each parsed from JSON.
//
// ONNX Runtime's JavaScript API does not hand out a model's metadata, so it is read from the file: an ONNX file is a
// protobuf message, and metadata_props is its field 14, a list of (1: key, 2: value).

const METADATA_PROPS = 14;
const PREFIX = "vitexport.";

/** @returns {Generator<[number, Uint8Array]>} number and content of every field that has a length */
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * factor;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const wire = tag % 8;
    if (wire === 0) varint();
    else if (wire === 1) at += 8;
    else if (wire === 5) at += 4;
    else if (wire === 2) {
      const length = varint();
      yield [Math.floor(tag / 8), bytes.subarray(at, at + length)];
      at += length;
    } else throw new Error("This is not an ONNX file.");
  }
}

/** @param {Uint8Array} bytes  @returns {Record<string, any>} for example `labels` and `preprocess` */
export function readMetadata(bytes) {
  const text = new TextDecoder();
  const entries = {};
  for (const [number, content] of fields(bytes)) {
    if (number !== METADATA_PROPS) continue;
    const [key, value] = [...fields(content)].map(([, part]) => text.decode(part));
    if (key.startsWith(PREFIX)) entries[key.slice(PREFIX.length)] = JSON.parse(value);
  }
  return entries;
}
