// The monitor: the engine between two of its steps, asked for while this view is open.

import { get } from "./api.js";
import { Bars } from "./chart.js";
import { $, drawn, h, rounded, seconds } from "./dom.js";

const EVERY_MS = 500, LATEST = 120;
const OWNERS = { 0: ["", ""], "-1": ["shared", "several requests"], "-2": ["idle", "idle prefix"] }; // class and title
const PHASES = ["prefill", "decode", "verify"];

export class Monitor {
  constructor({ onProblem, onState }) {
    Object.assign(this, { onProblem, onState, isWatching: false, maps: new Map() });
    this.times = new Bars($("times"), PHASES, { most: LATEST, floor: 1 });
    this.histogram = new Bars($("histogram"), PHASES, { most: 27, floor: 1 });
    this.#tiles(null);
    this.#requests(null);
  }

  watch(on) {
    if (on === this.isWatching) return;
    this.isWatching = on;
    if (on) this.#run();
  }

  async #run() {
    const run = (this.run = {});
    while (this.isWatching && this.run === run) {
      if (!document.hidden) {
        try {
          const state = await get("stretto/state");
          if (this.run !== run) return;
          this.show(state);
          this.onState(state);
        } catch (problem) {
          this.onProblem(problem);
          if (problem.status === 401) { this.isWatching = false; return; }
        }
      }
      await new Promise((next) => setTimeout(next, EVERY_MS));
    }
  }

  show(state) {
    this.#tiles(state);
    this.#pools(state.pools);
    this.#requests(state);
    this.#steps(state);
  }

  #tiles(state) {
    const share = state?.draft_tokens ? `${Math.round((100 * state.accepted_tokens) / state.draft_tokens)}%` : "–";
    const step = state?.steps.length ? median(state.steps.map((one) => (1e3 * one.seconds) / one.num_steps)) : null;
    const found = [
      ["Tokens/s", state ? rounded(state.tokens_per_second) : "–"], ["Running", state ? `${state.running}` : "–", state ? `of ${state.max_seqs}` : ""],
      ["Waiting", state ? `${state.waiting}` : "–"], ["Step, median", step === null ? "–" : rounded(step), "ms"],
      ["Drafts accepted", share], ["Preemptions", state ? `${state.preemptions}` : "–"],
    ];
    $("tiles").replaceChildren(...found.map(([name, value, unit]) => h("div", {}, h("dt", { text: name }), h("dd", {}, value, ...(unit && value !== "–" ? [h("small", { text: ` ${unit}` })] : [])))));
  }

  #pools(pools) {
    const names = pools.map((one) => `${one.kind} ${one.name}`);
    if ([...this.maps.keys()].join() !== names.join()) {
      this.maps = new Map(pools.map((one, i) => [names[i], new PoolMap(one)]));
      $("pools").replaceChildren(...[...this.maps.values()].map((map) => map.element));
      if (!pools.length) $("pools").replaceChildren(h("p", { class: "muted", text: "This model keeps no cache." }));
    }
    pools.forEach((one, i) => this.maps.get(names[i]).show(one));
  }

  #requests(state) {
    const rows = (state?.requests ?? []).map((one) => {
      const done = one.phase === "decode" ? one.output / one.limit : one.held / one.prompt;
      const cells = [`${one.id}`, one.phase + (one.preemptions ? ` (preempted ${one.preemptions}×)` : ""), one.prompt.toLocaleString("en"), one.cached.toLocaleString("en"), `${one.output.toLocaleString("en")} of ${one.limit.toLocaleString("en")}`];
      return h("tr", {}, ...cells.map((text, i) => h("td", { class: i > 1 ? "num" : "", text })),
        h("td", {}, h("progress", { max: 1, value: Math.min(1, done), "aria-label": `${one.phase} of request ${one.id}` })),
        h("td", { class: "num", text: `${one.pages}` }), h("td", { class: "num", text: one.drafted ? `${one.accepted} of ${one.drafted}` : "–" }), h("td", { class: "num", text: seconds(one.age_s) }));
    });
    const none = h("tr", {}, h("td", { class: "none", colspan: 9, text: state ? "No requests right now. They appear here while they wait and run, without their texts." : "Nothing known yet." }));
    $("requests").replaceChildren(...(rows.length ? rows : [none]));
  }

  #steps(state) {
    const bar = (phase, value) => PHASES.map((one) => (one === phase ? value : 0));
    const each = state.steps.map((one) => [one.phase, (1e3 * one.seconds) / one.num_steps]);
    const top = this.times.show(each.map(([phase, ms]) => bar(phase, ms)));
    $("times-text").textContent = each.length ? `Milliseconds of the latest steps, highest ${rounded(top)} ms` : "Milliseconds of the latest steps: none yet";
    $("times").setAttribute("aria-label", $("times-text").textContent);
    const bins = [...state.bounds_ms.keys(), state.bounds_ms.length];
    this.histogram.show(bins.map((i) => column(PHASES.map((phase) => state.histogram[phase][i]))));
    $("histogram").setAttribute("aria-label", `${state.num_steps} steps by duration`);
    if (!$("histogram-axis").childElementCount) {
      for (let i = 0; i < bins.length - 1; i += 4) {
        const mark = h("span", { text: state.bounds_ms[i] < 1 ? `${state.bounds_ms[i]}` : `${Math.round(state.bounds_ms[i])} ms` });
        mark.style.left = `${(100 * (i + 1)) / bins.length}%`; // the upper end of the column
        $("histogram-axis").append(mark);
      }
    }
  }
}

