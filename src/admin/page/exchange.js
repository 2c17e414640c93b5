// One exchange, opened.
const explained = new Map();
let proxyUrl = "http://127.0.0.1:8080";

function meaning(errcode) { return explained.get(errcode)?.[language]; }

async function openExchange(exchange) {
  const dialog = byId("exchange");
  showExchange(exchange, null);
  if (!dialog.open) showDialog(dialog);
  if (!exchange.has_detail) return;
  try {
    const { requests } = await ask("api/requests?limit=100&id=" + encodeURIComponent(exchange.request_id));
    const same = requests.find((it) => it.at === exchange.at) ?? requests[0];
    if (dialog.open) showExchange(same ?? exchange, same?.detail ?? null);
  } catch (error) {
    notice(say("failedTo", error.message), "bad");
  }
}

function showExchange(exchange, detail) {
  const dialog = byId("exchange"), focused = dialog.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  dialog.replaceChildren(...[
    make("div", { class: "title" },
      make("h2", { id: "exchange-title" }, exchange.method + " " + exchange.path),
      make("button", { type: "button", "data-key": "curl", onclick: () => copy(asCurl(exchange, detail)) }, say("copyCurl")),
      make("button", { type: "button", "data-key": "close", onclick: () => dialog.close() }, say("close"))),
    make("p", { id: "copied", class: "quiet", role: "status" }),
    facts(exchange, detail), explanation(exchange), ...timings(exchange, detail), ...messages(exchange, detail),
  ].filter(Boolean));
  if (focused) dialog.querySelector(`[data-key="${focused}"]`)?.focus();
}

function facts(exchange, detail) {
  const told = [
    ["time", clock(exchange.at, true)], ["status", statusChip(exchange)], ["errcodes", exchange.errcode === null ? "–" : String(exchange.errcode), "errcode"],
    ["agent", exchange.agent ?? "–"], ["client", exchange.client ?? say("nobody")], ["peer", exchange.peer ?? "–"], ["requestId", exchange.request_id],
    exchange.request_bytes === null ? null : ["requestBytes", say("bytesOf", number(exchange.request_bytes))],
    ["bytes", say("bytesOf", number(exchange.bytes)) + (exchange.whole ? "" : " – " + say("cutOff"))],
    detail?.query ? ["query", detail.query] : null,
    exchange.error ? ["ownError", exchange.error + ": " + (exchange.reason ?? "")] : null,
  ];
  return make("dl", { class: "facts" }, told.filter(Boolean).flatMap(([word, value, plain]) => [make("dt", null, plain ?? say(word)), make("dd", null, value)]));
}

function statusChip({ status }) {
  if (!status) return chip(say("noAnswer"), "bad");
  return chip(status, status >= 500 ? "bad" : status >= 400 ? "warn" : "good");
}

function explanation({ errcode, retried, error }) {
  // The proxy's own errors say themselves what to do.
  const told = errcode && (!error || error === "token-unavailable") ? meaning(errcode) : null;
  const parts = [
    told ? make("p", null, make("strong", null, errcode + " – " + say("hint") + ": "), told.meaning) : null,
    told ? make("p", null, make("strong", null, say("todo") + ": "), told.action) : null,
    told?.place ? make("p", null, make("strong", null, say("where") + ": "), told.place) : null,
    retried !== null ? make("p", null, say("retriedFor", retried + (meaning(retried) ? " (" + meaning(retried).meaning + ")" : ""))) : null,
  ].filter(Boolean);
  return parts.length ? make("div", { class: "meaning" }, parts) : null;
}

// What took how long, from the request's beginning. Without details the order is known, but not what lay between.
function steps(exchange, detail) {
  if (!detail) {
    const { first_try: first, token_ms: token, upstream_ms: upstream, errcode, status } = exchange, tried = (nth, answer) => say("tryN", nth) + ": " + answer;
    const known = first
      ? [[say("waitToken"), first.token_ms, "amber"], [tried(1, exchange.retried), first.upstream_ms, "blue"], [say("waitToken"), token - first.token_ms, "amber"], [tried(2, errcode ?? (status || say("noAnswer"))), upstream - first.upstream_ms, "blue"]]
      : [[say("waitToken"), token, "amber"], [say("upstream"), upstream, "blue"]];
    let at = 0;
    return known.filter(([, took]) => took > 0).map(([name, took, kind]) => [name, (at += took) - took, took, kind]);
  }
  const waits = detail.waits.map((it) => [say("waitToken"), it.began_ms, it.took_ms, "amber"]);
  const tries = detail.tries.map((it, nth) => [say("tryN", nth + 1) + ": " + (it.status || say("noAnswer")) + (it.errcode === null ? "" : ", " + it.errcode), it.began_ms, it.took_ms ?? exchange.total_ms - it.began_ms, "blue"]);
  const ready = detail.waits[0] && detail.tries[0]?.began_ms >= detail.waits[0].began_ms ? detail.waits[0].began_ms + detail.waits[0].took_ms : 0;
  const queue = detail.tries[0] && detail.tries[0].began_ms - ready > 0.5 ? [[say("queue"), ready, detail.tries[0].began_ms - ready, "amber"]] : [];
  return [...waits, ...queue, ...tries].sort((one, other) => one[1] - other[1]);
}

