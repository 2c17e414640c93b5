// Elements, numbers and times as text, and questions to the proxy.
function byId(id) { return document.getElementById(id); }

// An element with attributes and children; what is text goes in as text.
function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "onclick") element.addEventListener("click", value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

function chip(text, kind) { return make("span", { class: "chip " + (kind || "") }, String(text)); }

function head(table, ...columns) {
  const cells = columns.map(([text, kind]) => make("th", { scope: "col", class: kind }, text));
  table.tHead.replaceChildren(make("tr", null, cells));
  table.labels = columns.map(([text]) => text);
  table.classList.add("stack");
}

// A row; the first cell is its header. Each cell says its column, for narrow screens.
function row(table, cells, attributes) {
  const made = cells.map(([content, kind], nth) =>
    make(nth === 0 ? "th" : "td", { scope: nth === 0 && "row", class: kind, "data-label": table.labels[nth] }, make("div", null, content)));
  return make("tr", attributes, made);
}

function emptyRow(table, words) {
  return make("tr", null, make("td", { colspan: table.labels.length, class: "quiet" }, words));
}

function number(value) { return value.toLocaleString(language === "zh" ? "zh-CN" : "en"); }

function milliseconds(value) {
  if (value === null || value === undefined) return "–";
  return value >= 10000 ? (value / 1000).toFixed(1) + " s" : value >= 100 ? Math.round(value) + " ms" : value.toFixed(1) + " ms";
}

function span(seconds) {
  const units = language === "zh" ? [" 小时", " 分", " 秒"] : [" h", " min", " s"];
  seconds = Math.max(0, Math.round(seconds));
  if (seconds < 120) return seconds + units[2];
  const minutes = Math.round(seconds / 60), hours = Math.floor(minutes / 60);
  if (minutes < 100) return minutes + units[1];
  return hours + units[0] + (minutes % 60 ? " " + minutes % 60 + units[1] : "");
}

function clock(epoch, precise) {
  const time = new Date(epoch * 1000);
  const text = time.toLocaleTimeString("en-GB");
  const day = time.toDateString() === new Date().toDateString() ? "" : time.toLocaleDateString(language === "zh" ? "zh-CN" : "en") + " ";
  return day + text + (precise ? "." + String(time.getMilliseconds()).padStart(3, "0") : "");
}

// The page may have been opened with a name and password in its address, which no request may have.
const ROOT = location.origin + location.pathname.replace(/[^/]*$/, "");

async function ask(path, post) {
  const options = post ? { method: "POST", headers: { "Content-Type": "application/json" } } : {};
  const response = await fetch(ROOT + path, { ...options, cache: "no-store", credentials: "same-origin" });
  if (response.status === 401) throw new Error(say("unauthorized"));
  const body = await response.json();
  if (!response.ok && body.error) throw new Error(body.error);
  return body;
}

let noticeEnds = 0;
function notice(words, kind) {
  const place = byId("notice");
  place.textContent = words;
  place.className = kind || "";
  place.hidden = !words;
  clearTimeout(noticeEnds);
  if (kind === "good") noticeEnds = setTimeout(() => notice(""), 10000);
}

function byKey(key) { return [...document.querySelectorAll("[data-key]")].find((it) => it.dataset.key === key); }

// What is rendered anew takes the keyboard's place along.
function keepingFocus(place, render) {
  const key = place.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  render();
  if (key) byKey(key)?.focus();
}

// The keyboard comes back to where it was, though that may have been rendered anew.
function showDialog(dialog) {
  const key = document.activeElement?.dataset.key;
  dialog.addEventListener("close", () => { if (key && document.activeElement === document.body) byKey(key)?.focus(); }, { once: true });
  dialog.showModal();
}

// Asks before something is done; true if it shall be.
function confirmed(title, words, yes) {
  const end = (answer) => () => dialog.close(answer);
  const dialog = make("dialog", { id: "ask", "aria-labelledby": "ask-title" },
    make("h2", { id: "ask-title" }, title), make("p", null, words),
    make("div", { class: "bar" },
      make("button", { type: "button", id: "ask-yes", class: "main", onclick: end("yes") }, yes),
      make("button", { type: "button", id: "ask-no", autofocus: true, onclick: end("no") }, say("cancel"))));
  document.body.append(dialog);
  return new Promise((answer) => {
    showDialog(dialog);
    dialog.addEventListener("close", () => { dialog.remove(); answer(dialog.returnValue === "yes"); });
  });
}

async function order(path, tell) {
  try {
    const [words, kind] = tell(await ask(path, true));
    notice(words, kind);
  } catch (error) {
    notice(say("failedTo", error.message), "bad");
  }
}
