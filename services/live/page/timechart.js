import { area, line, onResize, size, svg, ticks } from "./svg.js";
import { ago, clock, fixed, speed } from "./format.js";

const LEFT = 40;
const RIGHT = 8;
const GAP = 30; // between the two plots
const FOOT = 20;
const LEAST_S = 60;
const APART = 34; // pixels between two versions' names

// Speed above, acceptance length below, on one time axis; versions as vertical lines through both.
export class TimeChart {
  constructor(element, readout) {
    this.element = element;
    this.readout = readout;
    this.frames = [];
    this.cursor = null; // index of the frame that is read out
    onResize(element, () => this.draw());
    element.addEventListener("pointermove", (event) => this.point(event));
    element.addEventListener("pointerleave", () => this.move(null));
    element.addEventListener("blur", () => this.move(null));
    element.addEventListener("keydown", (event) => this.key(event));
  }

  show(frames) {
    this.frames = frames;
    if (this.cursor !== null) this.cursor = Math.min(this.cursor, frames.length - 1);
    this.draw();
  }

  draw() {
    const { width, height } = size(this.element);
    if (!width || !this.frames.length) return;
    const end = this.frames.at(-1).time;
    const begin = Math.min(this.frames[0].time, end - LEAST_S);
    this.x = (time) => LEFT + ((time - begin) / (end - begin)) * (width - LEFT - RIGHT);
    const room = height - FOOT - GAP;
    const top = { from: 14, to: 14 + (room - 14) * 0.52 };
    const low = { from: top.to + GAP, to: height - FOOT };
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    root.append(...this.times(begin, end, low.to, width));
    root.append(...this.versions(top.from, low.to));
    root.append(...this.plot("tokens/s", "tokens_per_s", top, 0, "speed", width, speed));
    root.append(...this.plot("acceptance length τ", "acceptance_length", low, 1, "tau", width, (v) => fixed(v, 2)));
    root.append(...this.reading(low.to));
    this.element.replaceChildren(root);
    this.read();
  }

  times(begin, end, floor, width) {
    const count = Math.max(2, Math.floor(width / 130));
    const span = end - begin;
    const step = [10, 15, 30, 60, 120, 180, 300, 600].find((one) => span / one <= count) ?? 600;
    const marks = [];
    for (let back = 0; back <= span + 1e-6; back += step) {
      const x = this.x(end - back);
      const anchor = back === 0 ? "end" : x < LEFT + 20 ? "start" : "middle";
      marks.push(svg("text", { x, y: floor + 16, class: "g-text", "text-anchor": anchor }, ago(back)));
    }
    return marks;
  }

  plot(name, field, box, base, style, width, format) {
    const values = this.frames.map((frame) => frame[field]);
    const known = values.filter((value) => value !== null);
    const most = Math.max(base + (base ? 1 : 10), ...known);
    const steps = ticks(base, most * 1.04, 4);
    const high = Math.max(most * 1.04, steps.at(-1));
    const y = (value) => box.to - ((value - base) / (high - base)) * (box.to - box.from);
    this[field] = y;
    const points = this.frames.map((frame, index) => (values[index] === null ? null : [this.x(frame.time), y(values[index])]));
    return [
      ...steps.flatMap((step) => [
        svg("line", { x1: LEFT, x2: width - RIGHT, y1: y(step), y2: y(step), class: "g-line" }),
        svg("text", { x: LEFT - 8, y: y(step) + 4, class: "g-text", "text-anchor": "end" }, label(step)),
      ]),
      svg("path", { d: area(points, box.to), class: `g-${style}-area` }),
      svg("path", { d: line(points), class: `g-path g-${style}` }),
      svg("text", { x: LEFT, y: box.from - 5, class: "g-name halo" }, name),
    ];
  }

  // Where the version that all replicas run, at least, goes up or down.
  versions(top, floor) {
    const marks = [];
    let before = null;
    let last = -Infinity;
    for (const frame of this.frames) {
      const running = Object.values(frame.versions);
      if (!running.length) continue;
      const version = Math.min(...running);
      if (before !== null && version !== before) {
        const x = this.x(frame.time);
        marks.push(svg("line", { x1: x, x2: x, y1: top, y2: floor, class: "g-version" }));
        if (x - last >= APART) {
          marks.push(svg("text", { x, y: top - 4, class: "g-text halo", "text-anchor": "middle" }, `v${version}`));
          last = x;
        }
      }
      before = version;
    }
    return marks;
  }

  reading(floor) {
    if (this.cursor === null) return [];
    const frame = this.frames[this.cursor];
    const x = this.x(frame.time);
    const dots = [["tokens_per_s", "f-speed"], ["acceptance_length", "f-tau"]]
      .filter(([field]) => frame[field] !== null)
      .map(([field, style]) => svg("circle", { cx: x, cy: this[field](frame[field]), r: 3.5, class: `g-dot ${style}` }));
    return [svg("line", { x1: x, x2: x, y1: 14, y2: floor, class: "g-cursor" }), ...dots];
  }

  read() {
    const frame = this.frames[this.cursor ?? this.frames.length - 1];
    const when = this.cursor === null ? "now" : clock(frame.time);
    const versions = [...new Set(Object.values(frame.versions))].sort((a, b) => a - b).map((one) => `v${one}`);
    const text = `${when} · ${speed(frame.tokens_per_s)} tokens/s · τ ${fixed(frame.acceptance_length, 2)}${versions.length ? ` · ${versions.join(", ")}` : ""}`;
    this.readout.textContent = text;
    this.element.setAttribute("aria-label", `Speed and acceptance over time; arrow keys read it out. ${text}`);
  }

  point(event) {
    if (!this.x) return;
    const at = event.clientX - this.element.getBoundingClientRect().left;
    let best = 0;
    this.frames.forEach((frame, index) => {
      if (Math.abs(this.x(frame.time) - at) < Math.abs(this.x(this.frames[best].time) - at)) best = index;
    });
    this.move(best);
  }

  key(event) {
    const last = this.frames.length - 1;
    const now = this.cursor ?? last;
    const to = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last }[event.key];
    if (event.key === "Escape") this.move(null);
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.move(Math.max(0, Math.min(last, to)));
  }

  move(index) {
    this.cursor = index;
    this.draw();
  }
}

// `least` is a span that fills the height even where values differ by less: noise shall look like noise.
export function spark(element, values, style, { base = null, least = 0 } = {}) {
  const { width, height } = size(element);
  const known = values.filter((value) => value !== null);
  if (!width || known.length < 2) return;
  const low = base ?? Math.min(...known);
  const high = Math.max(...known);
  const span = Math.max(high - low, least) || 1;
  const points = values.map((value, index) =>
    value === null ? null : [(index / (values.length - 1)) * width, height - 2 - ((value - low) / span) * (height - 5)],
  );
  element.replaceChildren(
    svg(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
      svg("path", { d: area(points, height), class: `g-${style}-area` }),
      svg("path", { d: line(points), class: `g-path g-${style}` }),
    ),
  );
}

function label(value) {
  return Math.abs(value) >= 1000 ? `${+(value / 1000).toFixed(1)}k` : `${+value.toFixed(2)}`;
}
