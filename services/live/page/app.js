import { fixed, percent, speed, whole } from "./format.js";
import { learning, positions, replicas, sources } from "./panels.js";
import { Ask } from "./prompt.js";
import { Lanes, events, summary } from "./rollout.js";
import { open, read } from "./stream.js";
import { TimeChart, spark } from "./timechart.js";
import { TopicMap } from "./topics.js";

const KEPT = 900;
const SPARK = 120; // frames
const LONGEST_PAUSE_S = 10;

const at = (id) => document.getElementById(id);
const chart = new TimeChart(at("time"), at("time-readout"));
const lanes = new Lanes(at("lanes"));
const topics = new TopicMap(at("topics"), at("topic-list"), at("topics-readout"));
let frames = [];

function announce(text) {
  at("announce").textContent = text;
}

function state(name, text) {
  const element = at("state");
  if (element.dataset.state === name) return;
  element.dataset.state = name;
  at("state-text").textContent = text;
  if (name !== "live" || frames.length) announce(text);
}

function kpi(id, text, values, style, scale) {
  const tile = at(id);
  tile.querySelector("[data-value]").textContent = text;
  spark(tile.querySelector("[data-spark]"), values, style, scale);
}

function past(field) {
  return frames.slice(-SPARK).map((frame) => frame[field]);
}

function show(frame) {
  const all = { ...frame, versions: {}, canary: [] };
  for (const one of frame.replicas) {
    all.versions[one.name] = one.version;
    if (one.canary) all.canary.push(one.name);
  }
  tellOfVersions(frames.at(-1), all);
  if (frames.at(-1)?.time !== frame.time) frames.push(all);
  frames = frames.slice(-KEPT);
  kpi("kpi-speed", speed(frame.tokens_per_s), past("tokens_per_s"), "speed", { base: 0, least: 1 });
  kpi("kpi-tau", fixed(frame.acceptance_length, 2), past("acceptance_length"), "tau", { least: 0.2 });
  kpi("kpi-coverage", percent(frame.coverage, 1), past("coverage"), "quiet", { least: 0.02 });
  kpi("kpi-rows", whole(frame.active_rows), past("active_rows"), "quiet", { least: 8 });
  kpi("kpi-requests", whole(frame.running), past("running"), "quiet", { base: 0, least: 2 });
  at("kpi-requests").querySelector("[data-note]").textContent = `${whole(frame.waiting)} waiting`;
  positions(at("positions"), frame.positions);
  sources(at("sources"), frame.sources);
  replicas(at("replicas"), at("replicas-readout"), frame.replicas);
  learning(at("aligner"), frame.aligner, frame.index);
  summary(at("rollout-readout"), frame.rollout, frames);
  chart.show(frames);
  lanes.show(frames);
}

function tellOfVersions(before, now) {
  const lowest = (frame) => Math.min(...Object.values(frame?.versions ?? {}));
  const version = lowest(now);
  if (before && Number.isFinite(version) && lowest(before) !== version) announce(`All replicas run version ${version} or later.`);
}

function take(kind, data) {
  if (kind === "past") {
    frames = data.frames;
    at("model").textContent = data.model;
    document.title = `EvoSpec · ${data.model}`;
  }
  if (kind === "frame") show(data);
  if (kind === "rollouts") events(at("events"), data.events);
  if (kind === "topics") topics.show(data);
}

async function follow() {
  for (let failures = 0; ; failures += 1) {
    try {
      const response = await open("events");
      await read(response, (kind, data) => {
        failures = 0;
        state("live", "Live");
        take(kind, data);
      });
    } catch {
      // Said below; whatever it was, the next attempt shows whether it has passed.
    }
    state("lost", "Reconnecting");
    const pause = Math.min(LONGEST_PAUSE_S, 2 ** failures) * (0.75 + Math.random() / 2);
    await new Promise((resolve) => setTimeout(resolve, 1000 * pause));
  }
}

function themes() {
  const button = at("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const update = () => button.setAttribute("aria-pressed", dark());
  button.addEventListener("click", () => {
    const chosen = dark() ? "light" : "dark";
    document.documentElement.dataset.theme = chosen;
    localStorage.setItem("evospec-theme", chosen);
    update();
  });
  system.addEventListener("change", update);
  update();
}

themes();
new Ask(announce);
follow();
