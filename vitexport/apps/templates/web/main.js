// The page: a picture enters by picker, drop, paste or camera; its classes, labels or values are shown, with what they took.

const element = (id) => document.getElementById(id);
const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const canvas = element("picture");
const video = element("camera");
// Some browsers draw no larger canvas; a larger picture is made smaller first.
const MOST_PIXELS = 4096 * 4096;
const LONGEST_SIDE = 32767;
// Only the answer to the last picture is shown.
let asked = 0;
let ready = false;
let opened = 0;

worker.addEventListener("message", ({ data }) => {
  if (data.kind === "progress") {
    if (data.total) element("progress").value = data.received / data.total;
  } else if (data.kind === "ready") {
    ready = true;
    element("progress").hidden = true;
    const size = data.metadata.preprocess;
    const threads = data.threads === 1 ? "1 thread" : `${data.threads} threads`;
    element("status").textContent = `Ready: ${size.width} × ${size.height} pixels, ${threads}`;
  } else if (data.kind === "failed") {
    if (!data.id) unloaded();
    if (!data.id || data.id === asked) complain(data.message);
  } else if (data.id === asked) show(data);
});
worker.addEventListener("error", ({ message }) => {
  if (ready) return complain(message || "The model failed.");
  unloaded();
  complain("The page's worker could not start; run npm install, and serve the folder.");
});

function unloaded() {
  element("progress").hidden = true;
  element("status").textContent = "The model could not be loaded.";
}

function complain(message) {
  element("results").removeAttribute("aria-busy");
  element("problem").textContent = message;
  element("problem").hidden = !message;
}

function show({ top, values = [], milliseconds }) {
  element("results").hidden = false;
  element("results").removeAttribute("aria-busy");
  const percent = (value) => `${(value * 100).toFixed(1)} %`;
  const isFound = ({ isTrue }) => isTrue !== false;
  element("top").replaceChildren(
    ...values.map(({ label, value }) => {
      const item = document.createElement("li");
      for (const [name, text] of [["label", label], ["percent", value.toPrecision(5)]]) {
        const node = document.createElement("span");
        node.className = name;
        node.textContent = text;
        item.append(node);
      }
      return item;
    }),
    ...top.map(({ label, probability, isTrue }) => {
      const item = document.createElement("li");
      item.classList.toggle("quiet", isTrue === false);
      const part = (name, text = "") => {
        const node = document.createElement(name === "track" || name === "bar" ? "div" : "span");
        node.className = name;
        node.textContent = text;
        return node;
      };
      const track = part("track");
      track.setAttribute("aria-hidden", "true");
      const bar = part("bar");
      bar.style.width = percent(probability).replace(" ", "");
      track.append(bar);
      item.append(part("label", label), part("percent", percent(probability)), track);
      return item;
    }),
  );
  element("milliseconds").textContent = `${milliseconds.toFixed(1)} ms`;
  const [first] = top;
  const found = top.filter(isFound).map(({ label }) => label);
  const said = values.length
    ? values.map(({ label, value }) => `${label} ${value.toPrecision(5)}`).join(", ")
    : first.isTrue === undefined
      ? `${first.label}, ${percent(first.probability)}`
      : found.join(", ") || "no label";
  element("announcement").textContent = `${said}, in ${milliseconds.toFixed(0)} milliseconds`;
}

/** Show `source`, something that a canvas can draw, and ask for its classes. */
function classify(source, naturalWidth, naturalHeight, name) {
  if (!naturalWidth || !naturalHeight) return complain(`${name} has no pixels.`);
  complain("");
  const longest = Math.max(naturalWidth, naturalHeight);
  const scale = Math.min(1, Math.sqrt(MOST_PIXELS / (naturalWidth * naturalHeight)), LONGEST_SIDE / longest);
  const [width, height] = [naturalWidth, naturalHeight].map((side) => Math.max(1, Math.floor(side * scale)));
  canvas.width = width;
  canvas.height = height;
  canvas.hidden = false;
  canvas.classList.toggle("small", Math.max(width, height) < 200);
  canvas.setAttribute("aria-label", name);
  element("empty").hidden = true;
  element("stage").classList.add("filled");
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  element("results").setAttribute("aria-busy", "true");
  asked += 1;
  worker.postMessage({ id: asked, rgba: data, height, width }, [data.buffer]);
}

/** Upright, by any decoder that the browser has: only the one of images knows SVG. */
async function decode(file) {
  try {
    const source = await createImageBitmap(file, { imageOrientation: "from-image", premultiplyAlpha: "none" });
    return { source, width: source.width, height: source.height };
  } catch {
    const source = new Image();
    source.src = URL.createObjectURL(file);
    try {
      await source.decode();
    } finally {
      URL.revokeObjectURL(source.src);
    }
    return { source, width: source.naturalWidth, height: source.naturalHeight };
  }
}

async function open(file) {
  stopCamera();
  // A large picture takes its time to be decoded; what was given after it is what the page is to show.
  opened += 1;
  const ticket = opened;
  try {
    const { source, width, height } = await decode(file);
    if (ticket === opened) classify(source, width, height, file.name || "pasted picture");
    source.close?.();
  } catch (error) {
    const why = error instanceof DOMException ? "not a picture that this browser can read" : `too much for it: ${error.message}`;
    if (ticket === opened) complain(`${file.name || "This"} is ${why}.`);
  }
}

element("file").addEventListener("change", ({ target }) => {
  if (target.files.length) open(target.files[0]);
  // The same file can then be chosen again.
  target.value = "";
});

const stage = element("stage");
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    stage.classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) stage.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  stage.classList.remove("over");
  const file = event.dataTransfer.files[0];
  if (file) open(file);
});
document.addEventListener("paste", (event) => {
  const file = event.clipboardData.files[0];
  if (file) open(file);
});

function stopCamera() {
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
  video.hidden = true;
  element("shoot").hidden = true;
  element("camera-button").setAttribute("aria-pressed", "false");
  element("camera-button").textContent = "Use the camera";
  element("empty").hidden = !canvas.hidden;
}

element("camera-button").addEventListener("click", async () => {
  if (video.srcObject) {
    stopCamera();
    return;
  }
  const button = element("camera-button");
  button.disabled = true;
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    await video.play();
  } catch {
    stopCamera();
    complain("There is no camera that this page may use.");
    return;
  } finally {
    button.disabled = false;
  }
  complain("");
  canvas.hidden = true;
  element("empty").hidden = true;
  video.hidden = false;
  element("shoot").hidden = false;
  element("camera-button").setAttribute("aria-pressed", "true");
  element("camera-button").textContent = "Stop the camera";
  element("shoot").focus();
});

element("shoot").addEventListener("click", () => {
  opened += 1;
  classify(video, video.videoWidth, video.videoHeight, "picture from the camera");
  stopCamera();
  element("camera-button").focus();
});
