// WeCom's quotas of which more than half is used.
function showQuotas(quotas) {
  const table = byId("quotas");
  byId("quotas-section").hidden = quotas.length === 0;
  preserveFocus(table, () => {
    setColumns(table, [translate("quota")], [translate("agent")], [translate("used"), "number"], [translate("spentIn"), "nowrap"]);
    table.tBodies[0].replaceChildren(...quotas.map((quota) => quotaRow(table, quota)));
  });
}

function quotaRow(table, { quota, agent, used, limit, ratio, spent_in_seconds: spentIn, held_seconds: held }) {
  const kind = held !== null || ratio >= 0.9 ? "bad" : ratio >= 0.8 ? "warn" : "";
  return createRow(table, [
    [quota],
    [agent || "–"],
    [[chip(Math.round(100 * ratio) + " %", kind), createElement("span", { class: "sub" }, formatNumber(used) + " / " + (limit === null ? "?" : formatNumber(limit)))], "number"],
    [held !== null ? translate("heldFor", formatDuration(held)) : spentIn === null ? "–" : translate("inUntil", formatDuration(spentIn)), "nowrap"],
  ]);
}
