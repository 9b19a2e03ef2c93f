// Address, picture and where the screenshot goes enter; what the page says leaves as JSON, and how long the model took each
// time. Run by test_apps.py and scripts/measure_apps.

import { launch, open } from "./chromium.mjs";

const [packages, url, picture, screenshot, repeats = "1"] = process.argv.slice(2);
const browser = await launch(packages);
const page = await browser.newPage({ viewport: { width: 1000, height: 620 } });
const complaints = [];
page.on("pageerror", (error) => complaints.push(error.message));
page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
await open(page, url);
await page.keyboard.press("Tab");
const focused = await page.evaluate(() => document.activeElement.id);
const samples = [];
while (samples.length < Number(repeats)) {
  await page.evaluate(() => (document.getElementById("milliseconds").textContent = ""));
  await page.setInputFiles("#file", picture);
  await page.waitForFunction(() => document.getElementById("milliseconds").textContent, null, { timeout: 60000 });
  samples.push(parseFloat(await page.textContent("#milliseconds")));
}
await page.waitForTimeout(400);
const report = {
  complaints,
  focused,
  status: await page.textContent("#status"),
  labels: await page.locator("#top .label").allTextContents(),
  percents: await page.locator("#top .percent").allTextContents(),
  samples,
  announcement: await page.textContent("#announcement"),
};
await page.screenshot({ path: screenshot });
await browser.close();
console.log(JSON.stringify(report));
