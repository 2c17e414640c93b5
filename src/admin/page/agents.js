// The agents and their tokens. Of very many only a page is rendered.
const AGENTS_A_PAGE = 20;
const STATES = { valid: "good", refused: "bad", expired: "warn", none: "" };
const REASONS = { first: "first", expired: "expiredReason", refused: "refusedReason", ahead: "ahead", asked: "asked", shared: "sharedReason" };
const agentList = { all: [], hours: new Map(), at: 0, page: 0 };

function takeAgents(agents, overview) {
  agentList.all = agents;
  agentList.hours = new Map(overview.agents.map((hour) => [hour.name, hour]));
  agentList.at = overview.at;
  const names = agents.slice(0, 1000).map(({ name }) => make("option", { value: name }));
  if (byId("agent-names").childElementCount !== names.length) byId("agent-names").replaceChildren(...names);
}

function wantedAgents() {
  const part = byId("agent-search").value.trim().toLowerCase(), failing = byId("agent-failing").checked;
  const holds = (agent) => [agent.name, agent.corpid, String(agent.agentid ?? "")].some((text) => text.toLowerCase().includes(part));
  const wanted = agentList.all.filter((agent) => (!failing || isInTrouble(agent)) && holds(agent));
  // Those in trouble come first, else as the proxy tells them.
  return [...wanted.filter(isInTrouble), ...wanted.filter((agent) => !isInTrouble(agent))];
}

function isInTrouble({ failing, held }) {
  return Boolean(failing) || held;
}

function showAgents() {
  const table = byId("agents"), wanted = wantedAgents();
  const pages = Math.max(1, Math.ceil(wanted.length / AGENTS_A_PAGE));
  agentList.page = Math.min(agentList.page, pages - 1);
  const from = agentList.page * AGENTS_A_PAGE, shown = wanted.slice(from, from + AGENTS_A_PAGE);
  keepingFocus(table, () => {
    head(table, [say("agent")], [say("token")], [say("expiry"), "nowrap"], [say("lastRenewal")], [say("errcodes")], [say("requests"), "number"], [say("actions"), "number"]);
    const rows = shown.map((agent) => agentRow(table, agent));
    table.tBodies[0].replaceChildren(...(rows.length ? rows : [emptyRow(table, say("noAgents"))]));
  });
  showPager(from, shown.length, wanted.length, pages);
}

function showPager(from, shown, all, pages) {
  const pager = byId("agent-pager"), turn = (by) => () => { agentList.page += by; showAgents(); };
  keepingFocus(pager, () => pager.replaceChildren(
    make("span", null, shown ? say("of", from + 1, from + shown, number(all)) : ""),
    pages > 1 ? make("button", { type: "button", "data-key": "before", disabled: agentList.page === 0, onclick: turn(-1) }, say("before")) : "",
    pages > 1 ? make("button", { type: "button", "data-key": "next", disabled: agentList.page >= pages - 1, onclick: turn(1) }, say("next")) : ""));
}

function agentRow(table, agent) {
  const hour = agentList.hours.get(agent.name);
  const counted = hour ? [number(hour.requests), hour.failed ? make("span", { class: "sub" }, say("failed") + " " + number(hour.failed)) : ""] : "0";
  return row(table, [
    [[agent.name, make("span", { class: "sub" }, agent.corpid + (agent.agentid === null ? "" : " · " + agent.agentid))]],
    [tokenState(agent)],
    [expiry(agent), "nowrap"],
    [renewal(agent)],
    [make("div", { class: "chips" }, errcodeChips(hour))],
    [counted, "number"],
    [make("div", { class: "actions" }, renewButton(agent), inspectButton(agent))],
  ]);
}

function tokenState({ token, failing, held, next_try_in_seconds: wait, inspected_until: until }) {
  const untouched = token.state === "none" && !failing && !held;
  return [make("div", { class: "chips" }, chip(say(untouched ? "noneYet" : token.state), STATES[token.state]), failing ? chip(say("failing"), "bad") : "", held ? chip(say("held"), "bad") : ""),
    held ? make("span", { class: "sub" }, say("nextTry", span(wait))) : "",
    until ? make("span", { class: "sub" }, say("lookedUntil", clock(until))) : ""];
}

function expiry({ token }) {
  if (!token.expires_at) return "–";
  const left = token.expires_at - agentList.at;
  return [left > 0 ? say("inUntil", span(left)) : say("since", span(-left)), make("span", { class: "sub" }, clock(token.expires_at) + " · " + say("age") + " " + span(token.age_seconds))];
}

function renewal({ last_renewal: last, failing, next_try_in_seconds: wait }) {
  if (!last) return "–";
  return [chip(last.ok ? say("ok") : say("failed"), last.ok ? "good" : "bad"), " " + say("since", span(agentList.at - last.at)) + ", " + say(REASONS[last.reason] ?? "asked"),
    failing ? make("span", { class: "sub" }, failing + (wait ? " – " + say("nextTry", span(wait)) : "")) : ""];
}

function errcodeChips(hour) {
  const codes = Object.entries(hour?.errcodes ?? {}).sort((one, other) => other[1] - one[1]);
  return codes.slice(0, 6).map(([code, count]) => {
    const told = chip(code + " × " + number(count), "warn");
    told.title = meaning(Number(code))?.meaning ?? "";
    return told;
  });
}

function renewButton({ name }) {
  return make("button", { type: "button", "data-key": "renew " + name, "aria-label": say("renewOf", name), onclick: async () => {
    if (!await confirmed(say("askRenew", name), say("askRenewWords"), say("yesRenew"))) return;
    await order(`api/agents/${encodeURIComponent(name)}/refresh`, (told) => told.ok
      ? [say(told.same_token ? "renewedSame" : "renewed", name, clock(told.expires_at)), "good"]
      : [say("notRenewed", name, told.failure, span(told.next_try_in_seconds)), "bad"]);
    refresh();
  } }, say("renew"));
}

function inspectButton({ name, inspected_until: until }) {
  return make("button", { type: "button", "data-key": "inspect " + name, "aria-label": say(until ? "inspectEndOf" : "inspectOf", name), "aria-pressed": until ? "true" : "false", onclick: async () => {
    if (!until && !await confirmed(say("askInspect", name), say("askInspectWords"), say("yesInspect"))) return;
    await order(`api/agents/${encodeURIComponent(name)}/inspect?for=${until ? "0s" : "10m"}`, (told) => told.inspected_until
      ? [say("inspecting", name, clock(told.inspected_until)), "good"] : [say("inspectEnded", name), "good"]);
    refresh();
  } }, say(until ? "inspectEnd" : "inspect"));
}
