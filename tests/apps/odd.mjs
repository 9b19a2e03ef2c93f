// Address and pictures enter; what the page says of each leaves as JSON, and what it says before. Run by test_apps.py.

import { createRequire } from "node:module";

const [packages, url, ...pictures] = process.argv.slice(2);
const { chromium } = createRequire(`${packages}/`)("playwright-core");
const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: [
    ...["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
    ...["--disable-background-networking", "--disable-component-update", "--disable-sync"],
  ],
});
const page = await browser.newPage();
await page.goto(url);
await page.waitForFunction(() => /Ready|could not/.test(document.getElementById("status").textContent), null, { timeout: 90000 });
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
for (const picture of pictures) {
  await page.evaluate(() => {
    document.getElementById("milliseconds").textContent = "";
    document.getElementById("problem").hidden = true;
  });
  await page.setInputFiles("#file", picture);
  const answered = () => document.getElementById("milliseconds").textContent || !document.getElementById("problem").hidden;
  await page.waitForFunction(answered, null, { timeout: 60000 });
  states.push(await state());
}
await browser.close();
console.log(JSON.stringify(states));
