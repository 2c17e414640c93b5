// Three small charts of sixty minutes. A chart library would lie in the tree as other people's code and be several times
// this page; these need no axes, zoom or cursor beyond what SVG gives.
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300, HEIGHT = 100, TOP = 2, BOTTOM = 98, MINUTES = 60;

function draw(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// The next number above that is easy to read.
function round(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

// Where a minute stands; those before the proxy's beginning stay empty.
function place(minute, now) { return WIDTH * (1 - (now - minute.at + 60) / (MINUTES * 60)); }

function chart(title, minutes, now, series) {
  const values = series.flatMap(({ of }) => minutes.map(of)).filter((value) => value !== null);
  const most = round(Math.max(1, ...values));
  const height = (value) => BOTTOM - (BOTTOM - TOP) * (value / most);
  const last = (of) => { const some = minutes.map(of).filter((value) => value !== null); return some.length ? some[some.length - 1] : null; };
  const said = series.map(({ name, of, write }) => name + " " + (last(of) === null ? "–" : write(last(of)))).join(", ");
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title + ": " + said, preserveAspectRatio: "none" });
  for (const value of [0, most / 2, most]) svg.append(draw("line", { class: "grid", x1: 0, x2: WIDTH, y1: height(value), y2: height(value), "vector-effect": "non-scaling-stroke" }));
  for (const one of series) svg.append(one.bars ? bars(one, minutes, now, height) : line(one, minutes, now, height));
  const legend = series.map(({ name, kind, of, write }) => make("i", { class: kind }, name + " " + (last(of) === null ? "–" : write(last(of)))));
  const scale = make("p", { class: "scale" }, make("span", null, say("minutesAgo", 60)), make("span", null, "0–" + number(most)), make("span", null, say("now")));
  return make("figure", null, make("figcaption", null, make("strong", null, title), legend), svg, scale);
}

function bars({ of, kind }, minutes, now, height) {
  const group = draw("g", { class: kind });
  for (const minute of minutes) {
    const value = of(minute);
    if (!value) continue;
    const bar = draw("rect", { class: "bar-of", x: place(minute, now), width: WIDTH / MINUTES - 1, y: height(value), height: BOTTOM - height(value) });
    bar.append(draw("title", {}, clock(minute.at) + ": " + number(value)));
    group.append(bar);
  }
  return group;
}

// Where nothing was measured the line has a gap; a lone minute is a dash.
function line({ of, kind }, minutes, now, height) {
  let path = "", open = false;
  for (const minute of minutes) {
    const value = of(minute);
    if (value !== null) {
      const x = place(minute, now) + WIDTH / MINUTES / 2;
      path += open ? `L${x} ${height(value)}` : `M${x - 1.5} ${height(value)}L${x + 1.5} ${height(value)}`;
    }
    open = value !== null;
  }
  const group = draw("g", { class: kind });
  group.append(draw("path", { class: "line", d: path, "vector-effect": "non-scaling-stroke" }));
  return group;
}

function showOverview(overview) {
  const { minutes } = overview, requests = minutes.reduce((sum, it) => sum + it.requests, 0), failed = minutes.reduce((sum, it) => sum + it.failed, 0);
  const facts = [["total", number(requests)], ["failedShare", requests ? (100 * failed / requests).toFixed(failed && failed / requests < 0.1 ? 1 : 0) + " %" : "–"], ["inFlight", number(overview.in_flight)], ["connections", number(overview.connections)]];
  byId("numbers").replaceChildren(...facts.map(([word, value]) => make("div", null, make("dt", null, say(word)), make("dd", null, value))));
  const whole = (value) => number(Math.round(value)), now = minutes.length ? minutes[minutes.length - 1].at : overview.at;
  byId("charts").replaceChildren(
    chart(say("perMinute"), minutes, now, [{ name: say("requests"), kind: "blue", bars: true, of: (it) => it.requests, write: whole }]),
    chart(say("errors"), minutes, now, [{ name: say("failed"), kind: "red", bars: true, of: (it) => it.failed, write: whole }]),
    chart(say("latency"), minutes, now, [
      { name: "p50", kind: "blue", of: (it) => it.p50_ms, write: milliseconds },
      { name: "p99", kind: "amber", of: (it) => it.p99_ms, write: milliseconds }]));
}

function showClients(overview) {
  const table = byId("clients"), { clients } = overview;
  head(table, [say("client")], [say("requests"), "number"], [say("uses")]);
  const rows = clients.slice(0, 200).map(({ name, agents }) => {
    const used = agents.slice().sort((one, other) => other.requests - one.requests);
    const chips = used.slice(0, 20).map((it) => chip((it.name ?? "–") + " " + number(it.requests)));
    if (used.length > 20) chips.push(chip("+" + (used.length - 20)));
    return row(table, [[name ?? say("nobody")], [number(used.reduce((sum, it) => sum + it.requests, 0)), "number"], [make("div", { class: "chips" }, chips)]]);
  });
  const others = overview.unlisted_requests ? [emptyRow(table, say("unlisted", number(overview.unlisted_requests)))] : [];
  table.tBodies[0].replaceChildren(...(rows.length ? rows : [emptyRow(table, say("noClients"))]), ...others);
  byId("client-names").replaceChildren(...clients.slice(0, 200).filter(({ name }) => name).map(({ name }) => make("option", { value: name })));
}
