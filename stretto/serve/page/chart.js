// Bars, drawn as one path per kind, so that a frame costs little however many there are.

import { drawn } from "./dom.js";

const BAR = 3, GAP = 1;

/** Stacked bars. kinds: from the bottom up, each a class `c-KIND`. */
export class Bars {
  constructor(svg, kinds, { most = 96, floor = 1 } = {}) {
    Object.assign(this, { svg, kinds, most, floor });
    this.paths = kinds.map((kind) => drawn("path", { class: `c-${kind}` }));
    svg.replaceChildren(...this.paths);
  }

  /** values: a list per bar, its heights by kind. The latest stands on the right. */
  show(values) {
    const shown = values.slice(-this.most);
    const top = Math.max(this.floor, ...shown.map((bar) => bar.reduce((a, b) => a + b, 0)));
    const width = this.most * (BAR + GAP);
    this.svg.setAttribute("viewBox", `0 0 ${width} 100`);
    const parts = this.kinds.map(() => []);
    shown.forEach((bar, i) => {
      const x = width - (shown.length - i) * (BAR + GAP);
      let y = 100;
      bar.forEach((value, kind) => {
        const height = (94 * value) / top;
        if (height > 0) parts[kind].push(`M${x} ${y.toFixed(2)}h${BAR}v${(-height).toFixed(2)}h${-BAR}z`);
        y -= height;
      });
    });
    this.paths.forEach((path, kind) => path.setAttribute("d", parts[kind].join("")));
    return top;
  }
}
