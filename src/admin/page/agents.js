// The agents and their tokens, rendered one page at a time.
const AGENTS_PER_PAGE = 20;
const STATES = { valid: "good", refused: "bad", expired: "warn", none: "" };
const REASONS = { first: "first", expired: "expiredReason", refused: "refusedReason", ahead: "proactive", asked: "manual", shared: "sharedReason" };
const agentList = { all: [], hours: new Map(), at: 0, page: 0 };

function updateAgents(agents, overview) {
  agentList.all = agents;
  agentList.hours = new Map(overview.agents.map((hour) => [hour.name, hour]));
  agentList.at = overview.at;
  const names = agents.slice(0, 1000).map(({ name }) => createElement("option", { value: name }));
  if (byId("agent-names").childElementCount !== names.length) byId("agent-names").replaceChildren(...names);
}

function filteredAgents() {
  const search = byId("agent-search").value.trim().toLowerCase(), failing = byId("agent-failing").checked;
  const matches = (agent) => [agent.name, agent.corpid, String(agent.agentid ?? "")].some((text) => text.toLowerCase().includes(search));
  const filtered = agentList.all.filter((agent) => (!failing || needsAttention(agent)) && matches(agent));
  // Failing agents come first, otherwise in the order of the API.
  return [...filtered.filter(needsAttention), ...filtered.filter((agent) => !needsAttention(agent))];
}

function needsAttention({ failing, held }) {
  return Boolean(failing) || held;
}

function showAgents() {
  const table = byId("agents"), filtered = filteredAgents();
  const pages = Math.max(1, Math.ceil(filtered.length / AGENTS_PER_PAGE));
  agentList.page = Math.min(agentList.page, pages - 1);
  const from = agentList.page * AGENTS_PER_PAGE, shown = filtered.slice(from, from + AGENTS_PER_PAGE);
  preserveFocus(table, () => {
    setColumns(table, [translate("agent")], [translate("token")], [translate("expiry"), "nowrap"], [translate("lastRefresh")], [translate("errcodes")], [translate("requests"), "number"], [translate("actions"), "number"]);
    const rows = shown.map((agent) => agentRow(table, agent));
    table.tBodies[0].replaceChildren(...(rows.length ? rows : [emptyRow(table, translate("noAgents"))]));
  });
  showPager(from, shown.length, filtered.length, pages);
}

function showPager(from, shown, all, pages) {
  const pager = byId("agent-pager"), turnPage = (by) => () => { agentList.page += by; showAgents(); };
  preserveFocus(pager, () => pager.replaceChildren(
    createElement("span", null, shown ? translate("of", from + 1, from + shown, formatNumber(all)) : ""),
    pages > 1 ? createElement("button", { type: "button", "data-key": "before", disabled: agentList.page === 0, onclick: turnPage(-1) }, translate("previous")) : "",
    pages > 1 ? createElement("button", { type: "button", "data-key": "next", disabled: agentList.page >= pages - 1, onclick: turnPage(1) }, translate("next")) : ""));
}

function agentRow(table, agent) {
  const hour = agentList.hours.get(agent.name);
  const counts = hour ? [formatNumber(hour.requests), hour.failed ? createElement("span", { class: "sub" }, translate("failed") + " " + formatNumber(hour.failed)) : ""] : "0";
  return createRow(table, [
    [[agent.name, createElement("span", { class: "sub" }, agent.corpid + (agent.agentid === null ? "" : " · " + agent.agentid))]],
    [tokenState(agent)],
    [expiry(agent), "nowrap"],
    [lastRefresh(agent)],
    [createElement("div", { class: "chips" }, errcodeChips(hour))],
    [counts, "number"],
    [createElement("div", { class: "actions" }, refreshButton(agent), inspectButton(agent))],
  ]);
}

function tokenState({ token, failing, held, next_try_in_seconds: wait, inspected_until: until }) {
  const unused = token.state === "none" && !failing && !held;
  return [createElement("div", { class: "chips" }, chip(translate(unused ? "noneYet" : token.state), STATES[token.state]), failing ? chip(translate("failing"), "bad") : "", held ? chip(translate("held"), "bad") : ""),
    held ? createElement("span", { class: "sub" }, translate("nextAttempt", formatDuration(wait))) : "",
    until ? createElement("span", { class: "sub" }, translate("capturingUntil", formatTime(until))) : ""];
}

function expiry({ token }) {
  if (!token.expires_at) return "–";
  const left = token.expires_at - agentList.at;
  return [left > 0 ? translate("inUntil", formatDuration(left)) : translate("since", formatDuration(-left)), createElement("span", { class: "sub" }, formatTime(token.expires_at) + " · " + translate("age") + " " + formatDuration(token.age_seconds))];
}

function lastRefresh({ last_renewal: last, failing, next_try_in_seconds: wait }) {
  if (!last) return "–";
  return [chip(last.ok ? translate("ok") : translate("failed"), last.ok ? "good" : "bad"), " " + translate("since", formatDuration(agentList.at - last.at)) + ", " + translate(REASONS[last.reason] ?? "manual"),
    failing ? createElement("span", { class: "sub" }, failing + (wait ? " – " + translate("nextAttempt", formatDuration(wait)) : "")) : ""];
}

function errcodeChips(hour) {
  const codes = Object.entries(hour?.errcodes ?? {}).sort((one, other) => other[1] - one[1]);
  return codes.slice(0, 6).map(([code, count]) => {
    const element = chip(code + " × " + formatNumber(count), "warn");
    element.title = explanationOf(Number(code))?.meaning ?? "";
    return element;
  });
}

function refreshButton({ name }) {
  return createElement("button", { type: "button", "data-key": "renew " + name, "aria-label": translate("refreshOf", name), onclick: async () => {
    if (!await confirmAction(translate("confirmRefresh", name), translate("confirmRefreshDetail"), translate("refreshButton"))) return;
    await runAction(`api/agents/${encodeURIComponent(name)}/refresh`, (result) => result.ok
      ? [translate(result.same_token ? "refreshedSame" : "refreshed", name, formatTime(result.expires_at)), "good"]
      : [translate("notRefreshed", name, result.failure, formatDuration(result.next_try_in_seconds)), "bad"]);
    refresh();
  } }, translate("refresh"));
}

function inspectButton({ name, inspected_until: until }) {
  return createElement("button", { type: "button", "data-key": "inspect " + name, "aria-label": translate(until ? "inspectEndOf" : "inspectOf", name), "aria-pressed": until ? "true" : "false", onclick: async () => {
    if (!until && !await confirmAction(translate("confirmInspect", name), translate("confirmInspectDetail"), translate("inspectButton"))) return;
    await runAction(`api/agents/${encodeURIComponent(name)}/inspect?for=${until ? "0s" : "10m"}`, (result) => result.inspected_until
      ? [translate("inspecting", name, formatTime(result.inspected_until)), "good"] : [translate("inspectEnded", name), "good"]);
    refresh();
  } }, translate(until ? "inspectEnd" : "inspect"));
}
