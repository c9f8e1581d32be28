import { html } from "./svg.js";
import { fixed, percent, short, speed, whole } from "./format.js";

const SOURCES = [
  ["core", "Core"],
  ["frequent", "Frequent"],
  ["context", "Context"],
  ["verification", "Verification"],
  ["statistical", "Statistical index"],
  ["semantic", "Semantic index"],
  ["draft", "Draft history"],
];
const SOURCE_COLOURS = [5, 6, 1, 0, 3, 2, 4];
const MOST_POSITIONS = 8;

export function positions(element, rows) {
  const tried = rows.filter((row) => row.attempted > 0).slice(0, MOST_POSITIONS);
  if (!tried.length) {
    element.replaceChildren(html("p", { class: "empty" }, "Nothing was drafted in the last 30 seconds."));
    return;
  }
  const items = tried.map((row, index) => {
    const share = row.accepted / row.attempted;
    const fill = html("span");
    fill.style.width = `${(100 * share).toFixed(1)}%`;
    return html(
      "li",
      { title: `${whole(row.accepted)} of ${whole(row.attempted)} accepted` },
      html("span", { class: "at" }, html("span", { class: "hidden" }, "Position "), `${index + 1}`),
      html("span", { class: "meter", "aria-hidden": "true" }, fill),
      html("span", { class: "of" }, percent(share)),
    );
  });
  element.replaceChildren(
    html("ol", { class: "bars" }, ...items),
    html("p", { class: "note" }, "Of the drafts that reached a position, how many had its token right."),
  );
}

export function sources(element, rows) {
  const known = SOURCES.map(([key, name], index) => ({ name, rows: rows[key] ?? 0, style: `k${SOURCE_COLOURS[index]}` })).filter(
    (one) => one.rows > 0,
  );
  const all = known.reduce((sum, one) => sum + one.rows, 0);
  if (!all) {
    element.replaceChildren(html("p", { class: "empty" }, "The drafter scores the full head, or no replica answers."));
    return;
  }
  const stack = html("div", { class: "stack", "aria-hidden": "true" });
  const keys = html("ul", { class: "keys" });
  for (const one of known) {
    const part = html("span", { class: one.style });
    part.style.flex = `${one.rows} 0 0`;
    stack.append(part);
    keys.append(
      html(
        "li",
        {},
        html("span", { class: `swatch ${one.style}`, "aria-hidden": "true" }),
        html("span", { class: "name" }, one.name),
        html("span", { class: "count" }, whole(one.rows)),
        html("span", { class: "share" }, percent(one.rows / all)),
      ),
    );
  }
  element.replaceChildren(stack, keys);
}

const COLUMNS = [
  ["Version", (one) => versionCell(one)],
  ["Running", (one) => (one.waiting ? `${one.running} + ${one.waiting}` : `${one.running}`)],
  ["Tokens/s", (one) => speed(one.tokens_per_s)],
  ["τ", (one) => fixed(one.acceptance_length, 2)],
  ["Coverage", (one) => percent(one.coverage, 1)],
  ["Rows", (one) => whole(one.active_rows)],
  ["Epoch", (one) => whole(one.epoch)],
  ["Drafts", (one) => one.plan || "–"],
];

export function replicas(element, readout, rows) {
  readout.textContent = rows.length ? `${rows.length} serving` : "none answers";
  if (!rows.length) {
    element.replaceChildren(html("p", { class: "empty" }, "No replica answers at the moment."));
    return;
  }
  const head = html("tr", {}, html("th", { scope: "col" }, "Replica"), ...COLUMNS.map(([name]) => html("th", { scope: "col" }, name)));
  const body = rows.map((one) =>
    html(
      "tr",
      {},
      html("th", { scope: "row", title: one.name }, short(one.name)),
      ...COLUMNS.map(([name, cell]) => html("td", { "data-label": name }, cell(one))),
    ),
  );
  element.replaceChildren(html("table", {}, html("thead", {}, head), html("tbody", {}, ...body)));
}

function versionCell(one) {
  const text = one.version ? `v${one.version}` : "base";
  return one.canary ? html("span", {}, text, html("span", { class: "tag canary" }, "canary")) : text;
}

export function learning(element, aligner, index) {
  const rows = [];
  if (aligner) {
    rows.push(
      ["Traces received", whole(aligner.received)],
      ["Training steps", whole(aligner.steps)],
      ["Training loss", fixed(aligner.loss, 3)],
      ["Candidates gated, rejected", `${whole(aligner.gated)}, ${whole(aligner.rejected)}`],
      ["Versions published", whole(aligner.published)],
      ["Promoted, revoked", `${whole(aligner.promoted)}, ${whole(aligner.revoked)}`],
    );
  } else {
    rows.push(["Aligner", "off or not answering"]);
  }
  rows.push(
    ["Index look-ups with hits", index.lookups ? `${whole(index.hits)} of ${whole(index.lookups)}` : "–"],
    ["Index points written", whole(index.written)],
  );
  if (index.failures) rows.push(["Index failures", whole(index.failures)]);
  element.replaceChildren(...rows.map(([name, value]) => html("div", {}, html("dt", {}, name), html("dd", {}, value))));
}
