// Puts the parts together and keeps them fresh.
const PACE = 5000;
const STATUS_ZH = {
  ok: "正常", "ok, but some agents fail": "正常，但有应用失败", "ok, but some renewals are held back": "正常，但有换取被暂缓", "shutting down": "正在停止",
  "no agent has a token that serves": "没有应用有可用的 token",
};
let latest = null, turnOfRefresh = 0;

async function refresh() {
  const turn = ++turnOfRefresh;
  try {
    const [overview, { agents }, ready] = await Promise.all([ask("api/overview"), ask("api/agents"), ask("readyz")]);
    if (turn !== turnOfRefresh) return;
    if (latest === null || byId("notice").dataset.unreachable) notice("");
    delete byId("notice").dataset.unreachable;
    latest = { overview, agents, ready };
    show();
  } catch (error) {
    // A browser's words for a proxy that is away help nobody.
    notice(error instanceof TypeError ? say("cannotReach") : error.message, "bad");
    byId("notice").dataset.unreachable = "yes";
  }
}

function show() {
  if (!latest) return;
  const { overview, agents, ready } = latest;
  byId("version").textContent = overview.version;
  showHealth(ready);
  showOverview(overview);
  takeAgents(agents, overview);
  showAgents();
  showClients(overview);
  const [listener] = ready.listeners.filter((address) => !address.startsWith("unix:"));
  // An address that means all of them is reached as this page is.
  const host = listener?.replace(/^(0\.0\.0\.0|\[::\])(?=:)/, location.hostname);
  if (host) proxyUrl = (overview.tls ? "https://" : "http://") + host;
}

function showHealth({ status, agents, store }) {
  const kind = status === "ok" ? "good" : status.startsWith("ok") ? "warn" : "bad", failing = Object.keys({ ...agents.failing, ...agents.held }).length;
  const words = language === "zh" ? STATUS_ZH[status] ?? status : status;
  byId("health").replaceChildren(
    chip(words + (failing ? ` (${failing}/${agents.total})` : ""), kind), " ",
    chip(say(store.ok ? "store" : "unwell", store.kind), store.ok ? "" : "bad"));
}

async function learnErrcodes() {
  const { errcodes } = await ask("api/errcodes");
  for (const row of errcodes) explained.set(row.errcode, row);
}

async function reload() {
  if (!await confirmed(say("askReload"), say("askReloadWords"), say("yesReload"))) return;
  await order("api/reload", (told) => {
    if (!told.ok) return [say("notReloaded", told.failure), "bad"];
    const more = [told.needs_restart.length ? say("needsRestart", told.needs_restart.join(", ")) : "", ...told.warnings].filter(Boolean);
    return [[say("reloaded", told.agents, told.clients), ...more].join(" "), more.length ? "" : "good"];
  });
  refresh();
}

function start() {
  sayEverywhere();
  byId("language").addEventListener("click", () => { switchLanguage(); show(); showExchanges(); tellState(tail.state); });
  byId("reload").addEventListener("click", reload);
  byId("agent-search").addEventListener("input", () => { agentList.page = 0; showAgents(); });
  byId("agent-failing").addEventListener("change", () => { agentList.page = 0; showAgents(); });
  for (const change of [matchMedia("(prefers-color-scheme: dark)"), window]) change.addEventListener(change === window ? "resize" : "change", () => { if (latest) showCharts(latest.overview.minutes); });
  startInspector();
  learnErrcodes().catch((error) => notice(say("failedTo", error.message), "bad"));
  refresh();
  // Nobody looks at a hidden page.
  setInterval(() => { if (!document.hidden) refresh(); }, PACE);
}

start();
