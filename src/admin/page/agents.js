// The agents and their tokens. The server sorts, searches and pages them: there may be very many.
const AGENTS_PER_PAGE = 20, MAX_ERRCODE_CHIPS = 4, SEARCH_DELAY_MS = 300;
const STATES = { valid: "good", refused: "bad", expired: "warn", none: "" };
const TOKEN_TEXTS = { refused: "tokenRefused" };
const REASONS = { first: "first", expired: "expiredReason", refused: "refusedReason", ahead: "proactive", asked: "manual", shared: "sharedReason" };
// `cursors` holds the `after` of each page up to the shown one.
const agentList = { agents: [], next: null, total: 0, at: 0, cursors: [""] };
let searchTimer = 0;

function agentsPath() {
  const query = new URLSearchParams({ sort: byId("agent-sort").value, limit: AGENTS_PER_PAGE }), search = byId("agent-search").value.trim();
  if (search) query.set("q", search);
  if (byId("agent-failing").checked) query.set("failing", 1);
  if (agentList.cursors.at(-1)) query.set("after", agentList.cursors.at(-1));
  return "api/agents?" + query;
}

// Loads the first page of another list.
function listChanged() {
  clearTimeout(searchTimer);
  agentList.cursors = [""];
  searchTimer = setTimeout(refresh, SEARCH_DELAY_MS);
}

// Suggests agents for the filter of exchanges.
async function suggestAgents() {
  const { agents } = await callApi("api/agents?limit=20&q=" + encodeURIComponent(byId("filter").elements.agent.value.trim()));
  byId("agent-names").replaceChildren(...agents.map(({ name }) => createElement("option", { value: name })));
}

function updateAgents({ agents, next, total }, at) { Object.assign(agentList, { agents, next, total, at }); }

function showAgents() {
  const table = byId("agents"), { agents } = agentList;
  preserveFocus(table, () => {
    setColumns(table, [translate("agent")], [translate("token")], [translate("expiry"), "nowrap"], [translate("lastRefresh")], [translate("errcodes")], [translate("requests"), "number"], [translate("failed")], [translate("actions"), "number"]);
    const rows = agents.map((agent) => agentRow(table, agent));
    table.tBodies[0].replaceChildren(...(rows.length ? rows : [emptyRow(table, translate("noAgents"))]));
  });
  showPager();
}

function showPager() {
  const pager = byId("agent-pager"), { agents, next, total, cursors } = agentList, from = (cursors.length - 1) * AGENTS_PER_PAGE;
  const turnPage = (change) => () => { change(); refresh(); };
  preserveFocus(pager, () => pager.replaceChildren(
    createElement("span", null, agents.length ? translate("of", formatNumber(from + 1), formatNumber(from + agents.length), formatNumber(total)) : ""),
    next || cursors.length > 1 ? createElement("button", { type: "button", "data-key": "before", disabled: cursors.length === 1, onclick: turnPage(() => cursors.pop()) }, translate("previous")) : "",
    next || cursors.length > 1 ? createElement("button", { type: "button", "data-key": "next", disabled: !next, onclick: turnPage(() => cursors.push(next)) }, translate("next")) : ""));
}

function agentRow(table, agent) {
  const { hour, trouble } = agent, subtitle = [agent.corpid, agent.agentid, agent.upstream].filter((part) => part !== null).join(" · ");
  // A corp that no file names counts as its suite, whose name is before the colon.
  const none = agent.name.includes(":") ? "–" : "0";
  return createRow(table, [
    [[filterLink(agent.name, { agent: agent.name }), createElement("span", { class: "sub" }, subtitle)]],
    [tokenState(agent)],
    [expiry(agent), "nowrap"],
    [lastRefresh(agent)],
    [createElement("div", { class: "chips" }, errcodeChips(agent))],
    [hour ? formatNumber(hour.requests) : none, "number"],
    [hour ? failureChips(hour, { agent: agent.name }) : none],
    [createElement("div", { class: "actions" }, refreshButton(agent), inspectButton(agent), editButton("agents", agent.name)), "number"],
  ], { class: trouble ? "in-trouble" : null });
}

function tokenState({ token, failing, held, trouble, next_try_in_seconds: wait, inspected_until: until }) {
  const unused = token.state === "none" && !failing && !held;
  return [createElement("div", { class: "chips" }, trouble ? chip(translate("trouble"), "bad") : "", chip(translate(unused ? "noneYet" : TOKEN_TEXTS[token.state] ?? token.state), STATES[token.state]), failing ? chip(translate("failing"), "bad") : "", held ? chip(translate("held"), "bad") : ""),
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
  const text = failing ? failing + (wait ? " – " + translate("nextAttempt", formatDuration(wait)) : "") : "";
  return [chip(last.ok ? translate("ok") : translate("failed"), last.ok ? "good" : "bad"), " " + translate("since", formatDuration(agentList.at - last.at)) + ", " + translate(REASONS[last.reason] ?? "manual"),
    text ? createElement("span", { class: "sub clamp", title: text }, text) : ""];
}

function errcodeChips({ name, hour }) {
  const codes = Object.entries(hour?.errcodes ?? {}).sort((one, other) => other[1] - one[1]);
  const chips = codes.slice(0, MAX_ERRCODE_CHIPS).map(([code, count]) => chipLink(code + " × " + formatNumber(count), "warn", { agent: name, errcode: code }, explanationOf(Number(code))?.meaning));
  if (codes.length > MAX_ERRCODE_CHIPS) chips.push(chipLink("+" + (codes.length - MAX_ERRCODE_CHIPS), "", { agent: name, errcode: "!0" }));
  return chips;
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
