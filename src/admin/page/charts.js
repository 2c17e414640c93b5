// Three small charts of the last hour, drawn by uPlot.
const MINUTES = 60, CHART_HEIGHT = 150;
const shownCharts = { list: [], looks: "" };

function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim(); }

function hourAndMinute(epoch) { return new Date(epoch * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" }); }

// A chart in its figure. Its caption tells the values of the minute under the cursor, or else the last ones.
function chart(title, series) {
  const legend = series.map(({ kind }) => make("i", { class: kind })), minute = make("span"), plot = make("div", { class: "plot", role: "img" });
  const figure = make("figure", null, make("figcaption", null, make("strong", null, title), legend, minute), plot);
  byId("charts").append(figure);
  const tell = (u) => {
    const nth = u.cursor.idx ?? null, last = (values) => values.findLast((value) => value !== null);
    series.forEach(({ name, write }, at) => {
      const value = nth === null ? last(u.data[at + 1]) : u.data[at + 1][nth];
      legend[at].textContent = name + " " + (value === undefined || value === null ? "–" : write(value));
    });
    minute.textContent = nth === null ? "" : hourAndMinute(u.data[0][nth]);
    plot.setAttribute("aria-label", title + ": " + legend.map((it) => it.textContent).join(", "));
  };
  const u = new uPlot(looks(plot.clientWidth, series, tell), [[], ...series.map(() => [])], plot);
  return { u, series, plot, tell };
}

function looks(width, series, tell) {
  // Halves of a request are no scale.
  const bars = series.every((it) => it.bars), axis = { stroke: colour("quiet"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  const drawn = series.map(({ kind, bars }) => ({
    stroke: colour(kind), fill: bars ? colour(kind) : undefined, width: bars ? 0 : 1.8,
    paths: bars ? uPlot.paths.bars({ size: [0.8] }) : undefined, points: { show: !bars, size: 4, width: 0, fill: colour(kind) },
  }));
  return {
    width, height: CHART_HEIGHT, legend: { show: false }, series: [{}, ...drawn],
    cursor: { y: false, drag: { x: false, y: false } },
    scales: { x: { range: (u, first, last) => [first - 30, last + 30] }, y: { range: (u, least, most) => [0, Math.max(1, most * 1.05)] } },
    axes: [{ ...axis, size: 24, space: 45, values: (u, splits) => splits.map(hourAndMinute) }, { ...axis, size: 46, space: 30, values: (u, splits) => splits.map((it) => bars && it % 1 ? "" : number(it)) }],
    hooks: { setCursor: [tell], setData: [tell] },
  };
}

// They are made anew when what they look like has changed.
function showCharts(minutes) {
  const whole = (value) => number(Math.round(value)), place = byId("charts");
  const now = [language, colour("blue"), place.clientWidth].join();
  if (now !== shownCharts.looks) {
    shownCharts.looks = now;
    shownCharts.list.forEach(({ u }) => u.destroy());
    place.replaceChildren();
    shownCharts.list = [
      chart(say("perMinute"), [{ name: say("requests"), kind: "blue", bars: true, of: (it) => it.requests, write: whole }]),
      chart(say("errors"), [{ name: say("failed"), kind: "bad", bars: true, of: (it) => it.failed, write: whole }]),
      chart(say("latency"), [
        { name: "p50", kind: "blue", of: (it) => it.p50_ms, write: milliseconds },
        { name: "p99", kind: "warn", of: (it) => it.p99_ms, write: milliseconds }]),
    ];
    // The first one has made room for the others.
    shownCharts.list.forEach(({ u, plot }) => u.setSize({ width: plot.clientWidth, height: CHART_HEIGHT }));
  }
  // Minutes before the proxy's beginning stay empty.
  const known = new Map(minutes.map((it) => [it.at, it])), end = minutes.at(-1)?.at ?? 0;
  const all = Array.from({ length: MINUTES }, (_, nth) => end - (MINUTES - 1 - nth) * 60);
  for (const { u, series } of shownCharts.list) u.setData([all, ...series.map(({ of }) => all.map((at) => known.has(at) ? of(known.get(at)) : null))]);
}

const SVG = "http://www.w3.org/2000/svg";

function draw(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function showOverview(overview) {
  const { minutes } = overview, requests = minutes.reduce((sum, it) => sum + it.requests, 0), failed = minutes.reduce((sum, it) => sum + it.failed, 0);
  const facts = [["total", number(requests)], ["failedShare", requests ? (100 * failed / requests).toFixed(failed && failed / requests < 0.1 ? 1 : 0) + " %" : "–"], ["inFlight", number(overview.in_flight)], ["connections", number(overview.connections)]];
  byId("numbers").replaceChildren(...facts.map(([word, value]) => make("div", null, make("dt", null, say(word)), make("dd", null, value))));
  showCharts(minutes);
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
