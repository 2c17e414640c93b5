// The dialog with one exchange.
const explanations = new Map();
let proxyUrl = "http://127.0.0.1:8080";

function explanationOf(errcode) { return explanations.get(errcode)?.[language]; }

async function openExchange(exchange) {
  const dialog = byId("exchange");
  showExchange(exchange, null);
  if (!dialog.open) showDialog(dialog);
  try {
    const { requests } = await callApi("api/requests?limit=100&id=" + encodeURIComponent(exchange.request_id));
    const same = requests.find((it) => it.at === exchange.at);
    if (dialog.open) showExchange(same ?? exchange, same?.detail ?? null);
  } catch (error) {
    notice(translate("error", error.message), "bad");
  }
}

function showExchange(exchange, detail) {
  const dialog = byId("exchange"), focused = dialog.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  dialog.replaceChildren(...[
    dialogTitle(exchange.method + " " + exchange.path, createElement("button", { type: "button", "data-key": "curl", onclick: () => copy(asCurl(exchange, detail), missingInCurl(exchange, detail)) }, translate("copyCurl")), replayButton(exchange)),
    createElement("p", { id: "copied", class: "quiet", role: "status" }),
    facts(exchange, detail), explanationBox(exchange), ...timings(exchange, detail), ...messages(exchange, detail),
  ].filter(Boolean));
  if (focused) dialog.querySelector(`[data-key="${focused}"]`)?.focus();
}

// The title of the dialog, with its buttons.
function dialogTitle(text, ...buttons) {
  return createElement("div", { class: "title" }, createElement("h2", { id: "exchange-title" }, text), buttons,
    createElement("button", { type: "button", "data-key": "close", onclick: () => byId("exchange").close() }, translate("close")));
}

function replayButton({ request_id: id, at, method, path, agent }) {
  if (agent === null) return "";
  return createElement("button", { type: "button", "data-key": "replay", onclick: async () => {
    const isRead = method === "GET" || method === "HEAD";
    if (!isRead && !await confirmAction(translate("confirmReplay", method + " " + path), translate("confirmReplayDetail"), translate("replay"))) return;
    try {
      const result = await changeApi("POST", "api/requests/replay?id=" + encodeURIComponent(id) + "&at=" + at);
      if (!result) return;
      const { status, request_id: newId } = result;
      byId("copied").textContent = translate("replayed", status);
      const [replayed] = (await callApi("api/requests?id=" + encodeURIComponent(newId))).requests;
      if (replayed) showExchange(replayed, replayed.detail);
    } catch (error) {
      byId("copied").textContent = translate("error", error.message);
    }
  } }, translate("replay"));
}

function traceFact({ trace_id: id, trace_url: url }) {
  if (!id) return null;
  return ["trace", url ? createElement("a", { href: url, target: "_blank", rel: "noreferrer" }, id) : id];
}

function facts(exchange, detail) {
  const rows = [
    ["time", formatTime(exchange.at, true)], ["status", statusChip(exchange)], ["errcodes", exchange.errcode === null ? "–" : String(exchange.errcode), "errcode"],
    ["agent", exchange.agent ?? "–"], ["client", exchange.client ?? translate("noKey")], ["peer", exchange.peer ?? "–"], ["requestId", exchange.request_id], traceFact(exchange),
    exchange.request_bytes === null ? null : ["requestBytes", translate("bytesOf", formatNumber(exchange.request_bytes))],
    ["bytes", translate("bytesOf", formatNumber(exchange.bytes)) + (exchange.whole ? "" : " – " + translate("incomplete"))],
    detail?.query ? ["query", detail.query] : exchange.query_names?.length ? ["queryNames", exchange.query_names.join(", ")] : null,
    exchange.error ? ["proxyError", exchange.error + ": " + (exchange.reason ?? "")] : null,
  ];
  return createElement("dl", { class: "facts" }, rows.filter(Boolean).flatMap(([key, value, label]) => [createElement("dt", null, label ?? translate(key)), createElement("dd", null, value)]));
}

