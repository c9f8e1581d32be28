// Server-sent events over fetch: EventSource can't send a key. Where several models are served, the page's
// own address names one: /dashboard?model=NAME.
const BASE = new URL("..", import.meta.url);
const KEY = "evospec-key";

export class Refused extends Error {}

let waiting = null; // one dialog, however many requests ask for a key

export async function open(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...options.headers };
    if (key) headers.Authorization = `Bearer ${key}`;
    const response = await fetch(new URL(path + location.search, BASE), { ...options, headers, cache: "no-store" });
    if (response.ok) return response;
    const message = await reason(response);
    if (response.status !== 401 && response.status !== 403) throw new Refused(message);
    await askForKey(key ? message : "");
  }
}

// Calls `handle(kind, data)` for each event until the stream ends.
export async function read(response, handle) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const [kind, data] = part.split("\n");
      handle(kind.replace("event: ", ""), JSON.parse(data.replace("data: ", "")));
    }
  }
}

async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status}.`;
  }
}

function askForKey(why) {
  waiting ??= new Promise((resolve) => {
    const dialog = document.getElementById("key-dialog");
    const field = document.getElementById("key");
    if (why) document.getElementById("key-why").textContent = why;
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    document.getElementById("key-form").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, field.value.trim());
      field.value = "";
      dialog.close();
      waiting = null;
      resolve();
    };
    dialog.showModal();
  });
  return waiting;
}
