// The agents in trouble: why, since when, and what to do where.
const MAX_TROUBLES = 20;

function showTroubles({ agents, total }) {
  const section = byId("trouble"), list = byId("troubles");
  section.hidden = agents.length === 0;
  byId("trouble-title").textContent = translate("inTrouble", formatNumber(total));
  preserveFocus(list, () => list.replaceChildren(...agents.map(troubleItem), ...(total > agents.length ? [createElement("li", { class: "quiet" }, translate("moreTroubles", formatNumber(total - agents.length)))] : [])));
  document.title = (total ? `(${total}) ` : "") + "wecom-proxy";
}

function troubleItem({ name, trouble }) {
  const { meaning, action, place } = trouble[language], at = agentList.at;
  const reasons = trouble.reasons.map((reason) => chipLink(TROUBLE_REASONS[reason] ? translate(TROUBLE_REASONS[reason]) : reason, "bad", { agent: name, ...troubleFilter(reason) }));
  return createElement("li", null,
    createElement("div", { class: "chips" }, filterLink(createElement("strong", null, name), { agent: name, failed: 1 }), reasons,
      createElement("span", { class: "quiet" }, translate("failingSince", formatDuration(at - trouble.failing_since), formatNumber(trouble.attempts), formatNumber(trouble.failed), formatNumber(trouble.requests)))),
    createElement("p", null, createElement("strong", null, meaning + (language === "zh" ? "：" : ": ")), action,
      trouble.address ? [" ", createElement("code", null, trouble.address)] : "", place ? createElement("span", { class: "sub" }, translate("where") + ": " + place) : ""));
}

const TROUBLE_REASONS = { "upstream-timeout": "timeouts", "half-failed": "halfFailed" };

function troubleFilter(reason) {
  return reason === "upstream-timeout" ? { kind: reason } : reason === "half-failed" ? { failed: 1 } : { errcode: reason };
}