function statusChip({ status }) {
  if (!status) return chip(translate("noResponse"), "bad");
  return chip(status, status >= 500 ? "bad" : status >= 400 ? "warn" : "good");
}

function explanationBox({ errcode, retried, hint, untrusted_address: address }) {
  // The proxy's own errors need no explanation: their reason says what to do.
  const explanation = hint === null ? null : explanationOf(errcode);
  const parts = [
    explanation ? createElement("p", null, createElement("strong", null, errcode + " – " + translate("hint") + ": "), explanation.meaning) : null,
    explanation ? createElement("p", null, createElement("strong", null, translate("todo") + ": "), explanation.action, address ? [" ", createElement("code", null, address)] : "") : null,
    explanation?.place ? createElement("p", null, createElement("strong", null, translate("where") + ": "), explanation.place) : null,
    retried !== null ? createElement("p", null, translate("retriedFor", retried + (explanationOf(retried) ? " (" + explanationOf(retried).meaning + ")" : ""))) : null,
  ].filter(Boolean);
  return parts.length ? createElement("div", { class: "meaning" }, parts) : null;
}

// The waits and attempts with start and duration. Without details only their order is known, not the gaps between them.
function waterfallSteps(exchange, detail) {
  if (!detail) {
    const { first_try: first, token_ms: token, upstream_ms: upstream, errcode, status } = exchange, attempt = (nth, result) => translate("attemptN", nth) + ": " + result;
    const known = first
      ? [[translate("waitToken"), first.token_ms, "amber"], [attempt(1, exchange.retried), first.upstream_ms, "blue"], [translate("waitToken"), token - first.token_ms, "amber"], [attempt(2, errcode ?? (status || translate("noResponse"))), upstream - first.upstream_ms, "blue"]]
      : [[translate("waitToken"), token, "amber"], [translate("upstream"), upstream, "blue"]];
    let at = 0;
    return known.filter(([, duration]) => duration > 0).map(([name, duration, kind]) => [name, (at += duration) - duration, duration, kind]);
  }
  const waits = detail.waits.map((it) => [translate("waitToken"), it.began_ms, it.took_ms, "amber"]);
  const attempts = detail.tries.map((it, nth) => [translate("attemptN", nth + 1) + ": " + (it.status || translate("noResponse")) + (it.errcode === null ? "" : ", " + it.errcode), it.began_ms, it.took_ms ?? exchange.total_ms - it.began_ms, "blue"]);
  const ready = detail.waits[0] && detail.tries[0]?.began_ms >= detail.waits[0].began_ms ? detail.waits[0].began_ms + detail.waits[0].took_ms : 0;
  const queue = detail.tries[0] && detail.tries[0].began_ms - ready > 0.5 ? [[translate("queue"), ready, detail.tries[0].began_ms - ready, "amber"]] : [];
  return [...waits, ...queue, ...attempts].sort((one, other) => one[1] - other[1]);
}

function timings(exchange, detail) {
  const all = exchange.total_ms || 1, known = waterfallSteps(exchange, detail);
  const end = Math.max(0, ...known.map(([, start, duration]) => start + duration));
  const shown = [...known, ...(all - end > 0 ? [[translate("rest"), end, all - end, "gray"]] : [])];
  const lines = shown.flatMap(([name, start, duration, kind]) => {
    const svg = createSvg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", class: kind, "aria-hidden": "true" });
    svg.append(createSvg("rect", { class: "bar-of", x: Math.min(99.5, 100 * start / all), y: 1, width: Math.max(0.5, 100 * duration / all), height: 8 }));
    return [createElement("span", null, name), svg, createElement("span", null, formatMilliseconds(duration))];
  });
  return [createElement("h3", null, translate("timings") + " – " + formatMilliseconds(exchange.total_ms)), createElement("div", { class: "waterfall" }, lines)];
}

