// Address, picture and where the screenshot goes enter; what the page says leaves as JSON. Run by test_apps.py.

import { createRequire } from "node:module";

const [packages, url, picture, screenshot] = process.argv.slice(2);
const { chromium } = createRequire(`${packages}/`)("playwright-core");
const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: [
    ...["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
    ...["--disable-background-networking", "--disable-component-update", "--disable-sync"],
  ],
});
const page = await browser.newPage({ viewport: { width: 1000, height: 620 } });
const complaints = [];
page.on("pageerror", (error) => complaints.push(error.message));
page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
await page.goto(url);
await page.waitForFunction(() => /Ready|could not/.test(document.getElementById("status").textContent), null, { timeout: 90000 });
await page.keyboard.press("Tab");
const focused = await page.evaluate(() => document.activeElement.id);
await page.setInputFiles("#file", picture);
await page.waitForSelector("#top li", { timeout: 60000 });
await page.waitForTimeout(400);
const report = {
  complaints,
  focused,
  status: await page.textContent("#status"),
  labels: await page.locator("#top .label").allTextContents(),
  percents: await page.locator("#top .percent").allTextContents(),
  milliseconds: parseFloat(await page.textContent("#milliseconds")),
  announcement: await page.textContent("#announcement"),
};
await page.screenshot({ path: screenshot });
await browser.close();
console.log(JSON.stringify(report));
