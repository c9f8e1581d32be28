import { html } from "./svg.js";
import { fixed, percent, speed, whole } from "./format.js";
import { open, read, Refused } from "./stream.js";

const NEAR = 24; // pixels from the end in which the answer keeps scrolling along

// The prompt box: streams an answer and shows where each token came from.
export class Ask {
  constructor(announce) {
    this.announce = announce;
    this.form = document.getElementById("ask");
    this.answer = document.getElementById("answer");
    this.facts = document.getElementById("answer-facts");
    this.button = document.getElementById("send");
    this.running = null;
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.running) this.running.abort();
      else this.run();
    });
    this.form.elements.prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        this.form.requestSubmit();
      }
    });
  }

  async run() {
    const { prompt, max_tokens: tokens, temperature } = this.form.elements;
    if (!prompt.value.trim()) {
      prompt.focus();
      return;
    }
    this.running = new AbortController();
    this.begin();
    try {
      const response = await open("generate", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ prompt: prompt.value, max_tokens: tokens.valueAsNumber, temperature: temperature.valueAsNumber }),
        signal: this.running.signal,
      });
      await read(response, (kind, data) => this.take(kind, data));
    } catch (error) {
      if (error.name === "AbortError") this.announce("Stopped.");
      else this.fail(error instanceof Refused ? error.message : "The connection was lost.");
    } finally {
      this.running = null;
      this.button.textContent = "Generate";
      this.answer.setAttribute("aria-busy", "false");
    }
  }

  begin() {
    this.counts = { accepted: 0, bonus: 0, miss: 0, plain: 0 };
    this.cycles = 0;
    this.drafted = 0;
    this.started = null;
    this.button.textContent = "Stop";
    this.answer.replaceChildren();
    this.answer.setAttribute("aria-busy", "true");
    this.facts.replaceChildren();
    this.announce("Generating.");
  }

  take(kind, data) {
    if (kind === "error") this.fail(data.error.message);
    if (kind === "cycle") this.cycle(data);
    if (kind === "end") this.end(data);
  }

  cycle({ tokens, drafted }) {
    this.started ??= performance.now();
    this.latest = performance.now();
    this.cycles += drafted > 0;
    this.drafted += drafted;
    const follows = this.answer.scrollHeight - this.answer.scrollTop - this.answer.clientHeight < NEAR;
    for (const [text, source] of tokens) {
      this.counts[source] += 1;
      if (text) this.answer.append(source === "plain" ? text : html("span", { class: `t ${source}`, title: source }, text));
    }
    if (follows) this.answer.scrollTop = this.answer.scrollHeight;
    this.tell();
  }

  tell() {
    const { accepted, bonus, miss, plain } = this.counts;
    const all = accepted + bonus + miss + plain;
    const seconds = (this.latest - this.started) / 1000;
    const rows = [
      ["Tokens", whole(all)],
      ["Accepted", whole(accepted)],
      ["Bonus", whole(bonus)],
      ["Misses", whole(miss)],
      ["Per cycle", this.cycles ? fixed((accepted + bonus + miss) / this.cycles, 2) : "–"],
      ["Drafts accepted", this.drafted ? percent(accepted / this.drafted) : "–"],
      ["Tokens/s", seconds > 0 ? speed((all - 1) / seconds) : "–"],
    ];
    this.facts.replaceChildren(...rows.map(([name, value]) => html("div", {}, html("dt", {}, name), html("dd", {}, value))));
  }

  end({ usage }) {
    const { accepted, bonus, miss } = this.counts;
    this.announce(`Answer complete: ${usage.completion_tokens} tokens, ${accepted} accepted, ${bonus} bonus, ${miss} misses.`);
  }

  fail(message) {
    this.answer.append(html("p", { class: "error" }, message));
    this.announce(message);
  }
}