/** The map of one pool: a cell per page or slot, or per several of them. */
class PoolMap {
  constructor(pool) {
    this.name = h("span");
    this.grid = h("div", { class: "map", role: "img" });
    this.counts = h("div", { class: "counts" });
    this.used = drawn("rect", { class: "used", height: 8 });
    this.idle = drawn("rect", { class: "idle", height: 8 });
    const svg = drawn("svg", { viewBox: "0 0 1000 8", preserveAspectRatio: "none", "aria-hidden": "true" });
    svg.append(this.used, this.idle);
    this.element = h("div", { class: "pool" }, h("header", {}, this.name), this.grid, h("div", { class: "meter" }, svg), this.counts);
    this.cells = pool.cells.map(() => h("i"));
    this.grid.append(...this.cells);
    this.last = pool.cells.map(() => 0);
  }

  show(pool) {
    const unit = pool.kind === "pages" ? "page" : "slot";
    this.name.textContent = pool.kind === "slots" ? "State slots" : pool.name === "all" ? "Pages" : `Pages, ${pool.name}`;
    pool.cells.forEach((owner, i) => {
      if (owner === this.last[i]) return;
      this.last[i] = owner;
      [this.cells[i].className, this.cells[i].title] = OWNERS[owner] ?? [`used o${owner % 4}`, `request ${owner - 1}`];
    });
    const width = (count) => (1000 * count) / Math.max(1, pool.total);
    this.used.setAttribute("width", width(pool.used));
    this.idle.setAttribute("x", width(pool.used));
    this.idle.setAttribute("width", width(pool.idle));
    const each = pool.per_cell > 1 ? [h("span", { text: `a cell is ${pool.per_cell} ${unit}s` })] : [];
    const said = ["used", "idle", "free"].map((name) => `${pool[name].toLocaleString("en")} ${name === "idle" ? "idle prefixes" : name}`);
    this.counts.replaceChildren(...said.map((text, i) => h("span", {}, h("i", { class: `swatch ${["used", "idle", "free"][i]}` }), text)), ...each);
    this.grid.setAttribute("aria-label", `${this.name.textContent}: ${said.join(", ")}`);
  }
}

/** A column of the histogram: as high as the root of its steps, so that rare slow ones are seen, split by phase. */
function column(counts) {
  const all = counts.reduce((a, b) => a + b, 0);
  return counts.map((count) => (all ? (Math.sqrt(all) * count) / all : 0));
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[sorted.length >> 1];
}
