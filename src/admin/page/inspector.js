// The recent exchanges, and new ones as they arrive. The filter stands in the page's address.
const PAGE_SIZE = 200, MAX_SHOWN = 2000;
// `limit` is the number of exchanges to keep shown: more after older ones were asked for. `empty` names the parameters that
// select exchanges without an agent or client.
const tail = { shown: [], pending: [], paused: false, loading: false, missed: 0, source: null, generation: 0, state: "live", next: null, limit: PAGE_SIZE, empty: [] };
const FAILURE_KINDS = { outage: "bad", refused: "warn", wecom: "warn", caller: "" };

function filterQuery() {
  const query = new URLSearchParams();
  for (const [name, value] of new FormData(byId("filter"))) if (value.trim()) query.set(name, value.trim());
  for (const name of tail.empty) if (!query.has(name)) query.set(name, "");
  return query;
}

// Fills the form from a query; what it does not know is left out.
function fillFilter(query) {
  const { elements } = byId("filter");
  byId("filter").reset();
  tail.empty = ["agent", "client"].filter((name) => query.get(name) === "");
  for (const [name, value] of query) {
    if (!elements[name]?.name) continue;
    if (elements[name].type === "checkbox") elements[name].checked = value !== "0"; else elements[name].value = value;
    if (elements[name].closest("details")) elements[name].closest("details").open = true;
  }
}

function applyFilter(query) {
  fillFilter(query);
  follow();
}

function rememberFilter(query) {
  history.replaceState(null, "", location.pathname + (query.size ? "?" + query : "") + location.hash);
}

function exchangeKey(exchange) { return exchange.request_id + " " + exchange.at; }

// Opens the stream with the filter, then loads the recent exchanges.
async function follow() {
  const generation = ++tail.generation;
  tail.source?.close();
  tail.pending = [];
  tail.loading = true;
  tail.limit = PAGE_SIZE;
  if (!byId("filter").checkValidity()) {
    setTailState("badFilter");
    return;
  }
  const query = filterQuery();
  rememberFilter(query);
  const source = tail.source = new EventSource(ROOT + "api/requests/stream?" + query);
  source.addEventListener("message", (event) => onExchange(JSON.parse(event.data)));
  source.addEventListener("lost", (event) => notice(translate("lost", formatNumber(JSON.parse(event.data).lost))));
  // Exchanges from the time without a stream are loaded when it is open again.
  source.addEventListener("open", () => { setTailState("live"); loadExchanges(generation, query); });
  source.addEventListener("error", () => {
    setTailState("broken");
    if (source.readyState === EventSource.CLOSED) setTimeout(() => { if (generation === tail.generation) follow(); }, 3000);
  });
}

async function loadExchanges(generation, query) {
  tail.loading = true;
  try {
    const { requests, next } = await callApi(`api/requests?limit=${tail.limit}&` + query);
    if (generation !== tail.generation || tail.paused) return;
    const known = new Set(requests.map(exchangeKey));
    tail.shown = [...tail.pending.filter((it) => !known.has(exchangeKey(it))), ...requests].slice(0, tail.limit);
    tail.next = next;
    tail.pending = [];
    tail.loading = false;
    showExchanges();
  } catch (error) {
    notice(translate("error", error.message), "bad");
    tail.loading = false;
  }
}

function onExchange(exchange) {
  if (tail.paused) {
    tail.missed += 1;
    setTailState(tail.state);
    return;
  }
  if (!tail.pending.length && !tail.loading) requestAnimationFrame(renderPending);
  tail.pending.unshift(exchange);
  tail.pending.length = Math.min(tail.pending.length, tail.limit);
}

// Appends the exchanges before the oldest one that is shown.
async function loadOlder() {
  const { generation } = tail, query = filterQuery();
  query.set("before", tail.next);
  try {
    const { requests, next } = await callApi(`api/requests?limit=${PAGE_SIZE}&` + query);
    if (generation !== tail.generation) return;
    const known = new Set(tail.shown.map(exchangeKey));
    tail.shown.push(...requests.filter((it) => !known.has(exchangeKey(it))));
    tail.next = tail.shown.length < MAX_SHOWN ? next : null;
    tail.limit = Math.max(tail.limit, tail.shown.length);
    showExchanges();
  } catch (error) {
    notice(translate("error", error.message), "bad");
  }
}

