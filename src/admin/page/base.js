// Creates elements, formats numbers and times, and calls the admin API.
function byId(id) { return document.getElementById(id); }

// Creates an element with attributes and children. Strings become text nodes, never HTML.
function createElement(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "onclick") element.addEventListener("click", value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

function chip(text, kind) { return createElement("span", { class: "chip " + (kind || "") }, String(text)); }

function setColumns(table, ...columns) {
  const cells = columns.map(([text, kind]) => createElement("th", { scope: "col", class: kind }, text));
  table.tHead.replaceChildren(createElement("tr", null, cells));
  table.labels = columns.map(([text]) => text);
  table.classList.add("stack");
}

// Creates a row whose first cell is its header. Each cell names its column, for narrow screens.
function createRow(table, cells, attributes) {
  const elements = cells.map(([content, kind], nth) =>
    createElement(nth === 0 ? "th" : "td", { scope: nth === 0 && "row", class: kind, "data-label": table.labels[nth] }, createElement("div", null, content)));
  return createElement("tr", attributes, elements);
}

function emptyRow(table, text) {
  return createElement("tr", null, createElement("td", { colspan: table.labels.length, class: "quiet" }, text));
}

function formatNumber(value) { return value.toLocaleString(language === "zh" ? "zh-CN" : "en"); }

function formatMilliseconds(value) {
  if (value === null || value === undefined) return "–";
  return value >= 10000 ? (value / 1000).toFixed(1) + " s" : value >= 100 ? Math.round(value) + " ms" : value.toFixed(1) + " ms";
}

function formatDuration(seconds) {
  const units = language === "zh" ? [" 小时", " 分", " 秒"] : [" h", " min", " s"];
  seconds = Math.max(0, Math.round(seconds));
  if (seconds < 120) return seconds + units[2];
  const minutes = Math.round(seconds / 60), hours = Math.floor(minutes / 60);
  if (minutes < 100) return minutes + units[1];
  return hours + units[0] + (minutes % 60 ? " " + minutes % 60 + units[1] : "");
}

function formatTime(epoch, precise) {
  const time = new Date(epoch * 1000);
  const text = time.toLocaleTimeString("en-GB");
  const day = time.toDateString() === new Date().toDateString() ? "" : time.toLocaleDateString(language === "zh" ? "zh-CN" : "en") + " ";
  return day + text + (precise ? "." + String(time.getMilliseconds()).padStart(3, "0") : "");
}

// Without user and password, which the address of the page may contain but fetch refuses.
const ROOT = location.origin + location.pathname.replace(/[^/]*$/, "");

async function callApi(path, post) {
  const options = post ? { method: "POST", headers: { "Content-Type": "application/json" } } : {};
  const response = await fetch(ROOT + path, { ...options, cache: "no-store", credentials: "same-origin" });
  if (response.status === 401) throw new Error(translate("unauthorized"));
  const body = await response.json();
  if (!response.ok && body.error) throw new Error(body.error);
  return body;
}

let noticeTimer = 0;
function notice(text, kind) {
  const element = byId("notice");
  element.textContent = text;
  element.className = kind || "";
  element.hidden = !text;
  clearTimeout(noticeTimer);
  if (kind === "good") noticeTimer = setTimeout(() => notice(""), 10000);
}

function byKey(key) { return [...document.querySelectorAll("[data-key]")].find((it) => it.dataset.key === key); }

// Renders `container` again and keeps the focus on the element with the same data-key.
function preserveFocus(container, render) {
  const key = container.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  render();
  if (key) byKey(key)?.focus();
}

// Shows a dialog. When it closes, the focus returns to the same data-key, even if that element was rendered again.
function showDialog(dialog) {
  const key = document.activeElement?.dataset.key;
  dialog.addEventListener("close", () => { if (key && document.activeElement === document.body) byKey(key)?.focus(); }, { once: true });
  dialog.showModal();
}

// Asks for confirmation; resolves to true if the user confirms.
function confirmAction(title, detail, button) {
  const closeWith = (result) => () => dialog.close(result);
  const dialog = createElement("dialog", { id: "ask", "aria-labelledby": "ask-title" },
    createElement("h2", { id: "ask-title" }, title), createElement("p", null, detail),
    createElement("div", { class: "bar" },
      createElement("button", { type: "button", id: "ask-yes", class: "main", onclick: closeWith("yes") }, button),
      createElement("button", { type: "button", id: "ask-no", autofocus: true, onclick: closeWith("no") }, translate("cancel"))));
  document.body.append(dialog);
  return new Promise((resolve) => {
    showDialog(dialog);
    dialog.addEventListener("close", () => { dialog.remove(); resolve(dialog.returnValue === "yes"); });
  });
}

// Runs an action; `describe` turns its result into the text and kind of the notice.
async function runAction(path, describe) {
  try {
    const [text, kind] = describe(await callApi(path, true));
    notice(text, kind);
  } catch (error) {
    notice(translate("error", error.message), "bad");
  }
}