function timings(exchange, detail) {
  const all = exchange.total_ms || 1, known = steps(exchange, detail);
  const end = Math.max(0, ...known.map(([, began, took]) => began + took));
  const shown = [...known, ...(all - end > 0 ? [[say("rest"), end, all - end, "gray"]] : [])];
  const lines = shown.flatMap(([name, began, took, kind]) => {
    const svg = draw("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", class: kind, "aria-hidden": "true" });
    svg.append(draw("rect", { class: "bar-of", x: Math.min(99.5, 100 * began / all), y: 1, width: Math.max(0.5, 100 * took / all), height: 8 }));
    return [make("span", null, name), svg, make("span", null, milliseconds(took))];
  });
  return [make("h3", null, say("timings") + " – " + milliseconds(exchange.total_ms)), make("div", { class: "waterfall" }, lines)];
}

function messages(exchange, detail) {
  if (!detail) return [make("p", { class: "quiet" }, say(exchange.detail_missing ? "dropped" : exchange.has_detail ? "gone" : "notKept"))];
  const tried = detail.tries.flatMap((it, nth) => it.refused ? message(say("firstAnswer", nth + 1), say("firstAnswer", nth + 1), it.refused) : []);
  return [...message(say("reqHeaders"), say("reqBody"), detail.request), ...tried, ...message(say("resHeaders"), say("resBody"), detail.answer)];
}

function message(headers, body, { headers: lines, body: text, cut, binary }) {
  const rows = lines.map(([name, value]) => make("tr", null, make("th", { scope: "row" }, name), make("td", null, value)));
  const rest = binary ? "\n" + say("binary") : cut ? "\n" + say("more") : "";
  return [make("h3", null, headers), make("table", { class: "headers" }, make("tbody", null, rows)),
    headers === body ? null : make("h3", null, body), make("pre", { tabindex: 0, "aria-label": body }, text || rest ? text + rest : say("empty"))].filter(Boolean);
}

function quoted(text) { return "'" + text.replaceAll("'", "'\\''") + "'"; }

// The call as a command; what is secret is for the reader to fill in.
function asCurl(exchange, detail) {
  const secret = (text) => text.includes("[masked]");
  const query = (detail?.query ?? "").split("&").filter((parameter) => parameter && !/^[^=]*token=\[masked\]$/i.test(parameter)).join("&");
  const parts = ["curl"];
  if (exchange.method !== "GET") parts.push("-X", quoted(exchange.method));
  if (exchange.client !== null) parts.push('-H "Authorization: Bearer $KEY"');
  const dropped = /^(host|content-length|authorization|x-api-key|x-wecom-agent|x-request-id|expect|accept-encoding)$/i;
  for (const [name, value] of detail?.request.headers ?? []) if (!dropped.test(name) && !secret(value)) parts.push("-H", quoted(name + ": " + value));
  if (exchange.agent && !exchange.path.startsWith("/" + exchange.agent + "/")) parts.push("-H", quoted("X-Wecom-Agent: " + exchange.agent));
  const body = detail?.request;
  if (body?.cut || body?.binary) parts.push("--data-binary", "@body");
  else if (body?.body) parts.push("--data-raw", quoted(body.body));
  return [...parts, quoted(proxyUrl + exchange.path + (query ? "?" + query : ""))].join(" ");
}

async function copy(text) {
  const said = byId("copied");
  try {
    await navigator.clipboard.writeText(text);
    said.textContent = say("copied");
  } catch {
    // Not every browser lets a page that came by plain HTTP write there.
    const command = make("pre", { tabindex: 0, class: "command" }, text);
    said.replaceChildren(say("cannotCopy"), command);
    getSelection().selectAllChildren(command);
  }
}
