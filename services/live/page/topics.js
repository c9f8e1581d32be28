import { html, onResize, size, svg } from "./svg.js";
import { percent, whole } from "./format.js";

const COLOURS = [0, 1, 2, 3, 4, 5];
const EDGE = 10;

export class TopicMap {
  constructor(element, list, readout) {
    this.element = element;
    this.list = list;
    this.readout = readout;
    this.map = null;
    onResize(element, () => this.draw());
  }

  show(map) {
    this.map = map;
    this.readout.textContent = map.points.length ? `${whole(map.points.length)} contexts` : "";
    this.list.replaceChildren(
      ...map.topics.map((topic, index) =>
        html(
          "li",
          {},
          html("span", { class: `swatch round k${COLOURS[index]}`, "aria-hidden": "true" }),
          html("span", { class: "name" }, named(topic, index)),
          html("span", { class: "share" }, percent(topic.size / map.points.length)),
        ),
      ),
    );
    this.draw();
  }

  draw() {
    if (!this.map) return;
    const { width, height } = size(this.element);
    if (!this.map.points.length) {
      this.element.replaceChildren(html("p", { class: "empty" }, "The map appears once a few requests have ended and the token index knows their contexts."));
      return;
    }
    const at = (point) => [
      EDGE + ((point.x + 1) / 2) * (width - 2 * EDGE),
      EDGE + ((1 - point.y) / 2) * (height - 2 * EDGE),
    ];
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    root.append(
      svg("line", { x1: 0, x2: width, y1: height / 2, y2: height / 2, class: "g-line" }),
      svg("line", { x1: width / 2, x2: width / 2, y1: 0, y2: height, class: "g-line" }),
    );
    // The newest are drawn last, on top.
    for (const point of [...this.map.points].reverse()) {
      const [cx, cy] = at(point);
      root.append(svg("circle", { cx, cy, r: 3.6, class: `g-dot k${COLOURS[point.topic]}`, "fill-opacity": (0.9 - 0.6 * point.age).toFixed(2) }));
    }
    this.element.replaceChildren(root);
    const told = this.map.topics.map((topic, index) => `${named(topic, index)} ${percent(topic.size / this.map.points.length)}`);
    this.element.setAttribute("aria-label", `Map of recent contexts in ${this.map.topics.length} topics: ${told.join("; ")}`);
  }
}

function named(topic, index) {
  return topic.words.length ? topic.words.join(", ") : `topic ${index + 1}`;
}