// New exchanges are rendered once per frame, however fast they arrive.
function renderPending() {
  if (tail.loading) return;
  const known = new Set(tail.shown.map(exchangeKey)), fresh = tail.pending.filter((it) => !known.has(exchangeKey(it)));
  tail.pending = [];
  if (!fresh.length || tail.paused) return;
  const table = byId("requests"), body = table.tBodies[0];
  if (!tail.shown.length) body.replaceChildren();
  tail.shown = [...fresh, ...tail.shown].slice(0, tail.limit);
  body.prepend(...fresh.map((exchange) => exchangeRow(table, exchange)));
  // A row with the focus stays.
  while (body.rows.length > tail.limit && !body.lastElementChild.contains(document.activeElement)) body.lastElementChild.remove();
  const [newest] = fresh;
  byId("announcement").textContent = translate("announcement", newest.method, newest.path, newest.status, newest.errcode ?? "–");
}

function showExchanges() {
  const table = byId("requests");
  preserveFocus(table, () => {
    setColumns(table, [translate("time"), "nowrap"], [translate("method")], [translate("path")], [translate("agent")], [translate("client")], [translate("status")], ["errcode"], [translate("took"), "number"]);
    const rows = tail.shown.map((exchange) => exchangeRow(table, exchange));
    table.tBodies[0].replaceChildren(...(rows.length ? rows : [emptyRow(table, translate("noExchanges"))]));
  });
  byId("older").hidden = !tail.next;
}

function exchangeRow(table, exchange) {
  const { errcode, retried, error } = exchange, openAttributes = { type: "button", "data-key": exchangeKey(exchange), "aria-haspopup": "dialog", onclick: () => openExchange(exchange) };
  const code = errcode === null ? "–" : errcode === 0 ? "0" : chip(errcode, FAILURE_KINDS[exchange.failure] ?? "warn");
  if (errcode && code.nodeType) code.title = explanationOf(errcode)?.meaning ?? "";
  return createRow(table, [
    [formatTime(exchange.at, true), "nowrap"], [exchange.method], [createElement("button", openAttributes, exchange.path), "path"],
    [exchange.agent === null ? "–" : filterLink(exchange.agent, { agent: exchange.agent })], [exchange.client === null ? "–" : filterLink(exchange.client, { client: exchange.client })], [[statusChip(exchange), error ? createElement("span", { class: "sub" }, error) : ""]],
    [[code, retried === null ? "" : createElement("span", { class: "sub" }, translate("retried"))]], [formatMilliseconds(exchange.total_ms), "number"],
  ]);
}

function setTailState(state) {
  tail.state = state;
  const button = byId("pause");
  button.textContent = translate(tail.paused ? "resume" : "pause");
  button.setAttribute("aria-pressed", String(tail.paused));
  byId("tail-state").textContent = tail.paused ? translate("paused", formatNumber(tail.missed)) : translate(state);
}

function startInspector() {
  let timer = 0;
  fillFilter(new URLSearchParams(location.search));
  byId("older").addEventListener("click", loadOlder);
  byId("filter").elements.agent.addEventListener("input", () => suggestAgents().catch(() => { /* The list is only a help. */ }));
  const changed = () => { clearTimeout(timer); timer = setTimeout(follow, 250); };
  byId("filter").addEventListener("input", (event) => {
    if (!event.target.name) return;
    tail.empty = tail.empty.filter((name) => name !== event.target.name);
    changed();
  });
  byId("clear").addEventListener("click", () => applyFilter(new URLSearchParams()));
  byId("filter").addEventListener("submit", (event) => { event.preventDefault(); follow(); });
  byId("announce").addEventListener("change", (event) => byId("announcement").setAttribute("aria-live", event.target.checked ? "polite" : "off"));
  byId("pause").addEventListener("click", () => {
    tail.paused = !tail.paused;
    tail.missed = 0;
    setTailState(tail.state);
    if (!tail.paused) follow();
  });
  setTailState("live");
  showExchanges();
  follow();
}
