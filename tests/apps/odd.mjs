// Address and pictures enter; what the page says leaves as JSON: before, of each picture, and of the first one dropped and
// pasted, and of a camera, which is Chromium's own. Run by test_apps.py.

import { readFile } from "node:fs/promises";
import { launch, open } from "./chromium.mjs";

const [packages, url, ...pictures] = process.argv.slice(2);
const browser = await launch(packages, "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream");
const page = await browser.newPage();
await open(page, url);
const state = () =>
  page.evaluate(() => {
    const element = (id) => document.getElementById(id);
    const [label] = document.querySelectorAll("#top .label");
    const [percent] = document.querySelectorAll("#top .percent");
    return {
      status: element("status").textContent,
      loading: !element("progress").hidden,
      problem: element("problem").hidden ? null : element("problem").textContent,
      busy: element("results").hasAttribute("aria-busy"),
      size: [element("picture").height, element("picture").width],
      label: label?.textContent,
      percent: parseFloat(percent?.textContent),
    };
  });
const states = [await state()];
async function after(action) {
  await page.evaluate(() => {
    document.getElementById("milliseconds").textContent = "";
    document.getElementById("problem").hidden = true;
  });
  await action();
  const answered = () => document.getElementById("milliseconds").textContent || !document.getElementById("problem").hidden;
  await page.waitForFunction(answered, null, { timeout: 60000 });
  states.push(await state());
}
for (const picture of pictures) await after(() => page.setInputFiles("#file", picture));
if (pictures.length) {
  const encoded = (await readFile(pictures[0])).toString("base64");
  const give = (kind) =>
    page.evaluate(
      async ([kind, encoded]) => {
        const bytes = await (await fetch(`data:image/jpeg;base64,${encoded}`)).blob();
        const data = new DataTransfer();
        data.items.add(new File([bytes], "given.jpg", { type: "image/jpeg" }));
        const words = kind === "drop" ? { dataTransfer: data } : { clipboardData: data };
        const Kind = kind === "drop" ? DragEvent : ClipboardEvent;
        document.getElementById("stage").dispatchEvent(new Kind(kind, { ...words, bubbles: true, cancelable: true }));
      },
      [kind, encoded],
    );
  await after(() => give("drop"));
  await after(() => give("paste"));
  await after(async () => {
    await page.click("#camera-button");
    await page.click("#shoot");
  });
}
await browser.close();
console.log(JSON.stringify(states));
