// The last exchanges, and those that come.
const MOST_SHOWN = 200;
const tail = { shown: [], waiting: [], paused: false, loading: false, missed: 0, source: null, asked: 0, state: "live" };

function filterQuery() {
  const wanted = new URLSearchParams();
  for (const [name, value] of new FormData(byId("filter"))) if (value.trim()) wanted.set(name, value.trim());
  return wanted;
}

function identity(exchange) { return exchange.request_id + " " + exchange.at; }

// Asks for what there is and follows what comes, as the filter says.
async function follow() {
  const turn = ++tail.asked;
  tail.source?.close();
  tail.waiting = [];
  tail.loading = true;
  if (!byId("filter").checkValidity()) {
    tellState("badFilter");
    return;
  }
  const wanted = filterQuery();
  const source = tail.source = new EventSource(ROOT + "api/requests/stream?" + wanted);
  source.addEventListener("message", (event) => comes(JSON.parse(event.data)));
  source.addEventListener("lost", (event) => notice(say("lost", number(JSON.parse(event.data).lost))));
  // What came while the stream was broken off is asked for.
  source.addEventListener("open", () => { tellState("live"); look(turn, wanted); });
  source.addEventListener("error", () => {
    tellState("broken");
    if (source.readyState === EventSource.CLOSED) setTimeout(() => { if (turn === tail.asked) follow(); }, 3000);
  });
}

async function look(turn, wanted) {
  tail.loading = true;
  try {
    const { requests } = await ask(`api/requests?limit=${MOST_SHOWN}&` + wanted);
    if (turn !== tail.asked || tail.paused) return;
    const known = new Set(requests.map(identity));
    tail.shown = [...tail.waiting.filter((it) => !known.has(identity(it))), ...requests].slice(0, MOST_SHOWN);
    tail.waiting = [];
    tail.loading = false;
    showExchanges();
  } catch (error) {
    notice(say("failedTo", error.message), "bad");
    tail.loading = false;
  }
}

function comes(exchange) {
  if (tail.paused) {
    tail.missed += 1;
    tellState(tail.state);
    return;
  }
  if (!tail.waiting.length && !tail.loading) requestAnimationFrame(takeIn);
  tail.waiting.unshift(exchange);
  tail.waiting.length = Math.min(tail.waiting.length, MOST_SHOWN);
}

// However fast they come, they are drawn once a frame.
function takeIn() {
  if (tail.loading) return;
  const known = new Set(tail.shown.map(identity)), fresh = tail.waiting.filter((it) => !known.has(identity(it)));
  tail.waiting = [];
  if (!fresh.length || tail.paused) return;
  const table = byId("requests"), body = table.tBodies[0];
  if (!tail.shown.length) body.replaceChildren();
  tail.shown = [...fresh, ...tail.shown].slice(0, MOST_SHOWN);
  body.prepend(...fresh.map((exchange) => exchangeRow(table, exchange)));
  while (body.rows.length > MOST_SHOWN) body.lastElementChild.remove();
  const [newest] = fresh;
  byId("spoken").textContent = say("spoken", newest.method, newest.path, newest.status, newest.errcode ?? "–");
}

function showExchanges() {
  const table = byId("requests");
  keepingFocus(table, () => {
    head(table, [say("time"), "nowrap"], [say("method")], [say("path")], [say("agent")], [say("client")], [say("status")], ["errcode"], [say("took"), "number"]);
    const rows = tail.shown.map((exchange) => exchangeRow(table, exchange));
    table.tBodies[0].replaceChildren(...(rows.length ? rows : [emptyRow(table, say("noExchanges"))]));
  });
}

function exchangeRow(table, exchange) {
  const { errcode, retried, error } = exchange, open = { type: "button", "data-key": identity(exchange), "aria-haspopup": "dialog", onclick: () => openExchange(exchange) };
  const code = errcode === null ? "–" : errcode === 0 ? "0" : chip(errcode, "warn");
  if (errcode && code.nodeType) code.title = meaning(errcode)?.meaning ?? "";
  return row(table, [
    [clock(exchange.at, true), "nowrap"], [exchange.method], [make("button", open, exchange.path), "path"],
    [exchange.agent ?? "–"], [exchange.client ?? "–"], [[statusChip(exchange), error ? make("span", { class: "sub" }, error) : ""]],
    [[code, retried === null ? "" : make("span", { class: "sub" }, say("retried"))]], [milliseconds(exchange.total_ms), "number"],
  ]);
}

function tellState(state) {
  tail.state = state;
  const button = byId("pause");
  button.textContent = say(tail.paused ? "resume" : "pause");
  button.setAttribute("aria-pressed", String(tail.paused));
  byId("tail-state").textContent = tail.paused ? say("paused", number(tail.missed)) : say(state);
}

function startInspector() {
  let soon = 0;
  const changed = () => { clearTimeout(soon); soon = setTimeout(follow, 250); };
  byId("filter").addEventListener("input", (event) => { if (event.target.name) changed(); });
  byId("filter").addEventListener("reset", () => setTimeout(follow));
  byId("filter").addEventListener("submit", (event) => { event.preventDefault(); follow(); });
  byId("announce").addEventListener("change", (event) => byId("spoken").setAttribute("aria-live", event.target.checked ? "polite" : "off"));
  byId("pause").addEventListener("click", () => {
    tail.paused = !tail.paused;
    tail.missed = 0;
    tellState(tail.state);
    if (!tail.paused) follow();
  });
  tellState("live");
  showExchanges();
  follow();
}
