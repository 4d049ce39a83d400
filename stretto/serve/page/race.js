// The race: one prompt, one seed, without drafts and with them, one after the other. Both must give the same ids.

import { answer, ids, numbers } from "./answer.js";
import { $, announce, h, rounded } from "./dom.js";
import { Tokens } from "./tokens.js";

class Lane {
  constructor(name) {
    const lane = $(`lane-${name}`);
    this.tokens = new Tokens(lane.querySelector(".lane-text"));
    this.number = lane.querySelector(".lane-number");
    this.progress = lane.querySelector("progress");
    this.box = lane.querySelector(".lane-text");
  }

  clear() {
    this.tokens.clear();
    this.number.textContent = "";
    this.progress.value = 0;
  }

  add(step, most) {
    this.tokens.add(step);
    this.progress.value = Math.min(1, this.tokens.count / most);
    this.box.scrollTop = this.box.scrollHeight;
  }

  end(record) {
    const { speed, tokens } = numbers(record);
    this.progress.value = 1;
    this.number.textContent = `${tokens} tokens · ${speed ? `${rounded(speed)} tokens/s` : "–"}`;
  }
}

export class Race {
  constructor({ onProblem }) {
    this.onProblem = onProblem;
    this.lanes = { plain: new Lane("plain"), drafted: new Lane("drafted") };
    this.running = null;
    this.drafts = true;
    $("race-form").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.running) this.stop();
      else if ($("race-prompt").value.trim()) this.#run();
    });
    $("race-prompt").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.running) $("race-form").requestSubmit();
    });
    $("race-watch").addEventListener("click", () => this.#watch());
  }

  know(state) {
    this.drafts = state.draft !== "none";
    this.model = state.model;
  }

  stop() {
    this.running?.abort();
  }

  async #run() {
    const most = Number($("race-tokens").value) || 160;
    const request = {
      messages: [{ role: "user", content: $("race-prompt").value.trim() }], max_tokens: most,
      temperature: Number($("race-temperature").value), seed: Number($("race-seed").value),
    };
    if (this.model) request.model = this.model;
    this.running = new AbortController();
    this.most = most;
    this.records = {};
    for (const lane of Object.values(this.lanes)) lane.clear();
    this.#buttons();
    this.#say(h("p", { class: "muted", text: "Running without drafts …" }));
    try {
      for (const name of ["plain", "drafted"]) {
        if (name === "drafted") this.#say(h("p", { class: "muted", text: "Running with drafts …" }));
        const lane = this.lanes[name];
        const record = await answer({ ...request, draft: name === "drafted" }, { signal: this.running.signal, on: (step) => lane.add(step, most) });
        if (record.finish === "stopped") { this.#say(h("p", { class: "muted", text: "Stopped." })); return; }
        lane.end(record);
        this.records[name] = record;
      }
      this.#judge();
    } catch (problem) {
      this.#say(h("p", { class: "differ", role: "alert", text: `${problem.message}.` }));
      this.onProblem(problem);
    } finally {
      this.running = null;
      this.#buttons();
    }
  }

  #judge() {
    const [plain, drafted] = [this.records.plain, this.records.drafted];
    const [a, b] = [ids(plain), ids(drafted)];
    const at = a.findIndex((id, i) => id !== b[i]);
    const isSame = at < 0 && a.length === b.length;
    const ratio = numbers(drafted).speed / numbers(plain).speed;
    const where = at < 0 ? Math.min(a.length, b.length) : at;
    if (!isSame) for (const lane of Object.values(this.lanes)) lane.tokens.spans[where]?.classList.add("differs");
    const verdict = isSame ? `the same ${a.length} tokens` : `the tokens differ from number ${where + 1} on`;
    const { accepted, drafted: guessed } = numbers(drafted);
    const parts = [h("strong", { text: Number.isFinite(ratio) ? `${ratio.toFixed(2)}×` : "–" }), h("span", { text: "the speed of plain decoding" }),
      h("span", { class: isSame ? "same" : "differ", text: `${isSame ? "✓" : "✗"} ${verdict}` }),
      h("span", { class: "muted", text: guessed ? `${accepted} of ${guessed} drafted tokens accepted` : "nothing was drafted" })];
    if (!this.drafts) parts.push(h("p", { class: "muted", text: "This server was started with --draft none: both lanes are plain." }));
    this.#say(...parts);
    announce(`${Number.isFinite(ratio) ? ratio.toFixed(2) : "unknown"} times the speed, ${verdict}`);
  }

  /** Both answers again, started together, at the speed at which they came. */
  #watch() {
    const lanes = Object.entries(this.lanes).map(([name, lane]) => ({ lane, record: this.records[name], next: 0 }));
    for (const { lane } of lanes) lane.clear();
    const began = performance.now(), run = {};
    this.watching = run;
    const tick = (time) => {
      if (this.watching !== run || this.running) return;
      for (const one of lanes) {
        const { steps } = one.record, first = steps[0]?.at ?? 0;
        while (one.next < steps.length && steps[one.next].at - first <= time - began) one.lane.add(steps[one.next++], this.most);
        if (one.next === steps.length) one.lane.end(one.record);
      }
      if (lanes.some((one) => one.next < one.record.steps.length)) requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  #say(...parts) {
    $("race-verdict").replaceChildren(...parts);
  }

  #buttons() {
    const isRunning = this.running !== null;
    $("race-go").textContent = isRunning ? "Stop" : "Race";
    $("race-go").toggleAttribute("data-stop", isRunning);
    $("race-watch").disabled = isRunning || !(this.records?.plain && this.records?.drafted);
  }
}
