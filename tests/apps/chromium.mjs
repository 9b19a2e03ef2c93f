// Where npm's packages are enters; a headless Chromium that asks nobody but the page leaves.

import { createRequire } from "node:module";

const QUIET = [
  ...["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
  ...["--disable-background-networking", "--disable-component-update", "--disable-sync"],
];

export function launch(packages, ...more) {
  const { chromium } = createRequire(`${packages}/`)("playwright-core");
  return chromium.launch({ executablePath: "/usr/bin/chromium", args: [...QUIET, ...more] });
}

/** Until the page has loaded its model, or says that it could not. */
export async function open(page, url) {
  await page.goto(url);
  const told = () => /Ready|could not/.test(document.getElementById("status").textContent);
  await page.waitForFunction(told, null, { timeout: 90000 });
}
