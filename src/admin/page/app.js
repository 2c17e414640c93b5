// Starts the page and refreshes its data.
const REFRESH_INTERVAL_MS = 5000, STALE_TICK_MS = 1000;
const STATUS_ZH = {
  ok: "正常", "ok, but some agents fail": "正常，但有应用失败", "ok, but some token refreshes are held back": "正常，但有换取被暂缓", "shutting down": "正在停止",
  "ok, but the last reload failed": "正常，但上次重新加载失败", "ok, but the state fails": "正常，但状态存储有故障",
  "no agent has a valid token": "没有应用有可用的 token",
};
let latest = null, refreshGeneration = 0, answeredAt = 0, refreshTimer = 0;

// Loads everything, then waits for the next time: on a slow line no poll begins before the last one ended.
async function refresh() {
  const generation = ++refreshGeneration;
  clearTimeout(refreshTimer);
  try {
    const paths = ["api/overview?agents=0&clients=" + MAX_CLIENTS, agentsPath(), "readyz", "api/agents?trouble=1&sort=trouble&limit=" + MAX_TROUBLES, "api/quotas", "api/callbacks", "api/suites"];
    const [overview, agents, ready, troubles, { quotas }, { callbacks }, { suites }] = await Promise.all(paths.map((path) => callApi(path)));
    const { clients } = ready.state ? await callApi("api/clients") : { clients: [] };
    if (generation !== refreshGeneration) return;
    answeredAt = Date.now();
    setStale(false);
    latest = { overview, agents, ready, troubles, quotas, callbacks, suites, clients };
    show();
  } catch (error) {
    if (generation !== refreshGeneration) return;
    // The browser's text for an unreachable server is not helpful.
    const isUnreachable = error instanceof TypeError || error.name === "TimeoutError";
    if (isUnreachable) setStale(true); else notice(error.message, "bad");
  }
  refreshTimer = setTimeout(() => { if (!document.hidden) refresh(); }, REFRESH_INTERVAL_MS);
}

// What is shown is grey while the proxy does not respond.
function setStale(stale) {
  const was = document.body.classList.contains("stale");
  document.body.classList.toggle("stale", stale);
  if (stale) showStaleNotice(); else if (was || latest === null) notice("");
}

function showStaleNotice() {
  if (!document.body.classList.contains("stale")) return;
  const seconds = Math.round((Date.now() - answeredAt) / 1000);
  notice(answeredAt ? translate("unreachableSince", formatDuration(seconds)) : translate("unreachable"), "bad");
}

function show() {
  if (!latest) return;
  const { overview, agents, ready, troubles, quotas, callbacks, suites, clients } = latest;
  hasState = Boolean(ready.state);
  for (const id of ["add-agent", "add-client"]) byId(id).hidden = !hasState;
  byId("version").textContent = overview.version;
  updateAgents(agents, overview.at);
  showHealth(ready, troubles.total);
  showTroubles(troubles);
  showOverview(overview);
  showAgents();
  showClients(overview, clients);
  showLimits(overview);
  showQuotas(quotas);
  showCallbacks(callbacks, overview.at);
  showSuites(suites);
  const [listener] = ready.listeners.filter((address) => !address.startsWith("unix:"));
  // The unspecified address is replaced by the host of this page.
  const host = listener?.replace(/^(0\.0\.0\.0|\[::\])(?=:)/, location.hostname);
  if (host) proxyUrl = (overview.tls ? "https://" : "http://") + host;
}

function showHealth({ status, agents, store, degraded }, inTrouble) {
  const kind = status === "ok" ? "good" : status.startsWith("ok") ? "warn" : "bad", failing = Object.keys({ ...agents.failing, ...agents.held }).length;
  const text = language === "zh" ? STATUS_ZH[status] ?? status : status;
  byId("health").replaceChildren(...[
    inTrouble ? createElement("a", { class: "chip bad", href: "#trouble" }, translate("inTrouble", formatNumber(inTrouble))) : "", " ",
    chip(text + (failing ? ` (${failing}/${agents.total})` : ""), kind), " ",
    chip(translate(store.ok ? "store" : "storeUnavailable", store.kind), store.ok ? "" : "bad"), " ",
    degraded.length ? chip(translate("noTicketOf", degraded.join(", ")), "bad") : ""].filter(Boolean));
}

async function loadErrcodes() {
  const { errcodes } = await callApi("api/errcodes");
  for (const explanation of errcodes) explanations.set(explanation.errcode, explanation);
}

async function reload() {
  if (!await confirmAction(translate("confirmReload"), translate("confirmReloadDetail"), translate("reloadButton"))) return;
  await runAction("api/reload", (result) => {
    if (!result.ok) return [translate("notReloaded", result.failure), "bad"];
    const more = [result.needs_restart.length ? translate("needsRestart", result.needs_restart.join(", ")) : "", ...result.warnings].filter(Boolean);
    loadSettings();
    return [[translate("reloaded", result.agents, result.clients), ...more].join(" "), more.length ? "" : "good"];
  });
  refresh();
}

// "/" goes to the search, unless something is being written.
function onKey(event) {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (document.activeElement.matches("input, select, textarea")) return;
  event.preventDefault();
  byId("agent-search").focus();
}

function start() {
  translatePage();
  byId("language").addEventListener("click", () => { switchLanguage(); show(); loadSettings(); showExchanges(); setTailState(tail.state); });
  byId("reload").addEventListener("click", reload);
  byId("settings").addEventListener("toggle", loadSettings);
  byId("add-agent").addEventListener("click", () => openEntry("agents", null));
  byId("add-client").addEventListener("click", () => openEntry("clients", null));
  byId("agent-search").addEventListener("input", listChanged);
  for (const id of ["agent-failing", "agent-sort"]) byId(id).addEventListener("change", listChanged);
  for (const change of [matchMedia("(prefers-color-scheme: dark)"), window]) change.addEventListener(change === window ? "resize" : "change", () => { if (latest) showCharts(latest.overview.minutes, latest.overview.started_at); });
  document.addEventListener("keydown", onKey);
  // A hidden page needs no fresh data.
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
  setInterval(showStaleNotice, STALE_TICK_MS);
  startInspector();
  loadErrcodes().catch((error) => notice(translate("error", error.message), "bad"));
  refresh();
}

start();
