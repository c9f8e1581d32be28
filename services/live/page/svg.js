// Small helpers for elements; text is only ever set as text.
const SVG = "http://www.w3.org/2000/svg";

export function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children.filter((child) => child != null));
  return element;
}

export function html(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children.filter((child) => child != null));
  return element;
}

export function size(element) {
  const style = getComputedStyle(element);
  return {
    width: Math.max(0, element.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight)),
    height: element.clientHeight,
  };
}

// Draws again when the element's size changes.
export function onResize(element, draw) {
  let drawn = "";
  new ResizeObserver(() => {
    const now = `${element.clientWidth} ${element.clientHeight}`;
    if (now !== drawn) {
      drawn = now;
      draw();
    }
  }).observe(element);
}

// Round steps for about `count` ticks from `low` to `high`.
export function ticks(low, high, count) {
  const span = high - low || 1;
  const rough = span / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((one) => one >= rough);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) found.push(at);
  return found;
}

// Points [x, y] or null to a path; null leaves a gap.
export function line(points) {
  let path = "";
  let pen = "M";
  for (const point of points) {
    if (point === null) {
      pen = "M";
      continue;
    }
    path += `${pen}${point[0].toFixed(1)} ${point[1].toFixed(1)}`;
    pen = "L";
  }
  return path;
}

export function area(points, floor) {
  let path = "";
  let run = [];
  for (const point of [...points, null]) {
    if (point !== null) {
      run.push(point);
      continue;
    }
    if (run.length > 1) path += `${line(run)}L${run.at(-1)[0].toFixed(1)} ${floor}L${run[0][0].toFixed(1)} ${floor}Z`;
    run = [];
  }
  return path;
}
