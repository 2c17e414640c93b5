// The targets of callbacks with their dead letters, and the suites.
const callbackRates = { at: 0, counts: new Map() };
const MAX_DEAD_LETTERS = 50;

function totalOf(counts) { return Object.values(counts).reduce((sum, count) => sum + count, 0); }

// Callbacks received per minute since the last poll; null at first.
function receivedPerMinute(callback, at) {
  const total = totalOf(callback.received), before = callbackRates.counts.get(callback.name);
  callbackRates.counts.set(callback.name, total);
  const minutes = (at - callbackRates.at) / 60;
  return before === undefined || minutes <= 0 || total < before ? null : (total - before) / minutes;
}

function showCallbacks(callbacks, at) {
  const table = byId("callbacks"), rates = new Map(callbacks.map((callback) => [callback, receivedPerMinute(callback, at)]));
  callbackRates.at = at;
  byId("callbacks-section").hidden = callbacks.length === 0;
  preserveFocus(table, () => {
    setColumns(table, [translate("callback")], [translate("target")], [translate("received"), "number"], [translate("waiting"), "number"], [translate("oldest"), "nowrap"], [translate("lastSuccess"), "nowrap"], [translate("lastError")], [translate("dead"), "number"]);
    const rows = callbacks.flatMap((callback) => (callback.targets.length ? callback.targets : [null]).map((target, nth) => callbackRow(table, callback, target, nth === 0 ? rates.get(callback) : undefined, at)));
    table.tBodies[0].replaceChildren(...rows);
  });
}

function callbackRow(table, callback, target, rate, at) {
  const ago = (time) => time ? translate("since", formatDuration(at - time)) : "–";
  const received = rate === undefined ? "" : [formatNumber(totalOf(callback.received)), rate === null ? "" : createElement("span", { class: "sub" }, translate("aMinute", rate.toFixed(1)))];
  return createRow(table, [
    [callback.name], [target?.name ?? "–"], [received, "number"], [target ? formatNumber(target.pending) : "–", "number"],
    [target ? ago(target.oldest) : "–", "nowrap"], [target ? ago(target.last_success) : "–", "nowrap"],
    [target?.last_error ? createElement("span", { class: "clamp", title: target.last_error }, target.last_error) : "–"],
    [target?.dead ? createElement("button", { type: "button", "data-key": "dead " + callback.name + " " + target.name, onclick: () => openDeadLetters(callback.name, at) }, formatNumber(target.dead)) : "0", "number"],
  ]);
}

async function openDeadLetters(callback, at) {
  const dialog = byId("exchange");
  try {
    const { events } = await callApi(`api/callbacks/${encodeURIComponent(callback)}/events?state=dead&limit=${MAX_DEAD_LETTERS}`);
    const table = createElement("table", { id: "dead-letters" }, createElement("thead"), createElement("tbody"));
    setColumns(table, [translate("received"), "nowrap"], [translate("event")], [translate("target")], [translate("attempts"), "number"], [translate("lastError")], [translate("actions"), "number"]);
    table.tBodies[0].replaceChildren(...events.map((event) => createRow(table, [
      [formatTime(event.received_at), "nowrap"], [event.event], [event.target], [formatNumber(event.attempts), "number"], [event.last_error ?? "–"],
      [createElement("button", { type: "button", onclick: () => redeliver(callback, event.id) }, translate("redeliver")), "number"],
    ])));
    dialog.replaceChildren(dialogTitle(translate("deadLetters", callback)), createElement("div", { class: "scroll", tabindex: 0, role: "group", "aria-labelledby": "exchange-title" }, table));
    if (!dialog.open) showDialog(dialog);
  } catch (error) {
    notice(translate("error", error.message), "bad");
  }
}

async function redeliver(callback, id) {
  byId("exchange").close();
  try {
    const result = await changeApi("POST", `api/callbacks/${encodeURIComponent(callback)}/events/${encodeURIComponent(id)}/redeliver`);
    if (result) notice(translate("redelivered", result.targets.join(", ")), "good");
  } catch (error) {
    notice(translate("error", error.message), "bad");
  }
  refresh();
}

function showSuites(suites) {
  const table = byId("suites");
  byId("suites-section").hidden = suites.length === 0;
  setColumns(table, [translate("suite")], [translate("ticketAge"), "nowrap"], [translate("corps"), "number"], [translate("token")]);
  table.tBodies[0].replaceChildren(...suites.map(({ name, suite_id: id, provider, ticket_age_seconds: age, corps, token }) => createRow(table, [
    [[name, createElement("span", { class: "sub" }, [id, provider].filter(Boolean).join(" · "))]],
    [age === null ? chip(translate("noTicket"), "bad") : chip(formatDuration(age), age > 1500 ? "bad" : "good"), "nowrap"],
    [formatNumber(corps), "number"],
    [chip(translate(TOKEN_TEXTS[token.state] ?? token.state), STATES[token.state])],
  ])));
}