function messages(exchange, detail) {
  if (!detail) return [createElement("p", { class: "quiet" }, translate(exchange.detail_missing ? "dropped" : exchange.has_detail ? "gone" : "notCaptured"))];
  const refused = detail.tries.flatMap((it, nth) => it.refused ? message(translate("refusedResponse", nth + 1), translate("refusedResponse", nth + 1), it.refused) : []);
  return [...message(translate("reqHeaders"), translate("reqBody"), detail.request), ...refused, ...message(translate("resHeaders"), translate("resBody"), detail.answer)];
}

function message(headers, body, { headers: lines, body: text, cut, binary }) {
  const rows = lines.map(([name, value]) => createElement("tr", null, createElement("th", { scope: "row" }, name), createElement("td", null, value)));
  const rest = binary ? "\n" + translate("binary") : cut ? "\n" + translate("more") : "";
  return [createElement("h3", null, headers), createElement("table", { class: "headers" }, createElement("tbody", null, rows)),
    headers === body ? null : createElement("h3", null, body), createElement("pre", { tabindex: 0, "aria-label": body }, text || rest ? text + rest : translate("empty"))].filter(Boolean);
}

// What the command lacks: values and bodies that were not captured, and masked ones.
function missingInCurl({ query_names: names = [], request_bytes: bytes }, detail) {
  const missing = [], masked = detail ? [detail.query, ...detail.request.headers.flat(), detail.request.body].some((text) => text.includes("[masked]")) : false;
  if (!detail && names.length) missing.push(translate("missingQuery", names.join(", ")));
  if (!detail && bytes) missing.push(translate("missingBody", translate("bytesOf", formatNumber(bytes))));
  if (detail?.request.cut || detail?.request.binary) missing.push(translate("missingRest"));
  if (masked) missing.push(translate("missingMasked"));
  return missing;
}

function shellQuote(text) { return "'" + text.replaceAll("'", "'\\''") + "'"; }

// The request as a curl command; masked values are left out for the user to fill in.
function asCurl(exchange, detail) {
  const isMasked = (text) => text.includes("[masked]");
  const query = (detail?.query ?? (exchange.query_names ?? []).filter((name) => name !== "[masked]").map((name) => name + "=…").join("&")).split("&").filter((parameter) => parameter && !/^[^=]*token=\[masked\]$/i.test(parameter)).join("&");
  const parts = ["curl"];
  if (exchange.method !== "GET") parts.push("-X", shellQuote(exchange.method));
  if (exchange.client !== null) parts.push('-H "Authorization: Bearer $KEY"');
  const dropped = /^(host|content-length|authorization|x-api-key|x-wecom-agent|x-request-id|expect|accept-encoding)$/i;
  for (const [name, value] of detail?.request.headers ?? []) if (!dropped.test(name) && !isMasked(value)) parts.push("-H", shellQuote(name + ": " + value));
  if (exchange.agent && !exchange.path.startsWith("/" + exchange.agent + "/")) parts.push("-H", shellQuote("X-Wecom-Agent: " + exchange.agent));
  const body = detail?.request;
  if (body?.cut || body?.binary || (!body && exchange.request_bytes)) parts.push("--data-binary", "@body");
  else if (body?.body) parts.push("--data-raw", shellQuote(body.body));
  // A captured exchange shows what is masked in place.
  const missing = detail ? [] : missingInCurl(exchange, detail).map((text) => "# " + text + "\n");
  return missing.join("") + [...parts, shellQuote(proxyUrl + exchange.path + (query ? "?" + query : ""))].join(" ");
}

async function copy(text, missing) {
  const status = byId("copied");
  try {
    await navigator.clipboard.writeText(text);
    status.textContent = [translate("copied"), ...missing].join(" ");
  } catch {
    // Browsers may forbid clipboard access to pages over plain HTTP.
    const command = createElement("pre", { tabindex: 0, class: "command" }, text);
    status.replaceChildren(translate("cannotCopy"), command);
    getSelection().selectAllChildren(command);
  }
}
