// The chat: turns, streaming, stopping, regenerating, and the numbers of the answer that is being written.

import { answer, numbers, passes } from "./answer.js";
import { Bars } from "./chart.js";
import { $, announce, h, perFrame, rounded } from "./dom.js";
import { save } from "./recording.js";
import { Tokens, turn } from "./tokens.js";

const FIELDS = ["temperature", "top_p", "max_tokens", "seed"];

export class Chat {
  constructor({ onProblem }) {
    this.onProblem = onProblem;
    this.turns = []; // { role: "user", content } and { role: "assistant", record }
    this.running = null;
    this.model = "";
    this.bars = new Bars($("strip"), ["sampled", "accepted", "rejected"], { floor: 4 });
    this.draw = perFrame(() => this.#draw());
    this.#listen();
    this.#empty();
  }

  /** The server says what it serves. */
  know(state) {
    this.model = state.model;
    $("max_tokens").placeholder = `up to ${state.context.toLocaleString("en")}`;
    const drafts = state.draft !== "none";
    $("draft").disabled = !drafts;
    $("draft").parentElement.title = drafts ? "" : "This server was started with --draft none";
  }

  stop() {
    this.running?.abort();
  }

  #listen() {
    const prompt = $("prompt");
    prompt.addEventListener("input", () => { prompt.style.height = "auto"; prompt.style.height = `${prompt.scrollHeight}px`; });
    prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.running) $("composer").requestSubmit();
    });
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.running) return this.stop();
      const text = prompt.value.trim();
      if (!text) return;
      prompt.value = "";
      prompt.style.height = "auto";
      this.#send(text);
    });
    $("again").addEventListener("click", () => this.#again());
    $("new-chat").addEventListener("click", () => { this.stop(); this.turns = []; this.#empty(); $("prompt").focus(); });
    $("save").addEventListener("click", () => save(this.turns));
    $("show-rejected").addEventListener("change", (event) => $("transcript").classList.toggle("with-rejected", event.target.checked));
  }

  #empty() {
    $("transcript").replaceChildren(h("div", { class: "empty" }, h("strong", { text: "Ask something" }),
      h("p", { text: "Every token of the answer shows how it came to be: sampled by the model, or guessed ahead and kept." })));
    this.record = null;
    this.#buttons();
    this.draw();
  }

  #send(content) {
    if (!this.turns.length) $("transcript").replaceChildren();
    this.turns.push({ role: "user", content });
    const made = turn("user");
    made.body.textContent = content;
    $("transcript").append(made.element);
    return this.#answer();
  }

  #again() {
    if (this.turns.at(-1)?.role === "assistant") this.turns.pop();
    [...$("transcript").querySelectorAll(".turn.assistant")].at(-1)?.remove();
    return this.#answer();
  }

  #request() {
    const system = $("system").value.trim();
    const messages = this.turns.map((one) => (one.role === "user" ? one : { role: "assistant", content: one.record.text })).map(({ role, content }) => ({ role, content }));
    const request = { messages: system ? [{ role: "system", content: system }, ...messages] : messages };
    if (this.model) request.model = this.model;
    for (const field of FIELDS) if ($(field).value !== "" && $(field).checkValidity()) request[field] = Number($(field).value);
    if (!$("draft").checked) request.draft = false;
    return request;
  }

  async #answer() {
    const transcript = $("transcript"), made = turn("assistant"), tokens = new Tokens(made.body);
    made.element.classList.add("busy");
    transcript.setAttribute("aria-busy", "true");
    transcript.append(made.element);
    this.running = new AbortController();
    this.record = null;
    this.#buttons();
    this.#follow(true);
    const on = (step, record) => {
      const stays = this.#isAtEnd();
      tokens.add(step);
      this.record = record;
      this.draw();
      this.#follow(stays);
    };
    let record, problem;
    try {
      record = await answer(this.#request(), { signal: this.running.signal, on });
    } catch (found) {
      [record, problem] = [found.record, found];
    }
    this.running = null;
    this.record = record;
    made.element.classList.remove("busy");
    transcript.removeAttribute("aria-busy");
    if (record.steps.length || !problem) this.turns.push({ role: "assistant", record });
    if (problem) {
      made.body.after(h("p", { class: "problem", role: "alert", text: `${problem.message}. Regenerate tries again.` }));
      this.onProblem(problem);
    } else announce(`${record.finish === "stopped" ? "Stopped" : "Answer"}: ${record.text}`);
    made.small.textContent = this.#note(record);
    this.#follow(this.#isAtEnd());
    this.#buttons();
    this.draw();
  }

  #note(record) {
    const { tokens, speed, accepted } = numbers(record);
    if (!tokens) return record.finish === "stopped" ? "stopped" : "";
    const parts = [`${tokens} tokens`];
    if (speed) parts.push(`${rounded(speed)} tokens/s`);
    if (accepted) parts.push(`${Math.round((100 * accepted) / tokens)}% drafted`);
    if (record.finish === "stopped") parts.push("stopped");
    if (record.finish === "length") parts.push("cut at the limit");
    if (record.approximate?.length) parts.push(`approximate: ${record.approximate.join(", ")}`);
    return parts.join(" · ");
  }

  /** Whether the end of the conversation is in sight: then it stays so while it grows. */
  #isAtEnd() {
    const last = $("transcript").lastElementChild;
    return !last || last.getBoundingClientRect().bottom - $("composer").getBoundingClientRect().top < 96;
  }

  #follow(stays) {
    if (stays) $("transcript").lastElementChild?.scrollIntoView({ block: "end" });
  }

  #buttons() {
    const isRunning = this.running !== null;
    $("send").textContent = isRunning ? "Stop" : "Send";
    $("send").toggleAttribute("data-stop", isRunning);
    $("again").disabled = isRunning || !this.turns.length;
    $("save").disabled = isRunning || !this.turns.some((one) => one.role === "assistant");
  }

  #draw() {
    const found = this.record ? numbers(this.record) : {};
    const put = (id, value, unit = "") => $(id).replaceChildren(value ?? "–", ...(value != null && unit ? [h("small", { text: ` ${unit}` })] : []));
    put("n-speed", found.speed ? rounded(found.speed) : null);
    put("n-first", found.first != null ? Math.round(found.first).toLocaleString("en") : null, "ms");
    put("n-step", found.perStep ? found.perStep.toFixed(2) : null);
    put("n-cached", found.cached != null ? found.cached.toLocaleString("en") : null, `of ${this.record?.usage?.prompt_tokens ?? "?"}`);
    const bars = (this.record?.steps ?? []).flatMap(passes).map((one) => [one.sampled, one.accepted, one.rejected]);
    this.bars.show(bars);
    $("strip").setAttribute("aria-label", found.perStep ? `Tokens per step: ${found.perStep.toFixed(2)} on average over ${bars.length} steps` : "Tokens per step: nothing yet");
  }
}
