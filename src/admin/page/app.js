// Starts the page and refreshes its data.
const REFRESH_INTERVAL_MS = 5000;
const STATUS_ZH = {
  ok: "正常", "ok, but some agents fail": "正常，但有应用失败", "ok, but some token refreshes are held back": "正常，但有换取被暂缓", "shutting down": "正在停止",
  "no agent has a valid token": "没有应用有可用的 token",
};
let latest = null, refreshGeneration = 0;

async function refresh() {
  const generation = ++refreshGeneration;
  try {
    const [overview, { agents }, ready] = await Promise.all([callApi("api/overview"), callApi("api/agents"), callApi("readyz")]);
    if (generation !== refreshGeneration) return;
    if (latest === null || byId("notice").dataset.unreachable) notice("");
    delete byId("notice").dataset.unreachable;
    latest = { overview, agents, ready };
    show();
  } catch (error) {
    // The browser's text for an unreachable server is not helpful.
    notice(error instanceof TypeError ? translate("unreachable") : error.message, "bad");
    byId("notice").dataset.unreachable = "yes";
  }
}

function show() {
  if (!latest) return;
  const { overview, agents, ready } = latest;
  byId("version").textContent = overview.version;
  showHealth(ready);
  showOverview(overview);
  updateAgents(agents, overview);
  showAgents();
  showClients(overview);
  const [listener] = ready.listeners.filter((address) => !address.startsWith("unix:"));
  // The unspecified address is replaced by the host of this page.
  const host = listener?.replace(/^(0\.0\.0\.0|\[::\])(?=:)/, location.hostname);
  if (host) proxyUrl = (overview.tls ? "https://" : "http://") + host;
}

function showHealth({ status, agents, store }) {
  const kind = status === "ok" ? "good" : status.startsWith("ok") ? "warn" : "bad", failing = Object.keys({ ...agents.failing, ...agents.held }).length;
  const text = language === "zh" ? STATUS_ZH[status] ?? status : status;
  byId("health").replaceChildren(
    chip(text + (failing ? ` (${failing}/${agents.total})` : ""), kind), " ",
    chip(translate(store.ok ? "store" : "storeUnavailable", store.kind), store.ok ? "" : "bad"));
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
    return [[translate("reloaded", result.agents, result.clients), ...more].join(" "), more.length ? "" : "good"];
  });
  refresh();
}

function start() {
  translatePage();
  byId("language").addEventListener("click", () => { switchLanguage(); show(); showExchanges(); setTailState(tail.state); });
  byId("reload").addEventListener("click", reload);
  byId("agent-search").addEventListener("input", () => { agentList.page = 0; showAgents(); });
  byId("agent-failing").addEventListener("change", () => { agentList.page = 0; showAgents(); });
  for (const change of [matchMedia("(prefers-color-scheme: dark)"), window]) change.addEventListener(change === window ? "resize" : "change", () => { if (latest) showCharts(latest.overview.minutes); });
  startInspector();
  loadErrcodes().catch((error) => notice(translate("error", error.message), "bad"));
  refresh();
  // A hidden page needs no fresh data.
  setInterval(() => { if (!document.hidden) refresh(); }, REFRESH_INTERVAL_MS);
}

start();
