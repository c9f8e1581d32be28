import { html, onResize, size, svg } from "./svg.js";
import { ago, clock, short } from "./format.js";

const LEFT = 78;
const LANE = 26;
const MOST_LANES = 8;
const FOOT = 20;
const LEAST_S = 60;
const NAMES = { published: "published", canary: "canary", promote: "promoted", revoke: "revoked", rollback: "rolled back" };

// One lane for each replica, coloured by the version that it ran.
export class Lanes {
  constructor(element) {
    this.element = element;
    this.frames = [];
    onResize(element, () => this.draw());
  }

  show(frames) {
    this.frames = frames;
    this.draw();
  }

  draw() {
    const names = Object.keys(this.frames.at(-1)?.versions ?? {}).sort();
    const shown = names.slice(0, MOST_LANES);
    const { width } = size(this.element);
    if (!width || !shown.length) {
      this.element.replaceChildren(html("p", { class: "empty" }, "No replica answers at the moment."));
      return;
    }
    const height = shown.length * LANE + FOOT;
    this.element.style.height = `${height}px`;
    const end = this.frames.at(-1).time;
    const begin = Math.min(this.frames[0].time, end - LEAST_S);
    const x = (time) => LEFT + ((time - begin) / (end - begin)) * (width - LEFT);
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    shown.forEach((name, lane) => {
      const y = lane * LANE;
      root.append(
        svg("text", { x: 0, y: y + 15, class: "g-text" }, short(name)),
        svg("rect", { x: LEFT, y: y + 1, width: width - LEFT, height: LANE - 6, rx: 3, class: "lane-bg" }),
      );
      for (const part of segments(this.frames, name)) root.append(...drawn(part, x, y));
    });
    const span = end - begin;
    for (const share of [1, 0.5, 0]) {
      const at = end - share * span;
      const anchor = { 1: "start", 0.5: "middle", 0: "end" }[share];
      root.append(svg("text", { x: x(at), y: height - 4, class: "g-text", "text-anchor": anchor }, ago(Math.round(share * span))));
    }
    this.element.replaceChildren(root);
    const now = this.frames.at(-1).versions;
    const told = shown.map((name) => `${short(name)} runs ${now[name] ? `version ${now[name]}` : "the base drafter"}`);
    this.element.setAttribute("aria-label", `Adapter version of each replica over time. ${told.join(", ")}.`);
  }
}

function segments(frames, name) {
  const found = [];
  for (const frame of frames) {
    const version = frame.versions[name];
    const canary = frame.canary.includes(name);
    const last = found.at(-1);
    if (last) last.to = frame.time;
    if (version === undefined) continue;
    if (!last || last.version !== version || last.canary !== canary) found.push({ version, canary, from: frame.time, to: frame.time });
  }
  return found;
}

function drawn(part, x, y) {
  const from = x(part.from);
  const width = Math.max(2, x(part.to) - from);
  const style = part.canary ? "canary" : !part.version ? "base" : part.version % 2 ? "odd" : "even";
  const text = part.version ? `v${part.version}` : "base";
  const room = 8 + 7 * text.length;
  return [
    svg("rect", { x: from, y: y + 1, width, height: LANE - 6, rx: 3, class: `seg ${style}` }, svg("title", {}, `${text}${part.canary ? ", canary" : ""}`)),
    width >= room ? svg("text", { x: from + 7, y: y + 15, class: "seg-text" }, text) : null,
  ].filter(Boolean);
}

export function events(element, entries) {
  const newest = [...entries].reverse();
  if (!newest.length) {
    element.replaceChildren(html("li", { class: "empty" }, "No version was published yet."));
    return;
  }
  element.replaceChildren(
    ...newest.map((entry) =>
      html(
        "li",
        {},
        html("time", { datetime: new Date(1000 * entry.time_s).toISOString() }, clock(entry.time_s)),
        html("span", { class: `tag ${entry.event}` }, NAMES[entry.event] ?? entry.event),
        html("span", { class: "version" }, `v${entry.version}`),
        html("span", { class: "why", title: entry.reason }, entry.reason),
      ),
    ),
  );
}

export function summary(element, rollout, frames) {
  if (!rollout) {
    const versions = Object.values(frames.at(-1)?.versions ?? {});
    element.textContent = versions.length ? "versions reach all replicas at once" : "";
    return;
  }
  const stable = rollout.stable ? `v${rollout.stable} stable` : "base drafter";
  const trial = {
    idle: "no candidate",
    waiting: `v${rollout.candidate} waits for its canary`,
    canary: `v${rollout.candidate} on trial, ${rollout.canary_requests} requests against ${rollout.control_requests}`,
  }[rollout.phase];
  element.textContent = `${stable} · ${trial}`;
  element.title = rollout.verdict;
}
