// Replay: turns of a recording, written again at the speed at which they came, or faster.

import { numbers, passes } from "./answer.js";
import { Bars } from "./chart.js";
import { $, h, rounded } from "./dom.js";
import { read } from "./recording.js";
import { Tokens, turn } from "./tokens.js";

const PAUSE_MS = 400; // between two turns

export class Replay {
  constructor() {
    this.moments = []; // { at, show } in order
    this.now = this.end = this.next = 0;
    this.frame = null;
    this.bars = new Bars($("replay-strip"), ["sampled", "accepted", "rejected"], { most: 256, floor: 4 });
    this.#listen();
    this.#empty();
  }

  #listen() {
    $("replay-file").addEventListener("change", (event) => event.target.files[0] && this.#load(event.target.files[0]));
    $("replay-file").addEventListener("click", (event) => { event.target.value = ""; }); // the same file again is news, too
    $("replay-play").addEventListener("click", () => (this.frame ? this.#pause() : this.#play()));
    $("replay-seek").addEventListener("input", (event) => {
      const at = (event.target.value / 1000) * this.end; // before anything writes it
      this.#pause();
      this.#seek(at);
    });
    $("replay-rejected").addEventListener("change", (event) => $("replay-transcript").classList.toggle("with-rejected", event.target.checked));
    const view = $("replay");
    view.addEventListener("dragover", (event) => { event.preventDefault(); view.classList.add("drop"); });
    view.addEventListener("dragleave", () => view.classList.remove("drop"));
    view.addEventListener("drop", (event) => {
      event.preventDefault();
      view.classList.remove("drop");
      if (event.dataTransfer.files[0]) this.#load(event.dataTransfer.files[0]);
    });
  }

  #empty(strong = "No recording yet", text = "Open one above, or drop a file anywhere on this view.") {
    $("replay-transcript").replaceChildren(h("div", { class: "empty" }, h("strong", { text: strong }), h("p", { text })));
  }

  async #load(file) {
    this.#pause();
    try {
      this.turns = await read(file);
    } catch (problem) {
      this.turns = null;
      this.moments = [];
      this.#enable(false);
      this.bars.show([]);
      return this.#empty("This cannot be played", `${problem.message}.`);
    }
    this.#plan();
    this.#enable(true);
    this.#seek(0);
    this.#play();
  }

  /** When what is to be seen. */
  #plan() {
    this.moments = [];
    let at = 0;
    for (const one of this.turns) {
      if (one.role === "user") this.moments.push({ at, turn: one });
      else {
        this.moments.push({ at, turn: one });
        for (const step of one.record.steps) this.moments.push({ at: at + step.at, step });
        at += (one.record.steps.at(-1)?.at ?? 0) + PAUSE_MS;
      }
    }
    this.end = this.moments.at(-1)?.at ?? 0;
    const records = this.turns.filter((one) => one.role === "assistant").map((one) => one.record);
    const found = numbers({ steps: records.flatMap((record) => record.steps) });
    const about = [`${found.tokens} tokens`, `${records.length} ${records.length === 1 ? "answer" : "answers"} of ${records[0]?.model || "a model"}`];
    if (found.perStep) about.push(`${rounded(found.perStep)} tokens per step`);
    $("replay-about").textContent = `${about.join(" · ")}. The bars are tokens per step: sampled, accepted, rejected.`;
  }

  #enable(on) {
    $("replay-play").disabled = $("replay-seek").disabled = !on;
  }

  #play() {
    if (this.next >= this.moments.length) this.#seek(0);
    let last = performance.now();
    const tick = (time) => {
      const speed = Number($("replay-speed").value);
      this.now = Math.min(this.end, this.now + Math.max(0, time - last) * speed);
      last = time;
      const page = $("main"), stays = page.scrollHeight - page.scrollTop - page.clientHeight < 96;
      this.#advance();
      if (stays) page.scrollTop = page.scrollHeight;
      this.frame = this.next < this.moments.length ? requestAnimationFrame(tick) : null;
      this.#label();
    };
    this.frame = requestAnimationFrame(tick);
    this.#label();
  }

  #pause() {
    if (this.frame) cancelAnimationFrame(this.frame);
    this.frame = null;
    this.#label();
  }

  #seek(at) {
    this.now = at;
    this.next = 0;
    this.shown = [];
    $("replay-transcript").replaceChildren();
    this.#advance();
    this.#label();
  }

  #advance() {
    const place = $("replay-transcript");
    while (this.next < this.moments.length && this.moments[this.next].at <= this.now) {
      const moment = this.moments[this.next++];
      if (moment.turn) {
        const made = turn(moment.turn.role);
        place.append(made.element);
        if (moment.turn.role === "user") made.body.textContent = moment.turn.content;
        else this.tokens = new Tokens(made.body);
      } else {
        this.tokens.add(moment.step);
        this.shown.push(...passes(moment.step).map((one) => [one.sampled, one.accepted, one.rejected]));
      }
    }
    this.bars.show(this.shown);
  }

  #label() {
    $("replay-play").textContent = this.frame ? "Pause" : this.next >= this.moments.length && this.moments.length ? "Play again" : "Play";
    $("replay-seek").value = this.end ? Math.round((1000 * this.now) / this.end) : 0;
    $("replay-time").textContent = `${(this.now / 1e3).toFixed(1)} s`;
  }
}
