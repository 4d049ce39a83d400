// Tokens on the page: each a span whose shade, underline and title say how it came to be.

import { h } from "./dom.js";

const DEEPEST = 8; // depths from here on look alike
const OPEN = new Set(["<think>", "[THINK]"]), CLOSE = new Set(["</think>", "[/THINK]"]); // tokens that are no text

/** Writes the steps of one answer into `body`. */
export class Tokens {
  constructor(body) {
    this.body = body;
    this.clear();
  }

  clear() {
    this.body.replaceChildren();
    this.thinking = null;
    this.isThinking = false;
    this.count = 0;
    this.spans = [];
  }

  add(step) {
    const tags = step.texts.map((text) => (OPEN.has(text.trim()) ? "open" : CLOSE.has(text.trim()) ? "close" : ""));
    if (!tags.some(Boolean)) this.isThinking = step.part === "reasoning";
    step.texts.forEach((text, i) => {
      if (i === step.accepted) this.#rejected(step);
      if (tags[i]) this.isThinking = tags[i] === "open";
      this.#place().append(this.#token(step, i, tags[i] ? "" : text));
    });
    if (step.accepted === step.texts.length) this.#rejected(step);
  }

  #token(step, i, text) {
    this.count += 1;
    const isDraft = i < step.accepted;
    const how = isDraft ? `accepted draft, depth ${i + 1}` : "sampled";
    const title = `${how} · token ${this.count} · id ${step.ids[i]} · ${(step.at / 1e3).toFixed(2)} s`;
    const span = h("span", { class: isDraft ? "token accepted" : "token", "data-depth": isDraft ? Math.min(i + 1, DEEPEST) : null, title, text });
    this.spans.push(span);
    return span;
  }

  #rejected(step) {
    step.rejected.forEach((text, i) => {
      this.#place().append(h("s", { class: "token rejected", title: `rejected draft, depth ${step.accepted + i + 1}`, text: text.replaceAll("\n", "↵") }));
    });
  }

  #place() {
    if (!this.isThinking) return this.body;
    if (!this.thinking) {
      this.thinking = h("div");
      this.body.append(h("details", { class: "thinking", open: true }, h("summary", { text: "Thinking" }), this.thinking));
    }
    return this.thinking;
  }
}

/** A turn of a conversation: who, then the text. */
export function turn(role, note = "") {
  const body = h("div", { class: "body" });
  const small = h("small", { text: note });
  const names = { user: "You", assistant: "Model", system: "System" };
  const element = h("article", { class: `turn ${role}` }, h("header", {}, names[role] ?? role, small), body);
  return { element, body, small };
}
