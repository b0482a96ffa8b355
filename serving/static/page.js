// The conversation page: streams answers, opens sources beside them, listens to the keyboard. The page works without it.
"use strict";

const turns = document.getElementById("turns");
const form = document.getElementById("ask");
const field = document.getElementById("question");
const problem = document.getElementById("problem");
const pane = document.getElementById("passage");
const content = pane.querySelector(".content");
const close = pane.querySelector(".close");
const send = form.querySelector(".send");
const stop = form.querySelector(".stop");
const hint = content.querySelector(".hint");
const narrow = matchMedia("(max-width: 900px)");
const history = [];
// Also where the page comes over plain HTTP, which has no crypto.randomUUID.
const conversation = Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(36)).join("-");
let running = null;
let opened = null;

function element(name, kind, text) {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (text) made.textContent = text;
  return made;
}

function say(text) {
  problem.textContent = text;
  problem.hidden = !text;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const complete = held.split("\n\n");
    held = complete.pop();
    for (const event of complete) {
      const [name, data] = event.split("\ndata: ");
      yield [name.replace("event: ", ""), JSON.parse(data)];
    }
  }
}

async function refusal(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The app answered ${response.status}.`;
  }
}

async function ask(question) {
  const turn = element("article", "turn");
  const state = element("p", "label", "Looking through the sources…");
  const text = element("div", "answer streaming");
  turn.append(element("h2", "question", question), state, text);
  turns.querySelector(".empty")?.remove();
  turns.append(turn);
  turn.scrollIntoView({ block: "start" });
  running = new AbortController();
  send.hidden = true;
  stop.hidden = false;
  const filters = Object.fromEntries([...new FormData(form)].filter(([name, value]) => name !== "question" && value));
  try {
    const response = await fetch("/ask", {
      method: "POST",
      headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
      body: JSON.stringify({ question, filters, history: history.slice(-3), conversation }),
      signal: running.signal,
    });
    if (!response.ok) throw new Error(await refusal(response));
    let finished = false;
    let failure = "";
    let pieces = 0;
    for await (const [name, value] of events(response)) {
      const following = turns.scrollHeight - turns.scrollTop - turns.clientHeight < 80;
      if (name === "retrieval") {
        const count = value.passages === 1 ? "1 passage" : `${value.passages} passages`;
        state.textContent = value.passages ? `Reading ${count} from ${value.titles.join(", ")}…` : "Nothing found yet…";
      } else if (name === "token") {
        state.hidden = true;
        text.append(value.text);
        pieces += 1;
      } else if (name === "error") {
        failure = value.message;
        turn.append(element("p", "notice", failure));
      } else if (name === "done") {
        const page = new DOMParser().parseFromString(value.html, "text/html");
        turn.replaceWith(...page.body.children);
        history.push({ question, answer: value.answer });
        finished = true;
      }
      // What streams is followed; what comes at once is read from its beginning.
      if (finished && pieces < 2) turns.lastElementChild.scrollIntoView({ block: "start" });
      else if (following) turns.scrollTop = turns.scrollHeight;
    }
    if (!finished && !failure) throw new TypeError("broken off");
    if (!finished) {
      if (!field.value) field.value = question;
      return;
    }
    const first = turns.lastElementChild.querySelector(".citation");
    if (first && !narrow.matches) open(first);
  } catch (error) {
    state.hidden = true;
    const kept = text.textContent ? " What was written so far is kept." : "";
    if (error.name === "AbortError") {
      turn.append(element("p", "notice", `Stopped.${kept}`));
    } else if (error instanceof TypeError) {
      const why = "The app cannot be reached; `twin status` shows its parts. Your question is back in the field: send it again.";
      turn.append(element("p", "notice", why + kept));
      if (!field.value) field.value = question;
    } else {
      turn.append(element("p", "notice", error.message));
    }
  } finally {
    running = null;
    send.hidden = false;
    stop.hidden = true;
  }
}

async function open(link) {
  opened = link;
  // One step in the browser's history, so that Back closes the source and stays on the page.
  if (!window.history.state?.source) window.history.pushState({ source: true }, "");
  turns.querySelectorAll("[aria-current]").forEach((each) => each.removeAttribute("aria-current"));
  const turn = link.closest(".turn");
  const number = link.dataset.n || link.textContent;
  turn?.querySelector(`.citation[data-n="${CSS.escape(number)}"]`)?.setAttribute("aria-current", "true");
  const address = new URL(link.href);
  content.replaceChildren(element("p", "hint", "Opening the source…"));
  show(true);
  try {
    const response = await fetch(address.pathname.replace("/documents/", "/passages/") + address.search);
    if (!response.ok) throw new Error(await refusal(response));
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    if (opened !== link) return;
    content.replaceChildren(...page.body.childNodes);
    const cited = content.querySelector("mark");
    const above = cited ? cited.getBoundingClientRect().top - pane.getBoundingClientRect().top : 0;
    pane.scrollTop += above - (cited ? pane.clientHeight / 3 : pane.scrollTop);
  } catch (error) {
    if (opened !== link) return;
    const why = error instanceof TypeError ? "The app cannot be reached; the source opens when it is back." : error.message;
    content.replaceChildren(element("p", "notice", why));
  }
}

function show(visible) {
  pane.classList.toggle("open", visible);
  close.hidden = !(visible && narrow.matches);
  if (visible && narrow.matches) close.focus();
}

function hide() {
  show(false);
  turns.querySelectorAll("[aria-current]").forEach((each) => each.removeAttribute("aria-current"));
  content.replaceChildren(hint);
  opened?.focus();
}

function back() {
  if (window.history.state?.source) window.history.back();
  else hide();
}

function move(step) {
  const links = [...turns.querySelectorAll(".citation")];
  if (!links.length) return false;
  const at = links.indexOf(document.activeElement.closest?.(".citation") ?? turns.querySelector(".citation[aria-current]"));
  const newest = links.findLastIndex((link) => link.dataset.n === "1");
  const next = links[at < 0 ? Math.max(0, newest) : Math.min(links.length - 1, Math.max(0, at + step))];
  next.focus();
  if (!narrow.matches) open(next);
  return true;
}

function submit() {
  const question = field.value.trim();
  if (!question || running) return;
  say("");
  field.value = "";
  ask(question);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
stop.addEventListener("click", () => running?.abort());
close.addEventListener("click", back);
addEventListener("popstate", (event) => (event.state?.source && opened ? open(opened) : hide()));
turns.addEventListener("click", (event) => {
  const link = event.target.closest(".citation, .marker");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  open(link);
});
form.querySelector(".filters").addEventListener("toggle", async () => {
  const list = document.getElementById("authors");
  if (list.children.length) return;
  const response = await fetch("/authors").catch(() => null);
  if (!response?.ok) return;
  list.append(...(await response.json()).map((name) => Object.assign(element("option"), { value: name })));
});
document.addEventListener("keydown", (event) => {
  const writing = event.target.matches("input, textarea, select");
  if (event.key === "Escape") {
    if (running) running.abort();
    else if (pane.classList.contains("open") && narrow.matches) back();
    else if (writing) event.target.blur();
  } else if (event.target === field && event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  } else if (!writing && event.key === "/" && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    field.focus();
  } else if (!writing && ["ArrowDown", "ArrowRight", "ArrowUp", "ArrowLeft"].includes(event.key) && !pane.contains(event.target)) {
    if (move(event.key === "ArrowDown" || event.key === "ArrowRight" ? 1 : -1)) event.preventDefault();
  }
});
if (!/^(127\.|localhost$|\[::1\])/.test(location.hostname)) {
  addEventListener("offline", () => say("You are offline: questions can be sent when the connection is back."));
  addEventListener("online", () => say(""));
}
narrow.addEventListener("change", () => show(false));
