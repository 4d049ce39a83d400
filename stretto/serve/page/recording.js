// Recordings: a chat as a file. What is read back is checked field by field; a file is as foreign as a client.

import { h } from "./dom.js";

const FORMAT = "stretto-recording", VERSION = 1;
const MOST_BYTES = 64 << 20;

export function save(turns) {
  const made = { format: FORMAT, version: VERSION, saved: new Date().toISOString(), turns };
  const url = URL.createObjectURL(new Blob([JSON.stringify(made)], { type: "application/json" }));
  const link = h("a", { href: url, download: `stretto-${made.saved.slice(0, 19).replaceAll(":", "-")}.json` });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** The turns of a file. Throws an Error that says what is wrong with it. */
export async function read(file) {
  if (file.size > MOST_BYTES) throw new Error("This file is larger than any recording");
  let made;
  try {
    made = JSON.parse(await file.text());
  } catch {
    throw new Error("This file is not JSON");
  }
  if (made?.format !== FORMAT) throw new Error("This file is not a recording of stretto");
  if (made.version !== VERSION) throw new Error(`This recording has version ${made.version}; this page reads version ${VERSION}`);
  if (!Array.isArray(made.turns)) throw new Error("This recording has no turns");
  return made.turns.map(checked);
}

function checked(one, number) {
  const fail = (what) => { throw new Error(`Turn ${number + 1} of this recording is damaged: ${what}`); };
  if (one?.role === "user") return typeof one.content === "string" ? { role: "user", content: one.content } : fail("its text");
  if (one?.role !== "assistant") fail("its role");
  const record = one.record;
  if (!Array.isArray(record?.steps)) fail("its steps");
  const isTexts = (list) => Array.isArray(list) && list.every((text) => typeof text === "string");
  let last = 0;
  for (const step of record.steps) {
    if (!(step.at >= last)) fail("its times");
    last = step.at;
    const count = step.texts?.length;
    if (!isTexts(step.texts) || !isTexts(step.rejected) || !Array.isArray(step.ids) || step.ids.length !== count) fail("its tokens");
    if (!Number.isInteger(step.accepted) || step.accepted < 0 || step.accepted > count) fail("its counts");
  }
  return { role: "assistant", record: { model: String(record.model ?? ""), timings: null, usage: record.usage ?? null, text: String(record.text ?? ""), finish: record.finish ?? null, steps: record.steps } };
}
