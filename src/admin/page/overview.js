// The numbers of the last whole minutes, the limits in use, and the clients.
const HEADLINE_MINUTES = 5, MAX_CLIENTS = 50, MAX_AGENT_CHIPS = 5;

function showOverview(overview) {
  const { minutes } = overview, whole = minutes.slice(0, -1).filter((it) => it.at >= minutes.at(-1).at - 60 * HEADLINE_MINUTES);
  // In its first minute the proxy has no whole one.
  const counted = whole.length ? whole : minutes, seconds = whole.length ? 60 * whole.length : Math.max(1, overview.at - minutes.at(-1).at);
  const sum = (key) => counted.reduce((total, it) => total + it[key], 0), requests = sum("requests"), slowest = counted.filter((it) => it.p99_ms !== null).sort((one, other) => other.p99_ms - one.p99_ms)[0];
  const rate = requests / seconds;
  const totals = [
    ["perSecond", rate >= 100 ? formatNumber(Math.round(rate)) : rate.toFixed(rate >= 10 ? 1 : 2)], ["total", formatNumber(requests), "", {}],
    ...FAILURES.map(([key, kind]) => [key, sum(key) ? formatNumber(sum(key)) + " · " + formatPercent(sum(key), requests) : "0", sum(key) ? kind : "gray", { failed: key }]),
    ["slowest", slowest ? formatBounds(slowest.p99_bounds_ms, slowest.p99_ms) : "–"], ["inFlight", formatNumber(overview.in_flight)], ["connections", formatNumber(overview.connections)],
  ];
  byId("overview-title").textContent = translate(["runningMinute", "lastMinute"][whole.length] ?? "lastMinutes", whole.length);
  preserveFocus(byId("numbers"), () => byId("numbers").replaceChildren(...totals.map(([key, value, kind, filter]) => createElement("div", null,
    createElement("dt", null, translate(key)), createElement("dd", { class: kind }, filter ? filterLink(value, filter, kind) : value)))));
  byId("uptime").textContent = [overview.replica ?? overview.host, translate("uptime", formatDuration(overview.at - overview.started_at)), translate("zone", Intl.DateTimeFormat().resolvedOptions().timeZone)].filter(Boolean).join(" · ");
  showCharts(minutes, overview.started_at);
}

const BYTES_OF = new Set(["replay.memory", "replay.disk"]);

function formatBytes(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let nth = 0;
  for (; bytes >= 1024 && nth < units.length - 1; nth++) bytes /= 1024;
  return (bytes >= 10 || bytes % 1 === 0 ? Math.round(bytes) : bytes.toFixed(1)) + " " + units[nth];
}

function showLimits({ limits }) {
  const table = byId("limits");
  setColumns(table, [translate("limit")], [translate("used")]);
  table.tBodies[0].replaceChildren(...limits.map(({ name, upstream, used, max }) => {
    const write = BYTES_OF.has(name) ? formatBytes : formatNumber, label = name === "queue" ? translate("queueLimit") : name;
    return createRow(table, [[[label, upstream && upstream !== "default" ? createElement("span", { class: "sub" }, upstream) : ""]], [usageBar(max ? used / max : 0, write(used) + " / " + write(max))]]);
  }));
}

// The settings in force; loaded when they are opened, and after a reload.
async function loadSettings() {
  if (!byId("settings").open) return;
  try {
    const { settings, traces } = await callApi("api/config");
    const table = byId("settings-table"), isSet = (value) => value?.set === true;
    const text = (value) => value === null || value === undefined ? "–" : isSet(value) ? translate("isSet") : typeof value === "string" ? value : JSON.stringify(value);
    setColumns(table, [translate("setting")], [translate("value")], [translate("applied")]);
    table.tBodies[0].replaceChildren(
      ...settings.map(({ key, value, needs_restart: restart, changed }) => createRow(table, [[key], [createElement("code", null, text(value))],
        [changed ? chip(translate("changedSetting"), "warn") : translate(restart ? "byRestart" : "byReload")]])),
      ...traces.map(({ name, value, source }) => createRow(table, [[translate("tracesSetting", name)], [createElement("code", null, value)], [source]])));
  } catch (error) {
    notice(translate("error", error.message), "bad");
  }
}

// The clients by their requests, then those without any.
function showClients(overview, configured) {
  const table = byId("clients"), { clients } = overview, used = new Set(clients.map(({ name }) => name));
  const unused = configured.filter(({ name }) => !used.has(name)).slice(0, MAX_CLIENTS).map(({ name, limit }) => ({ name, requests: 0, agents: [], agent_count: 0, limit: limit ?? null, limit_used_ratio: 0, last_minute: null }));
  preserveFocus(table, () => {
    setColumns(table, [translate("client")], [translate("requests"), "number"], [translate("failed")], [translate("limitUsed")], [translate("lastSeen"), "nowrap"], [translate("uses")], ...hasState ? [[translate("actions"), "number"]] : []);
    const rows = [...clients, ...unused].map((client) => clientRow(table, client, overview.at));
    const more = !configured.length && overview.client_count > clients.length ? [emptyRow(table, translate("moreClients", formatNumber(overview.client_count - clients.length)))] : [];
    const others = overview.unlisted_requests ? [emptyRow(table, translate("unlisted", formatNumber(overview.unlisted_requests)))] : [];
    table.tBodies[0].replaceChildren(...(rows.length ? rows : [emptyRow(table, translate("noClients"))]), ...more, ...others);
  });
  byId("client-names").replaceChildren(...clients.filter(({ name }) => name).map(({ name }) => createElement("option", { value: name })));
}

function clientRow(table, client, at) {
  const { name, requests, agents, agent_count: count, limit, limit_used_ratio: ratio, last_minute: last } = client;
  const chips = agents.slice(0, MAX_AGENT_CHIPS).map((it) => chipLink((it.name ?? "–") + " " + formatNumber(it.requests), "", { client: name ?? "", agent: it.name ?? "" }));
  if (count > MAX_AGENT_CHIPS) chips.push(chip("+" + formatNumber(count - MAX_AGENT_CHIPS)));
  return createRow(table, [
    [filterLink(name ?? translate("noKey"), { client: name ?? "" })],
    [formatNumber(requests), "number"],
    [failureChips(client, { client: name ?? "" })],
    [limit ? usageBar(ratio, Math.round(100 * ratio) + " % · " + limit) : "–"],
    [last ? at - last < 60 ? translate("now") : translate("since", formatDuration(at - last - 60)) : "–", "nowrap"],
    [createElement("div", { class: "chips" }, chips)],
    ...hasState ? [[createElement("div", { class: "actions" }, editButton("clients", name)), "number"]] : [],
  ]);
}

// The failed requests by class; each is a link.
function failureChips(counts, filter) {
  const chips = FAILURES.filter(([key]) => counts[key]).map(([key, kind]) => chipLink(translate(key) + " " + formatNumber(counts[key]), kind === "gray" ? "" : kind === "bad" ? "bad" : "warn", { ...filter, failed: key }));
  return chips.length ? createElement("div", { class: "chips" }, chips) : "0";
}
