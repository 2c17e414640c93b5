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

// A link that shows the exchanges of a filter. Its address can be sent to others.
function filterLink(content, filter, kind) {
  const query = new URLSearchParams(Object.entries(filter).filter(([, value]) => value !== null && value !== undefined));
  return createElement("a", { href: "?" + query + "#exchanges", class: kind, onclick: (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    applyFilter(query);
    byId("exchanges").scrollIntoView();
    byId("exchanges").focus({ preventScroll: true });
  } }, content);
}

function chipLink(text, kind, filter, title) {
  const link = filterLink(String(text), filter, "chip " + (kind || ""));
  if (title) link.title = title;
  return link;
}

// A used share as a bar with its text.
function usageBar(ratio, text) {
  const kind = ratio >= 0.9 ? "bad" : ratio >= 0.7 ? "warn" : "blue", svg = createSvg("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none", class: "usage " + kind, "aria-hidden": "true" });
  svg.append(createSvg("rect", { class: "usage-of", x: 0, y: 0, width: 100, height: 6 }), createSvg("rect", { class: "bar-of", x: 0, y: 0, width: 100 * Math.min(1, ratio), height: 6 }));
  return [svg, createElement("span", { class: "sub" }, text)];
}

const SVG = "http://www.w3.org/2000/svg";

function createSvg(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

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

// The bounds between which a time lies; two digits where they are close.
function formatBounds(bounds, value) {
  if (!bounds) return "–";
  const [lower, upper] = bounds;
  if (upper === null) return "> " + formatMilliseconds(lower);
  if (lower > 0 && upper / lower <= 1.5) return upper > 1000 ? (value / 1000).toPrecision(2) + " s" : Number(value.toPrecision(2)) + " ms";
  return upper > 1000 ? `${lower / 1000}–${upper / 1000} s` : `${lower}–${upper} ms`;
}

function formatPercent(part, all) {
  if (!all) return "–";
  const percent = 100 * part / all;
  return percent.toFixed(part && percent < 10 ? 1 : 0) + " %";
}

function formatDuration(seconds) {
  const units = language === "zh" ? [" 小时", " 分", " 秒"] : [" h", " min", " s"];
  seconds = Math.max(0, Math.round(seconds));
  if (seconds < 120) return seconds + units[2];
  const minutes = Math.round(seconds / 60), hours = Math.floor(minutes / 60);
  if (minutes < 100) return minutes + units[1];
  if (hours >= 48) return Math.round(hours / 24) + (language === "zh" ? " 天" : " d");
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

// How long a response may take, on a slow line too.
const RESPONSE_TIMEOUT_MS = 60000, MAX_KEPT_RESPONSES = 16;
// The last responses with their entity tags, so that what did not change is not sent again.
const keptResponses = new Map();

async function callApi(path, post) {
  const options = post ? { method: "POST", headers: { "Content-Type": "application/json" } } : {}, kept = post ? undefined : keptResponses.get(path);
  if (kept) options.headers = { "If-None-Match": kept.tag };
  const response = await fetch(ROOT + path, { ...options, cache: "no-store", credentials: "same-origin", signal: AbortSignal.timeout(RESPONSE_TIMEOUT_MS) });
  if (response.status === 304 && kept) return kept.body;
  if (response.status === 401) throw new Error(translate("unauthorized"));
  const body = await response.json();
  if (!response.ok && body.error) throw new Error(body.error);
  const tag = response.headers.get("ETag");
  if (tag && !post) {
    keptResponses.delete(path);
    keptResponses.set(path, { tag, body });
    if (keptResponses.size > MAX_KEPT_RESPONSES) keptResponses.delete(keptResponses.keys().next().value);
  }
  return body;
}

// The key for changes, which the browser does not send by itself. It is kept until the page is closed.
let operatorKey = "";

// Changes something with the operator's key. Resolves to the status, the entity tag and the body of the response.
async function changeApi(method, path, body, headers) {
  if (!operatorKey && !await askKey()) return null;
  const options = { method, headers: { Authorization: "Bearer " + operatorKey, "Content-Type": "application/json", ...headers }, body: body === undefined ? undefined : JSON.stringify(body) };
  const response = await fetch(ROOT + path, { ...options, cache: "no-store", signal: AbortSignal.timeout(RESPONSE_TIMEOUT_MS) });
  if (response.status === 401) operatorKey = "";
  const text = await response.text();
  const parsed = text ? JSON.parse(text) : {};
  if (!response.ok) throw new Error(parsed.error ?? parsed.reason ?? translate("status") + " " + response.status);
  return parsed;
}

// Asks for the operator's key; resolves to true if one was entered.
async function askKey() {
  const input = createElement("input", { type: "password", id: "key-input", autocomplete: "off" });
  const form = createElement("label", null, createElement("span", null, translate("operatorKey")), " ", input);
  if (!await confirmAction(translate("keyTitle"), translate("keyDetail"), translate("useKey"), form)) return false;
  operatorKey = input.value.trim();
  return Boolean(operatorKey);
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
function confirmAction(title, detail, button, form) {
  const closeWith = (result) => () => dialog.close(result);
  const dialog = createElement("dialog", { id: "ask", "aria-labelledby": "ask-title" },
    createElement("h2", { id: "ask-title" }, title), createElement("p", null, detail), form ? createElement("p", null, form) : "",
    createElement("div", { class: "bar" },
      createElement("button", { type: "button", id: "ask-yes", class: "main", onclick: closeWith("yes") }, button),
      createElement("button", { type: "button", id: "ask-no", autofocus: !form, onclick: closeWith("no") }, translate("cancel"))));
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
